/** The variants of the decoder side by side: the explored latent in each, its difference and its time. */
import { type App, report } from "./app.js";
import { Client } from "./client.js";
import { button, element, section } from "./dom.js";
import { brief, briefTime } from "./numbers.js";
import type { Compared } from "./protocol.js";

/** The comparison; it runs in a worker of its own, so that the page stays quick. `where` opens the bundle there. */
export function variants(app: App, where: { url: string; digest: string }): HTMLElement {
  const { about, store, point, drawer } = app;
  const { variants: names } = about;
  if (names.length < 2) return section("variants", "Variants", `This bundle has one variant of its decoder, ${names[0]}.`);
  const results = element("div", { class: "variants", id: "compared", "aria-live": "polite" });

  function shown({ name, rows, milliseconds, error }: Compared, first: Compared): HTMLElement {
    const made = element("figure", {});
    if (!rows) {
      made.append(element("figcaption", {}, element("b", {}, name), element("span", {}, error ?? "")));
      return made;
    }
    const canvas = drawer.canvas(rows, 0, 280);
    canvas.setAttribute("role", "img");
    canvas.setAttribute("aria-label", `Decoded by ${name}`);
    let most = 0;
    if (first.rows) rows.data.forEach((value, index) => (most = Math.max(most, Math.abs(value - first.rows!.data[index]))));
    const difference = rows === first.rows ? "the reference" : `max difference ${brief(most)}`;
    made.append(canvas, element("figcaption", {}, element("b", {}, name), element("span", {}, difference), element("span", {}, briefTime(milliseconds))));
    return made;
  }

  async function compare(): Promise<void> {
    run.disabled = true;
    run.textContent = "Comparing …";
    const client = new Client();
    try {
      await client.ask("open", where, "open");
      const { conditions, edits } = store.state;
      const answers = await client.ask("compare", { z: point.latent(edits), conditions }, "compare");
      if (answers) results.replaceChildren(...answers.map((answer) => shown(answer, answers[0])));
      stale.hidden = true;
    } finally {
      client.close();
      run.disabled = false;
      run.textContent = "Compare";
    }
  }

  const run = button("Compare", () => compare().catch(report), { id: "compare" });
  const stale = element("p", { class: "note", hidden: true }, "These are of the latent as it was. Compare again.");
  store.on(["at", "edits", "conditions"], () => (stale.hidden = !results.childElementCount));
  return section("variants", "Variants", "The explored latent in every variant; the time is that of one row, here and now.",
    element("p", { class: "buttons" }, run), stale, results);
}

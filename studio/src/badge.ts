/** The badge: whether this browser computes what PyTorch computed at export. */
import { Client } from "./client.js";
import { element } from "./dom.js";
import { brief } from "./numbers.js";
import type { Checked } from "./protocol.js";

/** The greatest difference that the checks found; null where none was measured. */
export function worstOf(checks: readonly Checked[]): number | null {
  const measured = checks.flatMap(({ difference }) => difference ?? []);
  return measured.length ? Math.max(...measured) : null;
}

/** A badge with the report behind it. */
export function badge(): { node: HTMLElement; verify: (where: { url: string; digest: string }) => Promise<void> } {
  const summary = element("summary", { id: "badge", class: "badge", role: "status" }, "Verifying …");
  const rows = element("tbody", {});
  const node = element("details", { class: "verification" }, summary,
    element("div", { class: "report" },
      element("p", { class: "note" }, "Every file was hashed, and every graph was run on the golden vectors of the bundle, in this browser."),
      element("table", {}, element("thead", {}, element("tr", {}, element("th", {}, "check"), element("th", {}, "result"), element("th", {}, "detail"))), rows)));

  node.addEventListener("keydown", (event) => {
    if (event.key !== "Escape") return;
    node.open = false;
    summary.focus();
  });

  async function verify(where: { url: string; digest: string }): Promise<void> {
    const client = new Client();
    try {
      await client.ask("open", where, "open");
      const checks = (await client.ask("verify", null, "verify")) ?? [];
      const isPassed = checks.every(({ passed }) => passed !== false);
      const worst = worstOf(checks);
      rows.replaceChildren(...checks.map(({ what, passed, detail }) =>
        element("tr", {}, element("td", {}, what), element("td", {}, passed === null ? "not run" : passed ? "ok" : "FAILED"), element("td", {}, detail))));
      summary.classList.add(isPassed ? "good" : "bad");
      summary.textContent = isPassed
        ? `Verified here${worst === null ? "" : `: worst difference ${brief(worst)}`}`
        : "Verification failed";
    } catch (error) {
      summary.classList.add("bad");
      summary.textContent = "Verification failed";
      rows.replaceChildren(element("tr", {}, element("td", {}, "open"), element("td", {}, "FAILED"), element("td", {}, (error as Error).message)));
    } finally {
      client.close();
    }
  }
  return { node, verify };
}

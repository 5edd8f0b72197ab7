/** The page: opens the bundle, builds the parts, and keeps the address of the page in step with what is chosen. */
import { type App, Point, type Source, report } from "./app.js";
import { badge } from "./badge.js";
import { Client } from "./client.js";
import { code, linkButton, pythonButton } from "./copy.js";
import { element, section, tell } from "./dom.js";
import { measureEffects } from "./effects.js";
import { portrait, sliders } from "./explore.js";
import { input } from "./input.js";
import { type Interpolation, interpolate } from "./interpolate.js";
import { read, written } from "./link.js";
import { map } from "./map.js";
import { Drawer } from "./observation.js";
import { controls, sheet, sheetDrawn } from "./sheet.js";
import { Store } from "./state.js";
import { traverse } from "./traverse.js";
import { variants } from "./variants.js";

/** What the server, or the static export, says of the bundle. */
interface Settings {
  bundle: string;
  digest: string;
  source: string;
  /** Whether this is a static export: code then loads the bundle from where the page found it. */
  exported?: boolean;
}

const main = document.getElementById("main")!;

async function open(): Promise<void> {
  const response = await fetch("studio.json");
  if (!response.ok) throw new Error(`studio.json: expected a file, got status ${response.status}; write the page again`);
  const settings = (await response.json()) as Settings;
  const where = { url: new URL(settings.bundle, document.baseURI).href, digest: settings.digest };
  const client = new Client();
  const about = (await client.ask("open", where, "open"))!;
  const [state, refused] = read(location.hash, about);
  const store = new Store(state);
  const drawer = new Drawer(about, about.likelihood.shape ?? about.observation.shape);
  const point = new Point(about.size);
  const app: App = { about, store, client, drawer, point, source: sourceOf(settings, where.url), cost: null };
  build(app, where);
  if (refused.length) tell(`The link says what this bundle does not have, or what is no such value: ${refused.join(", ")}. It was left out.`);
  follow(app);
}

function sourceOf({ source, digest, exported }: Settings, url: string): Source {
  if (exported) return { place: url.replace(/\/$/, ""), digest };
  return { place: source, digest: source.includes("://") ? digest : null };
}

function build(app: App, where: { url: string; digest: string }): void {
  const { about, point, store } = app;
  document.title = `${about.name} · vae-runtime studio`;
  document.getElementById("name")!.textContent = about.name;
  const facts = [about.description, `likelihood ${about.likelihood.kind}`, ...about.latents.map(({ name, shape }) => `${name} [${shape.join(", ")}]`), about.license];
  document.getElementById("about")!.textContent = facts.filter(Boolean).join(" · ");
  document.getElementById("digest")!.textContent = about.digest;
  const verified = badge();
  document.getElementById("badge-place")!.replaceChildren(verified.node, linkButton(app));

  const placed = { z: null, listeners: [] as (() => void)[] };
  const interpolation: Interpolation & { listeners: (() => void)[] } = { from: 0, to: 1, spherical: true, listeners: [] };
  const canExplore = about.size > 0 && about.noDecoder === null;
  const hasSheet = canExplore && about.noPrior === null;
  if (!canExplore) {
    const why = about.noDecoder ?? "The latents of this bundle are codes: they have neither sliders nor a map, and no prior to draw from.";
    main.replaceChildren(section("limits", "What this bundle cannot do", why), ...(about.conditions.length ? [controls(app)] : []), input(app, placed),
      ...(about.noEncoder ? [] : [code(app, interpolation)]));
    point.follow(app);
  } else {
    const effects = new Promise<Float32Array | null>((done, failed) => {
      let isStarted = false;
      const measure = () => {
        if (isStarted) return;
        isStarted = true;
        measureEffects(app).then(done, failed);
      };
      if (hasSheet) sheetDrawn.push(measure);
      else done(null);
    });
    effects.catch(report);
    point.follow(app);
    const space = map(app, effects, placed);
    const side = element("div", { class: "side" }, section("explored", "Explored", "", portrait(app, pythonButton(app, interpolation))), space);
    const parts = {
      samples: sheet(app), side, latent: sliders(app, effects), traversal: traverse(app, effects),
      interpolation: hasSheet ? interpolate(app, interpolation) : null,
      input: input(app, placed), variants: variants(app, where), code: code(app, interpolation),
    };
    const columns = element("div", { class: "columns" });
    main.replaceChildren(controls(app), columns);
    arrange(columns, parts);
    point.update(app, true).catch(report);
  }
  main.setAttribute("aria-busy", "false");
  let wait: ReturnType<typeof setTimeout> | undefined;
  store.on(["seed", "start", "count", "temperature", "truncation", "conditions", "variant", "at", "edits", "kept", "axes"], () => {
    clearTimeout(wait);
    wait = setTimeout(() => history.replaceState(null, "", `#${written(store.state, about)}`), 100);
  });
  // The first pictures come first.
  const start = () => void verified.verify(where);
  if (hasSheet) {
    let isStarted = false;
    sheetDrawn.push(() => {
      if (!isStarted) start();
      isStarted = true;
    });
  } else start();
}

type Parts = Record<"samples" | "side" | "latent" | "traversal" | "interpolation" | "input" | "variants" | "code", HTMLElement | null>;

/** Put the parts into two columns, or on a narrow screen in the order in which they are used. */
function arrange(columns: HTMLElement, parts: Parts): void {
  const narrow = matchMedia("(max-width: 899px)");
  const column = (...inner: (HTMLElement | null)[]) => element("div", { class: "column" }, ...inner);
  const place = () => {
    const { samples, side, latent, traversal, interpolation, input: own, variants: graphs, code: lines } = parts;
    columns.replaceChildren(...(narrow.matches
      ? [column(samples, side, lines, latent, traversal, interpolation, own, graphs)]
      : [column(samples, traversal, interpolation, graphs), column(side, latent, lines, own)]));
  };
  narrow.addEventListener("change", place);
  place();
}

/** Another link in this very page opens it anew. */
function follow({ store, about }: App): void {
  window.addEventListener("hashchange", () => {
    if (location.hash.slice(1) !== written(store.state, about)) location.reload();
  });
}

open().catch((error) => {
  main.setAttribute("aria-busy", "false");
  const text = error instanceof Error ? error.message : String(error);
  main.replaceChildren(section("limits", "The bundle does not open", "", element("p", { class: "error", role: "alert" }, text)));
  document.getElementById("badge-place")!.replaceChildren(element("span", { class: "badge bad", id: "badge" }, "Not opened"));
});

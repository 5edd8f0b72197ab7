/** Copy what is on screen as code, or as a link. */
import type { App } from "./app.js";
import { button, choice, element, labelled, section, setOptions, tell } from "./dom.js";
import { type Language, type Subject, codeOf } from "./code.js";
import type { Interpolation } from "./interpolate.js";
import { isWhole } from "./link.js";

const LANGUAGES = [["python", "Python"], ["javascript", "JavaScript"], ["c", "C"]] as const;

/** The button that copies the lines of Python for the explored sample. */
export function pythonButton({ about, store, source }: App, interpolation: Interpolation): HTMLElement {
  return button("Copy Python", () => copy(codeOf("python", "sample", { about, state: store.state, source, interpolation })), { id: "copy-python" });
}

/** Copy a text, and give whether the browser allowed it. */
async function copy(text: string): Promise<boolean> {
  try {
    await navigator.clipboard.writeText(text);
    tell("Copied.");
    return true;
  } catch {
    tell("The browser did not allow copying; select the text and copy it.");
    return false;
  }
}

/** The button that copies the page's address, which carries everything that was chosen. */
export function linkButton(app: App): HTMLElement {
  return button("Copy link", () => {
    copy(location.href).then((isCopied) => {
      if (isCopied && !isWhole(app.store.state)) tell("Copied, without the changes of the latent: they are too many for a link. Save the latent.");
    });
  }, { id: "copy-link" });
}

/** The lines of code. */
export function code(app: App, interpolation: Interpolation & { listeners: (() => void)[] }): HTMLElement {
  const { about, store, source } = app;
  const canExplore = about.size > 0 && about.noDecoder === null;
  let language: Language = "python";
  const lines = element("code", { id: "code" });
  const block = element("pre", { tabindex: 0, "aria-label": "Code" }, lines);

  function options(): (readonly [Subject, string])[] {
    const all: (readonly [Subject, string])[] = [];
    if (canExplore) all.push(["sample", "the explored sample"]);
    if (canExplore && !about.noPrior) all.push(["sheet", "the sheet"]);
    if (!about.noEncoder) all.push(["input", "the input"]);
    if (store.state.kept.length >= 2) all.push(["interpolation", "the interpolation"]);
    return all;
  }
  let subject: Subject = options()[0][0];
  const subjects = choice(options(), (value) => {
    subject = value as Subject;
    show();
  }, { id: "code-subject" });

  function show(): void {
    lines.textContent = codeOf(language, subject, { about, state: store.state, source, interpolation });
  }

  const tabs = LANGUAGES.map(([value, text]) => button(text, () => {
    language = value;
    for (const tab of tabs) tab.setAttribute("aria-pressed", String(tab.id === `code-${value}`));
    show();
  }, { id: `code-${value}`, "aria-pressed": String(value === language) }));
  store.on(["seed", "start", "count", "temperature", "truncation", "conditions", "variant", "at", "edits", "kept"], (changed) => {
    if (changed.has("kept")) {
      setOptions(subjects, options());
      subject = subjects.value as Subject;
    }
    show();
  });
  interpolation.listeners.push(show);
  show();
  return section("as-code", "Code", "These lines compute the same.",
    element("div", { class: "controls" }, element("span", { class: "tabs", role: "group", "aria-label": "Language" }, ...tabs),
      labelled("Lines for", subjects), button("Copy", () => copy(lines.textContent ?? ""), { id: "copy-code" })), block);
}

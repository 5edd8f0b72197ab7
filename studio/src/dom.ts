/** Elements of the page. Texts of a bundle become text nodes or attributes of text, never markup. */

type Child = Node | string | null | undefined | false;
type Properties = Record<string, unknown>;

/** Make an element: functions are listeners, true and false switch attributes, the rest are attributes. */
export function element<K extends keyof HTMLElementTagNameMap>(
  tag: K, properties: Properties = {}, ...children: Child[]
): HTMLElementTagNameMap[K] {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (typeof value === "function") made.addEventListener(name, value as EventListener);
    else if (value === true) made.setAttribute(name, "");
    else if (value !== false && value != null) made.setAttribute(name, String(value));
  }
  made.append(...children.filter((child): child is Node | string => child != null && child !== false));
  return made;
}

/** A control with its label in front. */
export function labelled(text: string, control: HTMLElement, hint?: string): HTMLLabelElement {
  return element("label", { class: "field", title: hint }, element("span", {}, text), control);
}

/** A button. */
export function button(text: string, click: () => void, properties: Properties = {}): HTMLButtonElement {
  return element("button", { type: "button", click, ...properties }, text);
}

/** A list to choose from; the options are values with their texts. */
export function choice(options: readonly (readonly [string, string])[], change: (value: string) => void, properties: Properties = {}) {
  const made = element("select", { change: () => change(made.value), ...properties });
  setOptions(made, options);
  return made;
}

/** Replace the options of a list; what was chosen stays chosen where it can. */
export function setOptions(list: HTMLSelectElement, options: readonly (readonly [string, string])[]): void {
  const chosen = list.value;
  list.replaceChildren(...options.map(([value, text]) => element("option", { value }, text)));
  if (options.some(([value]) => value === chosen)) list.value = chosen;
}

/** A part of the page under a heading. */
export function section(id: string, title: string, note: string, ...children: Child[]): HTMLElement {
  return element(
    "section", { id, "aria-labelledby": `${id}-title` },
    element("h2", { id: `${id}-title` }, title), note && element("p", { class: "note" }, note), ...children,
  );
}

/** Let the reader save bytes as a file. */
export function save(name: string, content: Blob): void {
  const address = URL.createObjectURL(content);
  element("a", { href: address, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(address), 60_000);
}

let silence: ReturnType<typeof setTimeout> | undefined;

/** Tell the reader in the line at the foot of the page, which screen readers read out; it goes after a while. */
export function tell(text: string): void {
  const line = document.getElementById("status")!;
  line.textContent = text;
  clearTimeout(silence);
  if (text) silence = setTimeout(() => (line.textContent = ""), 4000 + 60 * text.length);
}

/** What the reader has chosen, and who wants to know of changes. */
import type { About, ConditionValues } from "./protocol.js";

/** A sample: row `index` of the seed, and how it was drawn. */
export interface Address {
  seed: bigint;
  index: bigint;
  temperature: number;
  truncation: number | null;
}

/** Everything that a link carries. */
export interface State {
  seed: bigint;
  start: bigint;
  count: number;
  temperature: number;
  truncation: number | null;
  conditions: ConditionValues;
  variant: string | null;
  /** The sample that is explored; null starts from zeros. */
  at: Address | null;
  /** Numbers of the latent that were changed, by their places in a row. */
  edits: ReadonlyMap<number, number>;
  kept: readonly Address[];
  /** The two dimensions of the map; null until the strongest are known. */
  axes: readonly [number, number] | null;
}

export type Key = keyof State;

/** What the page shows before anything is chosen. */
export function initialState(about: About): State {
  const conditions: ConditionValues = {};
  for (const { name, classes, range } of about.conditions) {
    conditions[name] = classes ? classes[0] : [range ? Math.max(0, range[0]) : 0];
  }
  const start = { seed: 7n, start: 0n, count: 36, temperature: 1, truncation: null };
  const at = about.noPrior ? null : { seed: 7n, index: 0n, temperature: 1, truncation: null };
  return { ...start, conditions, variant: null, at, edits: new Map(), kept: [], axes: null };
}

/** Whether two addresses are one sample. */
export function isSame(a: Address | null, b: Address | null): boolean {
  if (!a || !b) return a === b;
  return a.seed === b.seed && a.index === b.index && a.temperature === b.temperature && a.truncation === b.truncation;
}

/** An address as the page writes it. */
export function addressText({ seed, index, temperature, truncation }: Address): string {
  const rest = `${temperature === 1 ? "" : `, temperature ${temperature}`}${truncation === null ? "" : `, truncation ${truncation}`}`;
  return `seed ${seed}, index ${index}${rest}`;
}

/** Holds the state; parts of the page listen for the keys that they show. */
export class Store {
  private readonly listeners: [readonly Key[], (changed: ReadonlySet<Key>) => void][] = [];

  constructor(public state: State) {}

  /** Call `listener` whenever one of the keys has changed. */
  on(keys: readonly Key[], listener: (changed: ReadonlySet<Key>) => void): void {
    this.listeners.push([keys, listener]);
  }

  /** Change some keys and tell the listeners. */
  set(changes: Partial<State>): void {
    this.state = { ...this.state, ...changes };
    const changed = new Set(Object.keys(changes) as Key[]);
    for (const [keys, listener] of this.listeners) if (keys.some((key) => changed.has(key))) listener(changed);
  }
}

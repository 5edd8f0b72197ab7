/** What all parts of the page share: the bundle, the state, the worker, and the latent that is explored. */
import { tell } from "./dom.js";
import type { Client } from "./client.js";
import type { Drawer } from "./observation.js";
import type { About, Rows } from "./protocol.js";
import { type Address, type Store, addressText } from "./state.js";

/** The bundle as code names it. */
export interface Source {
  /** A path on the machine that serves the page, or a URL. */
  place: string;
  /** The digest that code gives with a URL; null with a path. */
  digest: string | null;
}

/** The page's parts see each other through this. */
export interface App {
  about: About;
  store: Store;
  client: Client;
  drawer: Drawer;
  point: Point;
  source: Source;
  /** What one row takes to decode, in milliseconds; null until it is measured. */
  cost: number | null;
}

export type Extent = readonly [number, number];

/** Say what went wrong; nothing else of the page stops. */
export function report(error: unknown): void {
  tell(error instanceof Error ? error.message : String(error));
}

// No call takes much longer, so that what the reader does next is answered soon.
const MILLISECONDS = 100;
const MAX_SLICE = 32;

/** How many rows to decode at once. */
export function sliceOf({ cost }: App): number {
  return cost === null ? 2 : Math.min(MAX_SLICE, Math.max(1, Math.floor(MILLISECONDS / cost)));
}

const newest = new Map<string, object>();

/**
 * Decode rows of latents under the conditions and the variant that are chosen, some at a time.
 *
 * @param key - a newer call of this key replaces the one that runs, which then gives null.
 */
export async function decode(app: App, z: Float32Array, n: number, key: string, urgency: number): Promise<Rows | null> {
  const own = {};
  newest.set(key, own);
  const { conditions, variant } = app.store.state;
  const size = z.length / n;
  let whole: Rows | null = null;
  for (let first = 0; first < n; ) {
    const many = Math.min(sliceOf(app), n - first);
    const part = z.slice(first * size, (first + many) * size);
    const rows = await app.client.ask("decode", { z: part, n: many, conditions, variant }, key, urgency);
    if (!rows || newest.get(key) !== own) return null;
    app.cost = rows.milliseconds / many;
    const { data, shape } = rows;
    whole ??= { data: new Float32Array((data.length / many) * n), shape: [n, ...shape.slice(1)] };
    whole.data.set(data, (data.length / many) * first);
    first += many;
  }
  return whole;
}

/** The latent that is explored: a sample, or zeros, with the changes that were made to it. */
export class Point {
  /** The latent before changes. */
  base: Float32Array;
  /** What it decodes to; null before the first. */
  rows: Rows | null = null;
  private readonly known = new Map<string, Float32Array>();
  private readonly moved: (() => void)[] = [];
  private readonly decoded: (() => void)[] = [];
  private turn = 0;

  constructor(size: number) {
    this.base = new Float32Array(size);
  }

  /** Remember the latents of a sheet, so that choosing one is instant. */
  learn(address: Address, z: Float32Array): void {
    if (this.known.size > 2000) this.known.clear();
    this.known.set(addressText(address), z);
  }

  /** Call `listener` when the latent has changed. */
  onMove(listener: () => void): void {
    this.moved.push(listener);
  }

  /** Call `listener` when the latent is decoded. */
  onDecode(listener: () => void): void {
    this.decoded.push(listener);
  }

  /** The latent with its changes. */
  latent(edits: ReadonlyMap<number, number>): Float32Array {
    const z = this.base.slice();
    for (const [place, value] of edits) z[place] = value;
    return z;
  }

  /** The latent of an address, drawn if it is not known. */
  async latentOf(app: App, address: Address): Promise<Float32Array> {
    const { seed, index, temperature, truncation } = address;
    const name = addressText(address);
    const z =
      this.known.get(name) ??
      (await app.client.ask("prior", { seed, start: index, n: 1, temperature, truncation }, `prior ${name}`, 3)) ??
      (await this.latentOf(app, address));
    this.known.set(name, z);
    return z;
  }

  /** Follow the state: the address, the changes, the conditions and the variant. */
  follow(app: App): void {
    const { store } = app;
    store.on(["at", "edits", "conditions", "variant"], (changed) => {
      this.update(app, changed.has("at")).catch(report);
    });
  }

  /** Take the latent of the state and decode it. */
  async update(app: App, isElsewhere: boolean): Promise<void> {
    const turn = ++this.turn;
    if (isElsewhere) {
      const { at } = app.store.state;
      const base = at ? await this.latentOf(app, at) : new Float32Array(this.base.length);
      if (turn !== this.turn && at !== app.store.state.at) return;
      this.base = base;
    }
    for (const listener of this.moved) listener();
    const rows = await decode(app, this.latent(app.store.state.edits), 1, "point", 3);
    if (!rows) return;
    this.rows = rows;
    for (const listener of this.decoded) listener();
  }
}

/** Put a value in one place of the latent. */
export function edit(app: App, changes: Iterable<readonly [number, number]>): void {
  const edits = new Map(app.store.state.edits);
  for (const [place, value] of changes) edits.set(place, Math.fround(value));
  app.store.set({ edits });
}

/** The name of one number of the latent. */
export function dimensionName({ about }: App, place: number): string {
  const latent = about.latents.find(({ first, size }) => place >= first && place < first + size)!;
  const index = unravelled(place - latent.first, latent.shape).join(", ");
  return `${latent.name}[${index}]`;
}

/** The indices of a flat place. */
export function unravelled(place: number, shape: readonly number[]): number[] {
  const indices: number[] = [];
  for (const size of [...shape].reverse()) {
    indices.unshift(place % size);
    place = Math.floor(place / size);
  }
  return indices;
}

/** Between which values a number of the latent usually lies. */
export function extentOf({ about }: App, place: number): Extent {
  const latent = about.latents.find(({ first, size }) => place >= first && place < first + size)!;
  return latent.prior === "sphere" ? [-1, 1] : latent.prior === "mixture" ? [-5, 5] : [-3, 3];
}

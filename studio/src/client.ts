/** Ask a worker. One call runs at a time; what waits goes by urgency, and of what has one key only the newest. */
import type { CallName, Calls } from "./protocol.js";

interface Waiting {
  key: string;
  urgency: number;
  call: CallName;
  args: unknown;
  done: (result: any) => void;
  failed: (error: Error) => void;
}

declare const trustedTypes: { createPolicy(name: string, rules: object): { createScriptURL(url: string): string } } | undefined;

const scripts = typeof trustedTypes === "undefined"
  ? null
  : trustedTypes.createPolicy("studio", { createScriptURL: (url: string) => url });

/** One worker with the bundle. */
export class Client {
  private readonly worker: Worker;
  private waiting: Waiting[] = [];
  private running: Waiting | null = null;
  private id = 0;

  constructor() {
    const url = new URL("worker.js", document.baseURI).href;
    this.worker = new Worker(scripts ? scripts.createScriptURL(url) : url, { type: "module" });
    this.worker.addEventListener("message", ({ data }) => {
      if (data.id !== this.id || !this.running) return;
      const { done, failed } = this.running;
      this.running = null;
      this.next();
      if ("error" in data) failed(new Error(data.error));
      else done(data.result);
    });
    this.worker.addEventListener("error", (event) => {
      this.running?.failed(new Error(event.message || "the worker did not start; reload the page"));
      this.running = null;
      this.next();
    });
  }

  /**
   * Ask for a call.
   *
   * @param key - an earlier call of this key that still waits is dropped and answers null.
   * @param urgency - the highest goes first.
   */
  ask<K extends CallName>(call: K, args: Calls[K][0], key: string, urgency = 0): Promise<Calls[K][1] | null> {
    return new Promise((done, failed) => {
      this.waiting = this.waiting.filter((each) => {
        if (each.key === key) each.done(null);
        return each.key !== key;
      });
      this.waiting.push({ key, urgency, call, args, done, failed });
      this.next();
    });
  }

  /** End the worker. */
  close(): void {
    this.worker.terminate();
  }

  private next(): void {
    if (this.running || !this.waiting.length) return;
    this.running = this.waiting.reduce((best, each) => (each.urgency > best.urgency ? each : best));
    this.waiting.splice(this.waiting.indexOf(this.running), 1);
    const { call, args } = this.running;
    this.worker.postMessage({ id: ++this.id, call, args });
  }
}

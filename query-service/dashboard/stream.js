// Server-sent events over fetch: EventSource can't carry a token, and hides why it failed.

import { Refused, request } from './api.js';

/** The service sends at least a comment every 15 s. */
const SILENCE_MS = 40_000;
const FIRST_PAUSE_MS = 500;
const LONGEST_PAUSE_MS = 10_000;

/** Takes a stream's text apart into events, however it was cut on its way. */
export class Parser {
  #rest = '';
  #event = '';
  #data = [];
  #id = null;
  /** The last one that came whole: before that, its event would be lost with the connection. */
  id = null;
  retryMs = null;

  /** The events that are complete with this piece. */
  push(text) {
    const lines = (this.#rest + text).split(/\r\n|\n|\r(?!$)/);
    this.#rest = lines.pop();
    const events = [];
    for (const line of lines) {
      if (line === '') {
        this.id = this.#id;
        if (this.#data.length) events.push({ type: this.#event || 'message', data: this.#data.join('\n') });
        this.#event = '';
        this.#data = [];
        continue;
      }
      const colon = line.indexOf(':');
      const name = colon < 0 ? line : line.slice(0, colon);
      const value = colon < 0 ? '' : line.slice(colon + 1).replace(/^ /, '');
      if (name === 'data') this.#data.push(value);
      else if (name === 'event') this.#event = value;
      else if (name === 'id') this.#id = value;
      else if (name === 'retry' && /^\d+$/.test(value)) this.retryMs = Number(value);
    }
    return events;
  }
}

/**
 * Follows a stream, from its last id on whenever it breaks. Calls `opened()`, `event(type, data)`, `closed(error)`.
 * `again()` tries at once instead of when the pause is over; `rest()` lets go of the connection until then.
 */
export function follow(path, { opened, event, closed }) {
  let [lastId, pauseMs, failures, resting, wake, abort] = [null, FIRST_PAUSE_MS, 0, false, null, null];

  async function once() {
    abort = new AbortController();
    let watch;
    const alive = () => {
      clearTimeout(watch);
      watch = setTimeout(() => abort.abort(), SILENCE_MS);
    };
    try {
      alive();
      const headers = { Accept: 'text/event-stream', ...(lastId && { 'Last-Event-ID': lastId }) };
      const response = await request(path, { headers, signal: abort.signal });
      failures = 0;
      opened();
      const parser = new Parser();
      const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
      for (;;) {
        const { value, done } = await reader.read();
        if (done) return;
        alive();
        const events = parser.push(value);
        lastId = parser.id ?? lastId;
        pauseMs = parser.retryMs ?? pauseMs;
        for (const { type, data } of events) {
          if (type === 'reset') {
            // What was missed is read anew by ordinary queries, so only what comes from now on is wanted.
            lastId = null;
            return;
          }
          event(type, JSON.parse(data));
        }
      }
    } finally {
      clearTimeout(watch);
      abort.abort();
    }
  }

  /** Until the time is up, or somebody wants it to go on. */
  const sleep = (millis) => new Promise((resolve) => {
    wake = resolve;
    if (millis !== null) setTimeout(resolve, millis);
  });

  async function run() {
    for (;;) {
      let error;
      await once().catch((caught) => (error = caught));
      if (error instanceof Refused && error.status === 400) lastId = null;
      closed(error);
      // Without a token there is nothing to try.
      const waits = resting || error?.status === 401;
      const pause = error?.retryAfter ? error.retryAfter * 1000 : Math.min(pauseMs * 2 ** failures, LONGEST_PAUSE_MS);
      failures += 1;
      // A little of chance, so that all pages don't come back in the same moment.
      if (!waits) await sleep(pause * (0.75 + Math.random() / 2));
      // It may have been told to rest meanwhile.
      if (waits || resting) await sleep(null);
    }
  }

  run();
  return {
    again() {
      resting = false;
      wake?.();
    },
    rest() {
      resting = true;
      lastId = null;
      abort.abort();
    },
  };
}

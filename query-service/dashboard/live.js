// What the page knows of the system, kept up to date. Changes come by the stream; totals are asked for when something
// changed, at most once a second, so that a thousand changes a second cost no more than one.

import { Refused, get, token } from './api.js';
import { follow } from './stream.js';
import { useEffect, useState } from './ui.js';

/** Samples of the charts: five minutes of seconds, and ten minutes of lag. */
export const RATE_SAMPLES = 300;
const LAG_SAMPLES = 300;
/** Changes shown on the first page. */
const FEED = 30;
/** A page is drawn so often at most: nobody reads faster. */
const DRAW_MS = 150;
const TICK_MS = 1_000;
const HIDDEN_MS = 10_000;
/** Behind for so long is worth a word. */
export const BEHIND_S = 5;

export const live = {
  /** `connecting`, `live`, `polling` (figures come, but late), `lost` (they don't), `locked` (a token is wanted). */
  connection: 'connecting',
  /** There is a token, and it is not the right one. */
  tokenRefused: false,
  /** When query-service answered last. */
  answeredAt: null,
  stats: null,
  statsAt: null,
  statsProblem: null,
  perSecond: null,
  rate: { times: [], values: [] },
  feed: [],
  projections: null,
  /** By projection: times, and of each partition its lag at those times. */
  lag: new Map(),
  health: null,
  deadLetters: null,
};

const drawers = new Set();
const changeListeners = new Set();
let drawn = 0;
let drawing = false;

/** Something changed: draw with the next frame, or a little later when one was drawn just now. */
function changed() {
  if (drawing) return;
  drawing = true;
  setTimeout(() => requestAnimationFrame(() => {
    drawing = false;
    drawn = performance.now();
    for (const draw of drawers) draw();
  }), Math.max(0, DRAW_MS - (performance.now() - drawn)));
}

/** Draws a component again whenever something changed. */
export function useLive() {
  const [, set] = useState(0);
  useEffect(() => {
    const draw = () => set((times) => times + 1);
    drawers.add(draw);
    return () => drawers.delete(draw);
  }, []);
  return live;
}

/** Calls back with each change, and with `null` when anything may have changed: there was no stream that tells. */
export function useChanges(callback, inputs) {
  useEffect(() => {
    changeListeners.add(callback);
    return () => changeListeners.delete(callback);
  }, inputs);
}

function tell(change) {
  for (const listener of changeListeners) listener(change);
}

let streaming = false;
let dirty = true;
let stream;

export function start() {
  stream = follow('bank-accounts/changes', {
    opened: () => {
      streaming = true;
      dirty = true;
      setConnection('live');
      tell(null);
      tick();
    },
    event: (type, change) => {
      if (type !== 'change') return;
      dirty = true;
      live.feed.unshift(change);
      live.feed.length = Math.min(live.feed.length, FEED);
      tell(change);
      changed();
    },
    closed: (error) => {
      streaming = false;
      if (error?.status === 401) lock();
      else if (live.connection === 'live' || live.connection === 'connecting') setConnection('polling');
    },
  });
  setInterval(tick, TICK_MS);
  addEventListener('online', again);
  // A browser has six connections to a service, and keeps those of pages that were left but may be come back to. So a
  // page that nobody sees keeps none.
  addEventListener('pagehide', stream.rest);
  addEventListener('pageshow', (event) => event.persisted && again());
  let hidden;
  const seen = () => {
    clearTimeout(hidden);
    if (document.hidden) hidden = setTimeout(stream.rest, HIDDEN_MS);
    else again();
  };
  document.addEventListener('visibilitychange', seen);
  // It may be opened in the background.
  if (document.hidden) seen();
}

/** Tries at once. */
export function again() {
  stream.again();
  tick();
}

/** Goes on with a token that was typed in. */
export function unlock(text) {
  // What can't stand in a header is no token, and would break every question.
  if (!/^[\x21-\x7e]+$/.test(text)) {
    live.tokenRefused = true;
    changed();
    return;
  }
  token.set(text);
  setConnection('connecting');
  again();
}

function lock() {
  live.tokenRefused = token.get() !== null;
  setConnection('locked');
}

function setConnection(state) {
  if (live.connection === state) return;
  live.connection = state;
  changed();
}

/** One kind of question: not before its time, and never twice at once. */
function question(everyMs, ask) {
  let [asking, asked] = [false, -Infinity];
  return async (now = false) => {
    if (asking || (!now && performance.now() - asked < everyMs)) return;
    asking = true;
    asked = performance.now();
    try {
      await ask();
      answered();
    } catch (error) {
      if (!(error instanceof Refused)) throw error;
      refused(error);
    } finally {
      asking = false;
      changed();
    }
  };
}

function answered() {
  live.answeredAt = Date.now();
  setConnection(streaming ? 'live' : 'polling');
}

function refused(error) {
  if (error.status === 401) lock();
  else if (error.status === 0 || error.status === 502 || error.status === 504) {
    live.perSecond = null;
    counted = null;
    setConnection('lost');
  } else {
    // Any other answer is one: the connection is there.
    answered();
  }
}

const askStats = question(0, async () => {
  dirty = false;
  try {
    const { body } = await get('bank-accounts/stats');
    live.statsProblem = null;
    count(body);
    live.stats = body;
    live.statsAt = Date.now();
  } catch (error) {
    dirty = true;
    if (error.status >= 500) live.statsProblem = error;
    throw error;
  }
});

let counted = null;

/** Events per second, by what the totals grew. */
function count(stats) {
  const events = Object.values(stats.currencies).reduce((sum, currency) => sum + Number(currency.events), 0);
  const now = performance.now();
  // Fewer than before: another projection, or another Redis.
  if (counted && events >= counted.events) sample((events - counted.events) / ((now - counted.at) / 1000));
  if (!streaming && counted && events !== counted.events) tell(null);
  counted = { events, at: now };
}

function sample(perSecond) {
  live.perSecond = perSecond;
  push(live.rate.times, Date.now() / 1000, RATE_SAMPLES);
  push(live.rate.values, perSecond, RATE_SAMPLES);
}

function push(list, value, limit) {
  list.push(value);
  if (list.length > limit) list.splice(0, list.length - limit);
}

const askProjections = question(2_000, async () => {
  const { body } = await get('projections');
  live.projections = body.projections;
  const now = Date.now() / 1000;
  for (const { name, partitions } of body.projections) {
    const of = live.lag.get(name) ?? { times: [], partitions: [] };
    live.lag.set(name, of);
    push(of.times, now, LAG_SAMPLES);
    for (const { partition, lag_records: lag } of partitions) push((of.partitions[partition] ??= []), lag, LAG_SAMPLES);
  }
});

const askHealth = question(3_000, async () => {
  live.health = (await get('health')).body;
});

const askDeadLetters = question(10_000, async () => {
  live.deadLetters = (await get('dead-letters')).body;
});

let quietSince = 0;

function tick() {
  if (live.connection === 'locked' || document.hidden) return;
  // Without changes there is nothing to ask; a look now and then does no harm.
  if (dirty || !streaming || performance.now() - quietSince > 10_000) {
    quietSince = performance.now();
    askStats();
  } else if (counted) {
    counted.at = performance.now();
    sample(0);
    changed();
  }
  askProjections();
  askHealth();
  askDeadLetters();
}

/** How far the views are behind the log: the worst of all projections; `null` where Kafka can't be asked. */
export function behind(projections) {
  const worst = { records: 0, seconds: 0 };
  for (const { partitions } of projections ?? []) {
    let waiting = 0;
    for (const { lag_records: records, lag_seconds: seconds } of partitions) {
      if (records == null) return null;
      waiting += records;
      worst.seconds = Math.max(worst.seconds, seconds ?? 0);
    }
    worst.records = Math.max(worst.records, waiting);
  }
  return worst;
}

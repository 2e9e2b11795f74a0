// One account: as it is, as it was at any version, its balance over time, and its events.

import { account, get, query } from '../api.js';
import { Chart, colour, fading, stepped } from '../chart.js';
import { change, count, dateTime, money, shortMoney, words } from '../format.js';
import { useChanges, useLive } from '../live.js';
import { Badge, Card, Empty, Figure, html, useEffect, useMemo, useRef, useState } from '../ui.js';

/** Events read at first, and more of them at a time. */
const PAGE = 300;
/** Events that are kept here; beyond, the oldest go. */
const KEPT = 5_000;
/** Rows shown at a time. */
const ROWS = 25;
/** However fast an account changes, it is asked for so often at most. */
const REFRESH_MS = 500;

/** Loads an account and its last events, and follows it. */
function useAccount(id) {
  const [state, set] = useState({ view: null, events: [], parked: false, error: null, trimmedTo: 0 });
  const now = useRef(state);
  const update = (changes) => set((now.current = { ...now.current, ...changes }));
  const gone = useRef(false);

  /** Events behind a sequence; where the oldest are not kept, from the first that is. */
  const history = async (after, wanted) => {
    const items = [];
    // Pages are as large as the service likes.
    let path = query(`${account(id)}/history`, { after_sequence: after });
    while (path && items.length < wanted) {
      try {
        const { body } = await get(path);
        items.push(...body.items);
        path = body.next?.replace('/v1/', '');
      } catch (error) {
        const kept = error.problem?.kept_since?.version;
        if (error.status !== 410 || kept == null || items.length) throw error;
        update({ trimmedTo: kept });
        path = query(`${account(id)}/history`, { after_sequence: kept });
      }
    }
    return items;
  };

  const load = async () => {
    try {
      const { body: view, headers } = await get(account(id));
      const { events } = now.current;
      // A gap that is too wide to be filled: begin anew with the last ones.
      const last = events.at(-1)?.sequence ?? 0;
      const after = view.version - last > PAGE || !last ? Math.max(0, view.version - PAGE) : last;
      const items = view.version > last ? await history(after, PAGE * 2) : [];
      if (gone.current) return;
      const all = after === last ? [...now.current.events, ...items.filter(({ sequence }) => sequence > last)] : items;
      // The history may be further by now than the view was.
      const newest = all.at(-1)?.state;
      update({
        view: newest && newest.version > view.version ? newest : view,
        events: all.slice(-KEPT),
        parked: headers.get('Millrace-Parked') === 'true',
        error: null,
      });
    } catch (error) {
      if (!gone.current) update({ error });
    }
  };

  const older = async () => {
    const first = now.current.events[0].sequence;
    const after = Math.max(now.current.trimmedTo, first - 1 - PAGE);
    const before = (await history(after, first - 1 - after)).filter(({ sequence }) => sequence < first);
    if (!gone.current) update({ events: [...before, ...now.current.events] });
  };

  const [busy, again, timer] = [useRef(false), useRef(false), useRef()];
  const refresh = async () => {
    if (busy.current) return void (again.current = true);
    busy.current = true;
    again.current = false;
    await load();
    timer.current = setTimeout(() => {
      busy.current = false;
      if (again.current) refresh();
    }, REFRESH_MS);
  };
  useEffect(() => {
    refresh();
    return () => {
      gone.current = true;
      clearTimeout(timer.current);
    };
  }, []);
  useChanges((change) => (!change || change.id === id) && refresh(), []);
  return { ...state, older };
}

export function Account({ id }) {
  const { connection } = useLive();
  const { view, events, parked, error, trimmedTo, older } = useAccount(id);
  // null: the present, whatever comes.
  const [chosen, choose] = useState(null);
  if (!view) {
    return html`<${Head} id=${id} /><section class="card">
      <${Empty}>${!error ? 'Loading …' : error.status === 404 ? 'There is no such account, or not yet.' : `It can't be had: ${error.message}.`}<//>
      <p><a href="#/accounts">All accounts</a></p></section>`;
  }
  const first = events[0]?.sequence ?? view.version;
  const lowest = Math.max(1, trimmedTo);
  const version = Math.min(Math.max(chosen ?? view.version, lowest), view.version);
  const pick = (wanted) => choose(wanted >= view.version ? null : wanted);
  return html`
    <${Head} id=${id} view=${view} parked=${parked} />
    <div class="grid account">
      <${Card} title="Balance over time" class="whole">
        <${Balance} events=${events} currency=${view.currency} version=${version} pick=${pick} />
        <${Past} id=${id} view=${view} version=${version} event=${events[version - first]} lowest=${lowest} pick=${pick} />
      <//>
      <${Events} events=${events} version=${version} pick=${pick} older=${older} trimmedTo=${trimmedTo} error=${error}
        connection=${connection} />
    </div>`;
}

/** As high without figures as with them. */
function Head({ id, view, parked }) {
  return html`<header class="account-head">
    <div><a class="back" href="#/accounts">Accounts</a><h1>${id}</h1>
      <p>${view ? html`<bdi>${view.owner}</bdi> <${Badge} tone=${view.status === 'open' ? 'good' : ''}>${view.status}<//>` : '…'}
        ${parked && html` <${Badge} tone="bad">parked: its newest events wait<//>`}</p></div>
    <dl class="figures">
      <${Figure} name="Balance now" value=${view ? money(view.balance_minor, view.currency) : '–'} tone="big" />
      <${Figure} name="Version" value=${count(view?.version)} />
    </dl>
  </header>`;
}

/** The chart is a picture of the table below it; a click on it chooses the version. */
function Balance({ events, currency, version, pick }) {
  const data = useMemo(
    () => [events.map(({ time }) => Date.parse(time) / 1000), events.map(({ state }) => state.balance_minor)],
    [events],
  );
  const at = useRef();
  at.current = { version, first: events[0]?.sequence ?? 1, pick };
  const plot = useRef();
  useEffect(() => plot.current?.redraw(false), [version]);
  const series = [{ stroke: () => colour('--accent'), width: 2, fill: fading('--accent'), paths: stepped, points: { show: false } }];
  const hooks = { draw: [(plot) => mark(plot, at.current.version - at.current.first)] };
  const balances = data[1];
  const label = `Balance over ${count(events.length)} events, from ${money(Math.min(...balances), currency)} to ${money(Math.max(...balances), currency)}`;
  const onReady = (made) => {
    plot.current = made;
    made.over.addEventListener('click', () => made.cursor.idx != null && at.current.pick(at.current.first + made.cursor.idx));
  };
  return html`<${Chart} label=${label} data=${data} series=${series} hooks=${hooks} height=${240} axisWidth=${76}
    value=${(minor) => shortMoney(Math.round(minor), currency)} onReady=${onReady} />`;
}

/** A line and a dot where the slider is. */
function mark(plot, index) {
  const [x, y] = [plot.data[0][index], plot.data[1][index]];
  if (x == null) return;
  const { ctx, bbox } = plot;
  const [left, top] = [plot.valToPos(x, 'x', true), plot.valToPos(y, 'y', true)];
  ctx.save();
  ctx.strokeStyle = colour('--ink');
  ctx.globalAlpha = 0.35;
  ctx.beginPath();
  ctx.moveTo(left, bbox.top);
  ctx.lineTo(left, bbox.top + bbox.height);
  ctx.stroke();
  ctx.globalAlpha = 1;
  ctx.fillStyle = colour('--accent');
  ctx.strokeStyle = colour('--surface');
  ctx.lineWidth = 2 * devicePixelRatio;
  ctx.beginPath();
  ctx.arc(left, top, 5 * devicePixelRatio, 0, 2 * Math.PI);
  ctx.fill();
  ctx.stroke();
  ctx.restore();
}

/** The account at a version: out of its history where that is here, else asked for. */
function Past({ id, view, version, event, lowest, pick }) {
  const [asked, setAsked] = useState({});
  const known = event?.state ?? (version === view.version ? view : null);
  useEffect(() => {
    if (known) return undefined;
    let gone = false;
    const keep = (answer) => gone || setAsked({ version, ...answer });
    // Whoever draws the slider along passes many.
    const timer = setTimeout(() => {
      const path = query(account(id), { at_version: version });
      get(path).then(({ body }) => keep({ state: body }), (error) => keep({ error }));
    }, 100);
    return () => {
      gone = true;
      clearTimeout(timer);
    };
  }, [version, known === null]);
  const { state, error } = known ? { state: known } : asked.version === version ? asked : {};
  return html`
    <${Slider} first=${lowest} last=${view.version} version=${version} pick=${pick} state=${state} />
    <dl class="figures was" data-version=${version}>
      <${Figure} name="Balance" value=${state ? money(state.balance_minor, state.currency) : '–'} note=${error?.message} />
      <${Figure} name="Status" value=${state?.status ?? '–'} />
      <${Figure} name="Happened" value=${event ? words(event.type) : '–'} note=${event?.data.reference && html`<bdi>${event.data.reference}</bdi>`} />
      <${Figure} name="When" value=${state ? dateTime(state.updated_at) : '–'} />
    </dl>`;
}

function Slider({ first, last, version, pick, state }) {
  const said = `version ${version} of ${last}${state ? `, balance ${money(state.balance_minor, state.currency)}` : ''}`;
  return html`<div class="slider">
    <label for="version">As it was at version <b>${count(version)}</b> of ${count(last)}</label>
    <span class="row">
      <button aria-label="One version back" disabled=${version <= first} onClick=${() => pick(version - 1)}>‹</button>
      <input id="version" type="range" min=${first} max=${last} value=${version} aria-valuetext=${said}
        onInput=${(event) => pick(Number(event.target.value))} />
      <button aria-label="One version on" disabled=${version >= last} onClick=${() => pick(version + 1)}>›</button>
      <button disabled=${version === last} onClick=${() => pick(last)}>Now</button>
    </span></div>`;
}

function Events({ events, version, pick, older, trimmedTo, error }) {
  const [shown, show] = useState(ROWS);
  const [trouble, setTrouble] = useState(null);
  const rows = useMemo(() => events.slice(-shown).reverse(), [events, shown]);
  const first = events[0]?.sequence ?? 1;
  const hidden = first - 1 - trimmedTo;
  const more = async () => {
    try {
      if (events.length <= shown && hidden > 0 && events.length < KEPT) await older();
      show(shown + ROWS);
      setTrouble(null);
    } catch (failure) {
      setTrouble(failure);
    }
  };
  const left = events.length > shown || (hidden > 0 && events.length < KEPT);
  return html`<${Card} title="Events" class="whole" aside=${html`<span class="total">${count(events.length + Math.max(0, hidden))}</span>`}>
    ${(trouble ?? error) && html`<p class="trouble">Not up to date: ${(trouble ?? error).message}.</p>`}
    <div class="scroll"><table class="events">
      <thead><tr><th class="number">Version</th><th>Event</th><th class="number">Amount</th><th class="number">Balance after</th>
        <th class="wide">Reference</th><th>When</th><th class="wide">Command</th></tr></thead>
      <tbody>${rows.map(({ sequence, type, time, command_id: command, data, state }) => html`
        <tr key=${sequence} class=${sequence === version ? 'chosen' : ''} data-sequence=${sequence}>
          <td class="number"><button class="pick" aria-pressed=${sequence === version} aria-label=${`Show version ${sequence}`}
            onClick=${() => pick(sequence)}>${count(sequence)}</button></td>
          <td><span class="what"><i class=${type}></i><span>${words(type)}</span></span></td>
          <td class="number ${type}">${amount(type, data, state.currency)}</td>
          <td class="number strong">${money(state.balance_minor, state.currency)}</td>
          <td class="wide"><bdi>${data.reference ?? ''}</bdi></td>
          <td><time datetime=${time}>${dateTime(time)}</time></td>
          <td class="wide"><code title=${command}>${command}</code></td></tr>`)}</tbody></table></div>
    ${left ? html`<div class="pager"><button onClick=${more}>Show older ones</button></div>`
      : trimmedTo > 0 && html`<p class="empty">Those up to version ${count(trimmedTo)} are no longer kept here; the log has them.</p>`}
  <//>`;
}

function amount(type, data, currency) {
  // What is only held back, for a transfer, has left with another event.
  const sign = { MoneyDeposited: 1, MoneyWithdrawn: -1 }[type];
  return sign ? change(sign * data.amount_minor, currency) : '';
}

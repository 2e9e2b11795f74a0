// Transfers: the latest ones, those of an account, those that wait. Asked for again while the page is looked at.

import { get, query } from '../api.js';
import { count, dateTime, duration, money } from '../format.js';
import { Badge, Choice, Empty, accountLink, html, isAccountId, useEffect, useRef, useState } from '../ui.js';

const AGAIN_MS = 2_000;
/** A transfer takes some milliseconds: one that waits for so long has a reason. */
const STUCK_S = 30;
const STATUSES = ['requested', 'debited', 'completed', 'refused', 'compensated'];
const TONES = { completed: 'good', refused: 'bad', compensated: 'warn', debited: 'warn' };
const SORT_NAMES = [
  ['-requested_at', 'Requested last'], ['requested_at', 'Requested first'],
  ['-updated_at', 'Changed last'], ['updated_at', 'Longest unchanged'],
  ['-amount_minor', 'Highest amount'], ['amount_minor', 'Lowest amount'],
];

export function Transfers({ parameters }) {
  const chosen = Object.fromEntries(['from', 'to', 'status', 'sort'].map((name) => [name, parameters.get(name) ?? '']));
  chosen.sort ||= SORT_NAMES[0][0];
  const asked = query('transfers', chosen);
  const [cursors, setCursors] = useState([]);
  const [answer, setAnswer] = useState({ items: null });
  const asking = useRef(0);

  const load = (before) => {
    const number = (asking.current += 1);
    setCursors(before);
    return get(query('transfers', { ...chosen, cursor: before.at(-1) })).then(
      ({ body }) => number === asking.current && setAnswer({ items: body.items, next: body.next_cursor }),
      (error) => number === asking.current && setAnswer((was) => ({ ...was, error })),
    );
  };
  useEffect(() => void load([]), [asked]);
  useEffect(() => {
    // Later pages stand still: they are read, not watched.
    if (cursors.length) return undefined;
    const timer = setInterval(() => document.hidden || load([]), AGAIN_MS);
    return () => clearInterval(timer);
  }, [asked, cursors.length]);
  useEffect(() => () => (asking.current += 1), []);

  const to = (changes) => (location.hash = query('/transfers', { ...chosen, ...changes }));
  return html`<h1>Transfers</h1>
    <div class="tools">
      <${Side} name="from" label="From account" value=${chosen.from} to=${to} />
      <${Side} name="to" label="To account" value=${chosen.to} to=${to} />
      <${Choice} name="status" label="Status" value=${chosen.status} to=${to} options=${[['', 'All'], ...STATUSES.map((name) => [name, name])]} />
      <${Choice} name="sort" label="Order" value=${chosen.sort} to=${to} options=${SORT_NAMES} />
    </div>
    <section class="card list" aria-label="Transfers">
      <${Table} ...${answer} />
      <div class="pager">
        <button disabled=${!cursors.length} onClick=${() => load(cursors.slice(0, -1))}>Previous</button>
        <span>Page ${count(cursors.length + 1)}</span>
        <button disabled=${!answer.next} onClick=${() => load([...cursors, answer.next])}>Next</button>
      </div>
    </section>`;
}

function Side({ name, label, value, to }) {
  const choose = (text) => (text === '' || isAccountId(text)) && text !== value && to({ [name]: text });
  const submit = (event) => {
    event.preventDefault();
    choose(new FormData(event.currentTarget).get(name).trim());
  };
  return html`<form class="field" onSubmit=${submit}><label for=${name}>${label}</label>
    <input id=${name} name=${name} type="search" placeholder="acc-42" autocomplete="off" autocapitalize="none"
      spellcheck="false" value=${value} onChange=${(event) => choose(event.target.value.trim())} /></form>`;
}

function Table({ items, error }) {
  if (error) return html`<${Empty}>The list can't be had: ${error.message}.<//>`;
  if (!items) return html`<${Empty}>Loading …<//>`;
  if (!items.length) return html`<${Empty}>No transfer is like that.<//>`;
  return html`<div class="scroll"><table>
    <thead><tr><th>Transfer</th><th>From</th><th>To</th><th class="number">Amount</th><th>Status</th>
      <th class="wide">Requested</th></tr></thead>
    <tbody>${items.map((view) => html`<tr key=${view.id} data-id=${view.id}>
      <th scope="row">${view.id}${view.reference && html`<small><bdi>${view.reference}</bdi></small>`}</th>
      <td><a href=${accountLink(view.from)}>${view.from}</a></td>
      <td><a href=${accountLink(view.to)}>${view.to}</a></td>
      <td class="number strong">${money(view.amount_minor, view.currency)}</td>
      <td><${Badge} tone=${TONES[view.status]}>${view.status}<//>
        ${view.reason && html` <small>${view.reason}</small>`}<${Waits} view=${view} /></td>
      <td class="wide">${dateTime(view.requested_at)}</td></tr>`)}</tbody></table></div>`;
}

/** For how long one that has not ended stands still. */
function Waits({ view }) {
  if (!['requested', 'debited'].includes(view.status)) return null;
  const seconds = (Date.now() - new Date(view.updated_at)) / 1000;
  return seconds >= STUCK_S && html` <${Badge} tone="bad">waits for ${duration(seconds)}<//>`;
}

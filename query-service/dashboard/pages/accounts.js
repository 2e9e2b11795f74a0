// All accounts: search, filters, order, page by page. What is shown changes as it happens; the order does not.

import { get, query } from '../api.js';
import { count, dateTime, money } from '../format.js';
import { useChanges, useLive } from '../live.js';
import { Badge, Choice, Empty, accountLink, html, isAccountId, useEffect, useRef, useState } from '../ui.js';

const SORTS = [
  ['id', 'Account', ''],
  ['balance_minor', 'Balance', 'number'],
  ['opened_at', 'Opened', 'wide'],
  ['updated_at', 'Last change', ''],
];
const SORT_NAMES = [
  ['id', 'Id'], ['-id', 'Id, backwards'],
  ['-balance_minor', 'Highest balance'], ['balance_minor', 'Lowest balance'],
  ['-updated_at', 'Changed last'], ['updated_at', 'Longest unchanged'],
  ['-opened_at', 'Opened last'], ['opened_at', 'Opened first'],
];
const FILTERS = ['owner', 'status', 'currency'];

export function Accounts({ parameters }) {
  const { stats } = useLive();
  const chosen = Object.fromEntries([...FILTERS, 'sort'].map((name) => [name, parameters.get(name) ?? '']));
  const asked = query('bank-accounts', chosen);
  const [cursors, setCursors] = useState([]);
  const [answer, setAnswer] = useState({ items: null });
  const [late, setLate] = useState(false);
  const asking = useRef(0);
  const items = useRef([]);

  const load = (before = cursors) => {
    const number = (asking.current += 1);
    setCursors(before);
    const cursor = before.at(-1);
    get(query('bank-accounts', { ...chosen, cursor })).then(
      ({ body }) => {
        if (number !== asking.current) return;
        items.current = body.items;
        setLate(false);
        setAnswer({ items: body.items, next: body.next_cursor });
      },
      (error) => number === asking.current && setAnswer((was) => ({ ...was, error })),
    );
  };
  useEffect(() => load([]), [asked]);
  useEffect(() => () => (asking.current += 1), []);
  useChanges((change) => {
    if (!change) return load();
    // In place: a row that jumps away can't be read or clicked.
    const at = items.current.findIndex(({ id }) => id === change.id);
    const was = items.current[at];
    if (was && was.version < change.view.version) items.current[at] = { ...change.view, changed: change.view.version };
    if (answer.items && changesList(was, change, chosen)) setLate(true);
  }, [asked, cursors, answer]);

  const to = (changes) => {
    const next = { ...chosen, ...changes };
    location.hash = query('/accounts', next);
  };
  return html`<h1>Accounts</h1>
    <div class="tools">
      <${Search} />
      <${Owner} value=${chosen.owner} to=${to} />
      <${Choice} name="status" label="Status" value=${chosen.status} to=${to} options=${[['', 'All'], ['open', 'Open'], ['closed', 'Closed']]} />
      <${Choice} name="currency" label="Currency" value=${chosen.currency} to=${to}
        options=${[['', 'All'], ...currencies(stats, chosen.currency).map((code) => [code, code])]} />
      <${Choice} name="sort" label="Order" value=${chosen.sort || 'id'} to=${to} options=${SORT_NAMES} />
    </div>
    <section class="card list" aria-label="Accounts">
      <div class="late" role="status">${late && html`This list has changed.
        <button onClick=${() => load()}>Refresh</button>`}</div>
      <${Table} items=${items.current} loaded=${answer.items !== null} error=${answer.error} sort=${chosen.sort || 'id'} to=${to} />
      <div class="pager">
        <button disabled=${!cursors.length} onClick=${() => load(cursors.slice(0, -1))}>Previous</button>
        <span>Page ${count(cursors.length + 1)}</span>
        <button disabled=${!answer.next} onClick=${() => load([...cursors, answer.next])}>Next</button>
      </div>
    </section>`;
}

/** Whether rows would come, go or stand elsewhere if the list were asked for again. */
function changesList(was, { sequence, view }, chosen) {
  const sort = chosen.sort.replace('-', '') || 'id';
  const fits = FILTERS.every((name) => !chosen[name] || chosen[name] === view[name]);
  if (was) return !fits || was[sort] !== view[sort];
  // What is on another page and can't come to this one is no news.
  return fits && (sequence === 1 || !['id', 'opened_at'].includes(sort));
}

function currencies(stats, chosen) {
  return [...new Set([...Object.keys(stats?.currencies ?? {}), chosen].filter(Boolean))].sort();
}

function Owner({ value, to }) {
  const submit = (event) => {
    event.preventDefault();
    to({ owner: new FormData(event.currentTarget).get('owner').trim() });
  };
  return html`<form class="field" onSubmit=${submit}><label for="owner">Owner</label>
    <input id="owner" name="owner" type="search" placeholder="whole name" autocomplete="off" value=${value}
      onChange=${(event) => event.target.value.trim() !== value && to({ owner: event.target.value.trim() })} /></form>`;
}

/** By id: there is one or none. */
function Search() {
  const [said, say] = useState('');
  const submit = async (event) => {
    event.preventDefault();
    const id = new FormData(event.currentTarget).get('id').trim();
    if (!id) return;
    if (!isAccountId(id)) return say(`${id} can't be the id of an account.`);
    try {
      await get(`bank-accounts/${encodeURIComponent(id)}`);
      location.hash = accountLink(id);
    } catch (error) {
      say(error.status === 404 ? `There is no account ${id}.` : error.message);
    }
  };
  return html`<form class="field search" role="search" onSubmit=${submit}><label for="id">Account id</label>
    <span class="row"><input id="id" name="id" type="search" placeholder="acc-42" autocomplete="off" autocapitalize="none" spellcheck="false"
      onInput=${() => say('')} aria-describedby="id-said" /><button>Open</button></span>
    <output id="id-said" class="said">${said}</output></form>`;
}

function Table({ items, loaded, error, sort, to }) {
  if (error) return html`<${Empty}>The list can't be had: ${error.message}.<//>`;
  if (!loaded) return html`<${Empty}>Loading …<//>`;
  if (!items.length) return html`<${Empty}>No account is like that.<//>`;
  const [column, down] = sort.startsWith('-') ? [sort.slice(1), true] : [sort, false];
  return html`<div class="scroll"><table class="accounts">
    <thead><tr>
      ${SORTS.slice(0, 1).map(head)}<th class="wide">Owner</th><th class="wide">Status</th>${SORTS.slice(1).map(head)}
    </tr></thead>
    <tbody>${items.map((view) => html`<tr key=${view.id} data-id=${view.id}>
      <th scope="row"><a href=${accountLink(view.id)}>${view.id}</a><small class="narrow"><bdi>${view.owner}</bdi></small></th>
      <td class="wide"><bdi>${view.owner}</bdi></td>
      <td class="wide"><${Badge} tone=${view.status === 'open' ? 'good' : ''}>${view.status}<//></td>
      <td class="number strong"><span key=${view.changed} class=${view.changed ? 'changed' : ''}>${money(view.balance_minor, view.currency)}</span></td>
      <td class="wide">${dateTime(view.opened_at)}</td>
      <td>${dateTime(view.updated_at)}</td></tr>`)}</tbody></table></div>`;

  function head([name, text, extra]) {
    const here = name === column;
    const next = here && !down ? `-${name}` : here ? name : name === 'id' ? 'id' : `-${name}`;
    return html`<th class=${extra} aria-sort=${here ? (down ? 'descending' : 'ascending') : undefined}>
      <button class="sort" onClick=${() => to({ sort: next })}>${text}<i aria-hidden="true">${here ? (down ? '↓' : '↑') : ''}</i></button></th>`;
  }
}

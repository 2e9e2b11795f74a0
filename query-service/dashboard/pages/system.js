// How far every projection is, what waits, what could not be handled, and who answers.

import { count, counted, dateTime, duration } from '../format.js';
import { live, useLive } from '../live.js';
import { Health, LagChart } from '../parts.js';
import { Badge, Card, Empty, accountLink, html } from '../ui.js';

export function System() {
  useLive();
  // The list of projections is as long as there are domains: last, it pushes nothing away when it comes.
  return html`<h1 class="hidden">System</h1>
    <div class="grid system">
      <${LagChart} />
      <${Health} />
      <${Parked} />
      <${DeadLetters} />
      <${Projections} />
    </div>`;
}

function Projections() {
  const { projections } = live;
  return html`<${Card} title="Projections" class="whole">
    ${projections ? html`<div class="scroll"><table>
      <thead><tr><th>Projection</th><th>Version</th><th>State</th><th class="number">Behind</th>
        <th class="number wide">Oldest waits</th><th class="number wide">Parked</th></tr></thead>
      <tbody>${projections.map(({ name, version, state, partitions, parked, versions, rebuild }) => {
        const records = partitions.map((one) => one.lag_records);
        const unknown = records.includes(null);
        const seconds = Math.max(0, ...partitions.map((one) => one.lag_seconds ?? 0));
        const others = versions.filter((one) => one.version !== version);
        return html`<tr key=${name}>
          <th scope="row">${name}</th>
          <td>v${version}${others.map((one) => html` <${Badge}>v${one.version} ${one.state}<//>`)}
            ${rebuild && html` <${Badge} tone="warn">rebuilding<//>`}</td>
          <td><${Badge} tone=${state === 'live' ? 'good' : 'warn'}>${state}<//></td>
          <td class="number">${unknown ? 'unknown' : count(records.reduce((sum, one) => sum + one, 0))}</td>
          <td class="number wide">${unknown ? 'unknown' : duration(seconds)}</td>
          <td class="number wide">${count(parked.length)}</td></tr>`;
      })}</tbody></table></div>` : html`<${Empty}>Waiting for the first answer.<//>`}
  <//>`;
}

/** Aggregates that wait: their event can't be applied. */
function Parked() {
  const all = (live.projections ?? []).flatMap(({ name, parked }) => parked.map((one) => ({ projection: name, ...one })));
  return html`<${Card} title="Parked" aside=${html`<span class="total">${live.projections ? count(all.length) : '–'}</span>`}>
    ${all.length ? html`<ul class="troubles">${all.slice(0, 100).map((one) => html`
      <li key=${`${one.projection}/${one.id}`}>
        <a href=${accountLink(one.id)}>${one.id}</a> <small>${one.projection}, partition ${one.partition}, offset ${one.offset}</small>
        ${one.discarded && html`<${Badge}>given up<//>`}
        <p><bdi>${one.reason}</bdi></p><small>${counted(one.count, 'event')} wait${one.count === 1 ? 's' : ''}</small>
      </li>`)}</ul>`
      : html`<${Empty}>${live.projections ? 'No account waits: every event could be applied.' : 'Waiting for the first answer.'}<//>`}
  <//>`;
}

/** Records that could not be handled, newest first. */
function DeadLetters() {
  const { deadLetters } = live;
  const letters = deadLetters?.items ?? [];
  // Of each partition the last 20 places are looked at.
  const all = deadLetters?.at_most <= 20;
  return html`<${Card} title="Dead letters" aside=${html`<span class="total">${deadLetters ? (all ? count(letters.length) : `newest ${count(letters.length)}`) : '–'}</span>`}>
    ${letters.length ? html`<ul class="troubles">${letters.map((one) => html`
      <li key=${`${one.topic}/${one.partition}/${one.offset}`}>
        <b><bdi>${one.key ?? 'without a key'}</bdi></b> <small><time datetime=${one.time}>${dateTime(one.time)}</time>, from ${one.origin ?? one.topic}</small>
        <p><bdi>${one.error ?? 'no reason given'}</bdi></p>
      </li>`)}</ul>`
      : html`<${Empty}>${deadLetters ? 'Every command could be read.' : 'Unknown: Kafka has not been asked yet.'}<//>`}
  <//>`;
}

// How the parts of the system are: on the first page in short, on that of the system in whole.

import { Chart, colour } from './chart.js';
import { count, counted, duration } from './format.js';
import { behind, BEHIND_S, live } from './live.js';
import { Badge, Card, html, useMemo, useState } from './ui.js';

const PARTS = [['redis', 'Redis', 'views'], ['kafka', 'Kafka', 'the log'], ['registry', 'Registry', 'schemas']];

/** What query-service itself sees of the others. */
export function Health() {
  // What was known when the connection was there is no news of now.
  const { health, projections } = live.connection === 'lost' ? {} : live;
  const lag = projections && behind(projections);
  const late = lag && lag.seconds >= BEHIND_S;
  return html`<${Card} title="Health" class="health">
    <ul>
      ${PARTS.map(([key, name, what]) => {
        const part = health?.parts[key];
        const [tone, text] = !part ? ['', 'unknown'] : part.ready ? ['good', 'answers'] : ['bad', 'does not answer'];
        return html`<li key=${key} data-part=${key}><span><b>${name}</b> <small>${what}</small></span>
          <${Badge} tone=${tone}>${text}<//>
          <small class="since">${part && `for ${duration(part.for_seconds)}${part.reason ? `: ${part.reason}` : ''}`}</small></li>`;
      })}
      <li data-part="projector"><span><b>Projector</b> <small>from the log to the views</small></span>
        <${Badge} tone=${!lag ? '' : late ? 'warn' : 'good'}>${!lag ? 'unknown' : late ? 'behind' : 'keeps up'}<//>
        <small class="since">${lag && (lag.records ? `${counted(lag.records, 'record')} to go, the oldest for ${duration(lag.seconds)}` : 'nothing to go')}</small></li>
    </ul>
  <//>`;
}

/** One line for each partition, told apart by their hue. */
function lines(partitions) {
  return partitions.map((_, at) => ({
    label: `partition ${at}`,
    stroke: () => `hsl(${168 + (300 / partitions.length) * at} 55% ${colour('--hue-light')})`,
    width: 1.5,
    points: { show: false },
  }));
}

/** Projection lag by partition over time, with a tile for each partition as it is now. */
export function LagChart({ compact }) {
  const names = (live.projections ?? []).map(({ name }) => name);
  const [chosen, choose] = useState(null);
  const name = names.includes(chosen) ? chosen : names[0];
  const { times = [], partitions = [] } = live.lag.get(name) ?? {};
  const projection = live.projections?.find((one) => one.name === name);
  const data = useMemo(() => [[...times], ...partitions.map((lags) => padded(lags, times.length))], [name, times.at(-1), partitions.length]);
  const most = Math.max(0, ...partitions.flatMap((lags) => lags.filter((lag) => lag != null)));
  const label = `Records that the views of ${name} are behind the log, by partition, over the last minutes: ${count(most)} at most`;
  const select = names.length > 1 && html`<select aria-label="Projection" value=${name} onChange=${(event) => choose(event.target.value)}>
    ${names.map((one) => html`<option key=${one} value=${one}>${one}</option>`)}</select>`;
  return html`<${Card} title="Projection lag" class="lag" aside=${select}>
    <p class="unit">records behind the log, by partition</p>
    ${data.length > 1 ? html`<${Chart} key=${name} label=${label} data=${data} series=${lines(partitions)} height=${compact ? 150 : 220}
      value=${count} axisWidth=${44} seconds=${120} range=${(_, low, high) => [0, Math.max(10, high * 1.15)]} />`
      : html`<div class="chart" style=${{ height: compact ? '150px' : '220px' }}></div>`}
    <ol class="tiles" aria-label="Partitions now">
      ${(projection?.partitions ?? []).map(({ partition, lag_records: records, lag_seconds: seconds }) => html`
        <li key=${partition} class=${records == null ? 'unknown' : seconds >= BEHIND_S ? 'late' : records ? 'some' : 'none'}
          title=${records == null ? 'Kafka can not be asked' : `${counted(records, 'record')}, ${duration(seconds)} behind`}>
          <small>${partition}</small><b>${records == null ? '?' : count(records)}</b></li>`)}
    </ol>
  <//>`;
}

/** A partition that came later has no figures for the beginning. */
function padded(values, length) {
  return [...Array(Math.max(0, length - values.length)).fill(null), ...values.slice(-length || undefined)];
}


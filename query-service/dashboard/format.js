// Figures as people read them.

/** Currencies whose minor unit is not a hundredth (ISO 4217); browsers' own tables differ from it. */
const MINOR_DIGITS = new Map([
  ...'BIF CLP DJF GNF ISK JPY KMF KRW PYG RWF UGX UYI VND VUV XAF XOF XPF'.split(' ').map((code) => [code, 0]),
  ...'BHD IQD JOD KWD LYD OMR TND'.split(' ').map((code) => [code, 3]),
  ...'CLF UYW'.split(' ').map((code) => [code, 4]),
]);

const made = new Map();

/** A format is dear to make and cheap to use. */
function kept(key, make) {
  if (!made.has(key)) made.set(key, make());
  return made.get(key);
}

export function minorDigits(currency) {
  return MINOR_DIGITS.get(currency) ?? 2;
}

/** Minor units as a decimal number's text: exact, also where a double is not. */
export function decimal(minor, currency) {
  const digits = minorDigits(currency);
  const text = String(minor);
  const sign = text.startsWith('-') ? '-' : '';
  const plain = text.slice(sign.length).padStart(digits + 1, '0');
  return sign + (digits ? `${plain.slice(0, -digits)}.${plain.slice(-digits)}` : plain);
}

/** `1,234.50 €`. */
export function money(minor, currency, extra = {}) {
  const digits = minorDigits(currency);
  const format = kept(`money ${currency} ${JSON.stringify(extra)}`, () => new Intl.NumberFormat(undefined, {
    style: 'currency',
    currency,
    minimumFractionDigits: digits,
    maximumFractionDigits: digits,
    ...extra,
  }));
  return format.format(decimal(minor, currency));
}

/** The same with its sign always. */
export const change = (minor, currency) => money(minor, currency, { signDisplay: 'always' });

/** `1.25M €`, for axes and tight places. */
export function shortMoney(minor, currency) {
  return money(minor, currency, { notation: 'compact', minimumFractionDigits: 0, maximumFractionDigits: 2 });
}

export function count(number) {
  return number == null ? '–' : kept('count', () => new Intl.NumberFormat()).format(number);
}

/** `1 record`, `2 records`. */
export const counted = (number, what) => `${count(number)} ${what}${number === 1 ? '' : 's'}`;

/** Events per second: one place behind the point while they are few. */
export function rate(number) {
  if (number == null) return '–';
  const digits = number > 0 && number < 100 ? 1 : 0;
  const options = { minimumFractionDigits: digits, maximumFractionDigits: digits };
  return kept(`rate ${digits}`, () => new Intl.NumberFormat(undefined, options)).format(number);
}

const clock = () => kept('clock', () => new Intl.DateTimeFormat(undefined, { timeStyle: 'medium', hourCycle: 'h23' }));
const day = () => kept('day', () => new Intl.DateTimeFormat(undefined, { dateStyle: 'medium' }));

/** The time of day. */
export const timeOfDay = (time) => clock().format(new Date(time));

/** Day and time; today's without the day. */
export function dateTime(time) {
  const date = new Date(time);
  const today = date.toDateString() === new Date().toDateString();
  return today ? clock().format(date) : `${day().format(date)}, ${clock().format(date)}`;
}

/** `4 s`, `3 min`, `2 h`. */
export function duration(seconds) {
  if (seconds == null) return '–';
  if (seconds < 10) return `${Math.round(seconds * 10) / 10} s`;
  if (seconds < 90) return `${Math.round(seconds)} s`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min`;
  return `${Math.round(seconds / 3600)} h`;
}

/** `MoneyDeposited` in words. */
export const words = (type) => type.replace(/(?!^)([A-Z])/g, ' $1').replace(/^(.)(.*)$/s, (_, a, b) => a + b.toLowerCase());

// Questions to query-service.

const TOKEN = 'millrace-token';
const PATIENCE_MS = 10_000;

/** Where the API is: beside the page, also behind a proxy that puts a path before it. */
const base = new URL('v1/', document.baseURI);

/** An answer that is none: a problem document, or no answer at all (`status` 0). */
export class Refused extends Error {
  constructor(status, problem) {
    super(problem?.detail ?? problem?.title ?? (status ? `answered ${status}` : 'no answer'));
    this.status = status;
    this.problem = problem;
    this.name = problem?.type?.split('/').pop() ?? 'unreachable';
  }
}

/** The token is of this tab only, and gone with it. */
export const token = {
  get: () => sessionStorage.getItem(TOKEN),
  set: (text) => (text ? sessionStorage.setItem(TOKEN, text) : sessionStorage.removeItem(TOKEN)),
};

/** Asks and returns the response as it is; a refusal is thrown. */
export async function request(path, { headers = {}, signal } = {}) {
  const authorization = token.get() ? { Authorization: `Bearer ${token.get()}` } : {};
  let response;
  try {
    response = await fetch(new URL(path, base), { headers: { ...authorization, ...headers }, signal });
  } catch (error) {
    throw signal?.aborted ? error : new Refused(0);
  }
  if (response.ok) return response;
  const problem = await response.json().catch(() => undefined);
  const refused = new Refused(response.status, problem);
  refused.retryAfter = Number(response.headers.get('Retry-After')) || undefined;
  throw refused;
}

/** Asks for JSON: `{ body, headers }`. */
export async function get(path) {
  const response = await request(path, { signal: AbortSignal.timeout(PATIENCE_MS) }).catch((error) => {
    throw error instanceof Refused ? error : new Refused(0);
  });
  const text = await response.text().catch(() => {
    throw new Refused(0);
  });
  return { body: JSON.parse(text, exact), headers: response.headers };
}

/** A whole number that a double can't hold stays text, where the browser gives it. */
function exact(key, value, context) {
  return typeof value === 'number' && Number.isInteger(value) && !Number.isSafeInteger(value) ? (context?.source ?? value) : value;
}

/** `a?b=c` without what is empty. */
export function query(path, parameters) {
  const given = Object.entries(parameters).filter(([, value]) => value !== '' && value != null);
  return given.length ? `${path}?${new URLSearchParams(given)}` : path;
}

export const account = (id) => `bank-accounts/${encodeURIComponent(id)}`;

// Requests to the server: the token, errors in words, streams of events, and addresses of videos.

const TOKEN_KEY = "ltx-token";
const GATEWAY_FAILURES = [502, 504];

let tokenAsked = null; // a promise while the person is being asked, so that ten refused requests ask once
let listeners = { tokenNeeded: async () => {}, connection: () => {} };

export class ServerError extends Error {
  constructor(message, status, param) {
    super(message);
    this.status = status;
    this.param = param;
  }
}

/** The server does not answer at all. */
export class Unreachable extends Error {}

/** `tokenNeeded(wasWrong)` resolves to a token; `connection(isThere)` is called after every request. */
export function listen(wanted) {
  listeners = { ...listeners, ...wanted };
}

export const token = () => sessionStorage.getItem(TOKEN_KEY) ?? "";
export const setToken = (value) => sessionStorage.setItem(TOKEN_KEY, value);

// A header holds bytes, each as one character.
const bytesOf = (text) => String.fromCharCode(...new TextEncoder().encode(text));

async function reach(path, options) {
  const sent = token();
  const headers = { ...options.headers, ...(sent && { Authorization: `Bearer ${bytesOf(sent)}` }) };
  let response;
  try {
    response = await fetch(path, { ...options, headers, cache: "no-store" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    listeners.connection(false);
    throw new Unreachable("The server does not answer.");
  }
  listeners.connection(!GATEWAY_FAILURES.includes(response.status));
  if (GATEWAY_FAILURES.includes(response.status)) throw new Unreachable("The server does not answer.");
  return [response, sent];
}

async function askForToken(sent) {
  if (token() !== sent) return; // entered meanwhile
  tokenAsked ??= listeners.tokenNeeded(Boolean(sent)).then(setToken).finally(() => (tokenAsked = null));
  await tokenAsked;
}

/** Sends a request, asking for the token as often as it is refused. Throws ServerError or Unreachable. */
export async function call(path, options = {}) {
  for (;;) {
    const [response, sent] = await reach(path, options);
    if (response.ok) return response;
    if (response.status !== 401) throw await errorOf(response);
    await askForToken(sent);
  }
}

async function errorOf(response) {
  const body = await response.json().catch(() => ({}));
  const message = body.error?.message ?? `The server answered with status ${response.status}.`;
  return new ServerError(message, response.status, body.error?.param);
}

// Seeds go up to 2^64, more than a number holds here: a longer one stays the text that it is.
const exact = (key, value, context) =>
  key === "seed" && !Number.isSafeInteger(value) && context?.source ? context.source : value;

export async function json(path, options) {
  return JSON.parse(await (await call(path, options)).text(), exact);
}

export const post = (path, fields) =>
  json(path, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(fields) });

/** Calls `heard` with the data of every server-sent event, until the server ends the stream. */
export async function follow(path, heard, signal) {
  const response = await call(path, { headers: { Accept: "text/event-stream" }, signal });
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const blocks = (text + value).split(/\r\n\r\n|\n\n|\r\r/);
    text = blocks.pop();
    for (const block of blocks) {
      const lines = block.split(/\r\n|\n|\r/).filter((line) => line.startsWith("data:"));
      if (lines.length) heard(JSON.parse(lines.map((line) => line.slice(5)).join("\n"), exact));
    }
  }
}

/** The address of a video or its thumbnail: with a token a blob, because an element sends no header. */
export async function content(id, variant, signal) {
  const path = `v1/videos/${encodeURIComponent(id)}/content?variant=${variant}`;
  if (!token()) return path;
  return URL.createObjectURL(await (await call(path, { signal })).blob());
}

export function release(address) {
  if (address?.startsWith("blob:")) URL.revokeObjectURL(address);
}

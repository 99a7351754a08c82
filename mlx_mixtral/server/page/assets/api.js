// The server's API, and its troubles in words.

import { remember, remembered } from "./remember.js";

/** What the server refused, or a connection that failed; `message` is for people. */
export class Trouble extends Error {
  constructor(message, { status = 0, code = null, retryAfter = null } = {}) {
    super(message);
    this.status = status;
    this.code = code;
    this.retryAfter = retryAfter;
  }

  /** The server was not reached, or was lost. */
  get lost() {
    return this.status === 0;
  }
}

export const KEY = "api-key";
let typed = null;

/** The API key that was typed in, of this tab or kept by the browser. */
export const key = () => typed ?? remembered(KEY);

export function setKey(value, keep) {
  typed = value || null;
  remember(KEY, typed, keep);
}

function headers() {
  const given = { "Content-Type": "application/json" };
  if (key()) given.Authorization = `Bearer ${key()}`;
  return given;
}

async function request(path, options) {
  let reply;
  try {
    reply = await fetch(path, { ...options, headers: headers(), cache: "no-store" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Trouble(`There is no answer from ${location.host}. Is the server still running?`);
  }
  if (!reply.ok) throw await refused(reply);
  return reply;
}

async function refused(reply) {
  const retryAfter = Number(reply.headers.get("Retry-After")) || null;
  let error = {};
  try {
    error = (await reply.json()).error ?? {};
  } catch {
    // Not the server's own words: something between it and here spoke.
  }
  const text = error.message ?? `The server answered with status ${reply.status}.`;
  return new Trouble(told(text, reply.status, error.code, retryAfter), {
    status: reply.status,
    code: error.code ?? null,
    retryAfter,
  });
}

function told(text, status, code, retryAfter) {
  const sentence = text.charAt(0).toUpperCase() + text.slice(1).replace(/([^.!?])$/, "$1.");
  if (code === "context_length_exceeded") {
    return `${sentence} Start a new chat, or edit an earlier message and go on from there.`;
  }
  if (status === 429 || status === 503) {
    return retryAfter ? `${sentence} Try again in ${retryAfter} s.` : sentence;
  }
  return sentence;
}

export async function get(path) {
  return (await request(path, {})).json();
}

export async function post(path, body) {
  return (await request(path, { method: "POST", body: JSON.stringify(body) })).json();
}

/** The chunks of a streamed answer. Throws Trouble, also for an error inside of the stream. */
export async function* stream(path, body, signal) {
  const reply = await request(path, { method: "POST", body: JSON.stringify(body), signal });
  const reader = reply.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await read(reader);
    if (done) throw new Trouble("The connection was lost before the answer's end.");
    const events = (rest + value).split("\n\n");
    rest = events.pop();
    for (const event of events) {
      if (!event.startsWith("data: ")) continue; // a comment: work goes on
      const data = event.slice(6);
      if (data === "[DONE]") return;
      const chunk = JSON.parse(data);
      if (chunk.error) {
        const { message, code } = chunk.error;
        throw new Trouble(told(message, 500, code, null), { status: 500, code });
      }
      yield chunk;
    }
  }
}

async function read(reader) {
  try {
    return await reader.read();
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Trouble("The connection was lost before the answer's end.");
  }
}

// A conversation is a tree: editing a message, or asking again, begins a branch beside the old
// one, and nothing is lost. One path through it is shown: `chosen` names the branch to take after
// each message (and after "", where all begins).
//
// A message: {id, parent, role, content, created}, of an answer also {state, reason, trouble,
// stats, tokens}. `state` is "answering", "done", "stopped" or "failed". `tokens`, if the model
// has experts, holds {starts, ends} in the content, {chances, others} (null and [] where they were
// not asked for), and {routes}: for each token and layer the experts, the heaviest first.

const newId = () => crypto.randomUUID?.() ?? [...crypto.getRandomValues(new Uint32Array(4))].join("-");
const LONGEST_TITLE = 60;

export function newConversation(settings) {
  const now = Date.now();
  return {
    id: newId(), title: "New chat", named: false, created: now, updated: now,
    settings: { ...settings }, messages: {}, chosen: {},
  }; // prettier-ignore
}

/** The messages that are shown, the first one first. */
export function path(conversation) {
  const found = [];
  let id = conversation.chosen[""];
  while (id) {
    found.push(conversation.messages[id]);
    id = conversation.chosen[id];
  }
  return found;
}

/** The messages before one, on its own branch. */
export function before(conversation, message) {
  const found = [];
  for (let id = message.parent; id; id = conversation.messages[id].parent) {
    found.unshift(conversation.messages[id]);
  }
  return found;
}

/** Adds a message after `parent` ("" for the first), and shows its branch. */
export function add(conversation, parent, fields) {
  const message = { id: newId(), parent, created: Date.now(), ...fields };
  conversation.messages[message.id] = message;
  choose(conversation, message);
  if (!conversation.named && message.role === "user" && !parent) {
    conversation.title = titleOf(message.content);
  }
  return message;
}

export function choose(conversation, message) {
  conversation.chosen[message.parent] = message.id;
  conversation.updated = Date.now();
}

/** The versions of a message, the oldest first. */
export function versions(conversation, message) {
  const all = Object.values(conversation.messages);
  return all.filter(({ parent }) => parent === message.parent).sort((a, b) => a.created - b.created);
}

function titleOf(text) {
  const line = text.trim().split("\n")[0].replace(/\s+/g, " ");
  return line.length > LONGEST_TITLE ? `${line.slice(0, LONGEST_TITLE).trimEnd()} …` : line || "New chat";
}

/** A conversation as Markdown: the path that is shown. */
export function asMarkdown(conversation) {
  const parts = [`# ${conversation.title}`];
  if (conversation.settings.system) parts.push(`**System:** ${conversation.settings.system}`);
  for (const { role, content } of path(conversation)) {
    parts.push(`## ${role === "user" ? "You" : "Mixtral"}`, content);
  }
  return `${parts.join("\n\n")}\n`;
}

/** Conversations as JSON that `fromJSON` takes back. */
export function asJSON(conversations) {
  const bytes = (_, value) => (value instanceof Uint8Array ? [...value] : value);
  return JSON.stringify({ format: "mixtral-conversations", version: 1, conversations }, bytes, 1);
}

/** Conversations of a file. Throws an Error in words if it holds none. */
export function fromJSON(text) {
  let read = null;
  try {
    read = JSON.parse(text);
  } catch {
    // Told below.
  }
  if (read?.format !== "mixtral-conversations" || !Array.isArray(read.conversations)) {
    throw new Error("This file holds no conversations that were exported here.");
  }
  return read.conversations.map(checked);
}

function checked(given) {
  const fits = (message, id) =>
    message?.id === id &&
    ["user", "assistant"].includes(message.role) &&
    typeof message.content === "string" &&
    (message.parent === "" || message.parent in given.messages);
  const messages = Object.entries(given?.messages ?? {});
  if (!given?.id || typeof given.title !== "string" || !messages.every(([id, m]) => fits(m, id))) {
    throw new Error("A conversation in this file is damaged.");
  }
  const own = newConversation(given.settings ?? {});
  for (const [parent, id] of Object.entries(given.chosen ?? {})) {
    if (given.messages[id]?.parent === parent) own.chosen[parent] = id;
  }
  for (const [id, message] of messages) {
    const { role, parent, content, created, state, reason, stats } = message;
    own.messages[id] = { id, role, parent, content, created: Number(created) || 0, state, reason, stats };
    if (role === "assistant") own.messages[id].state = state === "done" ? "done" : "stopped";
    if (tokensFit(message.tokens)) {
      own.messages[id].tokens = { ...message.tokens, routes: Uint8Array.from(message.tokens.routes) };
    }
  }
  return { ...own, title: given.title, named: true, created: given.created, updated: given.updated };
}

function tokensFit(tokens) {
  if (!tokens) return false;
  const { starts, ends, chances, others, routes, layers, experts, each } = tokens;
  const lists = [starts, ends, chances, others, routes].every(Array.isArray);
  return (
    lists &&
    [layers, experts, each].every((n) => Number.isInteger(n) && n > 0 && n <= 256) &&
    new Set([starts.length, ends.length, chances.length, others.length]).size === 1 &&
    routes.length === starts.length * layers * each &&
    routes.every((expert) => Number.isInteger(expert) && expert >= 0 && expert < experts)
  );
}

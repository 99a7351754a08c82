// A conversation is a tree: editing a message, or asking again, begins a branch beside the old
// one, and nothing is lost. One path through it is shown: `chosen` names the branch to take after
// each message (and after "", where all begins).
//
// A message: {id, parent, role, content, created}, of an answer also {state, runs, reason, trouble,
// stats, tokens}. `runs` counts how often it was begun or gone on with. `state` is "answering", "done", "stopped" or "failed". `tokens`, if the model
// has experts, holds {starts, ends} in the content, {chances, others} (null and [] where they were
// not asked for), and {routes}: for each token and layer the experts, the heaviest first.

// `updated` is when a message was last added or chosen, `settled` when the settings were changed.

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

/** Messages as a request has them: turns that alternate, without answers that never began. */
export function turns(conversation, messages) {
  const found = [];
  for (const { role, content } of messages) {
    const last = found.at(-1);
    if (!content) continue;
    if (last?.role === role) last.content += `\n\n${content}`;
    else found.push({ role, content });
  }
  const { system } = conversation.settings;
  return system?.trim() ? [{ role: "system", content: system }, ...found] : found;
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

/**
 * Takes over what another tab has made of a conversation: messages that are new, and the others as
 * they are there, but for the one that is being answered here (`own`, an id or null).
 */
export function merge(conversation, other, own) {
  const { messages } = conversation;
  for (const [id, message] of Object.entries(other.messages)) {
    if (!messages[id]) messages[id] = message;
    else if (id !== own && isLater(message, messages[id])) Object.assign(messages[id], message);
  }
  const isNewer = other.updated > conversation.updated;
  const [first, last] = isNewer ? [conversation, other] : [other, conversation];
  conversation.chosen = { ...first.chosen, ...last.chosen };
  conversation.updated = last.updated;
  if (other.named && (isNewer || !conversation.named)) {
    Object.assign(conversation, { title: other.title, named: true });
  }
  if ((other.settled ?? 0) > (conversation.settled ?? 0)) {
    Object.assign(conversation, { settings: other.settings, settled: other.settled });
  }
}

/** Whether one copy of an answer is of a later time than another. */
function isLater(one, other) {
  const runs = (one.runs ?? 0) - (other.runs ?? 0);
  return runs > 0 || (!runs && (one.state !== "answering" || other.state === "answering"));
}

/** Whether one of the messages that are shown is being answered, here or in another tab. */
export const isAnswering = (conversation) => path(conversation).some(({ state }) => state === "answering");

/** The versions of a message, the oldest first. */
export function versions(conversation, message) {
  const all = Object.values(conversation.messages);
  return all.filter(({ parent }) => parent === message.parent).sort((a, b) => a.created - b.created);
}

function titleOf(text) {
  const line = text.trim().split("\n")[0].replace(/\s+/g, " ");
  return line.length > LONGEST_TITLE ? `${line.slice(0, LONGEST_TITLE).trimEnd()} …` : line || "New chat";
}

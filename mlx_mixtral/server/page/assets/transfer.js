// Conversations to files and back.

import { newConversation, path } from "./conversation.js";
import { el, toast } from "./dom.js";

/** Offers one conversation as a file, in the form "md" or "json". */
export async function exportOne(app, id, form) {
  const conversation = await app.find(id);
  const name = conversation.title.replace(/[^\p{L}\p{N}]+/gu, "-").replace(/^-|-$/g, "") || "chat";
  if (form === "md") download(`${name}.md`, asMarkdown(conversation), "text/markdown");
  else download(`${name}.json`, asJSON([conversation]), "application/json");
}

/** Offers all of them as one file. */
export async function exportAll(app) {
  const all = await Promise.all(app.heads.map(({ id }) => app.find(id)));
  download("mixtral-conversations.json", asJSON(all.filter(Boolean)), "application/json");
}

/** Adds the conversations of a file that is picked to those that are here. */
export async function importFile(app) {
  try {
    const read = fromJSON(await pickFile(".json,application/json"));
    for (const conversation of read) await app.save(conversation);
    app.refresh();
    toast(read.length === 1 ? "One conversation is imported." : `${read.length} conversations are imported.`);
  } catch (error) {
    toast(error.message);
  }
}

/** A conversation as Markdown: the path that is shown. */
function asMarkdown(conversation) {
  const parts = [`# ${conversation.title}`];
  if (conversation.settings.system) parts.push(`**System:** ${conversation.settings.system}`);
  for (const { role, content } of path(conversation)) {
    parts.push(`## ${role === "user" ? "You" : "Mixtral"}`, content);
  }
  return `${parts.join("\n\n")}\n`;
}

/** Conversations as JSON that `fromJSON` takes back. */
function asJSON(conversations) {
  const bytes = (_, value) => (value instanceof Uint8Array ? [...value] : value);
  return JSON.stringify({ format: "mixtral-conversations", version: 1, conversations }, bytes, 1);
}

/** Conversations of a file. Throws an Error in words if it holds none. */
function fromJSON(text) {
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
  const plain = Object.entries(given.settings ?? {}).filter(([name, value]) =>
    ["system", "stop"].includes(name) ? typeof value === "string" : Number.isFinite(value),
  );
  const own = newConversation(Object.fromEntries(plain));
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
  const [created, updated] = [given.created, given.updated].map((time) => Number(time) || Date.now());
  return { ...own, title: given.title, named: true, created, updated };
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

/** Offers a text as a file. */
function download(name, text, type) {
  const url = URL.createObjectURL(new Blob([text], { type }));
  el("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}

/** The text of a file that is picked. */
function pickFile(accept) {
  return new Promise((resolve) => {
    const input = el("input", { type: "file", accept });
    input.addEventListener("change", async () => resolve(await input.files[0].text()));
    input.click();
  });
}

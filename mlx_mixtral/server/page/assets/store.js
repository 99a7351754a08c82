// Conversations, kept in this browser (IndexedDB): small heads for the list, and bodies.

import { merge } from "./conversation.js";

const NAME = "mixtral";
const news = "BroadcastChannel" in window ? new BroadcastChannel(NAME) : null;

/** Calls back with a conversation's id when another tab has changed or deleted it. */
export function onNews(callback) {
  news?.addEventListener("message", (event) => callback(event.data));
}

const wait = (request) =>
  new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });

/** A store that lasts, or where the browser has none (some private windows) one that does not. */
export async function openStore() {
  try {
    const request = indexedDB.open(NAME, 1);
    request.onupgradeneeded = () => {
      request.result.createObjectStore("heads", { keyPath: "id" });
      request.result.createObjectStore("bodies", { keyPath: "id" });
    };
    return new Kept(await wait(request));
  } catch {
    return new Passing();
  }
}

const head = ({ id, title, named, created, updated }) => ({ id, title, named, created, updated });

class Kept {
  lasts = true;

  constructor(database) {
    this.database = database;
  }

  heads() {
    return wait(this.database.transaction("heads").objectStore("heads").getAll());
  }

  get(id) {
    return wait(this.database.transaction("bodies").objectStore("bodies").get(id));
  }

  /** Keeps a conversation, with what another tab may have added to it meanwhile (see `merge`). */
  async put(conversation, own) {
    const parts = this.database.transaction(["heads", "bodies"], "readwrite");
    const bodies = parts.objectStore("bodies");
    const kept = await wait(bodies.get(conversation.id));
    if (kept) merge(conversation, kept, own);
    parts.objectStore("heads").put(head(conversation));
    await wait(bodies.put(conversation));
    news?.postMessage(conversation.id);
  }

  async delete(id) {
    const parts = this.database.transaction(["heads", "bodies"], "readwrite");
    parts.objectStore("heads").delete(id);
    await wait(parts.objectStore("bodies").delete(id));
    news?.postMessage(id);
  }
}

class Passing {
  lasts = false;
  bodies = new Map();

  async heads() {
    return [...this.bodies.values()].map(head);
  }

  async get(id) {
    return this.bodies.get(id);
  }

  async put(conversation) {
    this.bodies.set(conversation.id, conversation);
  }

  async delete(id) {
    this.bodies.delete(id);
  }
}

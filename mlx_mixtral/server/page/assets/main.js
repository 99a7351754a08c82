// The page: what is open, what is being answered, and what every button does.

import { Answer } from "./answer.js";
import { post } from "./api.js";
import { makeThemes } from "./appearance.js";
import { Composer } from "./composer.js";
import { add, choose, isAnswering, merge, newConversation, path, turns, versions } from "./conversation.js";
import { askKey, makeShortcuts } from "./dialogs.js";
import { byId, say, toast } from "./dom.js";
import { icon } from "./icons.js";
import { listenToKeys } from "./keys.js";
import { Link } from "./link.js";
import { holding, whenFree } from "./locks.js";
import { Panel } from "./panel.js";
import { standing } from "./settings.js";
import { Sidebar } from "./sidebar.js";
import { onNews, openStore } from "./store.js";
import { Thread } from "./thread.js";

const SAVE_PAUSE = 800;

class App {
  constructor(store) {
    this.store = store;
    this.model = null;
    this.heads = [];
    this.gone = new Set(); // ids of conversations that were deleted
    this.answers = new Map(); // conversation id -> {answer, conversation}
    this.conversation = newConversation(standing());
    this.panel = new Panel(this);
    this.thread = new Thread(this);
    this.sidebar = new Sidebar(this);
    this.composer = new Composer(this);
    this.link = new Link((model) => this.found(model), () => this.askKey());
    byId("show-settings").append(icon("sliders"));
    byId("show-experts").append(icon("grid"));
  }

  async start() {
    makeThemes(() => this.panel.experts.grid.draw());
    makeShortcuts();
    listenToKeys(this);
    this.heads = await this.store.heads();
    if (!this.store.lasts) toast("This browser keeps nothing: conversations will be gone with the page.");
    onNews((id) => this.changedElsewhere(id));
    addEventListener("hashchange", () => this.open(location.hash.slice(1)));
    addEventListener("pagehide", () => this.saveAll());
    await this.open(location.hash.slice(1));
    await this.link.look();
  }

  /** The answer under way in the conversation that is open. */
  get answering() {
    return this.answers.get(this.conversation.id)?.answer ?? null;
  }

  found(model) {
    const first = !this.model;
    this.model = model;
    this.panel.refresh();
    this.thread.show(this.conversation);
    this.composer.refresh();
    if (first) this.countContext();
  }

  // Conversations

  async open(id) {
    const kept = this.answers.get(id)?.conversation ?? (id ? await this.store.get(id) : null);
    if (id && id === this.conversation.id && kept) return;
    if (kept && !this.answers.has(id)) await this.stopOrphans(kept);
    this.conversation = kept ?? newConversation(standing());
    if (location.hash.slice(1) !== (kept?.id ?? "")) history.pushState(null, "", kept ? `#${kept.id}` : "/");
    this.showConversation();
  }

  /** Answers that no tab works on any more were stopped; the end of others is waited for. */
  async stopOrphans(conversation) {
    const orphans = Object.values(conversation.messages).filter(({ state }) => state === "answering");
    if (!orphans.length) return;
    const isFree = await whenFree(conversation.id, () => this.changedElsewhere(conversation.id));
    if (isFree) orphans.forEach((message) => (message.state = "stopped"));
  }

  fresh() {
    history.pushState(null, "", "/");
    this.conversation = newConversation(standing());
    this.showConversation();
    byId("draft").focus();
  }

  showConversation() {
    this.panel.follow(path(this.conversation).findLast(({ role }) => role === "assistant") ?? null);
    this.panel.refresh();
    this.thread.show(this.conversation);
    this.sidebar.slide(false);
    this.refresh();
    this.countContext();
  }

  refresh() {
    const { title } = this.conversation;
    byId("title").textContent = title;
    document.title = title === "New chat" ? "Mixtral" : `${title} – Mixtral`;
    this.sidebar.show();
    this.composer.refresh();
  }

  async save(conversation = this.conversation) {
    if (!path(conversation).length || this.gone.has(conversation.id)) return;
    const { id, title, named, created, updated } = conversation;
    this.heads = [...this.heads.filter((head) => head.id !== id), { id, title, named, created, updated }];
    try {
      await this.store.put(conversation, this.answers.get(id)?.answer.message.id ?? null);
    } catch (error) {
      toast(`The browser could not keep this conversation (${error.name}).`);
    }
  }

  saveAll() {
    for (const { conversation } of this.answers.values()) this.save(conversation);
  }

  async rename(id, title) {
    const conversation = await this.find(id);
    Object.assign(conversation, { title, named: true });
    await this.save(conversation);
    this.refresh();
  }

  async remove(id) {
    this.answers.get(id)?.answer.stop();
    const gone = await this.find(id);
    this.gone.add(id);
    this.heads = this.heads.filter((head) => head.id !== id);
    await this.store.delete(id);
    if (id === this.conversation.id) this.fresh();
    this.sidebar.show();
    toast(`“${gone.title}” is deleted.`, "Undo", async () => {
      this.gone.delete(id);
      await this.save(gone);
      this.open(id);
    });
  }

  /** A conversation as it is now: open, being answered, or kept. */
  find(id) {
    if (id === this.conversation.id) return this.conversation;
    return this.answers.get(id)?.conversation ?? this.store.get(id);
  }

  async changedElsewhere(id) {
    if (this.answers.has(id)) return; // what is there is taken over when this tab writes
    this.heads = await this.store.heads();
    const { conversation } = this;
    const kept = id === conversation.id ? await this.store.get(id) : null;
    if (kept && conversation === this.conversation && !this.answers.has(id)) {
      const { settings } = conversation;
      merge(conversation, kept, null);
      await this.stopOrphans(conversation);
      if (settings !== conversation.settings) this.panel.refresh();
      this.panel.follow(path(conversation).findLast(({ role }) => role === "assistant") ?? null);
      this.thread.show(conversation);
      this.refresh();
      if (!isAnswering(conversation)) this.countContext();
    }
    this.sidebar.show();
  }

  settingsChanged() {
    this.conversation.settled = Date.now();
    clearTimeout(this.settingsTimer);
    this.settingsTimer = setTimeout(() => this.save(), SAVE_PAUSE);
  }

  // Messages

  /** Whether nothing can be asked: there is no model yet, or an answer is under way in any tab. */
  get isBusy() {
    return !this.model || isAnswering(this.conversation);
  }

  async send(content) {
    if (this.isBusy) return;
    const { conversation } = this;
    const last = path(conversation).at(-1);
    const user = add(conversation, last?.id ?? "", { role: "user", content });
    if (!last) history.pushState(null, "", `#${conversation.id}`);
    await this.answer(user);
  }

  /** Answers a user's message, in a version of its own. */
  async answer(user) {
    if (this.isBusy) return;
    const message = add(this.conversation, user.id, { role: "assistant", content: "", state: "answering" });
    await this.stream(message);
  }

  retry(message) {
    return this.isBusy ? null : this.stream(message);
  }

  goOn(message) {
    return this.retry(message);
  }

  async regenerate(message) {
    await this.answer(this.conversation.messages[message.parent]);
    const all = versions(this.conversation, message);
    const same = all.filter(({ content }) => content === all.at(-1).content).length > 1;
    const heat = this.conversation.settings.temperature ?? this.model.default_model_temperature;
    if (same && heat === 0) toast("The same again: the temperature is 0.");
  }

  async edit(message, content) {
    const { conversation } = this;
    if (this.isBusy) return;
    const { role, parent } = message;
    const version = add(conversation, parent, { role, content, state: "done" });
    if (role === "user") await this.answer(version);
    else await this.afterChange();
  }

  editLast() {
    const view = this.thread.views.findLast(({ isUser }) => isUser);
    if (view && !this.isBusy) view.edit();
  }

  /** Shows another version of a message; `by` tells the direction, for the focus. */
  async choose(message, by) {
    choose(this.conversation, message);
    await this.afterChange();
    const label = by < 0 ? "The version before" : "The next version";
    const tools = this.thread.view(message)?.tools;
    const again = tools?.querySelector(`[aria-label="${label}"]:enabled`) ?? tools?.querySelector(".branches :enabled");
    again?.focus();
  }

  async afterChange() {
    this.panel.follow(path(this.conversation).findLast(({ role }) => role === "assistant") ?? null);
    this.thread.show(this.conversation);
    await this.save();
    this.refresh();
    this.countContext();
  }

  async stream(message) {
    const { conversation } = this;
    const answer = new Answer(conversation, message, this.model, this.panel.showsExperts);
    this.answers.set(conversation.id, { answer, conversation });
    const isShown = () => this.conversation === conversation;
    message.state = "answering";
    this.panel.follow(message);
    this.thread.show(conversation);
    this.thread.toEnd();
    this.save(conversation).then(() => this.refresh());
    say("Answering");
    let frame = null;
    let saved = performance.now();
    const changed = () => {
      frame ??= requestAnimationFrame(() => {
        frame = null;
        if (isShown()) this.grown(message, answer);
        if (performance.now() - saved < SAVE_PAUSE) return;
        saved = performance.now();
        this.save(conversation);
      });
    };
    await holding(conversation.id, async () => {
      await answer.run(changed, () => this.save(conversation));
      cancelAnimationFrame(frame);
      conversation.updated = Date.now();
      await this.save(conversation);
    });
    this.answers.delete(conversation.id);
    this.ended(message, isShown());
  }

  grown(message, answer) {
    this.thread.grown(message);
    this.panel.grown(message);
    this.composer.showUse(this.used ? this.used + answer.count : null, answer);
  }

  ended(message, isShown) {
    if (message.state === "failed" && message.trouble.status === 0) this.link.look();
    if (isShown) {
      this.thread.show(this.conversation);
      this.thread.grown(message);
      this.panel.grown(message);
      say(message.state === "failed" ? message.trouble.text : message.content);
      this.countContext();
      if (message.trouble?.status === 401) this.askKey(() => this.retry(message));
    }
    this.refresh();
  }

  stop() {
    this.answering?.stop();
  }

  /** How much of the context the conversation takes: the server counts. */
  async countContext() {
    const { conversation, model } = this;
    const messages = path(conversation);
    this.used = null;
    if (!model) return;
    this.composer.showUse(null);
    const { stats, content } = messages.at(-1) ?? {};
    if (stats?.used) this.used = stats.used;
    else if (content) {
      const shown = turns(conversation, messages);
      if (shown.at(-1).role === "assistant") shown.at(-1).prefix = true;
      try {
        this.used = (await post("/v1/tokenize", { messages: shown })).count;
      } catch {
        // What cannot be counted, a conversation of a broken form, is not shown.
      }
    }
    if (conversation === this.conversation && !this.answering) this.composer.showUse(this.used);
  }

  // Beside the chat

  askKey(then) {
    if (byId("key")?.open) return;
    askKey(async () => {
      await this.link.look();
      then?.();
    });
  }

  tell(text) {
    toast(text);
  }
}

const app = new App(await openStore());
await app.start();
byId("draft").focus();

// One message: its text, and what can be done with it.

import { versions } from "./conversation.js";
import { copy, count, el, iconButton } from "./dom.js";
import { icon } from "./icons.js";
import { Rendered } from "./render.js";

const ENDS = {
  length: "The answer reached its greatest length.",
  stopped: "Stopped.",
};

export class MessageView {
  constructor(message, app) {
    this.message = message;
    this.app = app;
    this.isUser = message.role === "user";
    this.body = el("div.body");
    this.after = el("div.after");
    this.tools = el("div.tools");
    const label = this.isUser ? "You" : "Mixtral";
    this.node = el(`article.message.${message.role}`, { "aria-label": label }, this.body, this.after, this.tools);
    this.rendered = this.isUser ? null : new Rendered(this.body);
    if (!this.isUser) this.listen();
  }

  get answering() {
    return this.message.state === "answering";
  }

  refresh(isLast) {
    this.node.classList.toggle("last", isLast);
    this.showBody();
    this.showAfter();
    this.showTools();
  }

  grow() {
    this.showBody();
    if (!this.answering || this.message.content) this.showAfter();
    if (!this.answering) this.showTools();
  }

  showBody() {
    if (this.editing) return;
    const { message } = this;
    this.node.setAttribute("aria-busy", String(this.answering));
    this.node.classList.toggle("answering", this.answering);
    if (this.isUser) {
      this.body.replaceChildren(el("div.bubble", {}, message.content));
      return;
    }
    const { tokens } = message;
    const routed = this.app.panel.showsExperts && tokens?.starts.length ? tokens : null;
    this.node.classList.toggle("routed", Boolean(routed));
    this.rendered.update(message.content, routed);
    this.app.panel.painted(this);
  }

  /** What stands below an answer: that it is awaited, why it ended. */
  showAfter() {
    const { message } = this;
    const nodes = [];
    if (this.answering && !message.content) {
      nodes.push(el("div.waiting", {}, icon("mark"), el("span", {}, "Reading the prompt …")));
    }
    if (message.state === "failed") nodes.push(this.trouble());
    const note = message.state === "stopped" ? ENDS.stopped : ENDS[message.reason];
    if (note && !this.answering && !this.isUser && message.state !== "failed") {
      const goOn = () => this.app.goOn(message);
      const canGoOn = message.content && el("button.link", { type: "button", onclick: goOn }, "Go on");
      nodes.push(el("p.note", {}, note, " ", canGoOn || null));
    }
    this.after.replaceChildren(...nodes);
  }

  trouble() {
    const { message, app } = this;
    const again = () => (message.content ? app.goOn(message) : app.retry(message));
    const isKey = message.trouble?.status === 401;
    const button = isKey
      ? el("button.link", { type: "button", onclick: () => app.askKey(again) }, "Enter the key")
      : el("button.link", { type: "button", onclick: again }, message.content ? "Go on" : "Try again");
    const text = message.trouble?.text ?? "The answer failed.";
    return el("div.trouble", { role: "alert" }, el("span", {}, text), button);
  }

  showTools() {
    const { message, app } = this;
    if (this.answering || this.editing) {
      this.tools.replaceChildren();
      return;
    }
    const copier = iconButton("copy", "Copy", () => copy(message.content, copier));
    const buttons = [
      this.branches(),
      message.content ? copier : null,
      iconButton("edit", this.isUser ? "Edit and go on from here" : "Edit", () => this.edit()),
      this.isUser ? null : iconButton("again", "Answer again", () => app.regenerate(message)),
    ];
    const shown = this.isUser ? null : statistics(message.stats);
    this.tools.replaceChildren(...[...buttons, shown].filter(Boolean));
  }

  /** Steps through the versions of this message. */
  branches() {
    const all = versions(this.app.conversation, this.message);
    if (all.length < 2) return null;
    const at = all.indexOf(this.message);
    const step = (by, name, label) => {
      const button = iconButton(name, label, () => this.app.choose(all[at + by], by));
      button.disabled = !all[at + by];
      return button;
    };
    return el(
      "span.branches",
      { role: "group", "aria-label": `Version ${at + 1} of ${all.length}` },
      step(-1, "left", "The version before"),
      el("span", {}, `${at + 1}/${all.length}`),
      step(1, "right", "The next version"),
    );
  }

  edit() {
    const { message, app } = this;
    this.editing = true;
    this.showTools();
    const field = el("textarea", { "aria-label": "Edit the message", rows: "1" });
    field.value = message.content;
    const grow = () => {
      if (CSS.supports("field-sizing", "content")) return;
      field.style.height = "auto";
      field.style.height = `${field.scrollHeight}px`;
    };
    field.addEventListener("input", grow);
    const close = () => {
      this.editing = false;
      this.rendered?.clear();
      this.body.replaceChildren();
      this.refresh(this.node.classList.contains("last"));
      this.tools.querySelector("[aria-label^=Edit]")?.focus();
    };
    const save = () => {
      const text = field.value.trim();
      close();
      if (text && text !== message.content) app.edit(message, text);
    };
    const form = el(
      "form.editor",
      {},
      field,
      el(
        "div.buttons",
        {},
        el("button.quiet", { type: "button", onclick: close }, "Cancel"),
        el("button.solid", { type: "submit" }, this.isUser ? "Send" : "Keep"),
      ),
    );
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      save();
    });
    field.addEventListener("keydown", (event) => {
      if (event.key === "Escape") close();
      else if (event.key === "Enter" && !event.shiftKey && !event.isComposing && this.isUser) {
        event.preventDefault();
        save();
      } else return;
      event.stopPropagation();
    });
    this.rendered?.clear();
    this.body.replaceChildren(form);
    grow();
    field.focus();
    field.setSelectionRange(field.value.length, field.value.length);
  }

  /** Tells the panel which token the pointer is on. */
  listen() {
    const token = (event) => event.target.closest?.(".token")?.dataset.token;
    this.body.addEventListener("pointerover", (event) => {
      const at = token(event);
      if (at !== undefined) this.app.panel.point(this, Number(at));
    });
    this.body.addEventListener("pointerleave", () => this.app.panel.point(this, null));
    this.body.addEventListener("click", (event) => {
      const at = token(event);
      const selecting = !getSelection().isCollapsed || event.target.closest("a");
      if (at !== undefined && !selecting) this.app.panel.pin(this, Number(at));
    });
  }
}

function statistics(stats) {
  if (!stats?.tokens) return null;
  const parts = [`${count(stats.tokens)} tokens`];
  if (stats.speed) parts.push(`${speed(stats.speed)} tok/s`);
  const more = [];
  if (stats.wait != null) more.push(`first token after ${stats.wait.toFixed(2)} s`);
  if (stats.prompt) more.push(`prompt ${count(stats.prompt)} tokens`);
  if (stats.cached) more.push(`${count(stats.cached)} of them remembered`);
  return el("span.stats", { title: more.join(", ") || null }, parts.join(" · "));
}

/** 8.43 as "8.4", 84.3 as "84". */
export const speed = (value) => (value < 20 ? value.toFixed(1) : value.toFixed(0));

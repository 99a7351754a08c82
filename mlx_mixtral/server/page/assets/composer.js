// Where messages are written, and how full the context is.

import { byId, count, el } from "./dom.js";
import { icon } from "./icons.js";
import { speed } from "./message.js";

export class Composer {
  constructor(app) {
    this.app = app;
    this.field = byId("draft");
    this.button = byId("send");
    this.gauge = byId("gauge");
    byId("composer").addEventListener("submit", (event) => {
      event.preventDefault();
      if (app.answering) app.stop();
      else this.send();
    });
    this.field.addEventListener("input", () => this.refresh());
    this.field.addEventListener("keydown", (event) => this.key(event));
    this.refresh();
  }

  key(event) {
    if (event.isComposing) return;
    if (event.key === "Enter" && !event.shiftKey) {
      event.preventDefault();
      this.send();
    } else if (event.key === "ArrowUp" && !this.field.value) {
      event.preventDefault();
      this.app.editLast();
    }
  }

  async send() {
    const text = this.field.value.trim();
    if (!text || this.app.isBusy) return;
    this.field.value = "";
    this.refresh();
    await this.app.send(text);
  }

  /** Gives back a text that could not be sent. */
  restore(text) {
    if (!this.field.value) this.field.value = text;
    this.refresh();
  }

  refresh() {
    const { app, button } = this;
    const stops = Boolean(app.answering);
    const name = stops ? "stop" : "send";
    if (button.dataset.does !== name) {
      button.dataset.does = name;
      button.replaceChildren(icon(name));
      button.setAttribute("aria-label", stops ? "Stop" : "Send");
      button.title = stops ? "Stop (Esc)" : "Send (Enter)";
    }
    button.disabled = !stops && (!this.field.value.trim() || app.isBusy);
    app.thread.keep(() => {
      this.field.style.height = "auto";
      this.field.style.height = `${Math.min(this.field.scrollHeight, innerHeight * 0.4)}px`;
    });
  }

  /** Tokens used of the context, and the speed while an answer comes. */
  showUse(used, live = null) {
    const most = this.app.model?.max_context_length;
    if (!most) return;
    const parts = [];
    if (live?.speed) parts.push(el("span", {}, `${speed(live.speed)} tok/s`));
    if (used) {
      const share = Math.min(1, used / most);
      const meter = el("meter", { min: 0, max: 1, value: share, high: 0.85, "aria-label": "Context in use" });
      parts.push(el("span.use", { title: "Tokens of the context in use" }, meter, `${count(used)} of ${count(most)} tokens`));
      if (share > 0.85) parts.push(el("span.full", {}, "The context is nearly full"));
    }
    this.gauge.replaceChildren(...parts);
  }
}

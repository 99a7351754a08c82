// What stands at the right (at the bottom on a narrow screen): the experts, or the settings.

import { byId, el, iconButton } from "./dom.js";
import { Experts } from "./experts.js";
import { remember, remembered } from "./remember.js";
import { settingsForm } from "./settings.js";

const KEPT = "panel";
export const WIDE = 1180; // from here on list, chat and panel stand side by side

export class Panel {
  constructor(app) {
    this.app = app;
    this.node = byId("panel");
    this.experts = new Experts(app);
    this.tab = innerWidth >= WIDE ? (remembered(KEPT) ?? "experts") : "";
    this.buttons = { experts: byId("show-experts"), settings: byId("show-settings") };
    for (const [tab, button] of Object.entries(this.buttons)) {
      button.addEventListener("click", () => this.toggle(tab));
    }
  }

  /** Whether answers show their tokens' routes, and new ones ask for them. */
  get showsExperts() {
    return this.tab === "experts" && Boolean(this.app.model?.experts);
  }

  /** Whether nothing else is seen: the settings on a narrow screen. */
  get coversAll() {
    return this.tab === "settings" && getComputedStyle(this.node).position === "fixed";
  }

  toggle(tab) {
    this.tab = this.tab === tab ? "" : tab;
    remember(KEPT, this.tab);
    this.refresh();
    this.app.thread.show(this.app.conversation);
    if (this.tab === "settings") this.node.querySelector("textarea").focus();
  }

  close() {
    const button = this.buttons[this.tab];
    this.toggle(this.tab);
    button?.focus();
  }

  /** Another conversation, another tab, or the model is known now. */
  refresh() {
    const { app, tab } = this;
    for (const [name, button] of Object.entries(this.buttons)) {
      button.setAttribute("aria-pressed", String(name === tab));
    }
    this.buttons.experts.hidden = app.model ? !app.model.experts : false;
    this.experts.pause();
    this.node.hidden = !tab || (tab === "experts" && !this.showsExperts);
    document.body.dataset.panel = this.node.hidden ? "" : tab;
    app.sidebar?.fit();
    if (this.node.hidden) return;
    const content = tab === "experts" ? this.experts.node : settingsForm(app);
    const title = tab === "experts" ? "Experts" : "Settings";
    const head = el("h2", {}, title);
    const close = iconButton("close", `Close ${title.toLowerCase()}`, () => this.close());
    this.node.replaceChildren(el("div.head", {}, head, close), content);
    if (tab === "experts") this.experts.refresh();
  }

  follow(message) {
    this.experts.follow(message);
  }

  grown(message) {
    if (this.showsExperts) this.experts.grown(message);
  }

  painted(view) {
    if (this.showsExperts) this.experts.painted(view);
  }

  point(view, token) {
    if (this.showsExperts) this.experts.point(view, token);
  }

  pin(view, token) {
    if (this.showsExperts) this.experts.pin(view, token);
  }
}

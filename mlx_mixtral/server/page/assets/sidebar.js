// The list of conversations.

import { byId, el, iconButton } from "./dom.js";
import { icon } from "./icons.js";
import { openMenu } from "./menu.js";
import { WIDE } from "./panel.js";
import { exportOne } from "./transfer.js";

const DAY = 86_400_000;
const NARROW = 820; // from here on there is room for the list beside a chat

export class Sidebar {
  constructor(app) {
    this.app = app;
    this.box = byId("list");
    this.search = byId("search");
    this.search.addEventListener("input", () => this.show());
    addEventListener("resize", () => this.fit());
    document.querySelector(".brand").prepend(icon("mark"));
    byId("new-chat").append(icon("plus"), "New chat");
    byId("new-chat").addEventListener("click", () => app.fresh());
    byId("fresh").append(icon("plus"));
    byId("fresh").addEventListener("click", () => app.fresh());
    byId("open-sidebar").append(icon("list"));
    byId("open-sidebar").addEventListener("click", () => this.slide(true));
    byId("close-sidebar").append(icon("close"));
    byId("close-sidebar").addEventListener("click", () => this.slide(false));
    document.addEventListener("pointerdown", (event) => {
      const outside = !event.target.closest("#sidebar, #open-sidebar, .menu");
      if (this.isOpen && outside) this.slide(false);
    });
  }

  get isOpen() {
    return document.body.classList.contains("listing");
  }

  /** A drawer where there is no room beside the chat and the panel. */
  fit() {
    const room = byId("panel").hidden ? NARROW : WIDE;
    document.documentElement.classList.toggle("drawer", innerWidth < room);
    if (innerWidth >= room) this.slide(false);
  }

  /** In or out, where it is a drawer. */
  slide(open) {
    if (this.isOpen === open) return;
    document.body.classList.toggle("listing", open);
    for (const behind of [document.querySelector("main"), byId("panel")]) behind.inert = open;
    byId(open ? "close-sidebar" : "open-sidebar").focus();
  }

  show() {
    if (this.renames) return; // it would take the field away
    const sought = this.search.value.trim().toLowerCase();
    const heads = this.app.heads
      .filter(({ title }) => title.toLowerCase().includes(sought))
      .sort((a, b) => b.updated - a.updated);
    const groups = new Map();
    for (const head of heads) {
      const group = when(head.updated);
      groups.set(group, [...(groups.get(group) ?? []), this.item(head)]);
    }
    const nodes = [...groups].map(([name, items]) =>
      el("section", {}, el("h2", {}, name), el("div", { role: "list", "aria-label": name }, ...items)),
    );
    const none = sought ? "Nothing found." : "Conversations are kept here, in this browser.";
    this.box.replaceChildren(...(nodes.length ? nodes : [el("p.hint", {}, none)]));
  }

  item(head) {
    const { app } = this;
    const isOpen = head.id === app.conversation?.id;
    const open = el(
      "button.open",
      { type: "button", "aria-current": isOpen ? "true" : null, onclick: () => app.open(head.id) },
      head.title,
    );
    const more = iconButton("more", `More about “${head.title}”`, () => this.menu(head, item, more));
    more.setAttribute("aria-haspopup", "menu");
    const item = el("div.item", { role: "listitem", "data-id": head.id }, open, more);
    item.classList.toggle("busy", app.answers.has(head.id));
    open.addEventListener("dblclick", () => this.rename(head, item));
    return item;
  }

  menu(head, item, button) {
    const { app } = this;
    openMenu(button, [
      ["Rename", () => this.rename(head, item)],
      ["Export as Markdown", () => exportOne(app, head.id, "md")],
      ["Export as JSON", () => exportOne(app, head.id, "json")],
      ["Delete", () => app.remove(head.id), "danger"],
    ]);
  }

  rename(head, item) {
    const field = el("input", { type: "text", "aria-label": "Title", maxlength: "120" });
    field.value = head.title;
    const end = (keep) => {
      if (!this.renames) return;
      this.renames = false;
      const title = field.value.trim();
      if (keep && title) this.app.rename(head.id, title);
      this.show();
      this.box.querySelector(`[data-id="${head.id}"] .open`)?.focus();
    };
    field.addEventListener("blur", () => end(true));
    field.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && !event.isComposing) end(true);
      else if (event.key === "Escape") end(false);
      else return;
      event.stopPropagation();
    });
    this.renames = true;
    item.replaceChildren(field);
    field.select();
  }
}

function when(time) {
  const midnight = new Date().setHours(0, 0, 0, 0);
  if (time >= midnight) return "Today";
  if (time >= midnight - DAY) return "Yesterday";
  if (time >= midnight - 6 * DAY) return "This week";
  return new Date(time).toLocaleDateString("en", { month: "long", year: "numeric" });
}

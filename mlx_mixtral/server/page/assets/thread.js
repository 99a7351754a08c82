// The messages of the conversation that is open.

import { path } from "./conversation.js";
import { byId, el } from "./dom.js";
import { icon } from "./icons.js";
import { MessageView } from "./message.js";

const NEAR = 60; // pixels from the end that count as being there

export class Thread {
  /** `app` does what the messages' buttons ask for. */
  constructor(app) {
    this.app = app;
    this.views = [];
    this.follows = true;
    this.scroller = byId("scroller");
    this.box = byId("thread");
    this.down = byId("down");
    this.down.append(icon("down"));
    this.down.addEventListener("click", () => this.toEnd(true));
    this.scroller.addEventListener("scroll", () => this.onScroll(), { passive: true });
    const sizes = new ResizeObserver(() => this.follows && this.toEnd());
    sizes.observe(this.box);
    sizes.observe(this.scroller);
  }

  /** Shows the conversation's path, keeping the views of messages that stay. */
  show(conversation) {
    const same = this.conversation === conversation;
    this.conversation = conversation;
    const messages = path(conversation);
    const old = new Map(same ? this.views.map((view) => [view.message.id, view]) : []);
    this.views = messages.map((message) => old.get(message.id) ?? new MessageView(message, this.app));
    this.views.forEach((view, n) => view.refresh(n === this.views.length - 1));
    const nodes = messages.length ? this.views.map((view) => view.node) : [welcome(this.app)];
    // Only what has to move moves: focus and selections stay.
    nodes.forEach((node, n) => {
      if (this.box.children[n] !== node) this.box.insertBefore(node, this.box.children[n] ?? null);
    });
    while (this.box.children.length > nodes.length) this.box.lastChild.remove();
    if (!same) this.toEnd();
  }

  /** The view of a message, if it is shown. */
  view(message) {
    return this.views.find((view) => view.message === message);
  }

  /** More of an answer is there. */
  grown(message) {
    this.view(message)?.grow();
    if (this.follows) this.toEnd();
  }

  toEnd(smooth = false) {
    this.follows = true;
    const calm = !smooth || matchMedia("(prefers-reduced-motion: reduce)").matches;
    this.scroller.scrollTo({ top: this.scroller.scrollHeight, behavior: calm ? "instant" : "smooth" });
    this.down.hidden = true;
  }

  /** Does something that changes the room for messages: what is seen of them stays. */
  keep(act) {
    const { scrollTop } = this.scroller;
    act();
    if (this.follows) this.toEnd();
    else this.scroller.scrollTop = scrollTop;
  }

  onScroll() {
    const { scrollTop, scrollHeight, clientHeight } = this.scroller;
    this.follows = scrollHeight - scrollTop - clientHeight < NEAR;
    this.down.hidden = this.follows;
  }
}

const QUESTIONS = {
  demo: [
    ["What is a violin?", "A word explained"],
    ["Tell me a story about a girl named Lily and a dog.", "A short story"],
    ["Count from 5 to 12.", "Numbers in a row"],
    ["How do you say tree in German?", "A translation"],
  ],
  other: [
    ["Explain how a mixture of experts works, to a curious teenager.", "An explanation"],
    ["Write a Python function that merges overlapping intervals, with a test.", "Some code"],
    ["Compare three ways to brew coffee in a table.", "A table"],
    ["Plan a weekend in Lyon without a car.", "A plan"],
  ],
};

function welcome(app) {
  const { model } = app;
  const about = model && [
    `${model.layers} layers`,
    model.experts ? `${model.experts} experts in each` : "dense",
    `${model.max_context_length.toLocaleString("en")} tokens of context`,
  ];
  const questions = QUESTIONS[model?.id === "demo" ? "demo" : "other"];
  const ask = ([text, kind]) =>
    el(
      "button.ask",
      { type: "button", onclick: () => app.send(text) },
      el("small", {}, kind),
      el("span", {}, text),
    );
  return el(
    "section.welcome",
    {},
    icon("mark"),
    el("h2", {}, model ? model.id : "Mixtral"),
    el("p", {}, about ? about.join(" · ") : "Waiting for the server …"),
    model ? el("div.asks", {}, ...questions.map(ask)) : null,
  );
}

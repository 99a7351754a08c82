// The routing of an answer, made visible: which experts each layer chose for each token.

import { count, el, percent } from "./dom.js";
import { icon } from "./icons.js";
import { Grid } from "./grid.js";
import { Routes } from "./routes.js";
import { spelling, tokenCard } from "./tokencard.js";

const STEP = 110; // milliseconds a token while the answer is played again

export class Experts {
  constructor(app) {
    this.app = app;
    this.message = null; // the answer that is looked at
    this.routes = null;
    this.pinned = null; // the token that was clicked on or stepped to
    this.pointed = null; // the token that the pointer is on
    this.layer = null; // the layer whose first choices color the answer
    this.build();
  }

  build() {
    const canvas = el("canvas", { tabindex: "0", role: "img" });
    this.lead = el("p.lead");
    this.readout = el("p.readout", { role: "status" });
    this.range = el("input", { type: "range", min: "0", step: "1", "aria-label": "Token of the answer" });
    this.range.addEventListener("input", () => this.step(Number(this.range.value)));
    this.player = el("button.icon", { type: "button", onclick: () => this.play() });
    this.place = el("output", { "aria-hidden": "true" });
    this.card = el("div.card");
    this.figures = el("dl.figures");
    this.walk = el("div.walk", {}, this.player, this.range, this.place);
    this.node = el(
      "div.experts",
      {},
      this.lead,
      el("div.picture", {}, canvas),
      this.readout,
      this.walk,
      this.card,
      this.figures,
      explanation(),
    );
    this.canvas = canvas;
    this.grid = new Grid(canvas, {
      hover: (cell) => this.hover(cell),
      select: (layer) => this.color(layer),
    });
  }

  get token() {
    return this.pointed ?? this.pinned;
  }

  get view() {
    return this.app.thread.views.find((view) => view.message === this.message);
  }

  /** Looks at another answer, or at none (null). */
  follow(message) {
    this.pause();
    this.unmark();
    this.message = message;
    this.pinned = this.pointed = null;
    this.routes = null;
    if (this.app.panel?.showsExperts) this.refresh();
  }

  /** Shows everything anew. */
  refresh() {
    const { message, app } = this;
    this.routes = message?.tokens ? new Routes(message.tokens) : null;
    this.grid.layer = this.layer;
    this.grid.show(this.routes, app.model);
    this.mark();
    this.tell();
    if (this.view) this.recolor(true);
  }

  /** More tokens came. */
  grown(message) {
    if (message !== this.message) return;
    if (!message.tokens) return this.tell();
    if (this.routes?.tokens !== message.tokens) return this.refresh();
    const many = this.routes.count();
    if (many) this.grid.lit(many);
    this.tell();
  }

  tell() {
    const { routes, app, message } = this;
    const { layers, experts } = routes ?? app.model;
    const each = routes?.each ?? 2;
    const nothing = message?.state === "answering" ? "Waiting for the first token" : "No routes to show yet";
    this.lead.textContent = routes?.length
      ? `${count(routes.length)} tokens, each written by ${each} of ${experts} experts in every one of ${layers} layers.`
      : message && !message.tokens && message.state !== "answering"
        ? "The routes of this answer were not kept."
        : `${nothing}. The model has ${layers} layers with ${experts} experts each.`;
    const label = `Routing grid of ${layers} layers by ${experts} experts`;
    this.canvas.setAttribute("aria-label", `${label}. Arrow keys read it, Enter colors the answer by a layer.`);
    if (!this.grid.cell) this.readout.replaceChildren(this.resting());
    this.walk.hidden = !routes?.length;
    this.tellToken();
    this.tellFigures();
  }

  resting() {
    if (this.layer === null) return el("span.hint", {}, "Point at a word or a cell; click a layer to color the answer.");
    const swatches = Array.from({ length: this.routes?.experts ?? 0 }, (_, expert) =>
      el("i.swatch", { "data-expert": expert % 8, title: `Expert ${expert}` }, String(expert)),
    );
    return el("span", {}, `Layer ${this.layer} colors the answer by its first choice:`, el("br"), ...swatches);
  }

  tellToken() {
    const { routes, token } = this;
    this.grid.token = routes && token !== null && token < routes.length ? token : null;
    this.grid.draw();
    if (!routes?.length) {
      this.card.replaceChildren();
      return;
    }
    const at = this.grid.token;
    this.player.replaceChildren(icon(this.timer ? "pause" : "play"));
    this.player.setAttribute("aria-label", this.timer ? "Pause" : "Play the answer token by token");
    this.player.title = this.player.getAttribute("aria-label");
    this.range.max = String(routes.length - 1);
    this.range.value = String(at ?? routes.length - 1);
    this.place.textContent = at === null ? count(routes.length) : `${count(at + 1)} / ${count(routes.length)}`;
    this.range.setAttribute("aria-valuetext", at === null ? "No token chosen" : this.spoken(at));
    this.card.replaceChildren(...tokenCard(this.message, at));
  }

  spoken(at) {
    const { routes } = this;
    const route = Array.from({ length: routes.layers }, (_, layer) => routes.expert(at, layer)).join(", ");
    return `Token ${at + 1}, ${spelling(this.message, at).trim()}, first choices ${route}`;
  }

  tellFigures() {
    const { routes } = this;
    this.figures.hidden = !(routes?.length > 1);
    if (this.figures.hidden) return;
    const { used, kept } = routes.summary();
    const figure = (value, unit, name, title) =>
      el("div", { title }, el("dd", {}, value, el("small", {}, unit)), el("dt", {}, name));
    this.figures.replaceChildren(
      figure(
        used.toFixed(1),
        ` of ${routes.experts}`,
        "experts in use",
        "The exponential of the entropy of a layer's choices, mean of the layers",
      ),
      figure(
        percent(kept),
        "",
        `repeat the first choice before (chance: ${percent(1 / routes.experts)})`,
        "Tokens whose first choice in a layer is that of the token before, mean of the layers",
      ),
    );
  }

  /** The pointer is on a cell of the grid: its figures, and the words that its expert worked on. */
  hover(cell) {
    const { routes, view } = this;
    view?.node.classList.toggle("lit-some", Boolean(cell && cell.expert !== null && routes));
    for (const span of view?.body.querySelectorAll(".token") ?? []) {
      const token = Number(span.dataset.token);
      const lit = cell && routes && cell.expert !== null && routes.has(token, cell.layer, cell.expert);
      span.classList.toggle("lit", Boolean(lit));
    }
    this.readout.replaceChildren(cell ? this.cellText(cell) : this.resting());
  }

  cellText({ layer, expert }) {
    const { routes } = this;
    if (!routes?.length) return el("span", {}, expert === null ? `Layer ${layer}` : `Layer ${layer}, expert ${expert}`);
    if (expert === null) return el("span", {}, el("b", {}, `Layer ${layer}`), ` repeats its first choice for ${percent(routes.kept(layer))}`);
    const chosen = routes.chosen[layer * routes.experts + expert];
    const firsts = routes.firsts[layer * routes.experts + expert];
    const share = percent(routes.share(layer, expert));
    return el(
      "span",
      {},
      el("b", {}, `Layer ${layer}, expert ${expert}`),
      `: ${share}, ${count(chosen)} tokens, first for ${count(firsts)}`,
    );
  }

  /** Colors the answer by what a layer chose first; null: no more. */
  color(layer) {
    this.layer = this.grid.layer = layer;
    this.grid.draw();
    this.readout.replaceChildren(this.resting());
    this.app.thread.views.forEach((view) => view.node.classList.remove("by-layer"));
    this.recolor(true);
  }

  recolor(all = false) {
    const { view, routes, layer } = this;
    if (!view || !routes) return;
    view.node.classList.toggle("by-layer", layer !== null);
    if (layer === null || layer >= routes.layers) return;
    const chosen = all ? ".token" : ".token:not([data-expert])";
    for (const span of view.body.querySelectorAll(chosen)) {
      span.dataset.expert = routes.expert(Number(span.dataset.token), layer) % 8;
    }
  }

  painted(view) {
    if (view.message !== this.message) return;
    this.recolor();
    this.mark();
  }

  /** The pointer is on a token of an answer, or left (null). */
  point(view, token) {
    if (this.timer || this.message?.state === "answering") return;
    if (token !== null && view.message !== this.message) this.follow(view.message);
    if (this.pointed === token) return;
    this.pointed = token;
    this.mark();
    this.tellToken();
  }

  pin(view, token) {
    if (view.message !== this.message) this.follow(view.message);
    this.step(this.pinned === token ? null : token);
  }

  step(token) {
    this.pinned = token;
    this.pointed = null;
    this.mark();
    this.tellToken();
  }

  unmark() {
    for (const span of this.view?.body.querySelectorAll(".token.now") ?? []) span.classList.remove("now");
  }

  mark() {
    this.unmark();
    if (this.token === null) return;
    for (const span of this.view?.body.querySelectorAll(`[data-token="${this.token}"]`) ?? []) {
      span.classList.add("now");
    }
  }

  /** Goes through the answer token by token, or stops doing so. */
  play() {
    if (this.timer) {
      this.pause();
      this.tellToken();
      return;
    }
    const last = this.routes.length - 1;
    let at = this.pinned === null || this.pinned >= last ? -1 : this.pinned;
    this.timer = setInterval(() => {
      at += 1;
      if (at >= this.routes.length) {
        this.pause();
        this.step(null);
      } else this.step(at);
    }, STEP);
    this.tellToken();
  }

  pause() {
    clearInterval(this.timer);
    this.timer = null;
  }
}

function explanation() {
  return el(
    "details",
    {},
    el("summary", {}, "What is this?"),
    el(
      "p",
      {},
      "For every token that is written, a small router in each layer chooses two of the layer’s " +
        "experts, and only those compute. A row here is a layer, a column an expert; a cell is the " +
        "brighter the more tokens of this answer its expert worked on. Expert 3 of one layer has " +
        "nothing to do with expert 3 of another.",
    ),
    el(
      "p",
      {},
      "A token’s way is drawn through the layers: the strong thread joins the experts that weighed " +
        "most, the faint one those that came second. Bars on the right tell how often a layer’s first " +
        "choice was that of the token before; the dotted lines show what even chance would give.",
    ),
  );
}

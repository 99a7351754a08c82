// What is told of one token: its text, how likely it was, what else might have stood there.

import { el, percent } from "./dom.js";

/** The token's text, how likely it was, and what else might have stood there. */
export function tokenCard(message, at) {
  if (at === null) return [el("p.hint", {}, "No token chosen. Play the answer, or point at its words.")];
  const { others, chances } = message.tokens;
  const text = spelling(message, at);
  const rows = others[at].map(([spelled, chance]) => {
    const bar = el("i.bar");
    bar.style.setProperty("--share", chance.toFixed(3));
    return el(
      "div.option",
      { "data-own": String(spelled.trim() === text.trim()) },
      el("code", {}, visible(spelled)),
      bar,
      el("span", {}, likely(chance)),
    );
  });
  const chance = chances[at] === null ? null : el("span", {}, `likelihood ${likely(chances[at])}`);
  const head = el("p.chosen", {}, el("code", {}, visible(text)), chance);
  return [head, el("div.options", { role: "group", "aria-label": "Likeliest tokens here" }, ...rows)];
}

/** The text of an answer that a token wrote. */
export const spelling = ({ content, tokens }, at) => content.slice(tokens.starts[at], tokens.ends[at]);
const visible = (text) => text.replace(/\n/g, "⏎").replace(/^ | $/g, "·") || "∅";
const likely = (chance) => (chance > 0.995 ? "> 99 %" : chance < 0.005 ? "< 1 %" : percent(chance));

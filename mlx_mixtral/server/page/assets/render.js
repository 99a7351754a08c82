// A tree of markdown.js as elements. Texts become text nodes, and nothing else: whatever a
// model writes, nothing of it runs, and nothing is fetched.

import { copy, el } from "./dom.js";
import { icon } from "./icons.js";
import { pieces } from "./highlight.js";
import { parse } from "./markdown.js";

/**
 * Keeps an element in step with a text that grows. Blocks that stayed as they were keep their
 * elements, so that a selection in them, and their scrolling, lasts.
 */
export class Rendered {
  constructor(element) {
    this.element = element;
    this.kept = [];
  }

  /** Shows `source`; `tokens` ({starts, ends}), if given, get an element each. */
  update(source, tokens = null) {
    const blocks = parse(source);
    const cursor = tokens && new Cursor(tokens);
    const kept = [];
    blocks.forEach((block, n) => {
      const open = n === blocks.length - 1 ? `|${tokens?.ends.length ?? 0}` : "";
      const key = `${block.from}|${Boolean(tokens)}${open}|${source.slice(block.from, block.to)}`;
      const old = this.kept[n];
      if (old?.key === key) {
        kept.push(old);
        return;
      }
      const node = element(block, cursor);
      if (old) old.node.replaceWith(node);
      else this.element.append(node);
      kept.push({ key, node });
    });
    for (const old of this.kept.slice(blocks.length)) old.node.remove();
    this.kept = kept;
  }

  clear() {
    this.element.replaceChildren();
    this.kept = [];
  }
}

/** Finds the token that wrote a character of the source. */
class Cursor {
  constructor({ starts, ends }) {
    this.starts = starts;
    this.ends = ends;
  }

  at(position) {
    let [low, high] = [0, this.ends.length];
    while (low < high) {
      const middle = (low + high) >> 1;
      if (this.ends[middle] <= position) low = middle + 1;
      else high = middle;
    }
    return low < this.starts.length && this.starts[low] <= position ? low : -1;
  }
}

function element(node, cursor) {
  const inner = () => node.children.map((child) => element(child, cursor));
  switch (node.type) {
    case "text":
      return texts(node.text, node.map, cursor);
    case "paragraph":
      return el("p", {}, ...inner());
    case "heading":
      // The page's own headings come first, so that a screen reader's outline makes sense.
      return el(`h${Math.min(6, node.level + 1)}.level${node.level}`, {}, ...inner());
    case "codespan":
      return el("code", {}, texts(node.text, node.map, cursor));
    case "code":
      return codeBlock(node, cursor);
    case "quote":
      return el("blockquote", {}, ...inner());
    case "list":
      return list(node, cursor);
    case "table":
      return table(node, cursor);
    case "rule":
      return el("hr");
    case "break":
      return el("br");
    case "link":
      return el("a", { href: node.href, target: "_blank", rel: "noopener noreferrer" }, ...inner());
    default:
      return el(node.type, {}, ...inner());
  }
}

function texts(text, map, cursor) {
  if (!cursor) return document.createTextNode(text);
  const all = document.createDocumentFragment();
  let from = 0;
  let token = cursor.at(map[0]);
  for (let i = 1; i <= text.length; i += 1) {
    const next = i < text.length ? cursor.at(map[i]) : null;
    if (next === token) continue;
    const piece = text.slice(from, i);
    all.append(token < 0 ? piece : el("span.token", { "data-token": token }, piece));
    [from, token] = [i, next];
  }
  return all;
}

function codeBlock(node, cursor) {
  const code = el("code");
  for (const [from, to, kind] of pieces(node.text, node.language)) {
    const piece = texts(node.text.slice(from, to), node.map.subarray(from, to), cursor);
    code.append(kind ? el(`span.${kind}`, {}, piece) : piece);
  }
  const label = { type: "button", "aria-label": "Copy the code", title: "Copy the code" };
  const button = el("button.icon", label, icon("copy"));
  button.addEventListener("click", () => copy(node.text, button));
  return el(
    "figure.code",
    {},
    el("figcaption", {}, el("span", {}, node.language || "text"), button),
    el("pre", { tabindex: "0" }, code),
  );
}

function list(node, cursor) {
  const items = node.children.map((item) => {
    const parts = item.children.map((child) => {
      const bare = node.tight && child.type === "paragraph";
      return bare ? child.children.map((leaf) => element(leaf, cursor)) : [element(child, cursor)];
    });
    if (item.checked === null) return el("li", {}, ...parts.flat());
    const label = item.checked ? "Done" : "To do";
    const box = el("input", { type: "checkbox", disabled: true, checked: item.checked, "aria-label": label });
    return el("li.task", {}, box, ...parts.flat());
  });
  if (!node.ordered) return el("ul", {}, ...items);
  return el("ol", { start: node.start === 1 ? null : node.start }, ...items);
}

function table(node, cursor) {
  const row = ({ children }, tag) =>
    el(
      "tr",
      {},
      ...node.align.map((side, n) =>
        el(`${tag}.${side}`, {}, ...(children[n]?.children ?? []).map((leaf) => element(leaf, cursor))),
      ),
    );
  const [head, ...rest] = node.children;
  return el(
    "div.table",
    { tabindex: "0", role: "region", "aria-label": "Table" },
    el("table", {}, el("thead", {}, row(head, "th")), el("tbody", {}, ...rest.map((r) => row(r, "td")))),
  );
}

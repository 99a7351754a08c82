// What stands inside of a block: code, emphasis, links, breaks.

const PUNCTUATION = /[\p{P}\p{S}]/u;
const ESCAPABLE = /[!-/:-@[-`{-~]/;
const BARE = /^https?:\/\/[^\s<>]+/;
const ANGLED = /^<(https?:\/\/[^\s<>]+|mailto:[^\s<>]+)>/;
const TARGET = /^\(\s*(?:<([^<>\n]*)>|((?:[^\s()\\]|\\.|\([^\s()]*\))*))(?:\s+(?:"[^"]*"|'[^']*'))?\s*\)/;
const SAFE = /^(https?:\/\/|mailto:)/i;

/** The nodes of a text whose characters stand at `map` in the source. */
export function inline({ text, map }) {
  return new Inline(text, map).nodes();
}

class Inline {
  constructor(text, map) {
    this.text = text;
    this.map = map;
    this.at = 0;
    this.run = 0; // where the plain text that is not yet kept begins
    this.found = [];
    this.brackets = [];
  }

  nodes() {
    while (this.at < this.text.length) {
      if (!this.special()) this.at += 1;
    }
    this.keepRun();
    return emphasized(this.found);
  }

  /** Takes what begins here, if it is more than a character. */
  special() {
    switch (this.text[this.at]) {
      case "\\":
        return this.escaped();
      case "`":
        return this.code();
      case "*":
      case "_":
      case "~":
        return this.delimiter();
      case "[":
        return this.opened(this.at);
      case "!":
        return this.text[this.at + 1] === "[" && this.opened(this.at);
      case "]":
        return this.closed();
      case "<":
        return this.link(ANGLED, 1);
      case "h":
        return !/\w/.test(this.text[this.at - 1] ?? "") && this.link(BARE, 0);
      case "\n":
        return this.broken();
      default:
        return false;
    }
  }

  leaf(from, to) {
    return { type: "text", text: this.text.slice(from, to), map: this.map.subarray(from, to) };
  }

  keepRun(to = this.at) {
    if (to > this.run) this.found.push(this.leaf(this.run, to));
  }

  /** Keeps a node for everything from `this.at` to `end`. */
  keep(node, end) {
    this.keepRun();
    this.found.push(node);
    this.at = this.run = end;
    return true;
  }

  escaped() {
    const next = this.text[this.at + 1];
    if (next === "\n") return this.keep({ type: "break" }, this.at + 2);
    if (!next || !ESCAPABLE.test(next)) return false;
    return this.keep(this.leaf(this.at + 1, this.at + 2), this.at + 2);
  }

  broken() {
    let end = this.at;
    while (end > this.run && this.text[end - 1] === " ") end -= 1;
    this.keepRun(end);
    this.run = this.at;
    this.found.push({ type: "break" });
    this.at = this.run = this.at + 1;
    return true;
  }

  code() {
    const [ticks] = /^`+/.exec(this.text.slice(this.at));
    let end = this.at + ticks.length;
    for (;;) {
      end = this.text.indexOf(ticks, end);
      if (end < 0) break;
      const after = end + ticks.length;
      if (this.text[after] !== "`") break;
      while (this.text[end] === "`") end += 1;
    }
    if (end < 0) {
      this.at += ticks.length;
      return true;
    }
    let [from, to] = [this.at + ticks.length, end];
    const inner = this.text.slice(from, to);
    if (/^ .*[^ ].* $/s.test(inner) || /^ `.*` $/s.test(inner)) [from, to] = [from + 1, to - 1];
    return this.keep({ ...this.leaf(from, to), type: "codespan" }, end + ticks.length);
  }

  delimiter() {
    const char = this.text[this.at];
    let end = this.at;
    while (this.text[end] === char) end += 1;
    const before = this.text[this.at - 1] ?? " ";
    const after = this.text[end] ?? " ";
    const space = (c) => /\s/.test(c);
    const mark = (c) => PUNCTUATION.test(c);
    const left = !space(after) && (!mark(after) || space(before) || mark(before));
    const right = !space(before) && (!mark(before) || space(after) || mark(after));
    const word = char === "_";
    const size = end - this.at;
    if (char === "~" && size !== 2) {
      this.at = end;
      return true;
    }
    const node = {
      type: "mark",
      char,
      leaf: this.leaf(this.at, end),
      size,
      whole: size,
      opens: left && (!word || !right || mark(before)),
      closes: right && (!word || !left || mark(after)),
    };
    return this.keep(node, end);
  }

  link(form, trim) {
    const match = form.exec(this.text.slice(this.at));
    if (!match) return false;
    let length = match[0].length;
    if (!trim) length -= /[?!.,:;*_~'"]*$/.exec(match[0])[0].length;
    if (!trim && match[0][length - 1] === ")" && !match[0].includes("(")) length -= 1;
    const children = [this.leaf(this.at + trim, this.at + length - trim)];
    return this.keep({ type: "link", href: children[0].text, children }, this.at + length);
  }

  opened(at) {
    const size = this.text[at] === "!" ? 2 : 1;
    this.keepRun();
    this.brackets.push({ index: this.found.length });
    this.found.push(this.leaf(at, at + size));
    this.at = this.run = at + size;
    return true;
  }

  closed() {
    const bracket = this.brackets.pop();
    const target = bracket && TARGET.exec(this.text.slice(this.at + 1));
    const href = target && (target[1] ?? target[2]).replace(/\\(.)/g, "$1");
    if (!target) return false;
    this.keepRun();
    const children = emphasized(this.found.splice(bracket.index).slice(1));
    if (SAFE.test(href)) this.found.push({ type: "link", href, children });
    else this.found.push(...children);
    this.at = this.run = this.at + 1 + target[0].length;
    return true;
  }
}

const WRAPS = { 1: "em", 2: "strong" };

/** Pairs the marks of emphasis in a row of nodes (CommonMark's rules). */
function emphasized(nodes) {
  for (let closer = 0; closer < nodes.length; closer += 1) {
    const end = nodes[closer];
    if (end.type !== "mark" || !end.closes || !end.size) continue;
    let opener = closer - 1;
    while (opener >= 0 && !pairs(nodes[opener], end)) opener -= 1;
    if (opener < 0) continue;
    const begin = nodes[opener];
    const used = begin.size >= 2 && end.size >= 2 ? 2 : 1;
    const inner = nodes.slice(opener + 1, closer).map(plain).filter(Boolean);
    const type = end.char === "~" ? "del" : WRAPS[used];
    begin.size -= used;
    end.size -= used;
    const kept = [begin.size ? begin : null, { type, children: inner }, end.size ? end : null];
    const left = kept.filter(Boolean);
    nodes.splice(opener, closer - opener + 1, ...left);
    closer = opener + left.length - (end.size ? 2 : 1);
  }
  return nodes.map(plain).filter(Boolean);
}

function pairs(begin, end) {
  if (begin.type !== "mark" || begin.char !== end.char || !begin.opens || !begin.size) return false;
  const either = begin.closes || end.opens;
  return !either || (begin.whole + end.whole) % 3 !== 0 || (begin.whole % 3 === 0 && end.whole % 3 === 0);
}

/** A mark that paired with nothing is text. */
function plain(node) {
  if (node.type !== "mark") return node;
  if (!node.size) return null;
  const { text, map } = node.leaf;
  return { type: "text", text: text.slice(0, node.size), map: map.subarray(0, node.size) };
}

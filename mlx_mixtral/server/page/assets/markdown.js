// Markdown to a tree. Every piece of text in it knows where in the source each of its
// characters stands (`map`), so that the page can tell which token of the answer wrote it.
//
// Blocks: paragraph, heading {level}, code {language, text, map}, quote, list {ordered, start,
// tight}, item {checked}, table {align}, row, cell, rule. In them: text {text, map}, code,
// strong, em, del, link {href}, break. Single newlines are breaks: that is how models use them.

import { inline } from "./inline.js";

const FENCE = /^( {0,3})(`{3,}|~{3,})[ \t]*([^`]*)$/;
const HEADING = /^ {0,3}(#{1,6})(?:[ \t]+|$)/;
const RULE = /^ {0,3}([-*_])(?:[ \t]*\1){2,}[ \t]*$/;
const QUOTE = /^ {0,3}> ?/;
const ITEM = /^( *)([-*+]|\d{1,9}[.)])(?:([ \t]+)(?=\S)|[ \t]*$)/;
const DIVIDER = /^ {0,3}\|?[ \t]*:?-+:?[ \t]*(\|[ \t]*:?-+:?[ \t]*)*\|?[ \t]*$/;
const UNDERLINE = /^ {0,3}(=+|-+)[ \t]*$/;
const DEEPEST = 12;

/** The blocks of a text, each with the range of the source that it stands for. */
export function parse(source) {
  let at = 0;
  const lines = source.split("\n").map((text) => {
    const line = { text: text.replace(/\r$/, ""), at };
    at += text.length + 1;
    return line;
  });
  return blocks(lines, 0);
}

function blocks(lines, depth) {
  const found = [];
  let n = 0;
  while (n < lines.length) {
    if (!lines[n].text.trim()) {
      n += 1;
      continue;
    }
    const [block, next] = depth < DEEPEST ? oneBlock(lines, n, depth) : paragraph(lines, n);
    const last = lines[next - 1];
    found.push({ ...block, from: lines[n].at, to: last.at + last.text.length });
    n = next;
  }
  return found;
}

function oneBlock(lines, n, depth) {
  const { text } = lines[n];
  if (FENCE.test(text)) return fenced(lines, n);
  if (HEADING.test(text)) return heading(lines[n], n);
  if (RULE.test(text)) return [{ type: "rule" }, n + 1];
  if (QUOTE.test(text)) return quote(lines, n, depth);
  if (ITEM.test(text) && indent(text) < 4) return list(lines, n, depth);
  if (indent(text) >= 4) return indented(lines, n);
  if (isTable(lines, n)) return table(lines, n);
  return paragraph(lines, n);
}

const indent = (text) => text.length - text.replace(/^[ \t]+/, "").length;
const cut = (line, many) => ({ text: line.text.slice(many), at: line.at + many });

/** Whether a line ends the paragraph before it. */
function begins({ text }) {
  const item = ITEM.exec(text);
  const interrupts = item && item[3] && (item[2].length === 1 || /^1[.)]/.test(item[2]));
  return FENCE.test(text) || HEADING.test(text) || RULE.test(text) || QUOTE.test(text) || interrupts;
}

function joined(lines) {
  const text = lines.map((line) => line.text).join("\n");
  const map = new Int32Array(text.length);
  let i = 0;
  for (const line of lines) {
    for (let c = 0; c <= line.text.length && i < text.length; c += 1) map[i++] = line.at + c;
  }
  return { text, map };
}

const inlines = (lines) => inline(joined(lines));

function paragraph(lines, n) {
  const own = [];
  for (; n < lines.length && lines[n].text.trim(); n += 1) {
    const { text } = lines[n];
    if (own.length && UNDERLINE.test(text)) {
      const level = text.trim().startsWith("=") ? 1 : 2;
      return [{ type: "heading", level, children: inlines(own) }, n + 1];
    }
    if (own.length && (begins(lines[n]) || isTable(lines, n))) break;
    const line = cut(lines[n], indent(text));
    own.push(line);
  }
  const last = own[own.length - 1];
  own[own.length - 1] = { ...last, text: last.text.trimEnd() };
  return [{ type: "paragraph", children: inlines(own) }, n];
}

function heading(line, n) {
  const [marks, hashes] = HEADING.exec(line.text);
  const rest = cut(line, marks.length);
  const text = rest.text.replace(/(^|[ \t]+)#+[ \t]*$/, "").trimEnd();
  return [{ type: "heading", level: hashes.length, children: inlines([{ ...rest, text }]) }, n + 1];
}

function fenced(lines, n) {
  const [, before, fence, language] = FENCE.exec(lines[n].text);
  const end = new RegExp(`^ {0,3}${fence[0]}{${fence.length},}[ \\t]*$`);
  const own = [];
  let closed = false;
  for (n += 1; n < lines.length; n += 1) {
    if (end.test(lines[n].text)) {
      closed = true;
      n += 1;
      break;
    }
    own.push(cut(lines[n], Math.min(indent(lines[n].text), before.length)));
  }
  return [{ type: "code", language: language.trim().split(/\s/)[0], closed, ...joined(own) }, n];
}

function indented(lines, n) {
  const own = [];
  for (; n < lines.length && (indent(lines[n].text) >= 4 || !lines[n].text.trim()); n += 1) {
    own.push(cut(lines[n], Math.min(4, lines[n].text.length)));
  }
  while (!own[own.length - 1].text.trim()) {
    own.pop();
    n -= 1;
  }
  return [{ type: "code", language: "", closed: true, ...joined(own) }, n];
}

function quote(lines, n, depth) {
  const own = [];
  for (; n < lines.length; n += 1) {
    const mark = QUOTE.exec(lines[n].text);
    if (!mark && (!lines[n].text.trim() || begins(lines[n]))) break;
    own.push(cut(lines[n], mark ? mark[0].length : 0));
  }
  return [{ type: "quote", children: blocks(own, depth + 1) }, n];
}

/** The items of one list. What is indented by two or more belongs to the item above it. */
function list(lines, n, depth) {
  const first = ITEM.exec(lines[n].text);
  const outer = first[1].length;
  const ordered = first[2].length > 1;
  const kind = (mark) => (ordered ? mark[2].length > 1 : mark[2] === first[2]);
  const items = [];
  let loose = false;
  let blank = false;
  for (; n < lines.length; n += 1) {
    const line = lines[n];
    const item = items[items.length - 1];
    if (!line.text.trim()) {
      blank = true;
      item.push(cut(line, line.text.length));
      continue;
    }
    const mark = ITEM.exec(line.text);
    const deep = indent(line.text);
    if (mark && deep < outer + 2 && deep < 4 + outer && !RULE.test(line.text)) {
      if (!kind(mark)) break;
      loose = loose || (blank && items.length > 0);
      items.push([cut(line, mark[0].length)]);
      items[items.length - 1].inset = mark[3] && mark[3].length < 5 ? mark[0].length : deep + 2;
    } else if (item && deep >= outer + 2) {
      loose = loose || (blank && !mark);
      item.push(cut(line, Math.min(deep, item.inset)));
    } else if (blank || begins(line)) {
      break;
    } else {
      item.push(line);
    }
    blank = false;
  }
  const children = items.map((own) => listItem(own, depth));
  const start = ordered ? Number.parseInt(first[2], 10) : null;
  while (!lines[n - 1].text.trim()) n -= 1;
  return [{ type: "list", ordered, start, tight: !loose, children }, n];
}

function listItem(own, depth) {
  const task = /^\[([ xX])\][ \t]+/.exec(own[0].text);
  if (task) own[0] = cut(own[0], task[0].length);
  const checked = task ? task[1] !== " " : null;
  return { type: "item", checked, children: blocks(own, depth + 1) };
}

function isTable(lines, n) {
  const below = lines[n + 1]?.text ?? "";
  if (!lines[n].text.includes("|") || !below.includes("-") || !DIVIDER.test(below)) return false;
  return cells(lines[n]).length === cells(lines[n + 1]).length;
}

function table(lines, n) {
  const align = cells(lines[n + 1]).map(({ text }) => {
    if (text.endsWith(":")) return text.startsWith(":") ? "center" : "end";
    return "start";
  });
  const row = (line) => {
    const own = cells(line).slice(0, align.length);
    return { type: "row", children: own.map((cell) => ({ type: "cell", children: inlines([cell]) })) };
  };
  const rows = [row(lines[n])];
  for (n += 2; n < lines.length && lines[n].text.trim() && !begins(lines[n]); n += 1) {
    rows.push(row(lines[n]));
  }
  return [{ type: "table", align, children: rows }, n];
}

/** The cells of a line, without the space around them. */
function cells(line) {
  const found = [];
  let start = indent(line.text);
  if (line.text[start] === "|") start += 1;
  const end = line.text.trimEnd().length;
  for (let i = start; i <= end; i += 1) {
    if (line.text[i] === "\\") i += 1;
    else if (i === end || line.text[i] === "|") {
      if (i === end && i <= start) break;
      const raw = line.text.slice(start, i);
      const lead = indent(raw);
      found.push({ text: raw.trim(), at: line.at + start + lead });
      start = i + 1;
    }
  }
  return found;
}

// Colors for code: comments, strings, numbers, keywords, names that are called. One small lexer
// for the languages that models write most; what it does not know stays plain.

const WORDS = {
  python: "and as assert async await break case class continue def del elif else except False finally for from global if import in is lambda match None nonlocal not or pass raise return True try while with yield",
  js: "as async await break case catch class const continue default delete do else enum export extends false finally for from function get if implements import in instanceof interface let new null of private public readonly return set static super switch this throw true try type typeof undefined var void while with yield",
  c: "alignas auto bool break case catch char class concept const constexpr continue default delete do double else enum explicit export extern false final float for friend goto if import inline int long mutable namespace new noexcept null nullptr operator override package private protected public register return short signed sizeof static struct switch template this throw throws true try typedef typename union unsigned using var virtual void volatile while",
  rust: "as async await break const continue crate dyn else enum extern false fn for if impl in let loop match mod move mut pub ref return self Self static struct super trait true type unsafe use where while",
  go: "break case chan const continue default defer else fallthrough false for func go goto if import interface map nil package range return select struct switch true type var",
  swift: "any as associatedtype async await break case catch class continue default defer do else enum extension false fileprivate for func guard if import in init inout internal is let mutating nil open operator private protocol public repeat rethrows return self Self some static struct super switch throw throws true try typealias var where while",
  ruby: "alias and begin break case class def do else elsif end ensure false for if in module next nil not or redo rescue retry return self super then true undef unless until when while yield",
  sh: "case do done elif else esac export fi for function if in local return select then until while",
  sql: "add all alter and as asc between by case check column create cross default delete desc distinct drop else end exists foreign from full group having if in index inner insert into is join key left like limit not null offset on or order outer primary references right select set table then union unique update values view when where with",
  data: "true false null yes no on off",
};
const NAMES = {
  py: "python", python: "python", js: "js", javascript: "js", jsx: "js", ts: "js", tsx: "js",
  typescript: "js", c: "c", h: "c", cpp: "c", "c++": "c", cc: "c", java: "c", cs: "c", csharp: "c",
  kotlin: "c", rust: "rust", rs: "rust", go: "go", golang: "go", swift: "swift", rb: "ruby",
  ruby: "ruby", sh: "sh", bash: "sh", zsh: "sh", shell: "sh", console: "sh", sql: "sql",
  json: "data", yaml: "data", yml: "data", toml: "data", ini: "data",
};
const HASH = "#[^\\n]*";
const SLASHES = "//[^\\n]*|/\\*[\\s\\S]*?(?:\\*/|$)";
const COMMENTS = { python: HASH, ruby: HASH, sh: "(?<![^\\s])" + HASH, data: "(?<![^\\s])" + HASH, sql: "--[^\\n]*|/\\*[\\s\\S]*?(?:\\*/|$)" };
const STRING = `"(?:\\\\.|[^"\\\\\\n])*"?|'(?:\\\\.|[^'\\\\\\n])*'?`;
const STRINGS = {
  python: `[rbfuRBFU]{0,2}(?:"""[\\s\\S]*?(?:"""|$)|'''[\\s\\S]*?(?:'''|$)|${STRING})`,
  js: `\`(?:\\\\.|[^\`\\\\])*\`?|${STRING}`,
  go: `\`[^\`]*\`?|${STRING}`,
  rust: `"(?:\\\\.|[^"\\\\])*"?|'(?:\\\\.|[^'\\\\\\n])'`,
};
const NUMBER = "\\b(?:0[xX][\\da-fA-F_]+|0[bB][01_]+|\\d[\\d_]*(?:\\.\\d[\\d_]*)?(?:[eE][+-]?\\d+)?)[a-zA-Z]*\\b";
const made = new Map();

function lexer(language) {
  const family = NAMES[language.toLowerCase()];
  if (!family) return null;
  if (!made.has(family)) {
    const words = WORDS[family].split(" ").join("|");
    const parts = [
      `(?<comment>${COMMENTS[family] ?? SLASHES})`,
      `(?<string>${STRINGS[family] ?? STRING})`,
      `(?<number>${NUMBER})`,
      `(?<word>\\b(?:${words})\\b)`,
      "(?<call>\\b[A-Za-z_]\\w*(?=\\())",
    ];
    made.set(family, new RegExp(parts.join("|"), family === "sql" ? "gi" : "g"));
  }
  return made.get(family);
}

/** Pieces [from, to, kind] of a code that follow each other and cover it; kind may be null. */
export function pieces(code, language) {
  const form = lexer(language);
  if (!form || code.length > 50_000) return [[0, code.length, null]];
  const found = [];
  let end = 0;
  for (const match of code.matchAll(form)) {
    if (!match[0]) continue;
    if (match.index > end) found.push([end, match.index, null]);
    const kind = Object.keys(match.groups).find((name) => match.groups[name] !== undefined);
    end = match.index + match[0].length;
    found.push([match.index, end, kind]);
  }
  if (end < code.length) found.push([end, code.length, null]);
  return found;
}

"""The page's Markdown, in the browser that runs it, against markdown-it."""

from __future__ import annotations

from html.parser import HTMLParser

import pytest
from chromium import Visit, chromium
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

REFERENCE = MarkdownIt("commonmark", {"breaks": True, "html": False}).enable(
    ["table", "strikethrough"]
)

SAMPLES = [
    "One line.",
    "Two\nlines, and a  \nhard break\\\nor two.",
    "# One\n\n## Two ##\n\n###### Six\n\nSetext\n======\n\nAnother\n---",
    "a *b* **c** ***d*** _e_ __f__ a*b*c snake_case_name __init__.py 2 * 3 * 4",
    "**bold with *nested* text** and *it with **strong** in*",
    "~~gone~~ and ~not~",
    "*open **and not closed",
    "**“quoted”** und **Text**, so",
    "`code` and ``co`de`` and ` `` ` and `open",
    "`**not bold**` **`bold code`**",
    "\\*not emphasis\\* \\` \\[ \\\\ \\a",
    '[a link](https://example.org/a_b(c)) and [b](<https://example.org/x> "title")',
    "<https://example.org/x?y=1&z=2>",
    "[not a link] [nor](that one) [open](",
    "**[bold link](https://example.org)**",
    "```python\nprint('*x*')\n\n    # four\n```\nafter",
    "~~~\ntildes ```\n~~~",
    "````\n```\n````",
    "```\nnever closed\n",
    "- one\n- two\n- three",
    "* one\n\n  more of it\n\n* two",
    "1. one\n2. two\n   - in\n   - it\n3. three",
    "7. seven\n8. eight",
    "- a\n  - b\n    - c\n- d",
    "- one\n\n- two",
    "- code:\n\n  ```sh\n  ls\n  ```\n- end",
    "text\n- a list at once\n- again\n\n1) one\n2) two",
    "> quoted\n> *more*\nlazy\n\n> > deep\n\n> - list\n> - in it",
    "---\n\n***\n\ntext\n\n- - -",
    "| a | b |\n|---|:-:|\n| 1 | `x` |\n| **2** | \\| |\n\nafter",
    "a | b\n--|--\n1 | 2\n3",
    "    indented\n    code\n\ntext",
    "<b>html</b> stays & text < 3",
    "Ünïcödé 🎻 **日本語** ok",
]
RENDER = """
async (sources) => {
  const { Rendered } = await import("/assets/render.js");
  return sources.map((source) => {
    const box = document.createElement("div");
    new Rendered(box).update(source);
    return box.innerHTML;
  });
}
"""
GROW = """
async ([source, cuts]) => {
  const { Rendered } = await import("/assets/render.js");
  const ends = [...source].map((_, n) => n + 1);
  const [one, grown] = [document.createElement("div"), document.createElement("div")];
  const tokens = (length) => {
    const used = cuts.filter((cut) => cut < length);
    return { starts: [0, ...used], ends: [...used, length] };
  };
  const rendered = new Rendered(grown);
  for (const cut of [...cuts, source.length]) rendered.update(source.slice(0, cut), tokens(cut));
  new Rendered(one).update(source, tokens(source.length));
  return [one.innerHTML, grown.innerHTML];
}
"""
LEAVES = """
async (source) => {
  const { parse } = await import("/assets/markdown.js");
  const found = [];
  const walk = (node) => {
    if (node.map) found.push([node.text, [...node.map].map((at) => source[at]).join("")]);
    node.children?.forEach(walk);
  };
  parse(source).forEach(walk);
  return found;
}
"""
PIECES = st.sampled_from(
    [*"*_~`#>|-+[]()<>\\!\n\n\n  :.1ax", "**", "```", "- ", "1. ", "    ", "| - |", "](", "word"]
)
TEXTS = st.lists(PIECES, max_size=40).map("".join)
QUICK = settings(max_examples=60, suppress_health_check=list(HealthCheck))


@pytest.fixture(scope="module")
def page(server):
    with chromium() as browser:
        visit = Visit(browser, server.url)
        yield visit.open()
        assert visit.complaints == []


class Outline(HTMLParser):
    """What a text comes to, in ``parts``: tags, and texts without the lines around them."""

    LEFT_OUT = frozenset({"div", "figure", "span", "thead", "tbody"})
    SAME = {"s": "del"}  # noqa: RUF012

    def __init__(self, html: str) -> None:
        super().__init__()
        self.parts: list[str] = []
        self._caption = self._joins = False
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list) -> None:
        given = dict(attrs)
        # The page's own headings come first, so that those of answers are a level lower.
        tag = given.get("class", "").replace("level", "h") if tag[1:].isdecimal() and given else tag
        shown = {name: given[name] for name in ("href", "start") if name in given}
        self._caption = self._caption or tag == "figcaption"
        self._add(tag, f"<{self.SAME.get(tag, tag)} {shown or ''}>")

    def handle_endtag(self, tag: str) -> None:
        tag = "h" if tag[1:].isdecimal() else tag
        self._add(tag, f"</{self.SAME.get(tag, tag)}>")
        self._caption = self._caption and tag != "figcaption"

    def _add(self, tag: str, part: str) -> None:
        if tag not in self.LEFT_OUT and not self._caption and part not in ("</br>", "</hr>"):
            self.parts.append(part)
            self._joins = False

    def handle_data(self, data: str) -> None:
        if self._caption or (not self._joins and not data.strip()):
            return
        if self._joins:
            data = self.parts.pop() + data
        self.parts.append(data.strip("\n"))
        self._joins = True


@pytest.mark.parametrize("source", SAMPLES)
def test_as_markdown_it_has_it(page, source: str):
    ours = Outline(page.evaluate(RENDER, [source])[0])
    assert ours.parts == Outline(REFERENCE.render(source)).parts


@QUICK
@given(source=TEXTS)
def test_every_character_knows_its_place(page, source: str):
    for text, placed in page.evaluate(LEAVES, source):
        assert text == placed


@QUICK
@given(source=TEXTS, cuts=st.lists(st.integers(1, 60), unique=True, max_size=6).map(sorted))
def test_a_text_that_grows_is_shown_as_one_that_is_there(page, source: str, cuts: list[int]):
    at_once, grown = page.evaluate(GROW, [source, [cut for cut in cuts if cut < len(source)]])
    assert at_once == grown


def test_bare_addresses_become_links(page):
    html = page.evaluate(RENDER, ["See https://example.org/a, or (https://example.org/b)."])[0]
    assert 'href="https://example.org/a"' in html
    assert 'href="https://example.org/b"' in html


@pytest.mark.parametrize(
    "scheme", ["javascript:alert(1)", "data:text/html,x", "file:///etc", "/v1"]
)
def test_other_addresses_stay_text(page, scheme: str):
    assert "<a" not in page.evaluate(RENDER, [f"[a]({scheme}) <{scheme}>"])[0]


def test_code_is_colored_and_stays_what_it_is(page):
    code = 'def f(x):  # why\n    return \'a\' + """b\nc""" * 0x1F\n'
    html = page.evaluate(RENDER, [f"```python\n{code}```"])[0]
    for kind, text in {"comment": "# why", "word": "return", "call": "f", "number": "0x1F"}.items():
        assert f'<span class="{kind}">{text}</span>' in html
    page.evaluate("html => document.querySelector('#thread').replaceChildren()", html)


def test_a_long_answer_is_quick(page):
    seconds = page.evaluate(
        """async (source) => {
          const { parse } = await import("/assets/markdown.js");
          const start = performance.now();
          parse(source);
          return (performance.now() - start) / 1000;
        }""",
        "\n".join(SAMPLES) * 40 + "*" * 3000 + "[" * 3000 + "`" * 3000 + "> " * 3000,
    )
    assert seconds < 5

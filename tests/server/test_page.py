"""The page in a headless Chromium, with the real server on the demo model."""

from __future__ import annotations

import json
import re

import pytest
from chromium import Visit, chromium, sync_api
from served import ANSWER, QUESTION, Server

expect = sync_api.expect
STORY = "Tell me a story about a girl named Lily and a dog."
SUM = "What is 3 + 4?"


@pytest.fixture(scope="module")
def browser():
    with chromium() as browser:
        yield browser


@pytest.fixture
def visit(browser, server: Server):
    """Opens visits; each has to leave no complaint behind, and to ask no other server."""
    opened: list[Visit] = []

    def visit(**context) -> Visit:
        opened.append(Visit(browser, server.url, **context))
        return opened[-1]

    yield visit
    for each in opened:
        each.close()
        assert each.complaints == []
        assert each.strangers() == []


@pytest.fixture
def page(visit):
    return visit().open()


def send(page, text: str = QUESTION):
    """Sends a message and waits for the answer's end; the answer's element."""
    many = page.locator("article.assistant").count()
    page.get_by_label("Message", exact=True).fill(text)
    page.keyboard.press("Enter")
    return answered(page, many)


def answered(page, at: int):
    answer = page.locator("article.assistant").nth(at)
    expect(answer.locator(".stats")).to_be_visible()
    return answer


def test_a_message_is_answered(page):
    answer = send(page)
    expect(answer.locator(".body")).to_have_text(ANSWER)
    expect(page.locator("article.user .bubble")).to_have_text(QUESTION)
    expect(answer.locator(".stats")).to_have_text(re.compile(r"\d+ tokens · [\d.]+ tok/s"))
    expect(page.locator("#gauge .use")).to_have_text(re.compile(r"\d+ of 2,048 tokens"))
    expect(page.locator("#title")).to_have_text(QUESTION)
    expect(page).to_have_title(re.compile("violin"))


def test_the_model_sees_what_was_said_before(page):
    send(page, "My name is Anna.")
    expect(send(page, "What is my name?").locator(".body")).to_have_text("Your name is Anna.")


def test_a_new_line_sends_nothing(page):
    draft = page.get_by_label("Message", exact=True)
    draft.press_sequentially("one")
    page.keyboard.press("Shift+Enter")
    draft.press_sequentially("two")
    expect(draft).to_have_value("one\ntwo")
    assert page.locator("article").count() == 0


def test_reloading_keeps_conversations_and_their_routes(page):
    send(page)
    routes = page.locator("article.assistant .token").count()
    page.reload()
    expect(page.locator("article.assistant .body")).to_have_text(ANSWER)
    expect(page.locator("article.assistant .token")).to_have_count(routes)
    expect(page.locator(".experts .lead")).to_have_text(re.compile(r"^\d+ tokens, each"))


def test_conversations_are_listed_renamed_and_deleted(page):
    send(page)
    page.get_by_role("button", name="New chat").click()
    expect(page.locator("article")).to_have_count(0)
    send(page, SUM)
    items = page.locator("#list .item .open")
    assert items.all_inner_texts() == [SUM, QUESTION]

    items.nth(1).click()
    expect(page.locator("article.assistant .body")).to_have_text(ANSWER)
    page.get_by_role("button", name=f"More about “{QUESTION}”").click()
    page.get_by_role("menuitem", name="Rename").click()
    page.keyboard.type("Strings")
    page.keyboard.press("Enter")
    expect(page.locator("#title")).to_have_text("Strings")
    page.reload()
    expect(items).to_have_text([SUM, "Strings"])

    page.get_by_role("button", name="More about “Strings”").click()
    page.get_by_role("menuitem", name="Delete").click()
    expect(items).to_have_count(1)
    expect(page.locator("article")).to_have_count(0)
    page.get_by_role("button", name="Undo").click()
    expect(items).to_have_count(2)
    expect(page.locator("article.assistant .body")).to_have_text(ANSWER)
    page.locator("#search").fill("3 +")
    expect(items).to_have_count(1)


def test_going_back_opens_what_was_open(page):
    send(page)
    page.keyboard.press("Control+Shift+O")
    send(page, SUM)
    page.go_back()
    page.go_back()
    expect(page.locator("article.user .bubble")).to_have_text(QUESTION)


def test_editing_goes_on_from_there_and_loses_nothing(page):
    send(page)
    send(page, "And in German?")
    page.locator("article.user").first.hover()
    page.get_by_role("button", name="Edit and go on from here").first.click()
    page.keyboard.press("Control+A")
    page.keyboard.type(SUM)
    page.keyboard.press("Enter")
    expect(page.locator("article.assistant .body")).to_have_text("3 + 4 = 7.")
    expect(page.locator("article")).to_have_count(2)
    page.locator("article.user").hover()
    page.get_by_role("button", name="The version before").click()
    expect(page.locator("article")).to_have_count(4)
    expect(page.locator("article.assistant .body").first).to_have_text(ANSWER)
    page.reload()
    expect(page.locator("article")).to_have_count(4)


def test_escape_leaves_an_edit(page):
    send(page)
    page.keyboard.press("ArrowUp")
    field = page.get_by_label("Edit the message")
    expect(field).to_be_focused()
    field.fill("something else")
    page.keyboard.press("Escape")
    expect(page.locator("article.user .bubble")).to_have_text(QUESTION)


def test_answering_again_keeps_both(page):
    page.get_by_role("button", name="Settings").click()
    page.get_by_role("spinbutton", name="Temperature").fill("1.5")
    page.keyboard.press("Tab")
    send(page, STORY)
    first = page.locator("article.assistant .body").inner_text()
    page.get_by_role("button", name="Answer again").click()
    expect(page.locator(".branches")).to_contain_text("2/2")
    assert page.locator("article.assistant .body").inner_text() != first
    page.get_by_role("button", name="The version before").click()
    expect(page.locator("article.assistant .body")).to_have_text(first, use_inner_text=True)


def test_settings_are_sent(page):
    bodies: list[dict] = []
    page.on("request", lambda r: r.post_data and bodies.append(json.loads(r.post_data)))
    page.keyboard.press("Control+,")
    page.get_by_label("System prompt").fill("Be brief.")
    page.get_by_role("spinbutton", name="Temperature").fill("0.5")
    page.get_by_role("spinbutton", name="Longest answer").fill("7")
    page.get_by_role("spinbutton", name="Seed").fill("3")
    page.get_by_label("Stop at these texts").fill("###\nEND")
    answer = send(page, STORY)
    asked = next(body for body in bodies if "stream" in body)
    assert asked["messages"][0] == {"role": "system", "content": "Be brief."}
    given = {name: asked[name] for name in ("temperature", "max_tokens", "seed", "stop")}
    assert given == {"temperature": 0.5, "max_tokens": 7, "seed": 3, "stop": ["###", "END"]}
    assert "top_p" not in asked
    expect(answer.locator(".note")).to_contain_text("greatest length")
    expect(answer.locator(".stats")).to_contain_text("7 tokens")


def test_an_answer_that_was_cut_goes_on(page):
    whole = send(page, STORY).locator(".body").inner_text()
    page.keyboard.press("Control+,")
    page.get_by_role("spinbutton", name="Longest answer").fill("12")
    page.get_by_role("spinbutton", name="Longest answer").press("Tab")
    cut = send(page, STORY)
    begun = cut.locator(".body").inner_text()
    page.get_by_role("spinbutton", name="Longest answer").fill("200")
    page.get_by_role("spinbutton", name="Longest answer").press("Tab")
    cut.get_by_role("button", name="Go on").click()
    expect(cut.locator(".note")).to_have_count(0)
    answered(page, 1)
    gone_on = cut.locator(".body").inner_text()
    assert gone_on.startswith(begun)
    assert len(gone_on) > len(begun) + 40
    assert whole
    page.keyboard.press("Control+Shift+E")
    spans = cut.locator(".token").all_inner_texts()
    assert "".join(spans) == gone_on


def test_the_routing_is_shown(page, post):
    bodies: list[dict] = []
    page.on("request", lambda r: r.post_data and bodies.append(json.loads(r.post_data)))
    answer = send(page)
    tokens = answer.locator(".token")
    assert "".join(tokens.all_inner_texts()) == ANSWER

    asked = {**next(b for b in bodies if "stream" in b), "stream": False}
    del asked["stream_options"]
    routing = post("/v1/chat/completions", asked).json()["choices"][0]["routing"]
    assert tokens.count() == len(routing)

    # The words are colored by the first choices of a layer ...
    canvas = page.locator("canvas")
    canvas.focus()
    for key in ("ArrowDown", "ArrowDown", "ArrowDown", "Enter"):
        page.keyboard.press(key)
    shown = [int(e.get_attribute("data-expert")) for e in tokens.all()]
    assert shown == [token[2][0] for token in routing]
    # ... and those that an expert worked on are lit.
    page.keyboard.press("ArrowRight")
    lit = [index for index, e in enumerate(tokens.all()) if "lit" in e.get_attribute("class")]
    assert lit == [index for index, token in enumerate(routing) if 1 in token[2]]
    expect(page.locator(".readout")).to_contain_text(f"Layer 2, expert 1: {share(routing, 2, 1)}")

    # Pointing at a word tells of its token.
    tokens.nth(4).hover()
    expect(page.locator(".walk output")).to_have_text(f"5 / {len(routing)}")
    first = ", ".join(str(layer[0]) for layer in routing[4])
    spoken = page.get_by_label("Token of the answer").get_attribute("aria-valuetext")
    assert spoken.endswith(f"first choices {first}")
    assert page.locator(".option").count() == 3


def share(routing: list, layer: int, expert: int) -> str:
    many = sum(expert in token[layer] for token in routing)
    return f"{round(100 * many / len(routing))} %"


def test_an_answer_is_played_again(page):
    send(page)
    page.get_by_role("button", name="Play the answer token by token").click()
    expect(page.locator(".token.now")).to_have_count(1)
    page.get_by_role("button", name="Pause").click()
    page.get_by_label("Token of the answer").fill("0")
    expect(page.locator(".token").first).to_have_class(re.compile("now"))


def test_export_and_import(visit, tmp_path):
    first = visit().open()
    send(first)
    saved = {}
    for form, name in (("Markdown", "chat.md"), ("JSON", "chat.json")):
        first.locator("#list .item .icon").click()
        with first.expect_download() as download:
            first.get_by_role("menuitem", name=f"Export as {form}").click()
        saved[name] = tmp_path / name
        download.value.save_as(saved[name])
    assert (
        saved["chat.md"].read_text()
        == f"# {QUESTION}\n\n## You\n\n{QUESTION}\n\n## Mixtral\n\n{ANSWER}\n"
    )

    second = visit().open()
    second.keyboard.press("Control+,")
    with second.expect_file_chooser() as chooser:
        second.get_by_role("button", name="Import").click()
    chooser.value.set_files(saved["chat.json"])
    second.locator("#list .item .open").click()
    second.keyboard.press("Control+Shift+E")
    expect(second.locator("article.assistant .body")).to_have_text(ANSWER)
    assert "".join(second.locator(".token").all_inner_texts()) == ANSWER

    (tmp_path / "other.json").write_text('{"messages": {}}')
    second.keyboard.press("Control+,")
    with second.expect_file_chooser() as chooser:
        second.get_by_role("button", name="Import").click()
    chooser.value.set_files(tmp_path / "other.json")
    expect(second.locator(".toast").last).to_contain_text("holds no conversations")


def test_two_tabs_show_the_same(visit):
    both = visit()
    one = both.open()
    two = both.open()
    send(one)
    expect(two.locator("#list .item .open")).to_have_text(QUESTION)


def test_copying(page):
    answer = send(page)
    answer.get_by_role("button", name="Copy").click()
    assert page.evaluate("navigator.clipboard.readText()") == ANSWER


def test_light_and_dark(visit):
    page = visit(color_scheme="dark").open()
    ground = "getComputedStyle(document.body).backgroundColor"
    dark = page.evaluate(ground)
    page.get_by_role("radio", name="Light").click()
    light = page.evaluate(ground)
    assert light != dark
    page.reload()
    assert page.evaluate(ground) == light
    page.get_by_role("radio", name="As the system").click()
    assert page.evaluate(ground) == dark


@pytest.mark.parametrize("width", [320, 390, 768, 1024])
def test_narrow_screens(visit, width: int):
    page = visit(viewport={"width": width, "height": 760}, has_touch=True).open()
    answer = send(page, STORY)
    wide = "document.documentElement.scrollWidth"
    assert page.evaluate(wide) <= width
    page.locator("#show-experts").click()
    expect(page.locator("canvas")).to_be_visible()
    expect(answer.locator(".token").first).to_be_attached()
    assert page.evaluate(wide) <= width
    page.get_by_role("button", name="Close experts").click()
    expect(page.locator("#panel")).to_be_hidden()
    if width < 820:
        expect(page.locator("#sidebar")).to_be_hidden()
        page.get_by_role("button", name="Conversations").click()
        expect(page.locator("#sidebar")).to_be_visible()
        page.locator("#list .item .open").click()
        expect(page.locator("#sidebar")).to_be_visible()
        page.keyboard.press("Escape")
        expect(page.locator("#sidebar")).to_be_hidden()


def test_shortcuts_are_told(page):
    page.locator("h1").click()
    page.locator("body").press("?")
    expect(page.get_by_role("dialog", name="Shortcuts")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog", name="Shortcuts")).to_be_hidden()


def test_everything_that_can_be_pressed_has_a_name(page):
    send(page)
    for tab in ("Control+Shift+E", "Control+,"):
        page.keyboard.press(tab)
        nameless = page.evaluate(
            "[...document.querySelectorAll('button, input, textarea, a, canvas')]"
            ".filter(e => !(e.ariaLabel || e.innerText?.trim() || e.labels?.length || e.hidden))"
            ".map(e => e.outerHTML)"
        )
        assert nameless == []


def test_a_long_message_is_edited_in_a_field_of_its_size(visit):
    """Also where the browser does not size fields by itself (Safari)."""
    opened = visit()
    opened.context.add_init_script("CSS.supports = () => false")
    page = opened.open()
    rule = "textarea { field-sizing: fixed !important }"
    page.evaluate("rule => document.styleSheets[0].insertRule(rule)", rule)
    send(page, "\n".join(f"line {n}" for n in range(12)))
    page.keyboard.press("ArrowUp")
    field = page.get_by_label("Edit the message")
    expect(field).to_be_focused()
    assert field.evaluate("field => field.scrollHeight - field.clientHeight") <= 1
    before = field.evaluate("field => field.clientHeight")
    page.keyboard.press("Shift+Enter")
    assert field.evaluate("field => field.clientHeight") > before


def test_the_end_stays_in_sight_when_the_draft_grows(page):
    for _ in range(4):
        send(page, STORY)
    page.get_by_label("Message", exact=True).fill("\n".join("abcdefgh"))
    scroller = page.locator("#scroller")
    away = "box => box.scrollHeight - box.scrollTop - box.clientHeight"
    assert scroller.evaluate(away) <= 1
    page.mouse.move(500, 300)
    page.mouse.wheel(0, -400)
    expect(page.locator("#down")).to_be_visible()
    top = scroller.evaluate("box => box.scrollTop")
    page.get_by_label("Message", exact=True).press_sequentially("xyz")
    assert scroller.evaluate("box => box.scrollTop") == top


def test_the_drawer_takes_the_focus_and_gives_it_back(visit):
    page = visit(viewport={"width": 600, "height": 760}, reduced_motion="no-preference").open()
    page.keyboard.press("Control+K")
    expect(page.locator("#search")).to_be_focused()
    page.keyboard.type("abc")
    expect(page.locator("#search")).to_have_value("abc")
    assert page.evaluate("document.querySelector('main').inert")
    page.keyboard.press("Escape")
    expect(page.locator("#open-sidebar")).to_be_focused()
    assert not page.evaluate("document.querySelector('main').inert")


@pytest.mark.parametrize("width", [820, 1024, 1179])
def test_the_panel_covers_nothing(visit, width: int):
    page = visit(viewport={"width": width, "height": 760}).open()
    send(page)
    for name in ("Experts", "Settings"):
        page.get_by_role("button", name=name, exact=True).click()
        panel = page.locator("#panel").bounding_box()
        for other in ("#send", "#show-settings", "article.assistant .body"):
            box = page.locator(other).bounding_box()
            assert box["x"] >= 0
            assert box["x"] + box["width"] <= panel["x"]
        expect(page.locator("#sidebar")).to_be_hidden()
    page.get_by_role("button", name="Close settings").click()
    expect(page.locator("#sidebar")).to_be_visible()


def test_escape_closes_settings_that_cover_all(visit):
    page = visit(viewport={"width": 390, "height": 760}).open()
    page.get_by_role("button", name="Settings", exact=True).click()
    expect(page.get_by_label("System prompt")).to_be_focused()
    page.keyboard.press("Escape")
    expect(page.locator("#panel")).to_be_hidden()
    expect(page.locator("#show-settings")).to_be_focused()


def test_focus_is_not_lost(page):
    page.keyboard.press("Control+,")
    page.get_by_role("button", name="Reset").click()
    expect(page.get_by_role("button", name="Reset")).to_be_focused()
    send(page)
    page.get_by_role("button", name="Answer again").click()
    expect(page.locator(".branches")).to_contain_text("2/2")
    page.get_by_role("button", name="The version before").click()
    expect(page.get_by_role("button", name="The next version")).to_be_focused()


def test_a_conversation_is_printed_whole(page):
    for _ in range(6):
        send(page, STORY)
    page.emulate_media(media="print")
    expect(page.locator("#composer")).to_be_hidden()
    expect(page.locator("#sidebar")).to_be_hidden()
    tall = page.evaluate("document.documentElement.scrollHeight")
    assert tall > 900
    assert page.locator("article").last.bounding_box()["y"] < tall


MARKDOWN = """# A title

Some *text* with `code` and [a link](https://example.com).

- [x] done
- [ ] to do

| a | b |
|---|---|
| 1 | 2 |

```python
def f(x):  # a comment
    return "text" + str(1.5)
```
"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_is_in_the_way_of_anybody(visit, scheme: str, width: int):
    """The rules of axe-core, in every state that a page can be brought to in a few steps."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    page = visit(color_scheme=scheme, viewport={"width": width, "height": 860}).open()

    def check(state: str, but: tuple[str, ...] = ()) -> None:
        found = axe.run(page).response["violations"]
        told = [(v["id"], [node["html"][:90] for node in v["nodes"]]) for v in found]
        assert not [each for each in told if each[0] not in but], state

    check("at the beginning")
    send(page)
    check("an answer")
    page.get_by_role("button", name="Experts", exact=True).click()
    if not page.locator("canvas").is_visible():
        page.get_by_role("button", name="Experts", exact=True).click()
    page.locator("article.assistant .token").nth(3).click()
    check("a token of it")
    page.get_by_role("button", name="Settings", exact=True).click()
    check("settings")
    page.keyboard.press("Control+,")
    page.locator("article.assistant").get_by_role("button", name="Edit").click()
    page.get_by_label("Edit the message").fill(MARKDOWN)
    check("an editor")
    page.get_by_role("button", name="Keep").click()
    expect(page.locator("article.assistant table")).to_be_visible()
    check("Markdown")
    page.locator("h1").click()
    page.locator("body").press("?")
    check("shortcuts")
    page.keyboard.press("Escape")
    page.keyboard.press("Control+K")
    # Where it is a drawer, what is behind it is out of reach, as behind a dialog.
    behind = ("landmark-one-main", "page-has-heading-one") if width < 820 else ()
    check("the list", but=behind)
    page.locator("#list .item .icon").click()
    check("its menu", but=behind)
    page.get_by_role("menuitem", name="Delete").click()
    check("a message at the edge")

"""The page where things go wrong, or slowly: an engine that says what a test wants."""

from __future__ import annotations

import pytest
from chromium import Visit, chromium, sync_api
from harness import Here, SaidEngine, wait_for, word

from mlx_mixtral.server.jobs import Busy, Done
from mlx_mixtral.server.settings import Settings

expect = sync_api.expect
SLOW = [part for n in range(200) for part in (word(f"word{n} "), 0.05)]
WORDS = [word("Once "), word("upon "), word("a "), word("time.")]
END = Done("stop", prompt_tokens=9, completion_tokens=4)
KEY = "correct horse"


@pytest.fixture(scope="module")
def browser():
    with chromium() as browser:
        yield browser


@pytest.fixture
def start(demo, browser):
    """A server that says something, and a page on it."""
    opened: list = []

    def start(said, busy=None, **settings):
        here = Here(demo, SaidEngine(list(said), busy), Settings(**settings))
        visit = Visit(browser, f"http://127.0.0.1:{here.port}")
        opened.append((here, visit))
        return here, visit, visit.open()

    yield start
    for here, visit in opened:
        visit.close()
        assert visit.strangers() == []
        here.stop()


def ask(page, text: str = "Well?") -> None:
    page.get_by_label("Message", exact=True).fill(text)
    page.keyboard.press("Enter")


def test_escape_stops_the_answer_and_the_engine(start):
    here, visit, page = start([*SLOW, END])
    ask(page)
    expect(page.locator("article.assistant .body")).to_contain_text("word2")
    expect(page.get_by_role("button", name="Stop", exact=True)).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.locator("article.assistant .note")).to_contain_text("Stopped")
    assert wait_for(here.engine.tickets[0].cancelled.is_set)
    said = page.locator("article.assistant .body").inner_text()
    page.reload()
    expect(page.locator("article.assistant .body")).to_have_text(said)
    assert visit.complaints == []


def test_the_button_stops_too(start):
    here, _, page = start([*SLOW, END])
    ask(page)
    page.get_by_role("button", name="Stop", exact=True).click()
    expect(page.get_by_role("button", name="Send", exact=True)).to_be_visible()
    assert wait_for(here.engine.tickets[0].cancelled.is_set)


def test_before_the_first_token(start):
    _, _, page = start([1.5, *WORDS, END])
    ask(page)
    expect(page.locator(".waiting")).to_be_visible()
    expect(page.locator("article.assistant .body")).to_have_text("Once upon a time.")
    expect(page.locator(".waiting")).to_have_count(0)
    expect(page.locator("#spoken")).to_have_text("Once upon a time.")


def test_another_conversation_while_one_is_answered(start):
    _, _, page = start([*SLOW[:60], END])
    ask(page, "First?")
    expect(page.locator("article.assistant .body")).to_contain_text("word1")
    page.get_by_role("button", name="New chat").click()
    expect(page.locator("article")).to_have_count(0)
    expect(page.locator("#list .busy")).to_have_count(1)
    expect(page.locator("#list .busy")).to_have_count(0)
    page.locator("#list .item .open").click()
    expect(page.locator("article.assistant .body")).to_contain_text("word29")


def test_a_reload_in_the_middle_keeps_what_was_said(start):
    here, _, page = start([*SLOW, END])
    ask(page)
    expect(page.locator("article.assistant .body")).to_contain_text("word30")
    page.reload()
    expect(page.locator("article.assistant .body")).to_contain_text("word5")
    expect(page.locator("article.assistant .note")).to_contain_text("Stopped")
    assert wait_for(here.engine.tickets[0].cancelled.is_set)


def test_an_error_inside_of_the_stream(start):
    _, _, page = start([*WORDS, Done("error", message="the matrix is on fire")])
    ask(page)
    expect(page.locator(".trouble")).to_contain_text("The answer failed: the matrix is on fire.")
    expect(page.locator("article.assistant .body")).to_have_text("Once upon a time.")
    expect(page.locator(".trouble button")).to_have_text("Go on")


def test_a_busy_server(start):
    here, _, page = start([*WORDS, END], busy=Busy("8 requests wait already", 7))
    ask(page)
    expect(page.locator(".trouble")).to_contain_text("8 requests wait already. Try again in 7 s.")
    here.engine.busy = None
    page.get_by_role("button", name="Try again").click()
    expect(page.locator("article.assistant .body")).to_have_text("Once upon a time.")
    expect(page.locator(".trouble")).to_have_count(0)


def test_a_full_context(start):
    _, _, page = start([*WORDS, END])
    ask(page, "word " * 30_000)
    expect(page.locator(".trouble")).to_contain_text("Start a new chat, or edit an earlier message")


def test_the_server_is_gone_and_comes_back(start):
    here, _, page = start([*SLOW, END])
    ask(page)
    expect(page.locator("article.assistant .body")).to_contain_text("word3")
    page.context.set_offline(True)
    page.route("**/v1/**", lambda route: route.abort())
    page.route("**/health", lambda route: route.abort())
    here.listener.should_exit = here.listener.force_exit = True
    expect(page.locator(".trouble")).to_contain_text("The connection was lost")
    expect(page.locator("#notice")).to_contain_text("Is the server still running?")
    page.context.set_offline(False)
    page.unroute_all()


def test_a_key_is_asked_for(start):
    _, visit, page = start([*WORDS, END], api_key=KEY)
    dialog = page.get_by_role("dialog", name="API key")
    expect(dialog).to_be_visible()
    dialog.get_by_label("API key").fill("wrong, wrong")
    page.keyboard.press("Enter")
    expect(dialog).to_be_visible()
    dialog.get_by_label("API key").fill(KEY)
    dialog.get_by_label("Keep it in this browser").check()
    dialog.get_by_role("button", name="Use the key").click()
    expect(dialog).to_be_hidden()
    ask(page)
    expect(page.locator("article.assistant .body")).to_have_text("Once upon a time.")
    page.reload()
    expect(page.locator("#server")).to_have_text("demo")
    assert KEY not in "".join(visit.asked)


def test_markup_of_a_model_is_text(start):
    text = (
        "<img src=x onerror=alert(1)> [a](javascript:alert(1)) ![b](http://example.com/b.png)\n\n"
        "```html\n<script>alert(1)</script>\n```\n\n| <b>x</b> |\n|--|\n| `<i>` |\n"
    )
    _, visit, page = start([word(part) for part in text.split(" ")] + [END])
    ask(page, "<b>bold</b>")
    body = page.locator("article.assistant .body")
    expect(body.locator("pre")).to_have_text("<script>alert(1)</script>")
    assert body.locator("img, script, b, i:not([class])").count() == 0
    expect(body.locator("a")).to_have_attribute("href", "http://example.com/b.png")
    expect(page.locator("article.user .bubble")).to_have_text("<b>bold</b>")
    assert visit.complaints == []


def test_a_selection_outlives_the_stream(start):
    said = [word("First block.\n\n"), word("Second ")]
    _, _, page = start([*said, *SLOW[:40], END])
    ask(page)
    expect(page.locator("article.assistant p")).to_have_count(2)
    page.evaluate("getSelection().selectAllChildren(document.querySelector('article.assistant p'))")
    expect(page.locator(".stats")).to_be_visible()
    assert page.evaluate("getSelection().toString().trim()") == "First block."


def test_what_is_deleted_stays_deleted(start):
    here, _, page = start([*SLOW, END])
    ask(page)
    expect(page.locator("article.assistant .body")).to_contain_text("word3")
    page.locator("#list .item .icon").click()
    page.get_by_role("menuitem", name="Delete").click()
    assert wait_for(here.engine.tickets[0].cancelled.is_set)
    expect(page.locator("#list .item")).to_have_count(0)
    page.reload()
    page.wait_for_selector("#server[data-up]", state="attached")
    expect(page.locator("#list .item")).to_have_count(0)


def test_an_answer_that_never_began_does_not_count(start):
    here, _, page = start([30.0, END])
    ask(page, "First?")
    page.get_by_role("button", name="Stop", exact=True).click()
    expect(page.locator("article.assistant .note")).to_have_text("Stopped. ")
    here.engine.said = [*WORDS, END]
    ask(page, "Second?")
    expect(page.locator("article.assistant .body").nth(1)).to_have_text("Once upon a time.")
    decode = here.service.lm.tokenizer.decode
    assert "First?\n\nSecond?" in decode(list(here.engine.jobs[1].prompt))

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


# --- two tabs


def test_a_tab_that_only_watches_keeps_its_editor_and_its_words(start):
    here, visit, one = start([*WORDS, END])
    ask(one, "First?")
    expect(one.locator(".stats")).to_be_visible()
    two = visit.open(f"/{one.url.rpartition('/')[2]}")
    two.get_by_role("button", name="Edit and go on from here").click()
    two.get_by_label("Edit the message").fill("half a thought")
    here.engine.said = [*SLOW[:80], END]
    ask(one, "Second?")
    expect(one.locator("article.assistant .body").nth(1)).to_contain_text("word35")
    expect(two.locator("article.assistant .body").nth(1)).to_contain_text("word10")
    expect(two.get_by_label("Edit the message")).to_have_value("half a thought")
    expect(one.locator(".stats")).to_have_count(2)
    expect(two.locator("article.assistant .body").nth(1)).to_contain_text("word39")
    expect(
        two.locator("article.assistant").nth(1).get_by_role("button", name="Copy")
    ).to_be_visible()


def test_a_tab_sends_nothing_while_another_one_is_answered(start):
    here, visit, one = start([*SLOW[:100], END])
    ask(one, "First?")
    expect(one.locator("article.assistant .body")).to_contain_text("word3")
    two = visit.open(f"/{one.url.rpartition('/')[2]}")
    expect(two.locator("article.assistant .body")).to_contain_text("word1")
    ask(two, "Second?")
    expect(two.get_by_role("button", name="Send", exact=True)).to_be_disabled()
    expect(two.get_by_label("Message", exact=True)).to_have_value("Second?")
    expect(one.locator(".stats")).to_be_visible()
    here.engine.said = [*WORDS, END]
    two.get_by_role("button", name="Send", exact=True).click()
    expect(two.locator("article.assistant .body").nth(1)).to_have_text("Once upon a time.")
    for page in (one, two):
        expect(page.locator("article")).to_have_count(4)
        page.reload()
        expect(page.locator("article")).to_have_count(4)


def test_the_answer_of_a_tab_that_was_closed_is_stopped(start):
    _, visit, one = start([*SLOW, END])
    ask(one)
    expect(one.locator("article.assistant .body")).to_contain_text("word30")
    two = visit.open(f"/{one.url.rpartition('/')[2]}")
    expect(two.locator("article.assistant .body")).to_contain_text("word2")
    one.close()
    expect(two.locator("article.assistant .note")).to_contain_text("Stopped")
    expect(two.get_by_role("button", name="Answer again")).to_be_visible()


def test_settings_and_titles_of_two_tabs_are_both_kept(start):
    _, visit, one = start([*SLOW[:120], END])
    ask(one)
    expect(one.locator("article.assistant .body")).to_contain_text("word2")
    two = visit.open(f"/{one.url.rpartition('/')[2]}")
    two.keyboard.press("Control+,")
    two.get_by_label("System prompt").press_sequentially("Be brief.", delay=150)
    two.locator("#list .item .icon").click()
    two.get_by_role("menuitem", name="Rename").click()
    two.keyboard.type("Strings")
    two.keyboard.press("Enter")
    expect(one.locator(".stats")).to_be_visible()
    for page in (one, two):
        page.reload()
        expect(page.locator("#title")).to_have_text("Strings")
        expect(page.locator("article.assistant .body")).to_contain_text("word59")
        if not page.get_by_label("System prompt").is_visible():
            page.keyboard.press("Control+,")
        expect(page.get_by_label("System prompt")).to_have_value("Be brief.")


# --- browsers that forbid things


NOTHING_IS_KEPT = """
for (const name of ["localStorage", "sessionStorage"]) {
  Object.defineProperty(window, name, { get() { throw new DOMException("no", "SecurityError"); } });
}
indexedDB.open = () => { throw new DOMException("no", "SecurityError"); };
"""


def test_a_browser_that_keeps_nothing_can_chat(demo, browser):
    here = Here(demo, SaidEngine([*WORDS, END]), Settings(api_key=KEY))
    visit = Visit(browser, f"http://127.0.0.1:{here.port}")
    visit.context.add_init_script(NOTHING_IS_KEPT)
    page = visit.open()
    expect(page.locator(".toast")).to_contain_text("keeps nothing")
    dialog = page.get_by_role("dialog", name="API key")
    dialog.get_by_label("API key").fill(KEY)
    page.keyboard.press("Enter")
    expect(dialog).to_be_hidden()
    page.get_by_role("radio", name="Dark").click()
    ask(page)
    expect(page.locator("article.assistant .body")).to_have_text("Once upon a time.")
    visit.close()
    here.stop()


def test_a_browser_without_locks_and_clipboard(demo, browser):
    """As on plain HTTP from another machine."""
    here = Here(demo, SaidEngine([*WORDS, END]), Settings())
    visit = Visit(browser, f"http://127.0.0.1:{here.port}")
    visit.context.add_init_script(
        "for (const name of ['locks', 'clipboard']) "
        "Object.defineProperty(Navigator.prototype, name, { value: undefined });"
    )
    page = visit.open()
    ask(page)
    expect(page.locator("article.assistant .body")).to_have_text("Once upon a time.")
    page.locator("article.assistant").get_by_role("button", name="Copy").click()
    expect(page.locator("#spoken")).to_have_text("Copied")
    page.get_by_label("Message", exact=True).click()
    page.keyboard.press("Control+V")
    expect(page.get_by_label("Message", exact=True)).to_have_value("Once upon a time.")
    assert visit.complaints == []
    visit.close()
    here.stop()

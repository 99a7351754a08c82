"""A conversation in an emulated terminal, keys in and screen out."""

import json
import os
import re
import signal
import stat
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pexpect
import pyte
import pytest

QUESTION = "What is a violin?"
ANSWER = "A violin is a stringed instrument that is played with a bow."
TAB, ENTER, CTRL_C, CTRL_D, CTRL_G = "\t", "\r", "\x03", "\x04", "\x07"


class Screen(pyte.HistoryScreen):
    """Answers the terminal's questions, such as where the cursor is."""

    answer: Callable[[str], object]

    def write_process_input(self, data: str) -> None:
        self.answer(data)


class Terminal:
    """A chat with a person in front of it."""

    def __init__(self, *options: str, **environment: str) -> None:
        self.screen = Screen(80, 24, history=1000)
        self.stream = pyte.Stream(self.screen)
        self.received = ""
        plain = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "COLUMNS", "LINES")}
        self.process = pexpect.spawn(
            sys.executable,
            ["-m", "mlx_mixtral", "chat", "demo", *options],
            env=plain | {"TERM": "xterm-256color"} | environment,
            dimensions=(24, 80),
            encoding="utf-8",
            # A shell that starts the tests in the background makes them ignore Ctrl-C.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        self.screen.answer = self.process.send

    def text(self) -> str:
        above = ["".join(row[x].data for x in range(80)) for row in self.screen.history.top]
        return "\n".join(line.rstrip() for line in [*above, *self.screen.display]).rstrip()

    def wait(self, pattern: str, seconds: float = 30) -> str:
        """Read until the pattern stands on the screen or above it; the text then."""
        self._read_until(lambda: re.search(pattern, self.text()), pattern, seconds)
        return self.text()

    def _read_until(self, done: Callable[[], object], what: str, seconds: float = 30) -> None:
        end = time.monotonic() + seconds
        while not done():
            assert time.monotonic() < end, f"no {what!r} in:\n{self.text()}"
            try:
                new = self.process.read_nonblocking(10_000, timeout=0.05)
            except pexpect.TIMEOUT:
                continue
            self.received += new
            self.stream.feed(new)

    def keys(self, *keys: str) -> None:
        for key in keys:
            self.process.send(key)

    def say(self, line: str, pattern: str) -> str:
        """Type a line and wait for what it brings."""
        self.keys(line, ENTER)
        return self.wait(pattern)

    def clear(self) -> None:
        """Forget what was shown, so that ``wait`` finds only what is new."""
        self.keys("\x0c")  # Ctrl-L
        self._read_until(lambda: not "".join(self.screen.display[1:-1]).strip(), "a clear screen")
        self.screen.history.top.clear()

    def leave(self) -> int:
        self.keys(CTRL_D)
        self.process.expect(pexpect.EOF, timeout=20)
        self.received += self.process.before
        self.process.close()
        return int(self.process.exitstatus)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where a chat runs and keeps its history."""
    monkeypatch.setenv("MIXTRAL_MLX_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("VISUAL", str(tmp_path / "editor"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def terminal(folder: Path) -> Iterator[Terminal]:
    terminal = Terminal("--seed", "1")
    terminal.wait(r"demo, [\d,]+ tokens of context \(up to [\d.]+ MB\)\. /help .*\n>")
    yield terminal
    terminal.process.close(force=True)


def test_a_conversation(terminal: Terminal, folder: Path) -> None:
    text = terminal.say(QUESTION, r"first token")
    assert f"> {QUESTION}\n\n{ANSWER}\n\n>" in text
    assert re.search(
        r"demo  22 of [\d,]+ tokens, [\d.]+ MB  [\d.]+ tok/s  first token [\d.]+ s\Z", text
    )

    terminal.say("/help", r"/exit +leave")
    terminal.clear()
    terminal.say("/regen", re.escape(ANSWER))
    terminal.say("/save talk.json", r"Saved to talk\.json and talk\.json\.kv \([\d.]+ KB\)")
    saved = json.loads((folder / "talk.json").read_text())
    assert [m["content"] for m in saved["messages"]] == [QUESTION, ANSWER]

    terminal.say("/undo", r"Took the last turn back; 0 turns left\.")
    terminal.say("/undo", "error: there is nothing to undo")
    terminal.say("/load talk.json", r"1 turn from talk\.json")
    terminal.clear()
    terminal.say("/save-text", r"Saved to talk\.json\n")
    terminal.clear()
    terminal.say("/show messages", f"user: {re.escape(QUESTION)}\nassistant: A violin")
    terminal.say("/show model", r"unquantized keys and values: [\d.]+ KB now, [\d.]+ MB when")
    terminal.say("/new", "A new conversation")
    terminal.say("/regen", "error: there is no answer yet")
    terminal.say("/system Be brief.", r"System prompt: Be brief\.")

    terminal.say("/hepl", r"there is no command /hepl; did you mean /help\?")
    terminal.say("/load nothing.json", r"error: nothing\.json is not a saved conversation")
    terminal.say("/set temperature hot", "error: temperature takes a number")
    terminal.say("/set temperature -1", "error: temperature has to be")
    terminal.say("/set markdown off", "markdown = off")
    terminal.say("/stats", "error: there is no answer yet")

    terminal.clear()
    terminal.keys("/set tempe", TAB)
    terminal.wait("/set temperature")
    terminal.keys(" 0.5", ENTER)
    terminal.wait(r"temperature = 0\.5")
    terminal.keys("/load ta", TAB)
    terminal.wait(r"> /load talk\.json")
    terminal.keys(CTRL_C)  # clears the line
    terminal.wait(r"\n>\n")
    terminal.keys(CTRL_C)
    terminal.wait("Ctrl-D or /exit leaves")
    assert terminal.leave() == 0

    history = folder / "home" / "history"
    assert QUESTION in history.read_text()
    assert stat.S_IMODE(history.stat().st_mode) == 0o600


def test_several_lines_files_and_an_editor(terminal: Terminal, folder: Path) -> None:
    (folder / "notes.txt").write_text("What is\na violin?\n")
    editor = folder / "editor"
    editor.write_text(f"#!/bin/sh\necho '{QUESTION}' > $1\n")
    editor.chmod(0o755)
    (folder / "picture.png").write_bytes(b"\x89PNG\xff")
    terminal.keys('"""What is', ENTER, "a violin?", ENTER, '"""', ENTER)
    text = terminal.wait("first token")
    assert '> """What is\n… a violin?\n… """\n\n' in text
    terminal.clear()
    terminal.say("/show messages", r"user: What is\na violin\?\nassistant: ")

    terminal.say("/read picture.png", r"error: picture\.png is not UTF-8 text")
    terminal.say("/read missing", "error: missing: No such file")
    terminal.say("/read notes.txt", r"notes\.txt \(\d+ tokens\) goes with the next message")
    terminal.wait(r"\n\(1 file\) >")
    terminal.say("Answer it.", r"\n\n>\n")
    terminal.clear()
    terminal.say("/show messages", r"user: notes\.txt:\n\nWhat is\na violin\?\n\nAnswer it\.\n")

    terminal.clear()
    terminal.keys(CTRL_G)
    terminal.wait(rf"\A\n*> {re.escape(QUESTION)}")
    terminal.keys(ENTER)
    terminal.wait(rf"{re.escape(ANSWER)}\n\n>")

    (folder / "long.txt").write_text("The cat sat on the mat. " * 160)
    terminal.say("/set max_tokens 2", "max_tokens = 2")
    for _ in range(2):
        terminal.clear()
        terminal.say("/read long.txt", r"goes with the next message")
        terminal.say("Well?", r"The answer has reached max_tokens\.")
    terminal.wait(r"The oldest turns no longer fit: \d+ are left out from now on\.\n>")
    assert terminal.leave() == 0


def test_ctrl_c_stops_an_answer_and_keeps_it(terminal: Terminal) -> None:
    terminal.say("/set logit_bias 2=-100", "logit_bias = {2: -100.0}")  # it never ends
    terminal.say("Tell me a story.", r"(\w.*\n){4}")
    terminal.process.setwinsize(20, 60)
    terminal.screen.resize(20, 60)
    terminal.wait(r"(\w.*\n){6}")
    terminal.keys(CTRL_C)
    terminal.wait(r"\nStopped\.\n>")
    terminal.say("/set logit_bias default", r"logit_bias = \{\}")
    terminal.say(QUESTION, r"\n\nA violin")
    terminal.keys("typed meanwhile")
    terminal.wait(r"bow\.\n\n> typed meanwhile")
    terminal.keys(CTRL_C)
    terminal.clear()
    terminal.say("/show messages", r"user: Tell me a story\.\nassistant: \w+")
    terminal.say("/exit", "/exit")
    terminal.process.expect(pexpect.EOF, timeout=20)
    terminal.process.close()
    assert terminal.process.exitstatus == 0


def test_no_color_no_markdown_no_history(folder: Path) -> None:
    terminal = Terminal("--no-markdown", "--no-history", NO_COLOR="1")
    terminal.wait("\n>")
    terminal.say(QUESTION, "first token")
    terminal.say("/nothing", "error: there is no command")
    assert terminal.leave() == 0
    assert ANSWER in terminal.received  # in one piece: nothing was drawn twice
    colours = re.findall(r"\x1b\[([\d;]*)m", terminal.received)
    assert not [code for code in colours if re.search(r"(^|;)(3|4|9|10)[0-8](;|$)", code)]
    assert not (folder / "home" / "history").exists()


def test_a_dumb_terminal_gets_no_escape_sequences(folder: Path) -> None:
    terminal = Terminal(TERM="dumb")
    terminal.wait("\n>")
    terminal.say(QUESTION, re.escape(ANSWER))
    terminal.wait(r"\n>\Z")
    terminal.keys(CTRL_C)
    terminal.wait("Ctrl-D or /exit leaves")
    assert terminal.leave() == 0
    assert "\x1b" not in terminal.received

"""The command line as scripts use it: pipes, exit codes, errors, start-up time."""

import io
import json
import resource
import signal
import subprocess
import sys
from collections.abc import Callable

import pytest

from mlx_mixtral.cli import main
from mlx_mixtral.cli.loading import DEMO_NOTE

COMMAND = [sys.executable, "-m", "mlx_mixtral"]
QUESTION = "What is a violin?"
ANSWER = "A violin is a stringed instrument that is played with a bow."

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command in this process: (exit code, standard output, standard error)."""

    def run(*arguments: str, stdin: bytes = b"") -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["mixtral-mlx", *arguments])
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        with pytest.raises(SystemExit) as exit:
            main()
        return (int(exit.value.code or 0), *capsys.readouterr())

    return run


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["chta"], 2, "Did you mean 'chat'?"),
        (["chat", "--tempo", "1"], 2, "--tempo"),
        (["chat", "no-such-model"], 1, "no model 'no-such-model'"),
        (["generate", "-p", "hi", "--max-tokens", "many"], 2, "--max-tokens"),
        (["generate", "-p", "hi", "--max-tokens", "0"], 2, "max_tokens"),
        (["generate", "-p", "hi", "--temperature", "-1"], 2, "temperature"),
        (["generate", "-p", "hi", "--top-p", "nan"], 2, "top_p"),
        (["generate", "-p", "hi", "--logit-bias", "5"], 2, "ID=BIAS"),
        (["generate", "-p", "hi", "--logit-bias", "99999=1"], 2, "99999"),
        (["generate", "-p", "hi", "--stop", ""], 2, "stop"),
        (["generate", "-p", "hi", "--raw", "--system", "x"], 2, "--system"),
        (["generate", "-p", ""], 2, "the prompt is empty"),
        (["generate", "-p", "\udcff"], 2, "not UTF-8"),
        (["generate", "demo", "-p", "word " * 3000], 1, "context"),
        (["generate", "no\x1b[31m\nmodel", "-p", "hi"], 1, "no model"),
    ],
)
def test_a_mistake_is_told_in_one_line(
    run: Run, arguments: list[str], code: int, message: str
) -> None:
    found, out, err = run(*arguments)
    line = err.removeprefix(f"{DEMO_NOTE}\n")
    assert found == code
    assert out == ""
    assert line.startswith("error: ")
    assert line.count("\n") == 1
    assert message in line
    assert "\x1b" not in line


def test_input_that_is_empty_or_no_text(run: Run) -> None:
    assert run("generate", stdin=b" \n")[0] == 2
    code, _, err = run("generate", stdin=b"ok\n\xff\n")
    assert (code, err) == (2, "error: line 2 of standard input is not UTF-8 text\n")
    assert run("chat", "demo", stdin=b"") == (0, "", "")


def test_generate_prints_the_answer(run: Run) -> None:
    assert run("generate", "demo", "-p", QUESTION) == (0, f"{ANSWER}\n", "")
    assert run("generate", stdin=f"{QUESTION}\n".encode()) == (0, f"{ANSWER}\n", f"{DEMO_NOTE}\n")


def test_generate_with_options(run: Run) -> None:
    def text(*options: str) -> str:
        return run("generate", "demo", "-p", QUESTION, *options)[1].removesuffix("\n")

    assert text("--max-tokens", "3") in ANSWER
    assert text("--stop", " that", "--stop", "never") == "A violin is a stringed instrument"
    hot = ["--temperature", "30", "--max-tokens", "8", "--top-k", "50", "--top-p", "0.9999999"]
    assert text(*hot, "--seed", "1") == text(*hot, "--seed", "1")
    assert text(*hot, "--seed", "1") != text(*hot, "--seed", "2")
    assert text("--raw", "--max-tokens", "5") != ANSWER


def test_json(run: Run) -> None:
    code, out, _ = run("generate", "demo", "-p", QUESTION, "--json", "--seed", "7")
    record = json.loads(out)
    assert code == 0
    assert out.count("\n") == 1
    assert list(record) == [
        "text",
        "finish_reason",
        "prompt_tokens",
        "cached_tokens",
        "completion_tokens",
        "ttft_s",
        "prompt_tps",
        "generation_tps",
        "peak_memory_bytes",
        "seed",
        "drafted_tokens",
        "accepted_tokens",
        "streamed",
    ]
    assert (record["text"], record["finish_reason"], record["seed"]) == (ANSWER, "stop", 7)


def test_piped_chat_is_one_turn_a_line(run: Run) -> None:
    lines = "My name is Anna.\n\n  \n/help\r\nWhat is my name?"  # no newline at the end
    code, out, err = run("chat", "demo", stdin=lines.encode())
    assert (code, err) == (0, "")
    answers = out.splitlines()
    assert len(answers) == 3
    assert "Anna" in answers[-1]
    assert "\x1b" not in out
    assert "/save" not in out  # a slash is text here


def test_help_and_version(run: Run) -> None:
    code, out, _ = run()
    assert (code, out.split()[0]) == (0, "Usage:")
    for command in ("chat", "generate", "convert"):
        assert command in out
        assert run(command, "--help")[0] == 0
    assert run("--version")[1][0].isdigit()


def test_streams_that_end_early_are_met_quietly() -> None:
    shell = " ".join(COMMAND)
    script = f"""
        {shell} generate demo -p {QUESTION!r} | head -c 1; echo " ${{PIPESTATUS[0]}}"
        {shell} generate demo -p {QUESTION!r} <&- >&-; echo "$?"
    """
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("A 141\n0\n", "")


def test_ctrl_c_in_a_pipe() -> None:
    endless = ["generate", "demo", "-p", QUESTION, "--logit-bias", "2=-100"]
    with subprocess.Popen(
        [*COMMAND, *endless],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        # A shell that starts the tests in the background makes them ignore Ctrl-C.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:
        assert process.stdout is not None
        assert process.stdout.read(1) == b"A"
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=20)
    assert (process.returncode, err) == (130, b"")


@pytest.mark.parametrize("code", ["-m mlx_mixtral --help", "-c 'import mlx_mixtral'"])
def test_start_up_time(code: str) -> None:
    def seconds() -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(
            f"{sys.executable} {code}", shell=True, check=True, stdout=subprocess.DEVNULL
        )
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    # Processor time and the best of several, because the machine may be busy with other work.
    assert min(seconds() for _ in range(3)) <= 0.3

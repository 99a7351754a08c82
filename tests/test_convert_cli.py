"""``mixtral-mlx convert`` as a person runs it: a process with an exit code, signals, a terminal."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from checkpoints import quantization, tiny_config, write_hf, write_mlx, write_zeros

from mlx_mixtral.config import read_config

COMMAND = [sys.executable, "-m", "mlx_mixtral", "convert"]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    folder = write_hf(tmp_path_factory.mktemp("tiny"), tiny_config(), dtype="BF16")
    (folder / "tokenizer.model").write_bytes(b"pieces")
    return folder


@pytest.fixture(scope="module")
def big(tmp_path_factory):
    """720 MB of float32, of which one expert's matrix has 15."""
    folder = tmp_path_factory.mktemp("big")
    write_zeros(
        folder,
        tiny_config(hidden_size=1024, head_dim=256, intermediate_size=3584, num_local_experts=8),
    )
    return folder


def run(*arguments: object, **options) -> subprocess.CompletedProcess[str]:
    command = COMMAND + [str(argument) for argument in arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, **options)


def test_one_line_tells_the_result(tiny, tmp_path):
    done = run(tiny, "-o", tmp_path / "my model", "--bits", "8", "--group-size", "32")
    assert (done.returncode, done.stderr) == (0, "")
    line = rf"{tmp_path}/my model: [\d.]+ KB, [\d.]+ bits per weight, in [\d.]+ s; "
    line += rf"run it: mixtral-mlx chat '{tmp_path}/my model'\n"
    assert re.fullmatch(line, done.stdout)
    assert (tmp_path / "my model" / "config.json").exists()


def test_a_dry_run_writes_nothing(tiny, tmp_path):
    done = run(tiny, "-o", tmp_path / "out", "--dry-run")
    assert done.returncode == 0
    assert "KB, 4.57 bits" in done.stdout
    assert not list(tmp_path.iterdir())


def test_what_is_quantized_keeps_its_codes_unless_bits_are_named(tmp_path):
    config = tiny_config(quantization=quantization(3, 32))
    source = write_mlx(tmp_path / "mlx", config)
    assert "keep the codes" in run(source, "-o", tmp_path / "x", "--dry-run").stdout
    for options, bits in (([], 3), (["--bits", "4"], 4), (["--group-size", "64"], 4)):
        out = tmp_path / f"{bits}{len(options)}{options[:1]}"
        assert run(source, "-o", out, *options).returncode == 0
        assert read_config(out).quantization.default.bits == bits


def test_a_source_without_tokenizer(tmp_path):
    source = write_hf(tmp_path / "hf", tiny_config())
    done = run(source, "-o", tmp_path / "out")
    assert done.returncode == 0
    assert "float32 becomes bfloat16" in done.stdout
    assert "no tokenizer.model" in done.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--bits", "7"], "7 bits are not possible"),
        (["--group-size", "48"], "group size 48 is not possible"),
        (["--bits", "four"], "--bits"),
    ],
)
def test_bad_values_exit_with_2_and_one_line(tiny, tmp_path, options, message):
    done = run(tiny, "-o", tmp_path / "out", *options)
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(r"error: .*\n", done.stderr)
    assert message in done.stderr
    assert not list(tmp_path.iterdir())


def test_bad_folders(tiny, tmp_path):
    done = run(tmp_path / "nowhere", "-o", tmp_path / "out")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    (tmp_path / "config.json").write_text("{")
    done = run(tmp_path, "-o", tmp_path / "out")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert str(tmp_path / "config.json") in done.stderr


# --- interrupted


def started(big: Path, out: Path) -> subprocess.Popen[str]:
    """A conversion that has written part of its weights."""
    command = [*COMMAND, str(big), "-o", str(out), "--bits", "2"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 30
    while not list(out.parent.glob(f".{out.name}.partial/files/*.safetensors")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return process


def test_ctrl_c_exits_with_130_and_the_same_command_goes_on(big, tmp_path):
    process = started(big, tmp_path / "out")
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "Traceback" not in stderr
    assert "the same command goes on" in stderr
    assert {file.name for file in tmp_path.iterdir()} == {".out.partial"}
    assert run(big, "-o", tmp_path / "out", "--bits", "2").returncode == 0
    assert {file.name for file in tmp_path.iterdir()} == {"out"}


def test_kill_9_leaves_nothing_that_loads(big, tmp_path):
    process = started(big, tmp_path / "out")
    process.kill()
    process.communicate(timeout=30)
    assert not (tmp_path / "out").exists()
    assert {file.name for file in tmp_path.iterdir()} == {".out.partial"}
    assert not (tmp_path / ".out.partial" / "files" / "config.json").exists()


# --- memory


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's VmHWM")
def test_memory_holds_a_few_experts_not_the_model(big, tmp_path):
    program = """
import sys
from pathlib import Path
from convert.pipeline import convert
from convert.plan import plan
from convert.readers.safetensors import read_folder
from convert.recipe import uniform
import mlx.core as mx

def peak():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))

mx.eval(mx.quantize(mx.ones((64, 64))))
before = peak()
convert(plan(read_folder(Path(sys.argv[1])), uniform(16)), Path(sys.argv[2]))
print((peak() - before) // 1024)
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(big), str(tmp_path / "out")],
        capture_output=True,
        text=True,
        check=True,
    )
    size = sum(file.stat().st_size for file in (tmp_path / "out").iterdir()) >> 20
    assert size > 330
    assert int(done.stdout) < 150, done.stdout


# --- progress


def test_a_terminal_sees_bytes_rate_and_time_left(big, tmp_path):
    pexpect = pytest.importorskip("pexpect")
    arguments = [*COMMAND[1:], str(big), "-o", str(tmp_path / "out")]
    terminal = pexpect.spawn(
        COMMAND[0],
        arguments,
        env=os.environ | {"TERM": "xterm-256color"},
        dimensions=(24, 120),
        encoding="utf-8",
        timeout=60,
    )
    terminal.expect(r"\d[\d.]*/\d[\d.]* MB")
    terminal.expect(r"[\d.]+ [MG]B/s")
    terminal.expect(r"0:00:\d\d")
    terminal.expect("run it: mixtral-mlx chat")
    terminal.expect(pexpect.EOF)
    terminal.close()
    assert terminal.exitstatus == 0

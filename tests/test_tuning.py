"""Settings of a machine: the file, what honours it, and the search for the best."""

from __future__ import annotations

import ctypes.util
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import mlx.core as mx
import pytest
from checkpoints import tiny_config
from hypothesis import given
from hypothesis import strategies as st

from mlx_mixtral import tuning
from mlx_mixtral.cli import main
from mlx_mixtral.cpu import unpacking_pays
from mlx_mixtral.errors import MixtralError
from mlx_mixtral.experts.resident import ResidentExperts
from mlx_mixtral.generation import prefill
from mlx_mixtral.lab import bench, trial
from mlx_mixtral.lab.roofline import Bandwidth
from mlx_mixtral.lab.trial import Trial, Work
from mlx_mixtral.lab.tune import Knob, knobs_of, tune, works_of
from mlx_mixtral.tuning import (
    Tuning,
    read_tuning,
    remove_tuning,
    this_machine,
    tuned,
    tuning_file,
    tuning_record,
    write_tuning,
)

ALL = Tuning(64, 96, 5, 300, 700)


@pytest.fixture(autouse=True)
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A file of settings of the test's own; there is none yet."""
    path = tmp_path / "there" / "tuning.json"
    monkeypatch.setenv("MIXTRAL_MLX_TUNING", str(path))
    read_tuning.cache_clear()
    yield path
    read_tuning.cache_clear()


# --- the file


def test_what_is_written_holds_until_it_is_removed(file: Path) -> None:
    assert tuned() == Tuning()
    assert write_tuning(ALL, model="demo") == file
    assert tuned() == ALL
    assert json.loads(file.read_text())["model"] == "demo"
    assert list(file.parent.iterdir()) == [file]
    assert remove_tuning() == file
    assert tuned() == Tuning()
    assert remove_tuning() is None


def test_where_it_lies(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("MIXTRAL_MLX_TUNING")
    monkeypatch.setenv("MIXTRAL_MLX_HOME", str(tmp_path))
    assert tuning_file() == tmp_path / "tuning.json"
    monkeypatch.delenv("MIXTRAL_MLX_HOME")
    assert tuning_file().name == "tuning.json"
    assert "mixtral-mlx" in str(tuning_file())


@pytest.mark.parametrize("key", ["chip", "mlx", "mlx-mixtral"])
def test_another_machine_or_version_is_not_honoured(
    file: Path, key: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write_tuning(ALL)
    record = json.loads(file.read_text())
    record["machine"][key] += "x"
    file.write_text(json.dumps(record))
    read_tuning.cache_clear()
    settings, why = read_tuning()
    assert settings == Tuning()
    assert "another machine or version" in str(why)
    assert capsys.readouterr().err == ""


BROKEN = [
    b"",
    b"{",
    b"[]",
    b"null",
    b"\xff\xfe",
    b"[" * 100_000,
    b" " * 100_000 + b"{}",
    b'{"machine": 1}',
]


@pytest.mark.parametrize("content", BROKEN, ids=range(len(BROKEN)))
def test_a_damaged_file_is_one_line(
    file: Path, content: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    file.parent.mkdir()
    file.write_bytes(content)
    assert tuned() == Tuning()
    assert tuned() == Tuning()
    told = capsys.readouterr().err
    if content == BROKEN[-1]:  # whole, of a machine that is none
        assert told == ""
    else:
        assert told.count("\n") == 1
        assert str(file) in told
        assert "--tune-reset" in told


@pytest.mark.parametrize(
    "settings",
    [
        [],
        {"prefill_chunk": 0},
        {"prefill_chunk": 1 << 15},
        {"prefill_chunk": "512"},
        {"prefill_chunk": True},
        {"prefill_chunk": 1.0},
        {"ops_per_buffer": -1},
        {"rm": 1},
    ],
    ids=str,
)
def test_settings_that_cannot_be(
    file: Path, settings: object, capsys: pytest.CaptureFixture[str]
) -> None:
    file.parent.mkdir()
    file.write_text(json.dumps({"machine": this_machine(), "settings": settings}))
    assert tuned() == Tuning()
    assert capsys.readouterr().err.count("\n") == 1


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


@given(JSON, st.booleans())
def test_no_file_stops_the_program(
    tmp_path_factory: pytest.TempPathFactory, value: object, whole: bool
) -> None:
    path = tmp_path_factory.mktemp("any") / "tuning.json"
    record = {"machine": this_machine(), "settings": value} if whole else value
    path.write_text(json.dumps(record))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MIXTRAL_MLX_TUNING", str(path))
        read_tuning.cache_clear()
        assert tuned() == Tuning()


def test_a_folder_in_its_place(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file.mkdir(parents=True)
    assert tuned() == Tuning()
    assert "cannot be read" in capsys.readouterr().err


def test_a_write_that_fails_leaves_the_old_file(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_tuning(ALL)
    before = file.read_bytes()

    def fails(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", fails)
    with pytest.raises(KeyboardInterrupt):
        write_tuning(Tuning())
    assert file.read_bytes() == before
    assert list(file.parent.iterdir()) == [file]


# --- what honours it


def test_the_settings_are_honoured(file: Path) -> None:
    config = tiny_config()
    matrix = ResidentExperts(config).down_proj
    assert prefill.prefill_chunk() == prefill.usual_chunk()
    assert ResidentExperts(config)._sort_from == 16
    write_tuning(Tuning(prefill_chunk=77, sort_from=33, unpack_from=1 << 20))
    assert prefill.prefill_chunk() == 77
    assert ResidentExperts(config)._sort_from == 33
    assert not unpacking_pays(matrix, 1000)


def imported_with(program: str, **environment: str) -> list[str]:
    """The environment's buffer limits when MLX is imported by ``program``, and OpenBLAS."""
    watch = f"""
import ctypes, os, sys
from pathlib import Path
class Watch:
    def find_spec(self, name, path=None, target=None):
        if name == "mlx.core":
            limits = [os.environ.get(f"MLX_MAX_{{kind}}_PER_BUFFER") for kind in ("OPS", "MB")]
            maps = Path("/proc/self/maps")
            print("limits", *limits, "libopenblas" in (maps.read_text() if maps.exists() else ""))
            sys.stdout.flush()
            os._exit(0)
sys.meta_path.insert(0, Watch())
{program}
"""
    done = subprocess.run(
        [sys.executable, "-c", watch],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return next(line.split()[1:] for line in done.stdout.splitlines() if "limits" in line)


COMMAND = "sys.argv = ['mixtral-mlx', *{}]\nfrom mlx_mixtral.cli import main\nmain()"
BLAS = str(sys.platform == "linux" and bool(ctypes.util.find_library("openblas")))


def test_mlx_finds_its_limits_when_it_is_imported() -> None:
    write_tuning(ALL)
    assert imported_with("from mlx_mixtral import load") == ["300", "700", BLAS]


@pytest.mark.parametrize(
    "command",
    [
        "chat demo",
        "generate demo -p hello",
        "serve demo --port 0",
        "bench demo",
        "quality demo",
        "eval demo --tasks arc_easy",
        "convert demo -o out --bits 4",
    ],
)
def test_every_command_has_mlx_find_its_limits(command: str) -> None:
    write_tuning(ALL)
    assert imported_with(COMMAND.format(command.split())) == ["300", "700", BLAS]


def test_tuning_begins_without_what_was_tuned() -> None:
    write_tuning(ALL)
    assert imported_with(COMMAND.format(["bench", "demo", "--tune"])) == ["None", "None", BLAS]


def test_what_the_user_set_stands() -> None:
    write_tuning(ALL)
    found = imported_with("from mlx_mixtral import load", MLX_MAX_OPS_PER_BUFFER="9")
    assert found == ["9", "700", BLAS]


def test_reading_does_not_import_mlx() -> None:
    write_tuning(ALL)
    program = "from mlx_mixtral.tuning import tuned; import sys; print(tuned().sort_from)\n"
    program += "print('mlx' in sys.modules, 'numpy' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", program], text=True).split() == [
        "96",
        "False",
        "False",
    ]


# --- the search, on machines that are made up


class Made:
    """A machine whose speed follows from the settings; every look at it costs a process."""

    def __init__(self, speed: Callable[[Tuning], float], drift: float = 1.0) -> None:
        self.speed, self.drift, self.looks = speed, drift, list[Tuning]()

    def __call__(self, settings: Tuning, works: Sequence[str]) -> Trial:
        self.looks.append(settings)
        speed = self.speed(settings) * self.drift ** len(self.looks)
        return Trial([speed] * len(works), [[1, 2, 3]])


KNOBS = [
    Knob("prefill_chunk", (128, 256, 1024), "long prompts"),
    Knob("sort_from", (16, 64), "short prompts"),
]
WORKS = ["long prompts", "short prompts", "answers"]


def quiet(_: str) -> None:
    pass


def test_the_best_value_is_kept_and_its_gain_told() -> None:
    speeds = {None: 100.0, 128: 90.0, 256: 130.0, 1024: 110.0}
    machine = Made(lambda s: speeds[s.prefill_chunk] * (1.5 if s.sort_from == 64 else 1.0))
    found = tune(KNOBS, WORKS, machine, quiet)
    assert found.tuning == Tuning(prefill_chunk=256, sort_from=64)
    chunk, sort = found.findings
    assert chunk.tried == pytest.approx({128: 0.9, 256: 1.3, 1024: 1.1})
    assert (chunk.kept, chunk.gain) == (256, pytest.approx(1.3))
    assert (sort.kept, sort.gain) == (64, pytest.approx(1.5))
    assert found.gains == pytest.approx(dict.fromkeys(WORKS, 1.95))
    # The second setting is tried beside the first one's winner.
    assert Tuning(prefill_chunk=256, sort_from=16) in machine.looks


def test_what_is_not_clearly_better_is_left() -> None:
    machine = Made(lambda s: 101.0 if s.prefill_chunk == 256 else 100.0)
    found = tune(KNOBS, WORKS, machine, quiet)
    assert found.tuning == Tuning()
    assert found.gains == dict.fromkeys(WORKS, 1.0)
    assert len(machine.looks) == 2 * 5  # nothing looked at again


@pytest.mark.parametrize("drift", [1.03, 0.97])
def test_a_drift_is_not_taken_for_a_gain(drift: float) -> None:
    assert tune(KNOBS, WORKS, Made(lambda _: 100.0, drift), quiet).tuning == Tuning()


@pytest.mark.parametrize("rounds", [(1.4, 1.0), (1.4, 1.4, 0.9), (1.03, 1.01, 1.01)])
def test_luck_is_not_believed(rounds: tuple[float, ...]) -> None:
    first, *later = rounds
    pairs = [(100.0, 100.0 * first), *((100.0 * ratio, 100.0) for ratio in later)]
    looks = iter([speed for pair in pairs for speed in pair])
    machine = Made(lambda _: next(looks))
    knob = Knob("sort_from", (64,), "short prompts")
    assert tune([knob], WORKS, machine, quiet).tuning == Tuning()
    assert len(machine.looks) == 2 * len(rounds)


def test_other_answers_are_refused() -> None:
    def trial(settings: Tuning, works: Sequence[str]) -> Trial:
        fast = settings.prefill_chunk == 256
        return Trial([200.0 if fast else 100.0] * len(works), [[1, 2, 4 if fast else 3]])

    found = tune(KNOBS, WORKS, trial, quiet)
    assert found.tuning == Tuning()
    assert found.findings[0].tried[256] == 0


def test_answers_that_only_two_settings_change_together_stop_it() -> None:
    def trial(settings: Tuning, works: Sequence[str]) -> Trial:
        both = settings.prefill_chunk == 256 and settings.sort_from == 64
        speed = 100.0 * (2 if settings.prefill_chunk == 256 else 1)
        speed *= 2 if settings.sort_from == 64 else 1
        return Trial([speed] * len(works), [[int(both and len(works) > 1)]])

    with pytest.raises(MixtralError, match="nothing was kept"):
        tune(KNOBS, WORKS, trial, quiet)


def test_a_value_that_cannot_run_is_passed_over() -> None:
    def trial(settings: Tuning, works: Sequence[str]) -> Trial:
        if settings.prefill_chunk == 1024:
            raise MixtralError("no memory")
        return Trial([100.0] * len(works), [])

    assert tune(KNOBS, WORKS, trial, quiet).findings[0].tried[1024] == 0
    with pytest.raises(MixtralError, match="always"):
        tune(KNOBS, WORKS, lambda *_: fails(), quiet)


def fails() -> Trial:
    raise MixtralError("always")


def test_what_there_is_to_try() -> None:
    moe, dense = tiny_config(), tiny_config(num_local_experts=0)

    def names(*arguments: object) -> list[str]:
        return [knob.name for knob in knobs_of(*arguments)]

    assert names(moe, False, True, {}) == ["prefill_chunk", "sort_from", "unpack_from"]
    assert names(moe, False, False, {}) == ["prefill_chunk", "sort_from"]
    gpu = ["mb_per_buffer", "ops_per_buffer", "prefill_chunk"]
    assert names(dense, True, True, {}) == gpu
    assert names(moe, True, False, {"MLX_MAX_MB_PER_BUFFER": "9"}) == [*gpu[1:], "sort_from"]
    works = works_of(tiny_config(max_position_embeddings=100))
    assert works["long prompts"] == Work((36,))
    assert works["short prompts"] == Work((8, 16, 32))
    for knob in knobs_of(moe, True, True, {}):
        assert knob.work in works
        for value in knob.values:
            Tuning().but(knob.name, value)


def test_a_trial_on_the_demo(tmp_path: Path) -> None:
    other = tmp_path / "candidate.json"
    other.write_text(tuning_record(Tuning(prefill_chunk=5)))
    from mlx_mixtral.catalog import resolve

    works = [Work((12,)), Work((4, 8)), Work((6,), 3)]
    found = trial.try_out(resolve("demo"), works, 1, other)
    assert len(found.speeds) == 3
    assert min(found.speeds) > 0
    assert [len(answer) for answer in found.answers] == [16] * 4
    assert found.answers == trial.in_this_process(str(resolve("demo")), works, 1).answers


# --- the command


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["mixtral-mlx", "bench", *arguments])
    with pytest.raises(SystemExit) as exit:
        main()
    return int(exit.value.code or 0)


def test_the_command_tells_and_keeps(
    file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def try_out(folder: Path, works: list[Work], repeat: int, candidate: Path) -> Trial:
        settings = json.loads(candidate.read_text())["settings"]
        return Trial([150.0 if settings.get("sort_from") == 64 else 100.0] * len(works), [])

    monkeypatch.setattr(trial, "try_out", try_out)
    assert run(monkeypatch, "demo", "--tune") == 0
    out, err = capsys.readouterr()
    assert "sort_from" in out
    assert "1.50x" in out
    assert str(file) in out
    assert err == ""
    assert tuned() == Tuning(sort_from=64)

    assert run(monkeypatch, "demo", "--tune", "--json") == 0
    assert json.loads(capsys.readouterr().out)["tuning"]["sort_from"] == 64

    assert run(monkeypatch, "--tune-reset") == 0
    assert str(file) in capsys.readouterr().out
    assert not file.exists()
    assert run(monkeypatch, "--tune-reset") == 0
    assert "nothing to forget" in capsys.readouterr().out


def test_ctrl_c_leaves_the_old_file(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tuning(ALL)
    before = file.read_bytes()

    def try_out(*_: object) -> Trial:
        raise KeyboardInterrupt

    monkeypatch.setattr(trial, "try_out", try_out)
    assert run(monkeypatch, "demo", "--tune") == 130
    assert file.read_bytes() == before


def test_bench_says_what_is_tuned(
    file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    short = ("demo", "--prompt", "2", "--generate", "2", "--repeat", "1")
    usual = (lambda _: None, (), lambda: Bandwidth(1e9, 1e9, 1))
    monkeypatch.setattr(bench.bench, "__defaults__", usual)
    write_tuning(Tuning(sort_from=64))
    assert run(monkeypatch, *short) == 0
    assert "tuned for this machine: sort_from 64" in capsys.readouterr().out
    file.write_text(file.read_text().replace(this_machine()["chip"], "another"))
    read_tuning.cache_clear()
    assert run(monkeypatch, *short) == 0
    assert f"not tuned: {file} is of another machine" in capsys.readouterr().out


@pytest.mark.skipif(mx.default_device() == mx.Device(mx.gpu), reason="looks at a CPU")
def test_the_machine_has_a_name() -> None:
    machine = this_machine()
    assert machine["chip"]
    assert mx.__version__ in machine["mlx"]
    assert machine == this_machine()


def test_a_mac_and_a_card_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    information = tmp_path / "information"
    information.write_text("Model: \t NVIDIA H200\nIRQ: 9\nGPU UUID: x\n")
    assert tuning._lines(information, "Model") == ["NVIDIA H200"]
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(tuning, "_sysctl", lambda name: f"<{name.decode()}>")
    assert tuning._chip() == "<machdep.cpu.brand_string>"

"""Planning: its bytes are those of converted models, its speeds bracket what others reported."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import mlx.core as mx
import pytest
from checkpoints import tiny_config, write_hf, write_mlx

from convert.pipeline import convert
from convert.plan import plan as lay_out
from convert.readers.safetensors import read_folder
from convert.recipe import RECIPES, named
from convert.sources.published import PUBLISHED
from mlx_mixtral import network
from mlx_mixtral.cli.plan import _gigabytes, _subject
from mlx_mixtral.config import ModelConfig, Quantization, QuantSpec, read_config
from mlx_mixtral.errors import UsageError
from mlx_mixtral.experts.resident import ResidentExperts
from mlx_mixtral.generation import prefill
from mlx_mixtral.generation.kv import KVSettings
from mlx_mixtral.lab import chips, planning, shapes, speed
from mlx_mixtral.lab.chips import CHIPS, GIB, MEMORIES, chips_called, mac, this_mac
from mlx_mixtral.lab.planning import Use, estimate, footprint, recommended
from mlx_mixtral.lab.reported import LLAMA_7B, MIXTRAL_8X7B
from mlx_mixtral.lab.roofline import traffic
from mlx_mixtral.lab.shapes import SHAPES, random_model
from mlx_mixtral.loading import load_model
from mlx_mixtral.memory import LEFT_TO_MACOS, activation_bytes
from mlx_mixtral.network import arrays

pytestmark = pytest.mark.usefixtures("kept_packed")

TINY = tiny_config(vocab_size=320, hidden_size=256, intermediate_size=384, head_dim=64)
MIB = 1 << 20


# --- bytes


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return write_hf(tmp_path_factory.mktemp("hf"), TINY, dtype="BF16")


@pytest.mark.parametrize("name", RECIPES)
def test_what_a_recipe_was_said_to_take_is_what_it_takes(source, tmp_path, name):
    stored = _subject(str(source)).forms[name]
    convert(lay_out(read_folder(source), named(name).quantization(TINY)), tmp_path / "out")
    on_disk = sum(file.stat().st_size for file in (tmp_path / "out").glob("*.safetensors"))
    planned = footprint(stored, TINY, mx.float32)
    assert planned.disk <= on_disk <= 1.01 * planned.disk + 20_000  # the headers of tiny files
    model = load_model(tmp_path / "out", read_config(tmp_path / "out"))
    assert planned.resident == sum(array.nbytes for array in arrays(model).values())
    assert planned.read == traffic(model, TINY, 0, 0)
    assert planned == footprint(_subject(str(tmp_path / "out")).forms[
        "16bit" if name == "16bit" else "as it is"], TINY, mx.float32)  # fmt: skip


def test_a_larger_model_within_a_percent(tmp_path):
    """Large enough for headers not to count: the file itself."""
    config = replace(TINY, hidden_size=512, intermediate_size=1024, num_local_experts=8)
    source = write_hf(tmp_path / "hf", config, dtype="BF16")
    for name in ("8bit", "4bit", "2bit"):
        out = tmp_path / name
        convert(lay_out(read_folder(source), named(name).quantization(config)), out)
        on_disk = sum(file.stat().st_size for file in out.glob("*.safetensors"))
        planned = footprint(_subject(str(source)).forms[name], config, mx.float32)
        assert planned.disk == pytest.approx(on_disk, rel=0.01)


def test_sixteen_bits_on_a_gpu_are_a_router_more_than_on_disk():
    forms = _subject("8x7b").forms
    planned = footprint(forms["16bit"], SHAPES["8x7b"], mx.bfloat16)
    assert planned.disk == PUBLISHED["8x7b"].size
    assert planned.resident - planned.disk == 32 * 8 * 4096 * 2
    four = footprint(forms["4bit-fast"], SHAPES["8x7b"], mx.bfloat16)
    assert four.read.total / 1e9 == pytest.approx(7.17, abs=0.01)


def test_shared_exponents_stay_bytes(tmp_path):
    config = tiny_config(quantization=Quantization(QuantSpec(4, 32, "mxfp4")))
    folder = write_mlx(tmp_path, config)
    stored = _subject(str(folder)).forms["as it is"]
    model = load_model(folder, config)
    resident = footprint(stored, config, mx.float32).resident
    assert resident == sum(array.nbytes for array in arrays(model).values())


def test_room_for_computing_is_about_what_a_prompt_takes(monkeypatch):
    """On the CPU backend the scores of attention come on top, which no GPU writes down."""
    monkeypatch.setattr(network, "SpreadExperts", ResidentExperts)  # as a GPU has them
    monkeypatch.setattr(shapes, "ready", lambda model: model)
    config = ModelConfig(500, 512, 1792, 2, 4, 2, 128, quantization=Quantization(QuantSpec(4, 64)))
    model = random_model(config)
    mx.eval(model.parameters())
    tokens = 512
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    mx.eval(model.hidden(mx.zeros((1, tokens), mx.int32), last=1))
    peak = mx.get_peak_memory() - before
    scores = config.num_attention_heads * tokens**2 * 4
    assert 0.8 < peak / (activation_bytes(config, mx.float32, tokens) + scores) < 1.25


def test_the_chunk_is_a_gpus(monkeypatch):
    monkeypatch.setattr(prefill, "_on_cpu", lambda: False)
    assert prefill.prefill_chunk() == planning.CHUNK


def test_keys_and_values():
    forms = _subject("8x7b").forms
    config, here = SHAPES["8x7b"], mac("M3 Max", 64)

    def kv(context: int, bits: int | None = None) -> int:
        use = Use(context, KVSettings(bits))
        return estimate("4bit", forms["4bit"], config, use, here).kv

    assert kv(4096) == 4096 * 128 * 1024
    assert kv(32768) == 8 * kv(4096)
    assert kv(4096, 8) == kv(4096) * 8.5 / 16


# --- speeds


@pytest.mark.parametrize("report", MIXTRAL_8X7B, ids=lambda r: f"{r.machine} {r.program}")
def test_speeds_bracket_what_was_reported(report):
    """13 on an M3 Max in 16 bits, 52 and 59.3 on an M2 Ultra, 36.7 and 22.9 on an M2 Max."""
    form = {16: "16bit", 8: "8bit", 4: "4bit-fast"}[report.bits]
    memory = max(max(c.memories) for c in chips_called(report.chip))
    here = mac(report.chip, memory)
    assert here.chip.bandwidth == report.bandwidth
    found = estimate(form, _subject("8x7b").forms[form], SHAPES["8x7b"], Use(256), here)
    low, high = found.tokens_a_second
    assert low <= report.decode_tps <= high * 1.001
    assert high < 1.5 * low  # or it would say little


@pytest.mark.parametrize("report", LLAMA_7B, ids=lambda r: f"{r.machine} {r.decode_tps}")
def test_speeds_of_dense_models_too(report):
    nbytes = speed.reported_bytes(report, speed.LLAMA)
    low, high = speed.pace(False).tokens_a_second(32, report.bandwidth, nbytes, nbytes)
    assert low <= report.decode_tps <= high * 1.001


@pytest.mark.parametrize("left_out", range(len(MIXTRAL_8X7B)))
def test_a_report_is_near_what_the_others_alone_would_say(left_out, monkeypatch):
    """The range comes from the reports, so that they lie in it proves nothing; this does."""
    others = tuple(r for i, r in enumerate(MIXTRAL_8X7B) if i != left_out)
    monkeypatch.setattr(speed, "MIXTRAL_8X7B", others)
    pace = speed.pace.__wrapped__(True)
    report = MIXTRAL_8X7B[left_out]
    nbytes = speed.reported_bytes(report, SHAPES["8x7b"])
    low, high = pace.tokens_a_second(32, report.bandwidth, nbytes, nbytes)
    assert 0.9 * low <= report.decode_tps <= 1.1 * high


def test_speeds_worked_out_by_hand():
    pace = speed.Pace(fast=0.001, slow=0.002, best_share=0.8)
    # 10 layers; 10 GB at 100 GB/s are 100 ms, 20 GB at 80 GB/s 250 ms.
    low, high = pace.tokens_a_second(10, 100e9, 10e9, 20e9)
    assert (low, high) == (pytest.approx(1 / 0.270), pytest.approx(8))  # the share is the limit
    _, high = pace.tokens_a_second(10, 1000e9, 10e9, 20e9)
    assert high == pytest.approx(1 / 0.020)


@pytest.mark.parametrize("shape", ["8x7b", "8x22b", "7b"])
def test_every_range_is_one(shape):
    subject = _subject(shape)
    for chip in CHIPS:
        for e in subject.estimates(Use(4096), mac(chip.name, chip.memories[0])):
            low, high = e.tokens_a_second
            assert 0 < low < high


# --- what fits


def on(chip: str, memory: int, model: str = "8x7b", context: int = 4096):
    found = _subject(model).estimates(Use(context), mac(chip, memory))
    return {e.name: e for e in found}, recommended(found)


def test_the_usual_limits():
    """As llama.cpp prints them: 16, 24, 32, 64 and 96 GB, in MB."""
    limits = {n: chips.usual_gpu_limit(n * GIB) // MIB for n in (16, 24, 32, 64, 96)}
    assert limits == {16: 10922, 24: 16384, 32: 21845, 64: 49152, 96: 73728}


def test_four_bits_want_a_raised_limit_in_32_gigabytes():
    forms, best = on("M1 Max", 32)
    four = forms["4bit"]
    assert not four.fits
    assert four.possible
    assert four.wired_limit_mb * MIB >= four.need > (four.wired_limit_mb - 1) * MIB
    assert 32 * GIB - four.need >= LEFT_TO_MACOS
    assert not forms["5bit"].possible
    assert best.name == "3bit"
    assert recommended(list(forms.values()), raised=True).name == "4bit"


def test_16_bits_are_passed_over_for_8():
    forms, best = on("M3 Max", 128)
    assert forms["16bit"].fits
    assert best.name == "8bit"
    assert recommended([forms["16bit"]]) == forms["16bit"]


def test_a_longer_context_takes_room():
    assert on("M1 Max", 32, context=4096)[1].name == "3bit"
    assert on("M1 Max", 32, context=32768)[1].name == "2bit-small"


def test_only_a_raised_limit_helps():
    forms, best = on("M2 Max", 64, "8x22b", context=20000)
    assert not any(e.fits for e in forms.values())
    assert best.wired_limit_mb * MIB >= best.need
    assert best.name == "2bit"


def test_nothing_fits():
    assert on("M2", 16)[1] is None


# --- Macs


def test_every_memory_of_a_chip_names_one_version():
    for chip in CHIPS:
        for memory in chip.memories:
            assert mac(chip.name, memory).chip == chip
    assert {16, 24, 32, 36, 48, 64, 96, 128, 192, 256, 512} <= set(MEMORIES)


@pytest.mark.parametrize("name", ["M3 Max", "Apple M3 Max", "m3max", "m3-max", " M3  MAX "])
def test_names_of_chips(name):
    assert {chip.name for chip in chips_called(name)} == {"M3 Max"}


def test_less_memory_with_fewer_cores_means_less_bandwidth():
    assert mac("M3 Max", 36).chip.bandwidth == 300e9
    assert mac("M4 Max", 36).chip.bandwidth == 410e9
    assert mac("M4 Max", 128).chip.bandwidth == 546e9


@pytest.mark.parametrize("name", ["M9", "M3 Mega", "Intel(R) Core(TM) i9", "", "3 Max"])
def test_unknown_chips(name):
    with pytest.raises(UsageError, match=r"is unknown; known are M1, M1 Pro, .*M6$"):
        chips_called(name)


def test_memory_that_no_such_mac_has():
    with pytest.raises(UsageError, match=r"no M3 Max has 40 GB.* 36 or 48 or 64 or 96 or 128$"):
        mac("m3max", 40)


@pytest.mark.parametrize(("text", "size"), [("64GB", 64), ("64", 64), ("64 gib", 64), ("8g", 8)])
def test_sizes_of_memory(text, size):
    assert _gigabytes(text) == size


@pytest.mark.parametrize("brand", ["Apple M4 Max", "Apple M4 Ultra"])
def test_the_mac_says_itself_what_it_is(monkeypatch, brand):
    answers = {"hw.memsize": str(48 * GIB), "machdep.cpu.brand_string": brand}

    def sysctl(command, **options):
        assert command[:2] == ["sysctl", "-n"]
        return SimpleNamespace(stdout=answers[command[2]] + "\n")

    monkeypatch.setattr(chips.sys, "platform", "darwin")
    monkeypatch.setattr(chips.subprocess, "run", sysctl)
    info = {"max_recommended_working_set_size": 40_200_896_512}
    monkeypatch.setattr(mx, "device_info", lambda: info)
    if brand.endswith("Ultra"):
        with pytest.raises(UsageError, match="unknown"):
            this_mac()
        return
    here = this_mac()
    assert (here.chip.name, here.chip.bandwidth) == ("M4 Max", 546e9)
    assert (here.memory, here.gpu_limit, here.measured) == (48 * GIB, 40_200_896_512, True)
    info.clear()
    assert this_mac().gpu_limit == 36 * GIB


def test_elsewhere_it_is_no_mac():
    assert sys.platform == "darwin" or this_mac() is None


# --- as a person runs it


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mlx_mixtral", "plan", *map(str, arguments)]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=60, env={**os.environ, "COLUMNS": "80"}
    )


def test_one_mac():
    done = run("instruct", "--chip", "M1 Max", "--memory", "32GB")
    assert (done.returncode, done.stderr) == (0, "")
    text = done.stdout
    assert max(map(len, text.splitlines())) < 80
    assert "To download in 16 bits: 93.4 GB" in text
    assert "\n    sudo sysctl iogpu.wired_limit_mb=" in text
    assert "A restart takes" in text
    assert "--recipe 3bit, the best" in text
    row = next(line for line in text.splitlines() if line.startswith("8bit"))
    assert row.split()[-2:] == ["no", "-"]


def test_all_macs():
    text = run().stdout
    assert max(map(len, text.splitlines())) < 80
    assert "\nM2 Max, 32 GB       22.9 GB   3bit, " in text
    assert "No form of it fits: M1, 8 GB; M1, 16 GB;" in text


def test_a_converted_folder_and_the_demo(source, tmp_path):
    convert(lay_out(read_folder(source), named("4bit").quantization(TINY)), tmp_path / "out")
    for model in (tmp_path / "out", "demo"):
        text = run(model, "--chip", "M1", "--memory", "8").stdout
        assert "\nas it is " in text
        assert "mixtral-mlx chat" in text
        assert "4bit-fast" not in text


def test_as_data():
    [record] = json.loads(run("8x22b", "--chip", "m4max", "--memory", "128", "--json").stdout)
    assert record["download"] == PUBLISHED["8x22b"].size
    assert record["mac"]["chip"]["bandwidth"] == 546e9
    five = next(form for form in record["forms"] if form["name"] == "5bit")
    assert five["need"] == five["resident"] + five["kv"] + five["work"]
    assert record["recommended"] == "5bit"
    assert dataclasses.asdict(mac("M4 Max", 128))["memory"] == record["mac"]["memory"]


@pytest.mark.parametrize(
    ("arguments", "message", "code"),
    [
        (["--chip", "M9"], "chip 'M9' is unknown; known are M1, ", 2),
        (["--chip", "M1", "--memory", "x"], "--memory 'x' is not a size such as 64GB", 2),
        (["--context", "0"], "takes 1 to 32,768 tokens", 2),
        (["--kv-bits", "5"], "kv_bits has to be 8 or 4", 2),
        (["nope"], "no model 'nope'", 1),
    ],
)
def test_refused_in_one_line(arguments, message, code):
    done = run(*arguments)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (code, "", 1)
    assert message in done.stderr


@pytest.mark.skipif(sys.platform == "darwin", reason="a Mac knows its chip")
def test_memory_without_a_chip():
    assert "name the chip too" in run("--memory", "64GB").stderr

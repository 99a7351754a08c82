"""``mixtral-mlx quality``: its figures against NumPy, transformers and mlx-lm; its files."""

from __future__ import annotations

import importlib
import importlib.util
import json
import math
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
import reference as naive
from checkpoints import (
    quantization,
    random_weights,
    relative_difference,
    tiny_config,
    write_hf,
    write_mlx,
)
from hypothesis import given
from hypothesis import strategies as st

from mlx_mixtral.catalog import resolve
from mlx_mixtral.cli import main
from mlx_mixtral.config import ModelConfig, read_config
from mlx_mixtral.errors import MixtralError, ModelError, UsageError
from mlx_mixtral.lab import heldout as texts
from mlx_mixtral.lab import quality as qualities
from mlx_mixtral.lab import reference as references
from mlx_mixtral.lab.divergence import mean, perplexity, ratio, spread
from mlx_mixtral.lab.heldout import Heldout, default_text, heldout
from mlx_mixtral.lab.layerwise import Layerwise, step
from mlx_mixtral.lab.quality import Comparison, Quality, check_comparable, divergence, quality
from mlx_mixtral.lab.reference import Reference, reference
from mlx_mixtral.lab.windows import Pack, Window, llama_chunks, packs, sliding
from mlx_mixtral.loading import load_model

GOLDEN = sorted(p.parent for p in (Path(__file__).parent / "golden").glob("*/golden.npz"))
DEMO = resolve("demo")
EXAMPLES = Path(__file__).parent.parent / "examples"
TEXT = (
    "A cat is a small animal. Tom has a red kite, and Mia has 17 apples. What is a violin? "
    "It is a stringed instrument that is played with a bow. How do you say dog in French?\n"
)

Array = np.ndarray
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module", autouse=True)
def small_packs() -> Iterator[None]:
    """So that these short texts make more than one."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (references, qualities):
            patch.setattr(module, "packs", partial(packs, most=40))
        yield


def silent(need: int, folder: Path) -> None:
    """Where the reference's size need not be told."""


# --- windows


@given(
    st.lists(st.integers(3, 99), min_size=1, max_size=90), st.integers(2, 24), st.integers(1, 24)
)
def test_every_token_counts_once(text: list[int], length: int, stride: int) -> None:
    stride = min(stride, length - 1)
    windows = sliding(text, 1, length, stride)
    assert [token for window in windows for token in window.targets] == text
    at = 0
    for number, window in enumerate(windows):
        assert len(window.ids) <= length
        assert window.ids[0] == 1
        seen = window.first - 1  # tokens of the text before the first one that counts
        assert list(window.ids[1 : window.first]) == text[at - seen : at]
        assert number == 0 or seen >= length - 1 - stride
        at += window.count


def test_llama_cpps_chunks() -> None:
    """As its source says: whole chunks of <s> and the text, <s> first in each, and of each the
    logits at 256 to 510 judged by the tokens at 257 to 511."""
    text = list(range(3, 1603))
    stream = np.array([1, *text])
    chunks = llama_chunks(text, 1)
    assert len(chunks) == len(stream) // 512 == 3
    for number, chunk in enumerate(chunks):
        begin = 512 * number
        assert chunk.ids == (1, *stream[begin + 1 : begin + 512])
        judged = [(position, stream[begin + position + 1]) for position in range(256, 511)]
        assert [position + 1 for position, _ in judged] == list(range(chunk.first, 512))
        assert chunk.targets == tuple(token for _, token in judged)
    assert llama_chunks(text[:1022], 1) == []  # 1023 tokens with <s>: less than two chunks
    assert len(llama_chunks(text[:1023], 1)) == 2


@given(st.lists(st.integers(2, 40), min_size=1, max_size=30), st.integers(10, 60))
def test_packs_hold_all_windows(lengths: list[int], most: int) -> None:
    windows = [
        Window((1, *range(100 * n, 100 * n + size - 1)), max(1, size // 2))
        for n, size in enumerate(lengths, 1)
    ]
    found = packs(windows, most)
    assert [w.ids for pack in found for w in pack.windows] == [w.ids for w in windows]
    for pack in found:
        assert len(pack.ids) <= most or len(pack.windows) == 1
        ids = pack.ids
        assert [ids[row + 1] for row in pack.rows] == pack.targets
        assert len(pack.targets) == pack.count
        at = [ids[place] for place in pack.places]
        assert at == [list(window.ids) for window in pack.windows]
    for one, two in pairwise(found):
        assert len(one.ids) + len(two.windows[0].ids) > most


# --- texts


def test_the_demos_text_is_what_it_was_not_trained_on() -> None:
    kept = [json.loads(line) for line in (EXAMPLES / "demo_model/heldout.jsonl").open()]
    heldouts = {tuple(map(tuple, row["turns"])) for row in kept}
    file = default_text(DEMO)
    assert file.stat().st_size < 80_000
    for line in file.open():
        said = [message["content"] for message in json.loads(line)["messages"]]
        assert tuple(zip(said[::2], said[1::2], strict=True)) in heldouts


def test_another_vocabulary_gets_the_mixed_text(tmp_path: Path) -> None:
    file = default_text(tmp_path)
    assert 20_000 < file.stat().st_size < 40_000
    shutil.copy(DEMO / "tokenizer.model", tmp_path)
    assert default_text(tmp_path).parent == DEMO
    (tmp_path / "tokenizer.model").write_bytes(b"another")
    assert default_text(tmp_path) == file


def test_of_a_chat_the_last_answer_counts(demo: Any, tmp_path: Path) -> None:
    said = ["Hello!", "Hi!", "What is a cat?", "A cat is a small animal."]
    roles = ["user", "assistant"] * 2
    messages = [{"role": r, "content": c} for r, c in zip(roles, said, strict=True)]
    file = tmp_path / "chats.jsonl"
    file.write_text(json.dumps({"messages": messages}) + "\n\n")
    (window,) = heldout(DEMO, file).windows
    assert list(window.ids[: window.first]) == demo.template.encode(messages[:-1])
    assert demo.tokenizer.decode(window.targets) == said[-1]
    assert window.targets[-1] == demo.tokenizer.eos_id


def test_what_is_left_out_is_told(tmp_path: Path) -> None:
    line = json.dumps({"messages": [_says("user", "Hi"), _says("assistant", "Hello! " * 9)]})
    long = json.dumps({"messages": [_says("user", "word " * 3000), _says("assistant", "No.")]})
    file = tmp_path / "chats.jsonl"
    file.write_text("\n".join([long, *[line] * 5]))
    assert heldout(DEMO, file).left_out == "5 of 6 chats, 1 longer than the context"
    assert len(heldout(DEMO, file, 2).windows) == 1
    running = tmp_path / "a.txt"
    running.write_text(TEXT * 9)
    cut = heldout(DEMO, running, 50)
    assert sum(window.count for window in cut.windows) == 50
    assert cut.left_out.startswith("the first 50 of ")
    assert heldout(DEMO, running).left_out == ""


def test_running_text_in_windows_of_1024(tmp_path: Path) -> None:
    """Each 512 tokens further on, as the report says."""
    file = tmp_path / "a.txt"
    file.write_text(TEXT * 40)
    cut = heldout(DEMO, file)
    assert [len(window.ids) for window in cut.windows[:-1]] == [1024] * (len(cut.windows) - 1)
    assert [window.count for window in cut.windows[:-1]] == [1023, *[512] * (len(cut.windows) - 2)]
    assert len(cut.windows) > 2
    assert "1024 tokens, <s> first, each 512 further on" in cut.rule


def _says(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"\xff\xfe", "not UTF-8"),
        ("a.txt", b"", "no text to measure"),
        ("a.jsonl", b"{}", "line 1 is not"),
        ("a.jsonl", b'{"messages": []}', "line 1 is not"),
        ("a.jsonl", b'\n{"messages": [{"role": "user", "content": "x"}]}', "line 2 is not"),
        ("a.jsonl", b"[1", "line 1 is not"),
        ("a.jsonl", b"\n", "no chat"),
        ("missing.txt", None, "No such file"),
    ],
)
def test_no_text_to_measure_on(
    tmp_path: Path, name: str, content: bytes | None, message: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UsageError, match=message):
        heldout(DEMO, tmp_path / name)


# --- statistics


def test_perplexity_of_a_coin() -> None:
    found = perplexity(np.full(8, math.log(2)))
    assert (found.value, found.error) == (pytest.approx(2), pytest.approx(0))
    nll = np.array([1.0, 2.0, 4.0])
    deviation = math.sqrt(((1 - 7 / 3) ** 2 + (2 - 7 / 3) ** 2 + (4 - 7 / 3) ** 2) / 2)
    assert perplexity(nll).value == pytest.approx(math.exp(7 / 3))
    assert perplexity(nll).error == pytest.approx(math.exp(7 / 3) * deviation / math.sqrt(3))
    assert mean(np.array([3.0])).error == math.inf


def test_a_ratios_error_is_that_of_the_differences() -> None:
    rng = np.random.default_rng(0)
    hard = rng.exponential(3, 4000)
    worse = hard + rng.normal(0.1, 0.01, 4000)
    found = ratio(worse, hard)
    assert found.value == pytest.approx(perplexity(worse).value / perplexity(hard).value)
    assert found.error == pytest.approx(math.exp(0.1) * 0.01 / math.sqrt(4000), rel=0.05)


def test_a_divergence_by_hand() -> None:
    """(1/2, 1/4, 1/4) against (1/4, 1/4, 1/2): 1/2 ln 2 - 1/4 ln 2."""
    p, q = mx.log(mx.array([[0.5, 0.25, 0.25]] * 2)), mx.log(mx.array([[0.25, 0.25, 0.5]] * 2))
    wanted = [math.log(2) / 4] * 2
    assert np.array(divergence(p, q)) == pytest.approx(wanted, abs=1e-7)
    # And one that is not the same both ways round.
    p, q = mx.log(mx.array([[0.9, 0.1]])), mx.log(mx.array([[0.5, 0.5]]))
    wanted = [0.9 * math.log(1.8) + 0.1 * math.log(0.2)]
    assert np.array(divergence(p, q)) == pytest.approx(wanted, abs=1e-7)


def test_a_spread() -> None:
    found = spread(np.arange(101.0))
    assert (found.median, found.p90, found.p95, found.p99, found.max) == (50, 90, 95, 99, 100)
    assert found.mean.value == 50


# --- layer by layer


@pytest.mark.parametrize("folder", GOLDEN, ids=lambda folder: folder.name)
def test_layer_by_layer_is_the_same_as_transformers(folder: Path) -> None:
    golden = np.load(folder / "golden.npz")
    model = Layerwise(folder)
    pack = Pack(tuple(Window(tuple(row.tolist()), 1) for row in golden["ids"]))
    hidden = model.embed(pack)
    for number in range(model.config.num_hidden_layers):
        layer, _ = model.layer(number)
        hidden = step(layer, hidden, pack, model.masks(pack)).output
    tolerance = 2e-2 if mx.default_device() == mx.Device(mx.gpu) else 5e-5
    found = np.concatenate([np.array(part) for _, part in model.predictions(hidden, pack)])
    wanted = log_softmax(golden["logits"][:, :-1].reshape(-1, found.shape[-1]))
    assert relative_difference(found, wanted) < tolerance


def test_predictions_come_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Layerwise(GOLDEN[0])
    pack = Pack((Window((1, *range(3, 12)), 5), Window((1, *range(12, 22)), 3)))
    hidden = model.embed(pack)
    ((_, whole),) = model.predictions(hidden, pack)
    monkeypatch.setattr("mlx_mixtral.lab.layerwise.AT_ONCE", 4)
    parts = list(model.predictions(hidden, pack))
    assert [part for part, _ in parts] == [slice(0, 4), slice(4, 8), slice(8, 12), slice(12, 13)]
    assert relative_difference(np.concatenate([np.array(p) for _, p in parts]), whole) < 1e-6


def test_one_layer_in_memory_at_a_time(tmp_path: Path) -> None:
    config = tiny_config(num_hidden_layers=8, hidden_size=128, intermediate_size=1024)
    folder = write_hf(tmp_path, config)
    text = Heldout(Path("x"), "", (Window((1, 5, 6, 7), 1),))
    mx.clear_cache()
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    quality("x", folder, text)
    weights = (folder / "model.safetensors").stat().st_size
    assert mx.get_peak_memory() - before < weights / 2
    assert mx.get_active_memory() - before < weights / 8


# --- all of it against NumPy


def log_softmax(logits: Array) -> Array:
    logits = np.asarray(logits, np.float64)
    top = logits.max(axis=-1, keepdims=True)
    return logits - top - np.log(np.exp(logits - top).sum(axis=-1, keepdims=True))


class Naive:
    """A Mixtral in NumPy that tells what happens in each layer, and can be led.

    ``inputs``, ``inner`` and ``outputs`` are [layers][T][D], ``routing`` [layers][T] of
    (experts, weights), ``answers`` [layers][T][K][D].
    """

    def __init__(self, config: dict[str, Any], weights: naive.Weights) -> None:
        self.config, self.weights = config, weights

    def layer(self, n: int) -> dict[str, Array]:
        prefix = f"model.layers.{n}."
        return {k[len(prefix) :]: v for k, v in self.weights.items() if k.startswith(prefix)}

    def run(self, n: int, x: list[Array], led: Any = None) -> dict[str, Any]:
        w = self.layer(n)
        normed = [naive.rms_norm(t, w["input_layernorm.weight"], 1e-5) for t in x]
        x = [t + a for t, a in zip(x, naive.attention(self.config, w, normed), strict=True)]
        inner = [naive.rms_norm(t, w["post_attention_layernorm.weight"], 1e-5) for t in x]
        routing = led or [self.route(w, t) for t in inner]
        answers = [self.ask(w, t, who) for t, (who, _) in zip(inner, routing, strict=True)]
        outputs = [
            t + sum(share * a for share, a in zip(shares, each, strict=True))
            for t, (_, shares), each in zip(x, routing, answers, strict=True)
        ]
        return {"inner": inner, "routing": routing, "answers": answers, "outputs": outputs}

    def route(self, w: dict[str, Array], t: Array) -> tuple[list[int], Array]:
        scores = w["block_sparse_moe.gate.weight"] @ t
        chosen = sorted(range(len(scores)), key=lambda e: (-scores[e], e))[:2]
        return chosen, naive.softmax(scores[chosen])

    def ask(self, w: dict[str, Array], t: Array, chosen: list[int]) -> list[Array]:
        found = []
        for e in chosen:
            gate, down, up = (w[f"block_sparse_moe.experts.{e}.w{i}.weight"] for i in (1, 2, 3))
            found.append(down @ (naive.silu(gate @ t) * (up @ t)))
        return found

    def trace(self, window: Window, led: Any = None) -> dict[str, Any]:
        """All layers of a window: ``layers`` and the log-probabilities of the counted tokens."""
        x = [self.weights["model.embed_tokens.weight"][i] for i in window.ids]
        layers = []
        for n in range(self.config["num_hidden_layers"]):
            layers.append({"inputs": x} | self.run(n, x, led and led[n]["routing"]))
            x = layers[-1]["outputs"]
        normed = [naive.rms_norm(t, self.weights["model.norm.weight"], 1e-5) for t in x]
        logits = np.array(normed) @ self.weights["lm_head.weight"].T
        return {"layers": layers, "log_probs": log_softmax(logits)[window.first - 1 : -1]}


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A tiny model, the same in 4 bits (its router too), a text, and both in NumPy."""
    home = tmp_path_factory.mktemp("pair")
    config = tiny_config(vocab_size=4096, max_position_embeddings=24)
    weights = random_weights(config)
    config4 = replace(config, quantization=quantization(4))
    folders = [
        write_hf(home / "whole", config, weights),
        write_mlx(home / "four", config4, weights),
    ]
    for folder in folders:
        shutil.copy(DEMO / "tokenizer.model", folder)
    text = home / "text.txt"
    text.write_text(TEXT)
    rounded = _dequantized(config, weights)
    raw = json.loads((folders[0] / "config.json").read_text())
    double = {name: values.astype(np.float64) for name, values in weights.items()}
    return {
        "whole": folders[0],
        "four": folders[1],
        "text": text,
        "naive": (Naive(raw, double), Naive(raw, rounded)),
    }


def _dequantized(config: ModelConfig, weights: dict[str, Array]) -> dict[str, Array]:
    found = {}
    for name, values in weights.items():
        if "norm" not in name:
            packed = mx.quantize(mx.array(values), group_size=64, bits=4)
            values = np.array(mx.dequantize(*packed, group_size=64, bits=4))
        found[name] = values.astype(np.float64)
    return found


@pytest.fixture(scope="module")
def measured(pair: dict[str, Any]) -> tuple[Heldout, Reference, Quality, list[Any], list[Any]]:
    text = heldout(pair["four"], pair["text"])
    recorded = reference(pair["whole"], text, silent)
    found = quality("four", pair["four"], text, ("whole", recorded))
    whole, four = pair["naive"]
    return (
        text,
        recorded,
        found,
        [whole.trace(window) for window in text.windows],
        [four.trace(window) for window in text.windows],
    )


def _nll(text: Heldout, traces: list[Any]) -> Array:
    pairs = zip(text.windows, traces, strict=True)
    return np.array(
        [-t["log_probs"][i, token] for w, t in pairs for i, token in enumerate(w.targets)]
    )


def test_perplexities_equal_numpys(measured: Any) -> None:
    text, _, found, whole, four = measured
    assert len(text.windows) > 2
    for of, traces in ((found.perplexity, four), (found.comparison.perplexity, whole)):
        wanted = perplexity(_nll(text, traces))
        assert of.value == pytest.approx(wanted.value, rel=1e-5)
        assert of.error == pytest.approx(wanted.error, rel=1e-4)
    wanted = ratio(_nll(text, four), _nll(text, whole))
    assert found.comparison.perplexity_ratio.value == pytest.approx(wanted.value, rel=1e-5)
    assert found.comparison.perplexity_ratio.error == pytest.approx(wanted.error, rel=1e-3)
    assert found.tokens == len(_nll(text, whole))


def test_bytes_and_bits(pair: dict[str, Any], measured: Any) -> None:
    """Of the weights alone: 4 bits, and a scale and a bias of 32 bits for 64 weights."""
    found = measured[2]
    file = pair["four"] / "model.safetensors"
    header = int.from_bytes(file.read_bytes()[:8], "little")
    assert found.nbytes == file.stat().st_size - 8 - header
    assert found.bits_per_weight == pytest.approx(5, abs=0.05)


def test_the_divergence_equals_numpys(measured: Any) -> None:
    _, _, found, whole, four = measured
    p = np.concatenate([trace["log_probs"] for trace in whole])
    q = np.concatenate([trace["log_probs"] for trace in four])
    kl = (np.exp(p) * (p - q)).sum(axis=-1)
    assert kl.mean() > 0.01
    comparison: Comparison = found.comparison
    assert comparison.kl.mean.value == pytest.approx(kl.mean(), rel=1e-4)
    assert comparison.kl.mean.error == pytest.approx(spread(kl).mean.error, rel=1e-3)
    for name in ("median", "p90", "p95", "p99", "max"):
        assert getattr(comparison.kl, name) == pytest.approx(getattr(spread(kl), name), rel=1e-3)
    same = p.argmax(axis=-1) == q.argmax(axis=-1)
    assert 0 < same.mean() < 1
    assert comparison.same_top.value == pytest.approx(same.mean())
    assert comparison.same_top.error == pytest.approx(same.std(ddof=1) / math.sqrt(len(same)))


def test_the_routers_share_equals_numpys(pair: dict[str, Any], measured: Any) -> None:
    """The 4-bit model with every token sent to the experts of the whole one."""
    text, _, found, whole, _ = measured
    four, kl = pair["naive"][1], []
    for window, trace in zip(text.windows, whole, strict=True):
        p, q = trace["log_probs"], four.trace(window, led=trace["layers"])["log_probs"]
        kl += (np.exp(p) * (p - q)).sum(axis=-1).tolist()
    comparison = found.comparison
    assert comparison.kl_reference_routing.value == pytest.approx(np.mean(kl), rel=1e-4)
    assert comparison.kl_reference_routing.value < 0.95 * comparison.kl.mean.value
    share = 1 - np.mean(kl) / comparison.kl.mean.value
    assert comparison.router_share == pytest.approx(share, abs=1e-3)
    assert found.to_dict()["comparison"]["router_share"] == comparison.router_share


def test_the_damage_of_each_layer_equals_numpys(pair: dict[str, Any], measured: Any) -> None:
    text, recorded, found, whole, four = measured
    assert recorded.watched == tuple(range(len(packs(text.windows, 40))))
    assert len(recorded.watched) > 1
    assert found.comparison.watched == sum(len(window.ids) for window in text.windows)
    for n, damage in enumerate(found.comparison.layers):
        ours: dict[str, list[Any]] = {"own": [], "cumulated": [], "kept": [], "run": []}
        errors: dict[int, list[float]] = {e: [] for e in range(4)}
        for ref, ran in zip(whole, four, strict=True):
            a, b = ref["layers"][n], ran["layers"][n]
            given = pair["naive"][1].run(n, a["inputs"])
            ours["own"] += map(_relative, given["outputs"], a["outputs"])
            ours["cumulated"] += map(_relative, b["outputs"], a["outputs"])
            weights = pair["naive"][1].layer(n)
            for t, (who, _), told, (ran_to, _) in zip(
                a["inner"], a["routing"], a["answers"], b["routing"], strict=True
            ):
                ours["kept"].append(set(pair["naive"][1].route(weights, t)[0]) == set(who))
                ours["run"].append(set(ran_to) == set(who))
                for e, mine, its in zip(
                    who, pair["naive"][1].ask(weights, t, who), told, strict=True
                ):
                    errors[e].append(_relative(mine, its))
        assert damage.own == pytest.approx(np.mean(ours["own"]), rel=1e-4)
        assert damage.cumulated == pytest.approx(np.mean(ours["cumulated"]), rel=1e-4)
        assert damage.router_own == pytest.approx(np.mean(ours["kept"]))
        assert damage.router_cumulated == pytest.approx(np.mean(ours["run"]))
        assert [expert.tokens for expert in damage.experts] == [len(e) for e in errors.values()]
        wanted = [np.mean(e) for e in errors.values()]
        assert [expert.error for expert in damage.experts] == pytest.approx(wanted, rel=1e-4)


def _relative(found: Array, wanted: Array) -> float:
    return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))


# --- against the same model's own forward pass, and mlx-lm's


def test_llama_cpps_convention_in_numpy(
    pair: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Derived again from what its source does, over the model's whole forward pass; with
    chunks of 22 tokens for 512."""
    monkeypatch.setattr(texts, "LLAMA_CHUNK", 22)
    file = tmp_path / "text.txt"
    file.write_text(TEXT * 2)
    text = heldout(pair["whole"], file)
    recorded = reference(pair["whole"], text, silent)
    found = quality("whole", pair["whole"], text, ("itself", recorded))
    stream = [1, *(token for window in text.windows for token in window.targets)]
    model, nll = load_model(pair["whole"], read_config(pair["whole"])), []
    for i in range(len(stream) // 22):
        tokens = stream[22 * i : 22 * i + 22]
        tokens[0] = 1
        logits = log_softmax(np.array(model(mx.array([tokens]))[0].astype(mx.float32)))
        nll += [-logits[position, tokens[position + 1]] for position in range(11, 21)]
    assert len(nll) > 30
    variance = np.mean(np.square(nll)) - np.mean(nll) ** 2
    value = math.exp(np.mean(nll))
    assert found.comparison is not None
    for of in (found.llama_perplexity, found.comparison.llama_perplexity):
        assert of is not None
        assert of.value == pytest.approx(value, rel=1e-5)
        assert of.error == pytest.approx(value * math.sqrt(variance / (len(nll) - 1)), rel=1e-4)


@pytest.mark.skipif(mx.default_device() == mx.Device(mx.gpu), reason="float32 on a GPU")
def test_the_demos_perplexity_equals_mlx_lms(demo: Any) -> None:
    """On the same windows, by mlx-lm's own evaluation of its own model in float32."""
    from mlx_lm.perplexity import eval_ppl
    from mlx_lm.utils import load_model as theirs

    ids = [i for window in heldout(DEMO, most=60).windows for i in window.ids]
    rows = [ids[32 * i : 32 * i + 32] for i in range(3)]
    text = Heldout(Path("x"), "", tuple(Window(tuple(row), 1) for row in rows))
    model, _ = theirs(DEMO)
    model.set_dtype(mx.float32)
    value, error = eval_ppl(model, mx.array(rows))
    found = quality("demo", DEMO, text)
    assert found.perplexity.value == pytest.approx(value, rel=1e-4)
    assert found.perplexity.error == pytest.approx(error, rel=1e-3)


def test_against_itself_nothing_is_lost(pair: dict[str, Any]) -> None:
    """Not even to the float16 in which a reference is kept."""
    text = heldout(pair["whole"], pair["text"])
    found = quality("whole", pair["whole"], text, ("it", reference(pair["whole"], text, silent)))
    assert found.comparison is not None
    assert abs(found.comparison.kl.mean.value) < 3e-6
    assert found.comparison.kl.max < 1e-5
    assert found.comparison.same_top.value == 1
    assert found.comparison.perplexity_ratio.value == pytest.approx(1, abs=1e-6)
    for layer in found.comparison.layers:
        assert max(layer.own, layer.cumulated) < 1e-5
        assert (layer.router_own, layer.router_cumulated) == (1, 1)


def test_a_dense_model_has_no_router(tmp_path: Path) -> None:
    config = tiny_config(num_local_experts=0, sliding_window=8)
    weights = random_weights(config)
    whole = write_hf(tmp_path / "whole", config, weights)
    four = write_mlx(tmp_path / "four", replace(config, quantization=quantization(4)), weights)
    text = Heldout(Path("x"), "", tuple(Window((1, *range(n, n + 15)), 1) for n in (3, 30)))
    found = quality("four", four, text, ("whole", reference(whole, text, silent)))
    comparison = found.comparison
    assert comparison is not None
    assert comparison.kl.mean.value > 0
    assert (comparison.kl_reference_routing, comparison.router_share) == (None, None)
    assert all(layer.own > 0 and not layer.experts for layer in comparison.layers)


# --- the reference on disk


def test_a_reference_is_read_once(
    pair: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("MIXTRAL_MLX_HOME", str(tmp_path))
    text, told = heldout(pair["whole"], pair["text"]), []
    first = reference(pair["whole"], text, lambda need, where: told.append((need, where)))
    ((need, where),) = told
    assert where == first.folder
    written = sum(file.stat().st_size for file in where.iterdir())
    assert need == pytest.approx(written, rel=0.1)  # headers are not counted
    assert [folder.name for folder in where.parent.iterdir()] == [where.name]

    def computed(folder: Path) -> Layerwise:
        raise AssertionError("computed again")

    monkeypatch.setattr(references, "Layerwise", computed)
    again = reference(pair["whole"], text, silent)
    assert np.array_equal(again.nll, first.nll)
    for other in (pair["four"], _touched(pair["whole"], tmp_path)):
        with pytest.raises(AssertionError, match="computed again"):
            reference(other, text, silent)
    windows = (replace(text.windows[0], first=2), *text.windows[1:])
    with pytest.raises(AssertionError, match="computed again"):
        reference(pair["whole"], replace(text, windows=windows), silent)


def _touched(folder: Path, home: Path) -> Path:
    """The same model but for one weight, of a file of the same size and time."""
    copy = shutil.copytree(folder, home / "touched")
    file, stat = copy / "model.safetensors", (folder / "model.safetensors").stat()
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    return copy


def test_a_reference_cut_short_is_computed_again(
    pair: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("MIXTRAL_MLX_HOME", str(tmp_path))
    text = heldout(pair["whole"], pair["text"])
    first = reference(pair["whole"], text, silent)
    for name in ("pack-00001.safetensors", "layer-002.safetensors", "about.json"):
        file = first.folder / name
        os.truncate(file, file.stat().st_size - 1)
        again = reference(pair["whole"], text, silent)
        assert np.array_equal(again.nll, first.nll)
        assert again.log_probs(1).shape == (packs(text.windows, 40)[1].count, 4096)


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError("no space left")])
def test_whole_or_not_at_all(
    pair: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, error: Any
) -> None:
    monkeypatch.setenv("MIXTRAL_MLX_HOME", str(tmp_path))
    text = heldout(pair["whole"], pair["text"])
    save, calls = mx.save_safetensors, []

    def fails(*given: Any) -> None:
        calls.append(given)
        if len(calls) == 3:
            raise error
        save(*given)

    monkeypatch.setattr(mx, "save_safetensors", fails)
    wanted = KeyboardInterrupt if error is KeyboardInterrupt else MixtralError
    with pytest.raises(wanted):
        reference(pair["whole"], text, silent)
    assert list((tmp_path / "references").iterdir()) == []


def test_room_is_made_and_asked_for(
    pair: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("MIXTRAL_MLX_HOME", str(tmp_path))
    text = heldout(pair["whole"], pair["text"])
    old = tmp_path / "references" / "old.partial"
    old.mkdir(parents=True)
    first = reference(pair["whole"], text, silent)
    size = sum(file.stat().st_size for file in first.folder.iterdir())
    (old / "a").write_bytes(bytes(size))
    os.utime(old, (1, 1))
    monkeypatch.setattr(references, "KEPT_BYTES", 5 * size // 2)
    second = reference(pair["four"], text, silent)
    assert {f.name for f in old.parent.iterdir()} == {first.folder.name, second.folder.name}
    monkeypatch.setattr(references, "KEPT_BYTES", size // 2)
    third = reference(pair["four"], replace(text, windows=text.windows[:2]), silent)
    assert [f.name for f in old.parent.iterdir()] == [third.folder.name]


def test_a_full_disk_is_told_before(
    pair: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("MIXTRAL_MLX_HOME", str(tmp_path))
    text = heldout(pair["whole"], pair["text"])
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(UsageError, match="--tokens"):
        reference(pair["whole"], text, silent)


def test_few_windows_are_watched_of_a_long_text(
    pair: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("MIXTRAL_MLX_HOME", str(tmp_path))
    text = heldout(pair["whole"], pair["text"])
    token = 2 * (2 + 2) * 64 * mx.float32.size
    monkeypatch.setattr(references, "LAYER_BYTES", 48 * token)
    recorded = reference(pair["whole"], text, silent)
    own = packs(text.windows, 40)
    assert recorded.watched == (0, 2)
    assert len(own) == 3
    found = quality("four", pair["four"], text, ("whole", recorded))
    assert found.comparison is not None
    assert found.comparison.watched == sum(len(own[i].ids) for i in recorded.watched)


# --- the command


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs ``quality`` in this process: (exit code, output, errors)."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["mixtral-mlx", "quality", *map(str, arguments)])
        with pytest.raises(SystemExit) as exit:
            main()
        return (int(exit.value.code or 0), *capsys.readouterr())

    return run


def test_json(run: Run, pair: dict[str, Any], measured: Any) -> None:
    given = (pair["four"], "--text", pair["text"])
    code, out, err = run(*given, "--reference", pair["whole"], "--json")
    assert (code, err) == (0, "")  # the reference is there already
    record = json.loads(out)
    found = measured[2]
    wanted = json.loads(json.dumps(found.to_dict()))
    wanted["model"], wanted["reference"] = str(pair["four"]), str(pair["whole"])
    assert record == wanted
    code, out, _ = run(*given, "--json")
    record = json.loads(out)
    assert record["comparison"] is record["reference"] is record["llama_perplexity"] is None
    assert record["perplexity"]["value"] == pytest.approx(found.perplexity.value)


def test_the_report_for_a_person(run: Run, pair: dict[str, Any], tmp_path: Path) -> None:
    picture = tmp_path / "a.png"
    plot = ["--plot", picture] if importlib.util.find_spec("matplotlib") else []
    arguments = (pair["four"], "--reference", pair["whole"], "--text", pair["text"])
    code, out, err = run(*arguments, "--tokens", 20, *plot)
    assert code == 0
    assert err.startswith("the reference's predictions take ")
    for part in ("20 tokens counted", "the router's share is", "same top token", "same experts"):
        assert part in out
    assert not plot or picture.read_bytes()[:4] == b"\x89PNG"
    code, out, err = run("demo", "--tokens", 9)
    assert (code, err) == (0, "")
    assert "perplexity" in out
    assert "KL" not in out


def test_a_report_in_llama_cpps_convention(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(texts, "LLAMA_CHUNK", 20)
    mixed = texts.__file__.replace(".py", ".txt")
    code, out, _ = run("demo", "--reference", "demo", "--text", mixed, "--tokens", 40)
    assert code == 0
    (line,) = (line for line in out.splitlines() if "as llama.cpp cuts it" in line)
    ours, reference = line.removeprefix("  as llama.cpp cuts it").split("; the reference's ")
    assert ours.strip() == reference
    assert "of the text: the first 40 of" in out


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["no-such-model"], 1, "no model 'no-such-model'"),
        (["demo", "--reference", "no-such-model"], 1, "no model 'no-such-model'"),
        (["demo", "--tokens", "1"], 2, "--tokens"),
        (["demo", "--text", "nowhere.txt"], 2, "nowhere.txt"),
        (["demo", "--plot", "a.png"], 2, "--reference"),
        (["demo", "--reference", "demo", "--plot", "a.gif"], 2, ".png, .svg or .pdf"),
    ],
)
def test_a_mistake_is_told_in_one_line(
    run: Run, arguments: list[str], code: int, message: str
) -> None:
    found, out, err = run(*arguments)
    assert (found, out) == (code, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert message in err


def test_what_cannot_be_compared(run: Run, pair: dict[str, Any], tmp_path: Path) -> None:
    code, _, err = run(pair["four"], "--reference", "demo")
    assert (code, "hidden_size is 256" in err) == (2, True)
    check_comparable(pair["four"], pair["whole"])
    longer = shutil.copytree(pair["whole"], tmp_path / "longer")
    config = json.loads((longer / "config.json").read_text()) | {"max_position_embeddings": 32}
    (longer / "config.json").write_text(json.dumps(config))
    code, _, err = run(pair["four"], "--reference", longer, "--text", pair["text"])
    assert (code, "different tokens" in err) == (2, True)


def test_without_a_tokenizer_the_references_is_taken(
    run: Run, pair: dict[str, Any], measured: Any, tmp_path: Path
) -> None:
    bare = shutil.copytree(pair["four"], tmp_path / "bare")
    (bare / "tokenizer.model").unlink()
    code, _, err = run(bare, "--text", pair["text"])
    assert (code, "tokenizer" in err) == (ModelError.exit_code, True)
    given = (bare, "--text", pair["text"], "--reference", pair["whole"], "--json")
    code, out, _ = run(*given)
    assert (code, json.loads(out)["tokens"]) == (0, measured[2].tokens)


def test_ctrl_c_leaves_nothing(spawn: Any, tmp_path: Path) -> None:
    home = tmp_path / "home"
    process = spawn(
        *("quality", "demo", "--reference", "demo", "--tokens", 2000),
        env=os.environ | {"MIXTRAL_MLX_HOME": str(home)},
    )
    references_home = home / "references"
    deadline = time.monotonic() + 60
    while not (references_home.is_dir() and list(references_home.iterdir())):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (130, "")
    assert "Traceback" not in err
    assert list(references_home.iterdir()) == []


# --- the table of `make quality`


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(EXAMPLES / "demo_model"))
    return importlib.import_module("quality_table")


def test_the_table_has_a_cell_for_every_heading(table: Any, measured: Any) -> None:
    found: Quality = measured[2]
    row = table.row(4, "fast", found.to_dict())
    assert row.count("|") == table.HEAD.splitlines()[0].count("|")
    comparison = found.comparison
    assert comparison is not None
    cells = [cell.strip() for cell in row.split("|")]
    assert cells[1:3] == ["4", "fast"]
    assert cells[5].startswith(f"{comparison.kl.mean.value:.4f} ± ")
    own = np.mean([layer.router_own for layer in comparison.layers])
    ran = np.mean([layer.router_cumulated for layer in comparison.layers])
    assert cells[9] == f"{own:.1%}, {ran:.1%}"


def test_the_demo_is_not_calibrated_on_what_it_is_measured_on(table: Any, tmp_path: Path) -> None:
    measured_on = set(default_text(DEMO).read_text().splitlines())
    others = set(table.other_questions(tmp_path / "a.jsonl").read_text().splitlines())
    assert len(others) > 500
    assert not others & measured_on

"""``--memory`` as a person uses it: the same answers, and what is told about them."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from checkpoints import quantization, tiny_config, write_mlx
from typer.testing import CliRunner

from mlx_mixtral import load
from mlx_mixtral.chat import Chat
from mlx_mixtral.cli.app import app
from mlx_mixtral.cli.chat_terminal import ChatTerminal
from mlx_mixtral.errors import ModelError, UsageError
from mlx_mixtral.lab.routing import foresight, hit_rates, record
from mlx_mixtral.lab.streams import sequential_rate
from mlx_mixtral.loading import LanguageModel
from mlx_mixtral.model.moe import route

ASK = ["generate", "demo", "-p", "What is a violin?"]


def run(*arguments: str):
    return CliRunner().invoke(app, [*ASK, *arguments])


@pytest.fixture(autouse=True, scope="module")
def cache_limit():
    """A budget limits what MLX keeps for later, in all of the process."""
    before = mx.set_cache_limit(1 << 30)
    mx.set_cache_limit(before)
    yield
    mx.set_cache_limit(before)


@pytest.fixture(scope="module")
def plain() -> str:
    return run().stdout


@pytest.mark.parametrize("memory", ["1%", "50%", "75%", "100%", "10GB"])
def test_the_demo_answers_the_same(plain: str, memory: str):
    found = run("--memory", memory)
    assert found.exit_code == 0, found.output
    assert found.stdout == plain


def test_figures(plain: str):
    found = run("--memory", "50%", "--stats", "--read-ahead", "1")
    assert found.stdout == plain
    for text in (
        "experts in memory",
        "of those asked for",
        "a token",
        "while reading",
        "bound by it",
    ):
        assert text in found.stderr
    assert "experts in memory" not in run("--stats").stderr
    record = json.loads(run("--memory", "50%", "--json").stdout)
    assert 0 < record["streamed"]["hit_rate"] < 1
    assert record["streamed"]["bytes_a_token"] > 0
    assert json.loads(run("--json").stdout)["streamed"] is None


def test_budgets_that_are_none(capsys):
    for memory, said in (("12XB", "say 12GB"), ("100MB", "the minimum is 0.")):
        found = run("--memory", memory)
        assert found.exit_code
        text = str(found.exception)
        assert said in text
        assert "\n" not in text


def test_loading(demo: LanguageModel):
    lm = load("demo", memory="50%", context=300)
    assert lm.config.max_position_embeddings == 300
    assert lm.streaming is not None
    assert lm.streaming.slots == (4, 4, 4, 4)
    assert lm.streaming.share == 0.5
    assert load("demo", memory="100%").streaming is None
    assert load("demo", memory=10**10).streaming is None
    ids = mx.array([lm.template.encode([{"role": "user", "content": "Hello"}])])
    assert (lm.model(ids) == demo.model(ids)).all()
    with pytest.raises(UsageError, match="context of 5000"):
        load("demo", memory="50%", context=5000)


def test_a_small_budget_leaves_a_smaller_context():
    enough = load("demo", memory="270MB")
    assert enough.streaming is not None
    assert enough.config.max_position_embeddings in (512, 1024, 2048)
    assert load("demo", memory="400MB").config.max_position_embeddings == 2048


def test_more_than_the_machine_has(monkeypatch):
    monkeypatch.setattr("mlx_mixtral.loading.free_memory", lambda: 30_000_000)
    with pytest.raises(ModelError, match="take a smaller --memory"):
        load("demo", memory="50%")
    assert load("demo", memory="50%", force=True).streaming
    with pytest.raises(ModelError, match=r"read from disk as they are needed \(`--memory 28MB`\)"):
        load("demo")


def test_a_dense_model_has_no_experts(tmp_path, demo: LanguageModel):
    config = tiny_config(num_local_experts=0, quantization=quantization(4, 64))
    write_mlx(tmp_path, config)
    for name in ("tokenizer.model", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((demo.path / name).read_bytes())
    with pytest.raises(UsageError, match="no experts"):
        load(tmp_path, memory="50%")
    assert load(tmp_path, memory="10GB").streaming is None


def test_the_status_line_and_stats_of_a_chat():
    lm = load("demo", memory="50%")
    terminal = ChatTerminal(lm, Chat(lm), history=False)
    said = io.StringIO()
    terminal._console.file = said
    terminal._act_on("What is a violin?")
    terminal._act_on("/stats")
    status = terminal._status()
    assert "% hits, " in status
    assert "/token, disk " in status
    assert "hit_rate = 0." in said.getvalue()


def test_bench():
    arguments = ["bench", "demo", "--memory", "50%", "--prompt", "8", "--generate", "4"]
    found = CliRunner().invoke(app, [*arguments, "--repeat", "1"])
    assert found.exit_code == 0, found.output
    assert "4 of 8 experts a layer are in memory" in found.stdout
    assert "from end to end" in found.stdout
    record = json.loads(CliRunner().invoke(app, [*arguments, "--repeat", "1", "--json"]).stdout)
    assert record["streams"]["slots"] == [4, 4, 4, 4]
    assert record["streams"]["needed"] <= record["streams"]["answer"]["bytes_a_token"] * 1.001
    whole = json.loads(
        CliRunner().invoke(app, [*arguments[:2], *arguments[4:], "--repeat", "1", "--json"]).stdout
    )
    assert record["traffic"] == whole["traffic"]
    assert whole["streams"] is None
    shape = CliRunner().invoke(app, ["bench", "--shape", "8x7b", "--memory", "50%"])
    assert "lies on no disk" in str(shape.exception)


def test_reading_from_end_to_end(tmp_path):
    for n in range(2):
        (tmp_path / str(n)).write_bytes(b"x" * 3_000_000)
    assert sequential_rate(sorted(tmp_path.iterdir()), at_most=4_000_000) > 0


# --- traces


def test_a_trace_is_what_the_model_chooses(demo: LanguageModel):
    texts = [[1, *range(40, 60)], [1, *range(70, 100)]]
    trace = record(demo.model, texts)
    assert trace.chosen.shape == (52, 4, 2)
    assert trace.odds.shape == (52, 4, 8)
    assert trace.foretold.shape == (52, 3, 8)
    np.testing.assert_allclose(trace.odds.sum(axis=-1), 1, rtol=1e-5)
    # In the first layer, computed another way.
    layer, x = demo.model.model.layers[0], demo.model.model.embed_tokens(mx.array(texts[1:]))
    x = x + layer.self_attn(layer.input_layernorm(x), "causal", None)
    x = layer.post_attention_layernorm(x)[0]
    chosen, _ = route(layer.block_sparse_moe.gate(x), 2)
    assert trace.chosen[21:, 0].tolist() == chosen.tolist()
    after = demo.model.model.layers[1].block_sparse_moe.gate(x)
    assert trace.foretold[21:, 0].tolist() == mx.argsort(-after, axis=-1).tolist()
    with_streaming = record(load("demo", memory="50%").model, texts)
    assert (with_streaming.chosen == trace.chosen).all()


def test_the_shares_that_are_told(demo: LanguageModel):
    trace = record(demo.model, [[1, *range(40, 300)]])
    rates = hit_rates(trace, 4)
    assert rates["clairvoyant"] >= max(rates.values())
    assert all(0 < rate < 1 for rate in rates.values())
    assert hit_rates(trace, 8)["LRU"] > 0.9
    perfect = replace(trace, foretold=np.concatenate([trace.chosen, trace.chosen], -1)[:, 1:])
    assert {(told.first, told.best, told.both) for told in foresight(perfect)} == {(1, 1, 1)}
    wrong = replace(trace, foretold=np.full_like(perfect.foretold, 99))
    assert {(told.first, told.best, told.both) for told in foresight(wrong)} == {(0, 0, 0)}


# --- examples


def test_the_demo_with_large_experts_answers_the_same(tmp_path):
    script = Path(__file__).parent.parent / "examples" / "streaming" / "widen.py"
    subprocess.run([sys.executable, script, tmp_path, "1024"], check=True)
    lm = load(tmp_path, memory="25%")
    assert lm.config.intermediate_size == 1024
    assert lm.streaming.slots == (2, 2, 2, 2)
    assert "stringed instrument" in str(Chat(lm).send("What is a violin?"))

"""Keys and values on disk: taken over bit for bit, or refused in one line."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from checkpoints import random_ids, tiny_config, write_hf
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mlx_mixtral.config import read_config
from mlx_mixtral.errors import MixtralError, UsageError
from mlx_mixtral.generation import kv_file
from mlx_mixtral.generation.kv import REWIND, KVSettings
from mlx_mixtral.generation.kv_file import Owner, fingerprint
from mlx_mixtral.generation.loop import generate_tokens
from mlx_mixtral.generation.prompt_cache import PromptCache
from mlx_mixtral.generation.sampling import Sampler, Sampling
from mlx_mixtral.loading import load_model
from mlx_mixtral.model.transformer import Transformer
from mlx_mixtral.shards import read_header

KINDS = [KVSettings(), KVSettings(8), KVSettings(4), KVSettings(None, 20), KVSettings(8, 20)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    write_hf(folder, tiny_config(head_dim=32))
    return folder


@pytest.fixture(scope="module")
def model(folder: Path) -> Transformer:
    return load_model(folder, read_config(folder))


@pytest.fixture(scope="module")
def owner(folder: Path) -> Owner:
    return Owner(read_config(folder), fingerprint(folder), mx.float32)


def fed(model: Transformer, kv: KVSettings, length: int, seed: int = 0) -> PromptCache:
    """A cache that holds a text."""
    cache = PromptCache(model.config, kv)
    ids = random_ids(model.config, length=length, seed=seed)
    mx.eval(model(ids, cache.layers))
    cache.settle(ids[0].tolist())
    return cache


def go_on(model: Transformer, cache: PromptCache, count: int = 40) -> list[tuple[int, float]]:
    prompt = [*cache.tokens, 3, 1]
    assert cache.reuse(prompt) == len(prompt) - 2
    steps = generate_tokens(model, cache, prompt, Sampler(Sampling(), prompt), count)
    return [(step.token, step.logprob) for step in steps]


@pytest.mark.parametrize("kv", KINDS, ids=str)
@pytest.mark.parametrize("length", [1, 100, 256, 900])
def test_going_on_from_a_file_is_going_on(
    model: Transformer, owner: Owner, tmp_path: Path, kv: KVSettings, length: int
) -> None:
    cache, copy = fed(model, kv, length), PromptCache(model.config, kv)
    kv_file.write(tmp_path / "a", cache, owner)
    kv_file.read(tmp_path / "a", copy, owner)
    assert copy.tokens == cache.tokens
    for mine, theirs in zip(copy.layers, cache.layers, strict=True):
        assert (mine.offset, mine.gap) == (theirs.offset, theirs.gap)
        for a, b in zip(mine.parts, theirs.parts, strict=True):
            assert mx.array_equal(a, b[..., : mine.held, :])
    assert go_on(model, copy) == go_on(model, cache)
    assert [p.name for p in tmp_path.iterdir()] == ["a"]
    # What was taken over can be written and taken back as well.
    kv_file.write(tmp_path / "b", copy, owner)
    shared = copy.tokens[: max(0, len(copy.tokens) - REWIND // 2)]
    assert copy.reuse([*shared, 0, 0, 0]) >= len(shared)


def test_it_is_a_safetensors_file_that_others_read_too(
    model: Transformer, owner: Owner, tmp_path: Path
) -> None:
    from safetensors import safe_open

    cache = fed(model, KVSettings(8), 70)
    kv_file.write(tmp_path / "a", cache, owner)
    with safe_open(str(tmp_path / "a"), framework="numpy") as file:
        assert json.loads(file.metadata()["tokens"]) == cache.tokens
        codes = file.get_tensor("values.1.codes")
    np.testing.assert_array_equal(codes, np.array(cache.layers[1].parts[3][:, :, :70]))


@pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float16])
def test_sixteen_bit_types_are_kept(
    model: Transformer, owner: Owner, tmp_path: Path, dtype: mx.Dtype
) -> None:
    cache, copy = PromptCache(model.config), PromptCache(model.config)
    new = mx.random.normal((1, model.config.num_key_value_heads, 5, 32)).astype(dtype)
    for layer in cache.layers:
        layer.update_and_fetch(new, new)
    cache.settle([1, 2, 3, 4, 5])
    kv_file.write(tmp_path / "a", cache, replace(owner, dtype=dtype))
    kv_file.read(tmp_path / "a", copy, replace(owner, dtype=dtype))
    assert copy.layers[0].parts[0].dtype == dtype
    assert mx.array_equal(copy.layers[0].parts[0], new)
    with pytest.raises(UsageError, match="16, not as here"):
        kv_file.read(tmp_path / "a", PromptCache(model.config), owner)


# --- refused


def refusal(path: Path, cache: PromptCache, owner: Owner) -> str:
    with pytest.raises(UsageError) as caught:
        kv_file.read(path, cache, owner)
    assert (cache.tokens, cache.nbytes) == ([], 0)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_another_model_or_other_settings_are_refused(
    model: Transformer, owner: Owner, tmp_path: Path
) -> None:
    path = tmp_path / "a"
    kv_file.write(path, fed(model, KVSettings(8), 50), owner)
    same = PromptCache(model.config, KVSettings(8))
    assert "another model" in refusal(path, same, replace(owner, weights="0"))
    theirs = replace(owner.config, rope_theta=1e5)
    assert "another model" in refusal(path, same, replace(owner, config=theirs))
    plain = PromptCache(model.config)
    assert "made with kv-bits 8; give the same" in refusal(path, plain, owner)
    window = PromptCache(model.config, KVSettings(8, 30))
    assert "made with kv-bits 8; give the same" in refusal(path, window, owner)
    # A shorter context or other end tokens do not change keys.
    shorter = replace(owner.config, max_position_embeddings=77, eos_token_ids=(5,))
    kv_file.read(path, same, replace(owner, config=shorter))
    assert len(same.tokens) == 50


def test_a_model_is_known_again_wherever_it_lies(folder: Path, tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere"
    shutil.copytree(folder, moved)
    assert fingerprint(moved) == fingerprint(folder)
    weights = next(moved.glob("*.safetensors"))
    data = bytearray(weights.read_bytes())
    # One matrix: a fine-tune has the same names and shapes, and may share all others.
    span = read_header(weights)["model.layers.1.self_attn.v_proj.weight"]
    data[span.offset + span.nbytes // 2] ^= 1
    weights.write_bytes(data)
    assert fingerprint(moved) != fingerprint(folder)


@pytest.fixture(scope="module")
def whole(model: Transformer, owner: Owner, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("whole") / "a"
    kv_file.write(path, fed(model, KVSettings(None, 20), 900), owner)
    return path.read_bytes()


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_whatever_is_done_to_a_file_is_noticed(
    model: Transformer, owner: Owner, whole: bytes, tmp_path: Path, data: st.DataObject
) -> None:
    at = data.draw(st.integers(0, len(whole) - 1) | st.integers(0, 3000))
    change = data.draw(st.sampled_from(["cut", "flip", "insert", "append"]))
    damaged = {
        "cut": whole[:at],
        "flip": whole[:at]
        + bytes([whole[at] ^ 1 << data.draw(st.integers(0, 7))])
        + whole[at + 1 :],
        "insert": whole[:at] + b"a" + whole[at:],
        "append": whole + b"\0" * (at + 1),
    }[change]
    (tmp_path / "a").write_bytes(damaged)
    refusal(tmp_path / "a", PromptCache(model.config, KVSettings(None, 20)), owner)


def forged(whole: bytes, **changes: Any) -> bytes:
    """The file with other metadata and the checksum that belongs to them."""
    import zlib

    length = int.from_bytes(whole[:8], "little")
    header = json.loads(whole[8 : 8 + length])
    header["__metadata__"] |= changes
    text = json.dumps(header).encode()
    body = len(text).to_bytes(8, "little") + text + whole[8 + length : -4]
    return body + zlib.crc32(body).to_bytes(4, "little")


@pytest.mark.parametrize(
    "changes",
    [
        {"format": "mlx-mixtral keys and values 2"},
        {"tokens": "[]"},
        {"tokens": "7"},
        {"tokens": json.dumps([1] * 899)},
        {"tokens": json.dumps([1] * 901)},
        {"tokens": json.dumps([1] * 899 + [10**6])},
        {"tokens": json.dumps([1] * 899 + [True])},
        {"tokens": json.dumps([1] * 899 + [-1])},
        {"tokens": "[" * 100_000},
        {"gap": "0"},
        {"gap": "-3"},
        {"gap": "878"},
        {"gap": "1e3"},
        {"kv": "[]"},
        {"kv": '{"bits": 3}'},
        {"kv": "nonsense"},
    ],
    ids=lambda c: str(c)[:40],
)
def test_forged_metadata_are_refused(
    model: Transformer, owner: Owner, whole: bytes, tmp_path: Path, changes: dict[str, str]
) -> None:
    cache = PromptCache(model.config, KVSettings(None, 20))
    (tmp_path / "a").write_bytes(forged(whole))
    kv_file.read(tmp_path / "a", cache, owner)
    cache.reset()
    (tmp_path / "a").write_bytes(forged(whole, **changes))
    refusal(tmp_path / "a", cache, owner)


def test_a_file_without_what_the_window_needs_is_refused(
    model: Transformer, owner: Owner, tmp_path: Path
) -> None:
    path, cache = tmp_path / "a", PromptCache(model.config, KVSettings(None, 20))
    kv_file.write(path, fed(model, cache.kv, 23), owner)
    whole = path.read_bytes()
    for gap in (1, 500):  # 4 first tokens and 19 before the next one: just enough
        changes = {"tokens": json.dumps([1] * (23 + gap)), "gap": str(gap)}
        path.write_bytes(forged(whole, **changes))
        kv_file.read(path, cache, owner)
        cache.reset()
    kv_file.write(path, fed(model, cache.kv, 22), owner)
    path.write_bytes(forged(path.read_bytes(), tokens=json.dumps([1] * 122), gap="100"))
    refusal(path, cache, owner)


@pytest.mark.parametrize("what", ["model.safetensors", "config.json", "nothing", "folder", "empty"])
def test_foreign_files_are_refused(
    model: Transformer, owner: Owner, folder: Path, tmp_path: Path, what: str
) -> None:
    path = {"nothing": tmp_path / "no", "folder": tmp_path}.get(what, folder / what)
    if what == "empty":
        path = tmp_path / "empty"
        path.touch()
    refusal(path, PromptCache(model.config), owner)


# --- written whole or not at all


def test_what_was_there_stays_when_writing_fails(
    model: Transformer, owner: Owner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a"
    kv_file.write(path, fed(model, KVSettings(), 50), owner)
    before, longer = path.read_bytes(), fed(model, KVSettings(), 80)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9, 9))
    with pytest.raises(MixtralError, match="GB free"):
        kv_file.write(path, longer, owner)
    monkeypatch.undo()
    for error in (OSError(28, "No space left on device"), KeyboardInterrupt()):

        def fail(*_: object, error: BaseException = error) -> None:
            raise error

        with pytest.raises((MixtralError, KeyboardInterrupt)):
            kv_file.write(path, longer, owner, fail)
        assert path.read_bytes() == before
        assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_nothing_is_written_of_nothing(model: Transformer, owner: Owner, tmp_path: Path) -> None:
    kv_file.write(tmp_path / "a", PromptCache(model.config), owner)
    assert not list(tmp_path.iterdir())


# --- as its user runs it

QUESTION = "Repeat this: " + "The cat sat on the mat. " * 20


def generate(*arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mlx_mixtral", "generate", "demo", "-p", QUESTION, "--json"]
    return subprocess.run(
        [*command, *map(str, arguments)], capture_output=True, text=True, timeout=120, **options
    )


def test_generate_computes_a_prompt_once(tmp_path: Path) -> None:
    file = tmp_path / "cat.kv"
    first, second = (generate("--prompt-cache", file, "--max-tokens", 30) for _ in range(2))
    assert (first.returncode, first.stderr) == (second.returncode, second.stderr) == (0, "")
    before, after = json.loads(first.stdout), json.loads(second.stdout)
    assert after["text"] == before["text"]
    assert (before["cached_tokens"], after["cached_tokens"]) == (0, after["prompt_tokens"] - 1)
    other = generate("--prompt-cache", file, "--kv-bits", 8)
    assert (other.returncode, other.stdout) == (2, "")
    assert "give the same, or name another file" in other.stderr
    assert generate("--prompt-cache", tmp_path / "no" / "x").returncode == 2


def test_ctrl_c_keeps_what_was_computed(tmp_path: Path, spawn: Callable[..., Any]) -> None:
    file = tmp_path / "cat.kv"
    endless = ("--logit-bias", "2=-100", "--prompt-cache", file)
    process = spawn("generate", "demo", "-p", QUESTION, *endless, env=os.environ)
    assert process.stdout.read(5)
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 130
    answer = json.loads(generate("--prompt-cache", file, "--max-tokens", 3).stdout)
    assert answer["cached_tokens"] == answer["prompt_tokens"] - 1


def test_chats_of_lines_go_on_from_the_file(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mlx_mixtral", "chat", "demo"]
    options = ["--prompt-cache", str(tmp_path / "a"), "--kv-window", "30", "--kv-bits", "4"]
    done = [
        subprocess.run(
            [*command, *options], input=lines, capture_output=True, text=True, timeout=60
        )
        for lines in ("What is a violin?\n", "What is a violin?\n")
    ]
    assert [(d.returncode, d.stderr) for d in done] == [(0, "")] * 2
    assert done[0].stdout == done[1].stdout
    assert (tmp_path / "a").exists()

"""``best``: a text's way through the model, and errors that are made up for."""

import json
import re
from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from checkpoints import random_ids, tiny_config, write_hf

from convert import calibrated, walk
from convert import feedback as feeding
from convert.affine import fit
from convert.calibration import OWN, Calibration
from convert.estimate import expected_seconds
from convert.feedback import Feedback, rounded
from convert.forward import rms_norm
from convert.pipeline import convert
from convert.plan import plan
from convert.quantize import dequantize, packed
from convert.readers.safetensors import read_folder
from convert.recipe import uniform
from convert.walk import Walk
from mlx_mixtral.config import QuantSpec, read_config
from mlx_mixtral.errors import UsageError
from mlx_mixtral.loading import load_model

DEMO = Path(__file__).parent.parent / "mlx_mixtral" / "demo"
TINY = tiny_config(vocab_size=4096, hidden_size=128, intermediate_size=128, head_dim=32)
KINDS = {
    "moe": TINY,
    "dense": replace(TINY, num_local_experts=0),
    "tied": replace(TINY, tie_word_embeddings=True),
}


# --- error feedback


def moments_of(inputs: int, tokens: int = 400, seed: int = 0) -> np.ndarray:
    """Of inputs that depend on each other."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((tokens, 8)) @ rng.standard_normal((8, inputs))
    x += 0.3 * rng.standard_normal((tokens, inputs))
    return (x.T @ x / tokens).astype(np.float32)


def matrix(inputs: int, outputs: int, seed: int = 1) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (0.05 * rng.standard_normal((inputs, outputs))).astype(np.float32)


def unpacked(found: tuple[np.ndarray, ...]) -> np.ndarray:
    codes, scales, biases = found
    size = len(codes) // len(scales)
    return codes * scales.repeat(size, axis=0) + biases.repeat(size, axis=0)


def loss(errors: np.ndarray, moments: np.ndarray) -> float:
    wide = errors.astype(np.float64)
    return float(np.einsum("io,ij,jo->", wide, moments.astype(np.float64), wide))


def test_the_factor_tells_what_errors_cost():
    moments, errors = moments_of(48), matrix(48, 5)
    feedback = Feedback.of(moments.copy)
    left = errors + np.tril(feedback.shares, -1).T @ errors
    damped = moments + 0.01 * np.diagonal(moments).mean() * np.eye(48)
    cost = (feedback.importance[:, None] * left**2).sum()
    np.testing.assert_allclose(cost, loss(errors, damped), rtol=1e-3)


@pytest.mark.parametrize("inputs", [7, 512, 700, 1100])
def test_the_factor_in_blocks(inputs):
    moments = moments_of(inputs, 2 * inputs) + 0.1 * np.eye(inputs, dtype=np.float32)
    wanted, found = np.linalg.cholesky(moments.astype(np.float64)), moments.copy()
    feeding._cholesky(found)
    np.testing.assert_allclose(np.tril(found), wanted, atol=2e-4 * wanted.max())


def test_what_float32_takes_for_negative_is_damped_more(monkeypatch):
    monkeypatch.setattr(feeding, "DAMPING", 1e-9)
    x = np.ones((3, 200), np.float32) * np.float32(1e3)
    feedback = Feedback.of(lambda: x.T @ x)
    assert np.isfinite(np.tril(feedback.shares)).all()
    assert (feedback.importance > 0).all()


def textbook(weights: np.ndarray, moments: np.ndarray, scales, biases, bits: int) -> np.ndarray:
    """GPTQ's codes as its paper derives them, with an inverse for every column; last one first."""
    left = weights.astype(np.float64).copy()
    moments = moments + 0.01 * np.diagonal(moments).mean() * np.eye(len(moments))
    codes = np.empty(weights.shape)
    for k in reversed(range(len(weights))):
        inverse = np.linalg.inv(moments[: k + 1, : k + 1].astype(np.float64))
        codes[k] = np.clip(np.rint((left[k] - biases) / scales), 0, 2**bits - 1)
        error = left[k] - (codes[k] * scales + biases)
        left[:k] -= inverse[:k, k : k + 1] / inverse[k, k] * error
    return codes


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_the_codes_are_gptqs(bits):
    weights, moments = matrix(64, 12), moments_of(64)
    found = rounded(weights, Feedback.of(moments.copy), QuantSpec(bits, 64), mx.float32)
    wanted = textbook(weights, moments, found[1][0], found[2][0], bits)
    assert np.mean(found[0] == wanted) > 0.99


@pytest.mark.parametrize(("bits", "most"), [(4, 0.6), (3, 0.6), (2, 0.6)])
def test_less_goes_wrong_than_without(bits, most):
    weights, spec = matrix(256, 64), QuantSpec(bits, 64)
    moments = moments_of(256)
    fed = unpacked(rounded(weights, Feedback.of(moments.copy), spec, mx.bfloat16))
    plain = fit(np, weights.reshape(-1, 64, 64), bits, mx.bfloat16)
    alone = (plain.codes * plain.scales + plain.biases).reshape(weights.shape)
    assert loss(fed - weights, moments) < most * loss(alone - weights, moments)


def test_it_is_stored_as_it_was_meant():
    weights, spec = matrix(128, 40), QuantSpec(3, 32)
    found = rounded(weights, Feedback.of(lambda: moments_of(128)), spec, mx.bfloat16)
    values = dequantize(packed(*found, spec, mx.bfloat16), spec)
    np.testing.assert_allclose(np.array(values).T, unpacked(found), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("tokens", [0, 1])
def test_few_tokens_are_enough(tokens):
    weights = matrix(64, 8)
    x = np.random.default_rng(0).standard_normal((tokens, 64)).astype(np.float32)
    found = unpacked(rounded(weights, Feedback.of(lambda: x.T @ x), QuantSpec(4, 64), mx.bfloat16))
    assert abs(found - weights).max() < 0.05


# --- the way through the model


@pytest.fixture(scope="module", params=KINDS)
def source(request, tmp_path_factory):
    folder = write_hf(tmp_path_factory.mktemp("hf"), KINDS[request.param], dtype="BF16")
    (folder / "tokenizer.model").write_bytes((DEMO / "tokenizer.model").read_bytes())
    return folder


@pytest.fixture(scope="module")
def moe(tmp_path_factory):
    folder = write_hf(tmp_path_factory.mktemp("moe"), TINY, dtype="BF16")
    (folder / "tokenizer.model").write_bytes((DEMO / "tokenizer.model").read_bytes())
    return folder


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    file = tmp_path_factory.mktemp("text") / "short.txt"
    lines = OWN.read_text().splitlines()
    file.write_text(json.loads(lines[0])["text"][:3000])
    return file


def planned(folder: Path, text: Path, bits: int = 3, effort: str = "best"):
    opened = read_folder(folder)
    found = Calibration.of(opened, text) if effort == "best" else None
    return plan(opened, uniform(bits, 32), effort, found)


def test_the_walk_is_the_models(source):
    opened = read_folder(source)
    ids = np.array(random_ids(opened.config, batch=3, length=20))

    def take(name, index=0, feedback=None):
        return np.array(opened.tensors[name].parts[index].read().astype(mx.float32))

    way = Walk(opened.config, ids, take)
    x = way.embedded()
    for n in range(opened.config.num_hidden_layers):
        way.layer(n, x)
    ours = rms_norm(x, take("model.norm.weight"), opened.config.rms_norm_eps)
    model = load_model(source, opened.config, mx.float32)
    theirs = np.array(model.hidden(mx.array(ids))).reshape(ours.shape)
    np.testing.assert_allclose(ours, theirs, atol=2e-5 * abs(theirs).max())


def test_every_matrix_is_asked_for_once_and_told_its_inputs(source):
    opened = read_folder(source)
    asked = {}

    def take(name, index=0, feedback=None):
        assert (name, index) not in asked
        asked[name, index] = feedback
        return np.array(opened.tensors[name].parts[index].read().astype(mx.float32))

    way = Walk(opened.config, np.array(random_ids(opened.config, batch=2, length=16)), take)
    x = way.embedded()
    for n in range(opened.config.num_hidden_layers):
        way.layer(n, x)
    way.head(x)
    everything = {(n, i) for n, t in opened.tensors.items() for i in range(len(t.parts))}
    assert asked.keys() == everything
    blind = {name for (name, _), feedback in asked.items() if feedback is None}
    assert {n for n in blind if "norm" not in n and "moe.gate" not in n} == {
        "model.embed_tokens.weight"
    }
    for (name, index), feedback in asked.items():
        if feedback:
            width = opened.tensors[name].parts[index].shape[-1]
            assert feedback().importance.shape == (width,)


def test_an_expert_learns_from_its_own_tokens(monkeypatch):
    """Its moments are those of the tokens routed to it, and a little of all."""
    seen = []
    monkeypatch.setattr(walk.Feedback, "of", lambda moments: seen.append(moments()))
    rng = np.random.default_rng(0)
    normed = rng.standard_normal((100, 8)).astype(np.float32)

    def take(name, index=0, feedback=None):
        if feedback:
            feedback()
        return np.eye(8, dtype=np.float32)

    config = replace(TINY, hidden_size=8, num_local_experts=4)
    way = Walk(config, np.zeros((1, 100), np.int32), take)
    tokens = np.arange(10)
    x = np.zeros_like(normed)
    way._expert("mlp", 0, normed, tokens, np.ones(10, np.float32), x)
    own, everyone = normed[:10].T @ normed[:10], normed.T @ normed / 100
    fair = 100 * 2 / 4
    np.testing.assert_allclose(seen[0], own + walk.FLOOR * fair * everyone, rtol=1e-4, atol=1e-4)
    assert (x[10:] == 0).all()
    assert (x[:10] != 0).any()
    seen.clear()
    way._expert("mlp", 1, normed, tokens[:0], np.ones(0, np.float32), x)  # nobody's choice
    np.testing.assert_allclose(seen[0], walk.FLOOR * fair * everyone, rtol=1e-4, atol=1e-4)


# --- a conversion


def logits(folder: Path, ids: mx.array) -> np.ndarray:
    return np.array(load_model(folder, read_config(folder), mx.float32)(ids))


@pytest.fixture(scope="module")
def straight(moe, text, tmp_path_factory):
    """Converted in one go."""
    out = tmp_path_factory.mktemp("straight") / "out"
    convert(planned(moe, text), out)
    return out


def same_weights(a: Path, b: Path) -> bool:
    name = "model.safetensors"
    return (a / name).read_bytes() == (b / name).read_bytes()


def test_the_answers_are_nearer_and_load_in_mlx_lm(source, text, tmp_path):
    from mlx_lm.utils import load_model as load_mlx_lm

    opened = read_folder(source)
    ids = mx.array(Calibration.of(opened).ids[8:10, :200])  # another text
    wanted, errors = logits(source, ids), {}
    for effort in ("better", "best"):
        convert(planned(source, text, 4, effort), tmp_path / effort)
        errors[effort] = np.square(logits(tmp_path / effort, ids) - wanted).mean()
    assert errors["best"] < 0.93 * errors["better"]
    model, _ = load_mlx_lm(tmp_path / "best")
    model.set_dtype(mx.float32)
    theirs, ours = np.array(model(ids)), logits(tmp_path / "best", ids)
    assert abs(theirs - ours).max() < 1e-4 * abs(theirs).max()


def test_later_layers_see_what_was_stored(moe, text, tmp_path, monkeypatch):
    kept = {}
    monkeypatch.setattr(calibrated.Kept, "save", lambda _, layer, x: kept.update({layer: x.copy()}))
    made = planned(moe, text, bits=2)
    convert(made, tmp_path / "out")
    config = read_config(tmp_path / "out")
    model = load_model(tmp_path / "out", config, mx.float32)
    theirs = np.array(model.hidden(mx.array(made.calibration.ids)))
    norm = np.array(model.model.norm.weight)
    ours = rms_norm(kept[config.num_hidden_layers], norm, config.rms_norm_eps)
    np.testing.assert_allclose(ours, theirs.reshape(ours.shape), atol=1e-4 * abs(theirs).max())


@pytest.mark.parametrize("parts", [0, 11, 24, 37])
def test_a_stopped_conversion_goes_on_to_the_same_bytes(
    moe, text, straight, tmp_path, monkeypatch, parts
):
    noted, first = [], []

    def stop_after(self, number, crc, note=calibrated.Journal.note):
        if len(noted) == parts:
            raise SystemError("killed")
        note(self, number, crc)
        noted.append(number)

    with monkeypatch.context() as patch:
        patch.setattr("convert.journal.Journal.note", stop_after)
        with pytest.raises(SystemError):
            convert(planned(moe, text), tmp_path / "out")
    with monkeypatch.context() as patch:
        original = calibrated.CalibratedRun._made
        patch.setattr(
            calibrated.CalibratedRun,
            "_made",
            lambda self, job, feedback: (first.append(job.name), original(self, job, feedback))[1],
        )
        convert(planned(moe, text), tmp_path / "out")
    assert len(first) == len(planned(moe, text).jobs) - parts  # nothing is done twice
    assert same_weights(tmp_path / "out", straight)
    assert not list(tmp_path.glob(".out.partial"))


def test_lost_hidden_states_are_found_again(moe, text, straight, tmp_path, monkeypatch):

    def stop(*_):
        raise SystemError("killed")

    with monkeypatch.context() as patch:
        patch.setattr("convert.writer.ShardWriter.finish", stop)
        with pytest.raises(SystemError):
            convert(planned(moe, text), tmp_path / "out")
    partial = tmp_path / ".out.partial"
    [hidden] = partial.glob("hidden-*.npy")
    hidden.unlink()
    journal = (partial / "journal").read_text().splitlines(keepends=True)
    (partial / "journal").write_text("".join(journal[:6] + journal[8:]))
    convert(planned(moe, text), tmp_path / "out")
    assert same_weights(tmp_path / "out", straight)


def test_another_text_begins_anew(moe, text, tmp_path, monkeypatch):
    other = tmp_path / "other.txt"
    other.write_text(json.loads(OWN.read_text().splitlines()[2])["text"][:3000])
    convert(planned(moe, other), tmp_path / "straight")

    def stop(*_):
        raise SystemError("killed")

    with monkeypatch.context() as patch:
        patch.setattr("convert.writer.ShardWriter.finish", stop)
        with pytest.raises(SystemError):
            convert(planned(moe, text), tmp_path / "out")
    convert(planned(moe, other), tmp_path / "out")
    assert same_weights(tmp_path / "out", tmp_path / "straight")


def test_nothing_to_quantize_wants_no_text(tmp_path):
    folder = write_hf(tmp_path / "hf", TINY, dtype="BF16")  # it has no tokenizer either
    assert not plan(read_folder(folder), uniform(16), "best").calibrated
    with pytest.raises(UsageError, match=r"tokenizer\.model.*--effort better"):
        plan(read_folder(folder), uniform(4, 32), "best")


# --- the text


def test_the_text_that_comes_along(moe):
    found = Calibration.of(read_folder(moe))
    assert found.file == OWN
    assert found.ids.shape[1] == TINY.max_position_embeddings
    assert found.ids.size > 0.95 * min(found.tokens, 128 * 256)
    assert (found.ids[:, 0] == 1).all()


def test_chats_and_texts(moe, tmp_path):
    file = tmp_path / "x.jsonl"
    chat = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    file.write_text(json.dumps(chat) + "\n\n" + json.dumps({"text": "word " * 600}))
    found = Calibration.of(read_folder(moe), file)
    ids = found.ids[0].tolist()
    assert ids[:2] == [1, 1]  # the window's own, and the chat's
    assert 2 in ids  # the answer is finished
    assert found.tokens > 600


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.txt", b"too short", "has .* tokens"),
        ("x.txt", b"\xff\xfe\x00", "is not UTF-8"),
        ("x.jsonl", b"{}", "line 1: neither"),
        ("x.jsonl", b'{"text": "a"}\n{', "line 2"),
        ("x.jsonl", b'{"messages": [{"role": "king", "content": "a"}]}', "chat 1"),
        ("x.jsonl", b'{"messages": [3]}', "line 1: neither"),
        (".", None, "calibration"),
        ("nowhere.txt", None, "No such file"),
    ],
)
def test_texts_that_cannot_be(moe, tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UsageError, match=message) as error:
        Calibration.of(read_folder(moe), tmp_path / name)
    assert "\n" not in str(error.value)


def test_a_tokenizer_that_came_with_the_weights(moe):
    """As GGUF files bring one."""
    opened = read_folder(moe)
    made = {"tokenizer.model": (moe / "tokenizer.model").read_bytes()}
    found = Calibration.of(replace(opened, folder=None, made=made))
    assert found.identity == Calibration.of(opened).identity


# --- the command


def run(*arguments: object):
    from typer.testing import CliRunner

    from mlx_mixtral.cli.app import app

    return CliRunner().invoke(app, ["convert", *map(str, arguments)])


@pytest.mark.parametrize("effort", ["fast", "better", "best"])
def test_a_dry_run_tells_the_effort_and_its_time(moe, tmp_path, effort):
    done = run(moe, "-o", tmp_path / "out", "--dry-run", "--group-size", "32", "--effort", effort)
    assert done.exit_code == 0
    assert re.search(rf"effort {effort}: quantizing takes (about|less) .* here\n", done.output)
    kept = run(moe, "-o", tmp_path / "out", "--dry-run", "--bits", "16", "--effort", effort)
    assert "effort" not in kept.output


def test_the_best_effort_as_a_command(moe, text, straight, tmp_path):
    done = run(
        moe, "-o", tmp_path / "out", "--bits", "3", "--group-size", "32", "--effort", "best",
        "--calibration", text,
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    assert same_weights(tmp_path / "out", straight)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--calibration", "x"], "--calibration is for --effort best"),
        (["--effort", "best", "--calibration", "nowhere.txt"], "nowhere.txt: No such file"),
    ],
)
def test_what_does_not_fit_together(moe, tmp_path, options, message):
    done = run(moe, "-o", tmp_path / "out", *options)
    assert isinstance(done.exception, UsageError)
    assert message in str(done.exception)


def test_more_effort_is_expected_to_take_longer(moe):
    seconds = [
        expected_seconds(planned(moe, OWN, effort=effort)) for effort in ("fast", "better", "best")
    ]
    assert 0 < seconds[0] < seconds[1] < seconds[2] < 1000
    assert expected_seconds(planned(moe, OWN, bits=16)) == 0

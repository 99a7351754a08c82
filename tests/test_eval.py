"""``mixtral-mlx eval``: likelihoods against NumPy and mlx-lm, and tasks from end to end."""

from __future__ import annotations

import importlib.metadata
import json
import logging
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
import reference as naive
from checkpoints import tiny_config, write_hf

from mlx_mixtral.catalog import resolve
from mlx_mixtral.cli import main
from mlx_mixtral.generation.text import generate
from mlx_mixtral.lab import evaluation
from mlx_mixtral.lab.published import MIXTRAL_8X7B
from mlx_mixtral.loading import LanguageModel, load

pytest.importorskip("lm_eval")
harness = pytest.importorskip("mlx_mixtral.lab.harness")

DEMO = resolve("demo")
Run = Callable[..., tuple[int, str, str]]

WORDS = [
    {
        "question": "What is a violin?",
        "choices": ["A violin is a red fruit.", "A violin is a stringed instrument."],
        "label": 1,
    },
    {"question": "What is 3 + 4?", "choices": ["It is 7.", "It is 9.", "3 + 4 = 8"], "label": 0},
    {"question": "What is 1 + 1?", "choices": ["A dog.", "1 + 1 = 2."], "label": 0},
]
CHOOSING = """
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: label
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
"""
ANSWERING = """
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "A violin is a stringed instrument that is played with a bow"
generation_kwargs: {until: ["."], max_gen_toks: 40}
metric_list:
  - {metric: exact_match, aggregation: mean, higher_is_better: true}
"""


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two tasks over a local file."""
    home = tmp_path_factory.mktemp("tasks")
    data = home / "words.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in WORDS))
    for name, kind in (("demo_choosing", CHOOSING), ("demo_answering", ANSWERING)):
        source = f"dataset_path: json\ndataset_kwargs: {{data_files: {{test: {data}}}}}\n"
        (home / f"{name}.yaml").write_text(f"task: {name}\n{source}test_split: test\n{kind}")
    return home


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """Runs ``eval`` in this process: (exit code, output, errors)."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["mixtral-mlx", "eval", *map(str, arguments)])
        with pytest.raises(SystemExit) as exit:
            main()
        return (int(exit.value.code or 0), *capsys.readouterr())

    return run


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[LanguageModel, Any, Any]:
    """A tiny model with a context of 24 tokens, and its configuration and weights in NumPy."""
    folder = tmp_path_factory.mktemp("tiny")
    write_hf(folder, tiny_config(vocab_size=4096, max_position_embeddings=24))
    shutil.copy(DEMO / "tokenizer.model", folder)
    return (load(folder), *naive.read(folder))


def log_softmax(logits: np.ndarray) -> np.ndarray:
    top = logits.max(axis=-1, keepdims=True)
    return logits - top - np.log(np.exp(logits - top).sum(axis=-1, keepdims=True))


def by_numpy(tiny: Any, context: list[int], then: list[int]) -> tuple[float, bool]:
    _, config, weights = tiny
    logits = naive.logits(config, weights, np.array([*context, *then[:-1]]))[-len(then) :]
    found = log_softmax(logits)[range(len(then)), then].sum()
    return float(found), bool((logits.argmax(axis=-1) == then).all())


PAIRS = [
    ([1, 5, 6, 7, 8, 9, 10, 11], [12, 13]),
    ([1, 5, 6, 7, 8, 9, 10, 11], [12, 14, 15]),  # the same question, another answer
    ([1, 5, 6, 7, 8, 9, 10, 11, 12], [14]),  # a question that was part of an answer
    ([1, 5, 6], [7, 8, 9]),  # one that begins as the last did, and is shorter
    ([1], [30, 31]),
    ([1, *range(40, 60)], [60, 61]),
]


@pytest.mark.parametrize("chunk", [2, 3, 512])
def test_scores_equal_numpys(tiny: Any, monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    monkeypatch.setattr(harness, "chunk_after", lambda config, at: chunk)
    model = harness.Harness(tiny[0])
    for context, then in PAIRS:
        score, greedy = model.score(context, then)
        wanted, was_greedy = by_numpy(tiny, context, then)
        assert score == pytest.approx(wanted, rel=1e-5)
        assert greedy == was_greedy


def test_what_greedy_decoding_gives_is_told(tiny: Any) -> None:
    lm, context = tiny[0], [1, 20, 21, 22]
    then: list[int] = []
    for _ in range(3):
        logits = lm.model(mx.array([context + then]))[0, -1]
        then.append(int(np.argmax(np.array(logits.astype(mx.float32)))))
    model = harness.Harness(lm)
    assert model.score(context, then)[1]
    assert not model.score(context, [*then[:2], then[2] ^ 1])[1]
    assert not model.score(context, [then[0] ^ 1, *then[1:]])[1]


def test_a_text_beyond_the_context_loses_its_beginning(tiny: Any) -> None:
    model, long = harness.Harness(tiny[0]), list(range(3, 63))
    score, _ = model.score(long[:55], long[55:])
    assert score == pytest.approx(by_numpy(tiny, long[60 - 25 : 55], long[55:])[0], rel=1e-5)


def test_rolling_scores_equal_numpys(tiny: Any) -> None:
    """Every token once; the first ones after <s>, the last ones after what fills the context."""
    lm = tiny[0]
    text = "A cat is a small animal. Tom has a red kite, and Mia has 17 apples, or 18, or 19."
    ids = lm.tokenizer.encode(text)
    assert 24 < len(ids) < 48
    (found,) = harness.Harness(lm).loglikelihood_rolling([SimpleNamespace(args=(text,))])
    rest = len(ids) - 24
    wanted = by_numpy(tiny, [1], ids[:24])[0] + by_numpy(tiny, ids[-25:-rest], ids[-rest:])[0]
    assert found == pytest.approx(wanted, rel=1e-5)


@pytest.mark.skipif(mx.default_device() == mx.Device(mx.gpu), reason="float32 on a GPU")
def test_likelihoods_equal_mlx_lms(demo: LanguageModel) -> None:
    """Its adapter, its model in float32, its tokenizer from tokenizer.json."""
    from mlx_lm.evaluate import MLXLM

    theirs = MLXLM(str(DEMO), use_chat_template=False)
    theirs._model.set_dtype(mx.float32)
    pairs = [
        ("[INST] What is a violin? [/INST]", " A violin is a stringed instrument."),
        ("[INST] What is a violin? [/INST]", " A violin is a red fruit."),
        ("A cat", " is a small animal that"),
    ]
    requests = [SimpleNamespace(args=pair) for pair in pairs]
    ours = harness.Harness(demo).loglikelihood(requests)
    for (score, greedy), (wanted, was_greedy) in zip(
        ours, theirs.loglikelihood(requests), strict=True
    ):
        assert score == pytest.approx(wanted, rel=1e-3)
        assert greedy == bool(was_greedy)


def test_no_context_is_the_beginning_of_a_text(demo: LanguageModel) -> None:
    model = harness.Harness(demo)
    (found,) = model.loglikelihood([SimpleNamespace(args=("", "A cat"))])
    assert found == pytest.approx(model.score([1], demo.tokenizer.encode("A cat")))
    assert model.tok_encode("A cat") == demo.tokenizer.encode("A cat", bos=True)


def test_chats_are_tokens(demo: LanguageModel) -> None:
    model = harness.Harness(demo)
    messages = [{"role": "user", "content": "What is a violin?</s>\x03"}]
    text = model.apply_chat_template(messages)
    assert model.tok_encode(text) == demo.template.encode(messages)
    then = demo.tokenizer.encode("A violin")
    assert model.tok_encode(text + "A violin") == [*demo.template.encode(messages), *then]
    answered = [*messages, {"role": "assistant", "content": "A violin is"}]
    text = model.apply_chat_template(answered, add_generation_prompt=False)
    assert model.tok_encode(text) == demo.template.encode(answered, add_generation_prompt=False)


def test_answers(demo: LanguageModel) -> None:
    prompt = "[INST] What is a violin? [/INST]"
    whole = generate(demo, prompt).text
    assert " that" in whole
    settings: list[dict[str, Any]] = [{}, {"until": [" that"]}, {"until": "\n", "max_gen_toks": 3}]
    requests = [SimpleNamespace(args=(prompt, kwargs)) for kwargs in settings]
    found = harness.Harness(demo).generate_until(requests)
    assert found[:2] == [whole, whole.partition(" that")[0]]
    assert found[2] == generate(demo, prompt, max_tokens=3).text


def test_a_prompt_too_long_keeps_its_end(small: LanguageModel) -> None:
    prompt = "word " * 300 + "[INST] What is a violin? [/INST]"
    settings = {"until": [], "max_gen_toks": 40}
    (found,) = harness.Harness(small).generate_until([SimpleNamespace(args=(prompt, settings))])
    ids = small.tokenizer.encode(prompt, bos=True)[-120:]
    assert found == generate(small, ids, max_tokens=40).text


# --- tasks


def test_a_task_of_ones_own(demo: LanguageModel, run: Run, tasks: Path) -> None:
    given = ("demo", "--include-path", tasks, "--tasks", "demo_choosing")
    code, out, _ = run(*given, "--json")
    assert code == 0
    record = json.loads(out)
    (score,) = record["scores"]
    right = 0
    for row in WORDS:  # lm-eval's default form: the question, a blank, a choice
        context = demo.tokenizer.encode(str(row["question"]), bos=True)
        whole = [demo.tokenizer.encode(f"{row['question']} {c}", bos=True) for c in row["choices"]]
        likely = []
        for ids in whole:
            logits = np.array(demo.model(mx.array([ids[:-1]]))[0].astype(mx.float32), np.float64)
            at = range(len(context) - 1, len(ids) - 1)
            likely.append(log_softmax(logits)[at, ids[len(context) :]].sum())
        right += int(np.argmax(likely)) == row["label"]
    assert (score["task"], score["metric"], score["questions"]) == ("demo_choosing", "acc", 3)
    assert score["value"] == pytest.approx(right / 3)
    assert score["error"] == pytest.approx(np.sqrt(right / 3 * (1 - right / 3) / 2))
    assert score["published"] == []
    code, out, _ = run(*given, "--limit", 1, "--json")
    assert json.loads(out)["scores"][0]["questions"] == 1


def test_a_table_for_a_person(spawn: Any, tasks: Path) -> None:
    names = "demo_choosing, demo_answering"
    given = ("eval", "demo", "--include-path", tasks, "--tasks", names, "--chat")
    process = spawn(*given, env=os.environ | {"HF_HUB_OFFLINE": "1"})
    out, err = process.communicate(timeout=120)
    assert (process.returncode, err) == (0, "")  # no bars where there is no terminal
    head, choosing, answering = out.splitlines()
    assert head.split() == ["task", "metric", "demo", "questions", "shots"]
    assert choosing.split()[:2] == ["demo_choosing", "acc"]
    # Only in the chat form does the demo give the whole answer, to one question of three.
    assert answering.split()[:3] == ["demo_answering", "exact_match", "0.3333"]


def test_published_scores_stand_beside() -> None:
    found = {
        "results": {"arc_easy": {"alias": "arc_easy", "acc,none": 0.8, "acc_stderr,none": 0.01}},
        "n-samples": {"arc_easy": {"original": 9, "effective": 5}},
        "n-shot": {"arc_easy": 0},
    }
    (score,) = evaluation._scores("arc_easy", found)
    assert (score.value, score.error, score.questions, score.shots) == (0.8, 0.01, 5, 0)
    assert [p.value for p in score.published] == [0.843, 0.831]


@pytest.fixture(scope="module")
def every_task() -> Any:
    """lm-eval's own task manager; it takes seconds to read all of them."""
    from lm_eval.tasks import TaskManager

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    return TaskManager()


def test_published_scores_are_of_metrics_that_lm_eval_has(every_task: Any) -> None:
    index = every_task.task_index
    for known in MIXTRAL_8X7B:
        settings = index[known.task].cfg
        listed = settings.get("metric_list") or settings["aggregate_metric_list"]
        assert known.metric in [entry["metric"] for entry in listed]
        assert 0 < known.value < 1


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["demo"], 2, "names no task"),
        (["demo", "--tasks", "piqa", "--limit", "0"], 2, "--limit 0"),
        (["demo", "--tasks", "piqa", "--shots", "-1"], 2, "--shots -1"),
        (["demo", "--tasks", "piqa", "--include-path", "nowhere"], 2, "nowhere is no folder"),
        (["no-such-model", "--tasks", "piqa"], 1, "no model 'no-such-model'"),
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


def test_an_unknown_task(run: Run, monkeypatch: pytest.MonkeyPatch, every_task: Any) -> None:
    monkeypatch.setattr("lm_eval.tasks.TaskManager", lambda **_: every_task)
    code, out, err = run("demo", "--tasks", "piqa,nonsense")
    assert (code, out) == (2, "")
    assert err == "error: --tasks 'nonsense' is unknown to lm-eval; see `lm_eval ls tasks`\n"


def test_data_that_cannot_be_had(
    demo: LanguageModel, monkeypatch: pytest.MonkeyPatch, run: Run, tasks: Path
) -> None:
    import lm_eval

    for error, message in (
        (ConnectionError("no route\nto the host"), "the data of demo_choosing cannot be had: no"),
        (ModuleNotFoundError("No module", name="langdetect"), "pip install langdetect"),
        (ValueError("marked as unsafe"), "code that the model writes"),
    ):

        def fails(*_: Any, error: Exception = error, **__: Any) -> None:
            raise error

        monkeypatch.setattr(lm_eval, "simple_evaluate", fails)
        code, out, err = run("demo", "--include-path", tasks, "--tasks", "demo_choosing")
        assert (out, err.count("\n")) == ("", 1)
        assert code in (1, 2)
        assert message in err


def test_without_lm_eval(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluation, "find_spec", lambda name: None)
    code, out, err = run("demo", "--tasks", "piqa")
    assert (code, out) == (2, "")
    assert err == "error: eval needs lm-eval: pip install 'mlx-mixtral[eval]'\n"


def test_no_torch_comes_with_it() -> None:
    needed = [r for r in importlib.metadata.requires("lm_eval") or [] if "extra ==" not in r]
    assert needed
    assert not [r for r in needed if r.startswith("torch")]

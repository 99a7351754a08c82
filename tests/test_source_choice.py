"""Which files of a Hugging Face repository are taken."""

from __future__ import annotations

import pytest

from convert.sources.choice import RemoteFile, choose
from mlx_mixtral.errors import ModelError, UsageError


def listed(*names):
    return [RemoteFile(name, 10, None, "0" * 40) for name in names]


SIDE = ("config.json", "tokenizer.model")
GGUF = ("m.Q4_K_M.gguf", "m.Q8_0-00001-of-00002.gguf", "m.Q8_0-00002-of-00002.gguf")


@pytest.mark.parametrize(
    ("names", "only", "weights"),
    [
        (("model.safetensors", "consolidated.safetensors"), None, {"model.safetensors"}),
        (("weights.00.safetensors", "weights.01.safetensors"), None, ...),
        (("gptq_model-4bit-128g.safetensors", "pytorch_model.bin"), None, {0}),
        (("a-00001-of-00002.safetensors", "a-00002-of-00002.safetensors"), None, ...),
        (("model.safetensors", "gptq_model-4bit-128g.safetensors"), None, {0}),
        (("model.safetensors", "gptq_model-4bit-128g.safetensors"), "gptq*", {1}),
        (("model.safetensors", "adapter_model.safetensors", "m.gguf"), None, {0}),
        (("consolidated.safetensors", "consolidated.00.pth"), None, {0}),
        (("consolidated.00.pth", "consolidated.00.pt"), None, {0}),
        (("consolidated.00.pth-split0", "consolidated.00.pth-split10"), None, ...),
        (("consolidated.00.pth-split00.pth", "consolidated.00.pth-split01.pth"), None, ...),
        (("consolidated.00.pth", "consolidated.00.pth-split0"), None, {0}),
        (tuple(f"consolidated.0{n}.pt" for n in range(8)), None, ...),
        (("model.safetensors", "consolidated.00.pt", "consolidated.01.pt"), "*.pt", {1, 2}),
        (("weights.0.npz", "weights.1.npz", "m.gguf"), None, {0, 1}),
        (("m.Q4_K_M.gguf", "mmproj-f16.gguf", "m.imatrix.gguf"), None, {0}),
        (GGUF, "m.Q4_K_M.gguf", {0}),
        (GGUF, "*q8_0*", {1, 2}),
        (GGUF, "m.Q8_0-00002-of-00002.gguf", {1, 2}),
        (("m.gguf", "sub/m.gguf", "sub/model.safetensors"), None, {0}),
        (("m.gguf", "sub/m.Q8.gguf"), "sub/*", {1}),
        (("m.gguf", "sub/m.Q8.gguf"), "m.q8.gguf", {1}),
    ],
)
def test_one_form_of_the_weights(names, only, weights):
    if weights is ...:
        weights = set(names)
    weights = {names[w] if isinstance(w, int) else w for w in weights}
    files = listed(*names, *SIDE, "README.md", "code.py")
    assert [file.name for file in choose("a/b", files, only)] == [*SIDE, *sorted(weights)]


def test_what_goes_along():
    beside = [
        "LICENSE",
        "LICENSE.txt",
        "NOTICE",
        "added_tokens.json",
        "chat_template.jinja",
        "chat_template.json",
        "config.json",
        "generation_config.json",
        "model.safetensors.index.json",
        "params.json",
        "quantize_config.json",
        "special_tokens_map.json",
        "tokenizer.json",
        "tokenizer.model",
        "tokenizer.model.v3",
        "tokenizer_config.json",
    ]
    others = [
        "README.md",
        "tokenizer.py",
        "configuration_mixtral.py",
        "consolidated.safetensors.index.json",
        "pytorch_model.bin.index.json",
        "onnx/config.json",
        "runs/events",
    ]
    files = listed(*others, *beside, "model.safetensors", "consolidated.safetensors")
    chosen = [file.name for file in choose("a/b", files)]
    assert chosen == [*beside, "model.safetensors"]


@pytest.mark.parametrize(
    ("others", "index"),
    [
        ((), ["model.safetensors.index.json", "x.safetensors.index.json"]),
        (("model.safetensors",), ["x.safetensors.index.json"]),
    ],
)
def test_an_index_of_the_usual_name_for_files_of_other_names(others, index):
    shards = ("x-00001-of-00002.safetensors", "x-00002-of-00002.safetensors")
    indexes = ("model.safetensors.index.json", "x.safetensors.index.json")
    chosen = choose("a/b", listed(*shards, *others, *indexes), "x-*")
    assert [file.name for file in chosen] == [*index, *shards]


def test_a_folder_of_the_repository_is_left_behind():
    files = listed("config.json", "tokenizer.model", "model.safetensors")
    files += listed("original/params.json", "original/tokenizer.model", "original/tok.json")
    files += listed("original/consolidated.00.pth", "other/params.json")
    chosen = choose("a/b", files, "original/*")
    assert {file.local: file.name for file in chosen} == {
        "config.json": "config.json",
        "params.json": "original/params.json",
        "tokenizer.model": "original/tokenizer.model",
        "consolidated.00.pth": "original/consolidated.00.pth",
    }


@pytest.mark.parametrize(
    ("names", "only", "error", "says"),
    [
        (GGUF, None, UsageError, "--file: m.Q4_K_M.gguf (2.5 GB), m.Q8_0-00001-of-00002.gguf"),
        (GGUF, None, UsageError, "(5.0 GB in 2 files)"),
        (GGUF, "*.gguf", UsageError, "take one with --file"),
        (GGUF, "*Q2*", UsageError, "has no weights named *Q2*; it has: m.Q4_K_M.gguf (2.5 GB)"),
        (("gptq-32g.safetensors", "gptq-128g.safetensors"), None, UsageError, "take one"),
        (("sub/m.gguf",), None, UsageError, "in folders, take --file: sub/m.gguf (2.5 GB)"),
        (("adapter_model.safetensors",), None, ModelError, "no weights that can be read"),
        (("pytorch_model.bin",), None, ModelError, "largest file is pytorch_model.bin"),
        ((), None, ModelError, "it is empty"),
    ],
)
def test_what_cannot_be_chosen(names, only, error, says):
    files = [RemoteFile(name, 2_500_000_000, None, None) for name in names]
    with pytest.raises(error) as caught:
        choose("a/b", files, only)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)

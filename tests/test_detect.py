"""What lies in a folder is told apart, and what is no model is refused in one line."""

import json
import shutil
from dataclasses import replace

import pytest
from checkpoints import quantization, random_weights, tiny_config, write_hf, write_mlx
from formats_gguf import tensors_of, write_gguf
from gguf import GGMLQuantizationType as Type

from convert.readers.detect import open_source
from mlx_mixtral.errors import ModelError, UsageError

TINY = tiny_config()


def gguf_file(path):
    write_gguf(path, TINY, tensors_of(TINY, random_weights(TINY)), Type.F16)
    return path


def test_a_file_stands_for_its_folder(tmp_path):
    folder = write_hf(tmp_path / "hf", TINY, shards=2)
    by_file = open_source(folder / "model-00002-of-00002.safetensors")
    assert by_file.tensors.keys() == open_source(folder).tensors.keys()


def test_hugging_face_before_anything_else(tmp_path):
    """A clone of the whole repository holds Mistral's own files too."""
    folder = write_hf(tmp_path, TINY)
    (folder / "consolidated.00.pt").write_bytes(b"of no importance")
    gguf_file(folder / "x.gguf")
    assert open_source(folder).form == "safetensors of Hugging Face or MLX"


def test_one_of_several_gguf_files(tmp_path):
    gguf_file(tmp_path / "a.Q4.gguf")
    assert open_source(tmp_path).form == "GGUF, F16"
    shutil.copy(tmp_path / "a.Q4.gguf", tmp_path / "b.Q8.gguf")
    with pytest.raises(UsageError, match=r"several models \(a\.Q4\.gguf, b\.Q8\.gguf\)"):
        open_source(tmp_path)
    assert open_source(tmp_path, "b*").form == "GGUF, F16"
    assert open_source(tmp_path / "b.Q8.gguf").form == "GGUF, F16"
    with pytest.raises(UsageError, match="no such file"):
        open_source(tmp_path, "c*")
    with pytest.raises(UsageError, match="several models"):
        open_source(tmp_path, "*")


def test_the_pieces_of_one_gguf_are_one_model(tmp_path):
    tensors = tensors_of(TINY, random_weights(TINY))
    write_gguf(tmp_path / "x.gguf", TINY, tensors, Type.F16, per_piece=5)
    assert len(list(tmp_path.glob("*.gguf"))) > 2
    assert len(open_source(tmp_path).files) > 2


@pytest.mark.parametrize("method", ["bitsandbytes", "exl2", "fp8"])
def test_other_quantizations_are_named(tmp_path, method):
    folder = write_hf(tmp_path, TINY)
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": method}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UsageError, match=f"quantized by '{method}'"):
        open_source(folder)


def test_mlx_quantization_is_no_foreign_one(tmp_path):
    folder = write_mlx(tmp_path, replace(TINY, quantization=quantization(4, 32)))
    assert open_source(folder).form == "MLX safetensors, 4 bits in groups of 32"


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("", "no weights"),
        ("README.md", "no weights"),
        ("pytorch_model.bin", "can hold code"),
        ("qmodel.pt", "HQQ"),
        ("x.gguf", "GGUF"),
        ("consolidated.00.pth", "has no params.json"),
        ("weights.npz", "params.json is missing"),
    ],
)
def test_what_is_no_model(tmp_path, file, message):
    if file:
        (tmp_path / file).write_bytes(b"nothing of the kind")
    with pytest.raises((UsageError, ModelError), match=message) as error:
        open_source(tmp_path)
    assert "\n" not in str(error.value)


def test_nothing_there(tmp_path):
    with pytest.raises(UsageError, match="nothing at"):
        open_source(tmp_path / "x")

"""Folders of safetensors that want to harm: whatever is in them, one line says what is wrong."""

import contextlib
import json
import shutil
from dataclasses import replace

import pytest
from checkpoints import quantization, tiny_config, with_header, write_hf, write_mlx
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from convert import manifest
from convert.journal import Journal
from convert.pipeline import convert
from convert.plan import own_recipe, plan
from convert.readers.detect import open_source
from mlx_mixtral.errors import MixtralError, ModelError

TINY = tiny_config(num_hidden_layers=1, hidden_size=32, head_dim=16, intermediate_size=32)
TINY = replace(TINY, num_attention_heads=2, num_key_value_heads=1, num_local_experts=2)
LIKELY = st.sampled_from(
    [0, 1, -1, 2, 7, 32, 2**31, 2**63, 2**64, 1.5, True, None, "", "..", "F16"]
)
ANYTHING = st.recursive(
    LIKELY | st.text(max_size=5), lambda inner: st.lists(inner, max_size=4), max_leaves=5
)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    home = tmp_path_factory.mktemp("models")
    quantized = replace(TINY, quantization=quantization(4, 32))
    return {
        "hf": write_hf(home / "hf", TINY, dtype="BF16", shards=2),
        "mlx": write_mlx(home / "mlx", quantized, era="B"),
        "fused": write_mlx(home / "c", quantized),
    }


@pytest.fixture
def copy(folders, tmp_path):
    """A fresh copy of one of the folders for every example."""

    def make(name):
        target = tmp_path / "copy"
        shutil.rmtree(target, ignore_errors=True)
        return shutil.copytree(folders[name], target)

    return make


def survive(folder):
    """Opened, laid out and read to the end, or refused in one line."""
    try:
        source = open_source(folder)
        made = plan(source, own_recipe(source))
        for job in made.jobs:
            job.part.read()
    except MixtralError:
        pass


def put(tree, path, value):
    """Change one place of a JSON tree; ``path`` picks it by numbers."""
    for step in path:
        if isinstance(tree, dict) and tree:
            key = sorted(tree)[step % len(tree)]
        elif isinstance(tree, list) and tree:
            key = step % len(tree)
        else:
            return
        if step is path[-1] or not isinstance(tree[key], dict | list):
            tree[key] = value
            return
        tree = tree[key]


PATHS = st.lists(st.integers(0, 50), min_size=1, max_size=3)
FUZZ = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.mark.fuzz
@FUZZ
@given(name=st.sampled_from(["hf", "mlx", "fused"]), path=PATHS, value=ANYTHING)
def test_headers_with_anything_in_them(copy, name, path, value):
    folder = copy(name)
    file = min(folder.glob("*.safetensors"))
    data = file.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    put(header, path, value)
    file.write_bytes(with_header(header, data[8 + length :]))
    survive(folder)


@pytest.mark.fuzz
@FUZZ
@given(
    name=st.sampled_from(["hf", "mlx"]),
    at=st.integers(0, 4000),
    data=st.binary(min_size=1, max_size=9),
    cut=st.none() | st.integers(0, 20000),
)
def test_files_with_bytes_changed(copy, name, at, data, cut):
    folder = copy(name)
    file = min(folder.glob("*.safetensors"))
    content = bytearray(file.read_bytes())
    content[at : at + len(data)] = data
    file.write_bytes(content if cut is None else content[:cut])
    survive(folder)


@pytest.mark.fuzz
@FUZZ
@given(
    name=st.sampled_from(["hf", "mlx", "fused"]),
    which=st.sampled_from(["config.json", "model.safetensors.index.json"]),
    path=PATHS,
    value=ANYTHING | st.sampled_from(["/etc/passwd", "../x", "a/b", "model-00001-of-00002"]),
)
def test_settings_and_indexes_with_anything_in_them(copy, name, which, path, value):
    folder = copy(name)
    if (folder / which).exists():
        tree = json.loads((folder / which).read_text())
        put(tree, path, value)
        (folder / which).write_text(json.dumps(tree))
    survive(folder)


@pytest.mark.fuzz
@FUZZ
@given(data=st.binary(max_size=200), whole=st.booleans())
def test_a_journal_of_any_bytes(tmp_path, data, whole):
    path = tmp_path / "journal"
    path.write_bytes((b"conversion\n" if whole else b"") + data)
    journal = Journal.open(path, "conversion")
    assert all(number >= 0 and 0 <= crc < 1 << 32 for number, crc in journal.done.items())


@pytest.mark.fuzz
@FUZZ
@given(tree=st.recursive(ANYTHING, lambda t: st.dictionaries(st.text(max_size=4), t, max_size=3)))
def test_a_manifest_of_anything(tmp_path, tree):
    (tmp_path / "manifest.json").write_text(json.dumps({"files": tree}))
    with contextlib.suppress(ModelError):
        manifest.verify(tmp_path)


def test_a_file_that_changes_while_it_is_converted(folders, tmp_path):
    folder = shutil.copytree(folders["hf"], tmp_path / "hf")
    source = open_source(folder)
    made = plan(source, own_recipe(source))
    for file in folder.glob("*.safetensors"):
        file.write_bytes(file.read_bytes()[:3000])
    with pytest.raises(ModelError, match="safetensors"):
        convert(made, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_shard_that_is_a_link_out_of_the_folder_is_only_read(folders, tmp_path):
    """As in Hugging Face's cache: what it points to is read, and stays as it is."""
    folder = shutil.copytree(folders["hf"], tmp_path / "linked")
    shard = min(folder.glob("*.safetensors"))
    outside = shard.rename(tmp_path / "outside")
    before = outside.read_bytes()
    shard.symlink_to(outside)
    source = open_source(folder)
    convert(plan(source, own_recipe(source)), tmp_path / "out")
    assert outside.read_bytes() == before
    assert not [file for file in (tmp_path / "out").iterdir() if file.is_symlink()]


def test_a_target_that_is_a_link_is_not_followed_into_a_full_folder(folders, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("precious")
    (tmp_path / "out").symlink_to(tmp_path / "full")
    source = open_source(folders["hf"])
    with pytest.raises(MixtralError, match="holds files"):
        convert(plan(source, own_recipe(source)), tmp_path / "out")
    assert [file.name for file in (tmp_path / "full").iterdir()] == ["mine"]

"""The writer: files that other readers accept, and nothing unfinished under a final name."""

import os

import mlx.core as mx
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file

from convert.target import check_room, check_target, partial
from convert.writer import ShardWriter, Slot, plan_shards
from mlx_mixtral.errors import MixtralError, UsageError


def random(slot: Slot) -> np.ndarray:
    kind = {"U32": np.uint32, "F32": np.float32, "F16": np.float16}[slot.dtype]
    rng = np.random.default_rng(len(slot.name))
    return rng.integers(0, 1000, slot.shape).astype(kind)


SLOTS = [
    Slot("a", "U32", (3, 5)),
    Slot("bb", "F16", (4, 7, 2)),
    Slot("ccc", "F32", (11,)),
    Slot("dddd", "F16", (1, 1)),
]


def test_other_readers_accept_it(tmp_path):
    writer = ShardWriter(tmp_path, SLOTS)
    values = {slot.name: random(slot) for slot in SLOTS}
    for name in ("ccc", "dddd", "a"):
        writer.put(name, values[name].tobytes())
    for part in (3, 0, 2, 1):  # a stack arrives in pieces, in any order
        writer.put("bb", memoryview(values["bb"][part].tobytes()), at=part * 28)
    writer.finish(parameters=0)
    file = tmp_path / "model.safetensors"
    for read in (load_file(file), {n: np.array(a) for n, a in mx.load(str(file)).items()}):
        assert read.keys() == values.keys()
        for name, value in values.items():
            assert read[name].dtype == value.dtype
            np.testing.assert_array_equal(read[name], value)
    with safe_open(file, "np") as opened:
        assert opened.metadata() == {"format": "mlx"}
    assert int.from_bytes(file.read_bytes()[:8], "little") % 8 == 0


def test_a_forgotten_slice_is_an_error(tmp_path):
    writer = ShardWriter(tmp_path, SLOTS)
    for slot in SLOTS:
        data = random(slot).tobytes()
        writer.put(slot.name, data[:-4] if slot.name == "bb" else data)
    with pytest.raises(ValueError, match="4 bytes were never written"):
        writer.finish(parameters=0)
    assert not (tmp_path / "model.safetensors.index.json").exists()


def test_a_tensor_never_runs_into_the_next(tmp_path):
    writer = ShardWriter(tmp_path, SLOTS)
    with pytest.raises(ValueError, match="do not fit"):
        writer.put("a", bytes(60), at=4)


def test_short_writes_are_continued(tmp_path, monkeypatch):
    pwrite = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda file, data, at: pwrite(file, data[:7], at))
    writer = ShardWriter(tmp_path, SLOTS[:1])
    value = random(SLOTS[0])
    writer.put("a", value.tobytes())
    writer.finish(parameters=0)
    np.testing.assert_array_equal(load_file(tmp_path / "model.safetensors")["a"], value)


def test_shards_are_cut_at_the_limit_and_no_tensor_is():
    slots = [Slot(f"t{i}", "F16", (size,)) for i, size in enumerate([10, 30, 10, 200, 5, 5])]
    shards = plan_shards(slots, limit=100)
    assert [list(shard.offsets) for shard in shards] == [["t0", "t1", "t2"], ["t3"], ["t4", "t5"]]
    for shard in shards:
        assert shard.size == len(shard.header) + sum(
            s.nbytes for s in slots if s.name in shard.offsets
        )


def test_too_little_room_is_said_with_numbers(tmp_path):
    with pytest.raises(UsageError, match=r"1000000\.0 GB are needed, .* GB are free"):
        check_room(tmp_path / "not yet" / "there", 10**15)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(MixtralError, match="cannot write"), partial(tmp_path / "file/out"):
        pytest.fail("unreachable")
    with pytest.raises(UsageError, match="is a file"):
        check_target(tmp_path / "file")


def test_the_folder_has_ordinary_rights(tmp_path):
    (tmp_path / "plain").mkdir()
    with partial(tmp_path / "out") as folder:
        assert folder == tmp_path / ".out.partial" / "files"
    assert (tmp_path / "out").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_parents_are_made(tmp_path):
    with partial(tmp_path / "a/b/out") as folder:
        (folder / "x").touch()
    assert (tmp_path / "a/b/out/x").exists()

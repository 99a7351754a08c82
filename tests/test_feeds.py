"""Conversion that deletes its source: the same model, and never more files than it needs."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from checkpoints import quantization, tiny_config, write_hf, write_mlx

from convert.feeds import LocalFeed
from convert.journal import Journal
from convert.pipeline import convert
from convert.plan import own_recipe, plan
from convert.readers.detect import open_source
from convert.recipe import uniform
from convert.run import FILES_AT_ONCE
from convert.skeleton import Skeleton
from convert.target import partial_of
from convert.writer import ShardWriter
from mlx_mixtral.errors import ModelError, UsageError

TINY = tiny_config(num_hidden_layers=3)


@pytest.fixture
def source(tmp_path):
    return write_hf(tmp_path / "hf", TINY, dtype="BF16", shards=7)


def run(source: Path, out: Path, progress=None) -> Path:
    feed = LocalFeed(source, partial_of(out) / "source")
    convert(plan(open_source(feed.folder), uniform(4)), out, progress, feed=feed)
    return out


def plainly(source: Path, out: Path) -> Path:
    convert(plan(open_source(source), uniform(4)), out)
    return out


def shards(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.glob("*.safetensors"))


def weights(folder: Path) -> dict[str, bytes]:
    """All but the manifest, which says from where."""
    return {f.name: f.read_bytes() for f in folder.iterdir() if f.name != "manifest.json"}


def test_the_source_goes_file_by_file(source, tmp_path):
    wanted = weights(plainly(source, tmp_path / "plain"))
    seen = []
    run(source, tmp_path / "out", lambda *_: seen.append(len(shards(source))))
    assert weights(tmp_path / "out") == wanted
    assert seen == sorted(seen, reverse=True)
    assert set(seen) >= {6, 4, 2}
    assert not shards(source)
    assert (source / "config.json").exists()
    assert not list(tmp_path.glob(".out*"))


def test_no_file_goes_before_all_in_it_is_converted(tmp_path):
    """The pieces of a quantized matrix lie in different files here."""
    config = replace(TINY, quantization=quantization(4))
    source = write_mlx(tmp_path / "mlx", config, era="B")
    opened = open_source(source)
    assert any(len(job.part.files) == 2 for job in plan(opened, own_recipe(opened)).jobs)
    wanted = weights(plainly(source, tmp_path / "plain"))
    assert weights(run(source, tmp_path / "out")) == wanted


class Stop(Exception):
    pass


@pytest.mark.parametrize("remaining", [6, 5, 3, 1])
def test_it_goes_on_after_files_were_deleted(source, tmp_path, remaining):
    wanted = weights(plainly(source, tmp_path / "plain"))

    def stop(*_):
        if len(shards(source)) <= remaining:
            raise Stop

    with pytest.raises(Stop):
        run(source, tmp_path / "out", stop)
    assert len(shards(source)) == remaining
    assert weights(run(source, tmp_path / "out")) == wanted
    assert not shards(source)


def test_a_source_that_was_lost_with_its_output(source, tmp_path):
    def stop(*_):
        if len(shards(source)) <= 3:
            raise Stop

    with pytest.raises(Stop):
        run(source, tmp_path / "out", stop)
    (file,) = (partial_of(tmp_path / "out") / "files").glob("*.safetensors")
    size = file.stat().st_size
    header = file.read_bytes()[:200]
    file.write_bytes(header + bytes(size - 200))
    with pytest.raises(ModelError, match=r"converted and deleted before.*fetch the file again"):
        run(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_links_are_not_followed_to_be_deleted(source, tmp_path):
    linked = tmp_path / "linked"
    shutil.copytree(source, linked)
    file = linked / shards(linked)[0]
    real = file.rename(tmp_path / "blob")
    file.symlink_to(real)
    with pytest.raises(UsageError, match="is a link"):
        run(linked, tmp_path / "out")
    assert real.exists()
    assert len(shards(linked)) == 7


def test_few_files_are_in_use_at_a_time(source, tmp_path):
    """What a feed fetches is dropped before more than two files lie there."""
    there, most = set(), []

    class Counting(LocalFeed):
        def fetch(self, file, beat):
            super().fetch(file, beat)
            there.add(file.name)
            most.append(len(there))
            beat("here")

        def drop(self, file):
            super().drop(file)
            there.discard(file.name)

    feed = Counting(source, tmp_path / "skeleton")
    convert(plan(open_source(feed.folder), uniform(4)), tmp_path / "out", feed=feed)
    assert len(most) == 7
    assert max(most) <= FILES_AT_ONCE
    assert not there


class LateFeed(LocalFeed):
    """Nothing is there but headers until it is fetched, as from a hub."""

    def __init__(self, source, folder):
        super().__init__(source, folder)
        for name in shards(source):
            self._skeleton.empty(name)

    def fetch(self, file, beat):
        self._skeleton.fill(file.name, Path(self.identity, file.name))


def test_nothing_is_read_before_all_its_files_are_there(tmp_path):
    config = replace(TINY, quantization=quantization(4))
    source = write_mlx(tmp_path / "mlx", config, era="B")
    wanted = weights(plainly(source, tmp_path / "plain"))
    feed = LateFeed(source, tmp_path / "skeleton")
    convert(plan(open_source(feed.folder), uniform(4)), tmp_path / "out", feed=feed)
    assert weights(tmp_path / "out") == wanted


def test_what_was_made_is_on_the_disk_before_a_file_goes(source, tmp_path, monkeypatch):
    events = []
    for kind in (ShardWriter, Journal):
        flush = kind.flush
        monkeypatch.setattr(
            kind, "flush", lambda self, flush=flush: (events.append("flush"), flush(self))
        )
    drop = LocalFeed.drop
    monkeypatch.setattr(
        LocalFeed, "drop", lambda self, file: (events.append("drop"), drop(self, file))
    )
    run(source, tmp_path / "out")
    assert events == ["flush", "flush", "drop"] * 7


def test_a_skeleton_of_another_source_is_not_believed(source, tmp_path):
    Skeleton(tmp_path / "s", "one").add("a.safetensors", b"header", 100)
    assert Skeleton(tmp_path / "s", "one").knows("a.safetensors")
    other = Skeleton(tmp_path / "s", "two")
    assert not other.knows("a.safetensors")


def test_a_hollow_file_reads_as_its_header(tmp_path):
    skeleton = Skeleton(tmp_path / "s", "x")
    skeleton.add("a.safetensors", b"header", 1000)
    assert (tmp_path / "s" / "a.safetensors").read_bytes() == b"header" + bytes(994)
    assert skeleton.is_hollow("a.safetensors")
    real = tmp_path / "real"
    real.write_bytes(b"whole")
    skeleton.fill("a.safetensors", real)
    assert not skeleton.is_hollow("a.safetensors")
    assert (tmp_path / "s" / "a.safetensors").read_bytes() == b"whole"
    real.unlink()
    assert skeleton.is_hollow("a.safetensors")
    skeleton.empty("a.safetensors")
    assert (tmp_path / "s" / "a.safetensors").stat().st_size == 1000


def test_indexes_go_along(source, tmp_path):
    feed = LocalFeed(source, tmp_path / "skeleton")
    index = json.loads((feed.folder / "model.safetensors.index.json").read_text())
    assert sorted(set(index["weight_map"].values())) == shards(feed.folder) == shards(source)

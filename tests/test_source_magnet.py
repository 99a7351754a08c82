"""Downloading by BitTorrent, from real libtorrent sessions on this computer.

What is expected is told by the originals on disk, by libtorrent's own reading of a link, and by
what the giving side counted.
"""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from convert.sources import magnet, swarm
from convert.sources.magnet import Settings, Torrent, download, is_magnet, look, repair, seed
from convert.sources.unfinished import Unfinished
from mlx_mixtral.errors import MixtralError, ModelError, UsageError

lt = pytest.importorskip("libtorrent", reason="Python 3.14 has no libtorrent yet")

from torrents import (  # noqa: E402
    PIECE,
    Seeder,
    bencoded,
    contents,
    flip,
    make_torrent,
    named_torrent,
    write_content,
)

HERE = Settings(listen="127.0.0.1:0", discover=False, upload_limit=None)
"""Nothing leaves this computer: the peers that a link names, and nobody else."""

SIZES = {
    "consolidated.00.pth": 700_001,
    "params.json": 200,
    "tokenizer.model": 50_000,
    "RELEASE": 0,
    "notes.txt": 100_001,
    "sub/config.json": 30,
    ".git/config.json": 3,
    "empty.bin": 0,
}
NEEDED = {"consolidated.00.pth", "params.json", "tokenizer.model", "RELEASE", "sub/config.json"}
HASH = "5546272da9065eddeb6fcd7ffddeef5b75be79a7"
TRACKERS = [
    "udp://opentracker.i2p.rocks:6969/announce",
    "http://tracker.openbittorrent.com:80/announce",
]
PROCESS = """
import sys
from pathlib import Path
from convert.sources.magnet import Settings, download
from convert.sources.unfinished import Unfinished
from mlx_mixtral.errors import MixtralError
if len(sys.argv) > 3:
    import resource
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]), resource.RLIM_INFINITY))
try:
    download(
        sys.argv[1], Path(sys.argv[2]), Settings("127.0.0.1:0", None, discover=False),
        lambda done, size, note: print(done, note, sep="|", flush=True),
    )
except MixtralError as error:
    sys.exit(f"error: {error}")
"""


class Stop(Exception):
    """Raised in a Progress to end what would go on."""


def start(link: str, folder: Path, *limit: int) -> subprocess.Popen[str]:
    """A process of its own that downloads; it prints what it shows."""
    command = [sys.executable, "-c", PROCESS, link, str(folder), *map(str, limit)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def shown(process: subprocess.Popen[str]) -> Iterator[tuple[int, str]]:
    assert process.stdout is not None
    for line in process.stdout:
        done, _, note = line.strip().partition("|")
        yield int(done), note


def stop_after(seconds: float, early: bool = False) -> Callable[[int, int, str], None]:
    """A Progress that ends it; ``early``: as soon as anything has come."""
    deadline = time.monotonic() + seconds

    def progress(done: int, size: int, note: str) -> None:
        if time.monotonic() > deadline or (early and done):
            raise Stop

    return progress


def stop_when_complete(done: int, size: int, note: str) -> None:
    if size and done == size and "peer" in note:
        raise Stop


@pytest.fixture
def content(tmp_path: Path) -> Path:
    return write_content(tmp_path / "given" / "model", SIZES)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / ".target.partial"
    folder.mkdir()
    return folder


@contextmanager
def seeding(content: Path, limit: int = 0, version: str = "1") -> Iterator[Seeder]:
    with Seeder(make_torrent(content, version), content.parent, limit) as seeder:
        yield seeder


def needed(content: Path) -> dict[str, bytes]:
    return {name: data for name, data in contents(content).items() if name in NEEDED}


# Links


@pytest.mark.parametrize(
    "link",
    [
        f"magnet:?xt=urn:btih:{HASH}&dn=mixtral-8x7b-32kseqlen&tr=udp%3A%2F%http://2Fopentracker.i2p."
        "rocks%3A6969%2Fannounce&tr=http%3A%2F%http://2Ftracker.openbittorrent.com%3A80%2Fannounce",
        f"magnet:?xt=urn:btih:{HASH}&amp;dn=mixtral-8x7b-32kseqlen&amp;tr=udp%3A%2F%2Fopentracker."
        "i2p.rocks%3A6969%2Fannounce&amp;tr=http%3A%2F%https://2Ftracker.openbittorrent.com%3A80%2F"
        "announce\n\nRELEASE a6bbd9affe0c2725c1b7410d66833e24\n",
        f"  MAGNET:?XT=URN:BTIH:{HASH.upper()}&DN=mixtral-8x7b-\n  32kseqlen&tr=udp://opentracker."
        "i2p.rocks:6969/announce&TR=http://tracker.openbittorrent.com:80/ann\r\nounce&tr=&tr=nonsense",
        f"?xt=urn:btih:{HASH}&dn=mixtral-8x7b-32kseqlen&tr.1=udp%3A%2F%2Fopentracker.i2p.rocks%3A6969"
        "%2Fannounce&tr.2=http%253A%252F%252Ftracker.openbittorrent.com%253A80%252Fannounce",
        f"magnet%3A%3Fxt%3Durn%3Abtih%3A{HASH}%26dn%3Dmixtral-8x7b-32kseqlen%26tr%3Dudp%3A%2F%2Fopen"
        "tracker.i2p.rocks%3A6969%2Fannounce%26tr%3Dhttp%3A%2F%2Ftracker.openbittorrent.com%3A80%2F"
        "announce",
        "magnet:?xt=urn:btih:KVDCOLNJAZPN323PZV773XXPLN2346NH&dn=mixtral-8x7b-32kseqlen&tr=udp%3A%2F%2F"
        "opentracker.i2p.rocks%3A6969%2Fannounce&tr=http%3A%2F%2Ftracker.openbittorrent.com%3A80%2F"
        "announce&tr=udp%3A%2F%2Fopentracker.i2p.rocks%3A6969%2Fannounce&x.pe=localhost:1&so=0",
    ],
    ids=["mangled", "html", "wrapped", "bare", "encoded", "base32"],
)
def test_a_link_is_as_it_was_before_it_was_copied(link: str) -> None:
    assert is_magnet(link)
    params = lt.parse_magnet_uri(repair(link))
    assert str(params.info_hashes.v1) == HASH
    assert params.name == "mixtral-8x7b-32kseqlen"
    assert params.trackers == TRACKERS
    assert params.peers == []
    assert repair(repair(link)) == repair(link)


def test_a_link_of_version_2_and_with_peers() -> None:
    link = f"magnet:?xt=urn:btmh:1220{'ab' * 32}&xt=urn:btih:{HASH}&x.pe=10.0.0.1:80&x.pe=[::1]:9"
    params = lt.parse_magnet_uri(repair(link))
    assert str(params.info_hashes.v2) == "ab" * 32
    assert str(params.info_hashes.v1) == HASH
    assert params.peers == [("10.0.0.1", 80), ("::1", 9)]
    assert params.trackers == []


@pytest.mark.parametrize(
    "link",
    ["magnet:?", "magnet:?xt=urn:btih:", f"magnet:?xt=urn:btih:{HASH}0", "magnet:?dn=a&xt=1"],
)
def test_a_link_without_a_hash_is_refused(link: str) -> None:
    with pytest.raises(UsageError, match="copy it again"):
        look(link, HERE)


def test_what_is_no_link() -> None:
    assert not any(map(is_magnet, ["", "a.torrent", "owner/magnet", "https://example.org/?xt=1"]))


# What a torrent holds


@pytest.mark.parametrize("version", ["1", "2", "both"])
def test_contents_from_a_file_and_from_peers_are_the_same(
    content: Path, tmp_path: Path, version: str
) -> None:
    file = tmp_path / "a.torrent"
    file.write_bytes(make_torrent(content, version))
    with seeding(content, version=version) as seeder:
        asked = look(seeder.link, HERE)
    read = look(str(file), HERE)
    assert replace(read, state=b"") == replace(asked, state=b"")
    assert {f.path: f.size for f in read.files} == SIZES
    assert {f.path for f in read.needed} == NEEDED
    assert read.size == sum(SIZES[name] for name in NEEDED)
    assert read.name == "model"
    hashes = lt.load_torrent_buffer(file.read_bytes()).info_hashes
    assert read.info_hash == str(hashes.v2 if version == "2" else hashes.v1)


HOSTILE: dict[str, list[list[bytes]]] = {
    "up": [[b"..", b"a.pth"]],
    "up at the end": [[b"a.pth", b".."]],
    "here": [[b".", b"a.pth"]],
    "absolute": [[b"/etc/a.pth"]],
    "slash within": [[b"../../a.pth"]],
    "backslash": [[b"..\\a.pth"]],
    "empty": [[b"", b"a.pth"]],
    "empty at the end": [[b"a.pth", b""]],
    "control": [[b"a\x1b[2J.pth"]],
    "zero": [[b"a\x00.pth"]],
    "line": [[b"a\n.pth"]],
    "reversed": ["a\u202egpj.pth".encode().split(b"/")],
    "no text": [[b"a\xff.pth"]],
    "half of a pair": [[b"a\xed\xa0\x80.pth"]],
    "long name": [[b"a" * 241 + b".pth"]],
    "long path": [[b"b" * 100] * 6 + [b"a.pth"]],
    "deep": [[b"b"] * 150 + [b"a.pth"]],
    "twice": [[b"a.pth"], [b"a.pth"]],
    "in capitals": [[b"a.pth"], [b"A.PTH"]],
    "composed": [["é.pth".encode()], ["e\u0301.pth".encode()]],
    "folder": [[b"a.pth"], [b"A.pth", b"b.pth"]],
    "unneeded": [[b"a.pth"], [b"..", b"notes.txt"]],
}


@pytest.mark.parametrize("paths", HOSTILE.values(), ids=HOSTILE)
def test_hostile_paths_are_refused(paths: list[list[bytes]], folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "a.torrent"
    file.write_bytes(named_torrent(paths))
    with pytest.raises(ModelError) as error:
        download(file, folder, HERE, stop_after(1))
    assert str(error.value).isprintable()
    assert str(error.value).isascii() or str(tmp_path) in str(error.value)
    assert contents(folder) == {}


def test_hostile_attributes_and_titles_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "a.torrent"
    link: dict[str, Any] = {"attr": b"l", "symlink path": [b"..", b"..", b"etc", b"passwd"]}
    file.write_bytes(named_torrent([[b"a.json"], [b"a.pth"]], **link))
    with pytest.raises(ModelError, match="symbolic link"):
        look(file, HERE)
    for top in (b"..", b"", b"a/b", b"/a", b"a\xff"):
        file.write_bytes(named_torrent([[b"a.pth"]], top=top))
        with pytest.raises(ModelError):
            look(file, HERE)
    hollow = [{b"path": [b"a.pth"], b"length": 0}, {b"path": [b"b.exe"], b"length": 9}]
    info = {b"name": b"a", b"piece length": PIECE, b"files": hollow, b"pieces": bytes(20)}
    file.write_bytes(bencoded({b"info": info}))
    with pytest.raises(ModelError, match="no weights"):
        look(file, HERE)
    file.write_bytes(named_torrent([[b"a.txt"], [b"b.exe"], [b".b.pth"]]))
    with pytest.raises(ModelError, match="no weights"):
        look(file, HERE)


def test_files_that_only_pad_are_passed_over(tmp_path: Path) -> None:
    file = tmp_path / "a.torrent"
    file.write_bytes(named_torrent([[b".pad", b"1"], [b"a.pth"]], attr=b"p"))
    assert [f.path for f in look(file, HERE).files] == ["a.pth"]


def test_a_damaged_torrent_is_told_in_one_line(content: Path, tmp_path: Path) -> None:
    whole, file = make_torrent(content), tmp_path / "a.torrent"
    bad = [b"", whole[:-1], whole[: len(whole) // 2], b"\x00" * 100, b"d4:infode", b"le"]
    bad += [b"l" * 10_000_000, bencoded({b"magnet-uri": f"magnet:?xt=urn:btih:{HASH}".encode()})]
    for data in bad:
        file.write_bytes(data)
        with pytest.raises(ModelError) as error:
            look(file, HERE)
        assert "\n" not in str(error.value)
    with file.open("wb") as large:
        large.truncate(10 << 30)
    for path in (file, tmp_path, tmp_path / "none", "a\x00b"):
        with pytest.raises(ModelError):
            look(path, HERE)


# Downloading


@pytest.mark.parametrize("version", ["1", "2", "both"])
def test_the_needed_files_arrive_byte_for_byte(content: Path, folder: Path, version: str) -> None:
    notes = []
    with seeding(content, version=version) as seeder:
        torrent = download(seeder.link, folder, HERE, lambda *shown: notes.append(shown))
        unneeded = sum(SIZES.values()) - torrent.size
        assert torrent.size <= seeder.given < torrent.size + unneeded
        deadline = time.monotonic() + 2
        while seeder.peers:
            assert time.monotonic() < deadline, "the session goes on"
            time.sleep(0.02)
    assert contents(folder) == needed(content)
    assert {path.name for path in folder.iterdir()} == {name.split("/")[0] for name in NEEDED}
    assert {size for _, size, _ in notes} <= {0, torrent.size}
    assert any("peer" in note for _, _, note in notes)
    assert notes[-1] == (torrent.size, torrent.size, "complete and correct")


def test_a_single_file_and_a_torrent_file(tmp_path: Path, folder: Path) -> None:
    write_content(tmp_path / "given", {"mixtral.Q4_K_M.gguf": 100_001})
    content, file = tmp_path / "given" / "mixtral.Q4_K_M.gguf", tmp_path / "a.torrent"
    file.write_bytes(make_torrent(content))
    with seeding(content) as seeder:
        download(file, folder, replace(HERE, peers=(seeder.peer,)))
    assert contents(folder) == {content.name: content.read_bytes()}


def test_a_killed_download_goes_on_where_it_was(tmp_path: Path, folder: Path) -> None:
    sizes = {"consolidated.00.pth": 6_000_001, "notes.txt": 99_999, "params.json": 200}
    content = write_content(tmp_path / "given" / "model", sizes)
    size, pause = 6_000_201, random.Random(5)
    with seeding(content, limit=4_000_000) as seeder:
        for _ in range(2):
            process = start(seeder.link, folder)
            for done, _ in shown(process):
                if done:
                    break
            time.sleep(pause.uniform(0, 0.3))
            process.send_signal(signal.SIGKILL)
            process.communicate()
            assert seeder.given < size, "too late to prove anything"
        seeder.lift()
        download(seeder.link, folder, HERE)
        assert seeder.given < size + 2 * 20 * PIECE
    assert contents(folder).items() <= contents(content).items()
    assert set(contents(folder)) == {"consolidated.00.pth", "params.json"}


def test_what_has_come_is_noted_meanwhile(
    content: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(magnet, "_SAVE", 0.2)

    def progress(done: int, size: int, note: str) -> None:
        if done and pieces_in(folder):
            raise Stop

    with seeding(content, limit=500_000) as seeder, pytest.raises(Stop):
        download(seeder.link, folder, HERE, progress)


def test_ctrl_c_stops_soon_and_loses_nothing(tmp_path: Path, folder: Path) -> None:
    content = write_content(tmp_path / "given" / "model", {"a.pth": 4_000_001})
    with seeding(content, limit=2_000_000) as seeder:
        process = start(seeder.link, folder)
        for done, _ in shown(process):
            if done:
                break
        pressed = time.monotonic()
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=10)
        assert time.monotonic() - pressed < 1.5
        assert "KeyboardInterrupt" in error
        assert seeder.given < 4_000_001, "too late to prove anything"
        seeder.lift()
        link, peer = seeder.link.partition("&x.pe")[0], seeder.peer
        # The link needs no peers any more to tell what it holds.
        torrent = look(link, replace(HERE, patience=0.5), folder=folder)
        assert Unfinished(folder, torrent).fresh, "all would be checked again"
        download(torrent, folder, replace(HERE, peers=(peer,)))
        assert seeder.given < 4_000_001 + 20 * PIECE
    assert contents(folder) == contents(content)


def test_what_the_disk_lost_is_found_and_fetched_again(
    content: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A byte that changed although the record is true by all appearance."""
    monkeypatch.setattr(magnet, "_SHOW", 0)
    path = folder / "consolidated.00.pth"
    with seeding(content) as seeder:
        with pytest.raises(Stop):
            download(seeder.link, folder, HERE, stop_when_complete)
        stamp = path.stat()
        flip(path, 333_333)
        os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
        before = seeder.given
        download(seeder.link, folder, HERE)
        assert seeder.given - before == PIECE
    assert contents(folder) == needed(content)


def test_a_disk_that_goes_on_losing_bytes_is_told(
    content: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual, check = swarm._session_settings, swarm.Swarm.recheck
    hasty = {"min_reconnect_time": 1}  # a minute else, after everything was checked

    def lose(self: swarm.Swarm) -> None:
        flip(folder / "consolidated.00.pth", 5)
        check(self)

    monkeypatch.setattr(swarm, "_session_settings", lambda *of: usual(*of) | hasty)
    monkeypatch.setattr(swarm.Swarm, "recheck", lose)
    monkeypatch.setattr(magnet, "_CHECKS", 1)
    with seeding(content) as seeder, pytest.raises(MixtralError, match="check the disk"):
        download(seeder.link, folder, HERE)


def test_a_corrupt_piece_never_arrives(content: Path, tmp_path: Path, folder: Path) -> None:
    torrent = make_torrent(content)
    liar = write_content(tmp_path / "liar" / "model", SIZES)
    for at in range(0, 700_000, 100_000):
        flip(liar / "consolidated.00.pth", at)
    with Seeder(torrent, liar.parent) as bad:
        with pytest.raises(Stop):
            download(bad.link, folder, HERE, stop_after(1.0))
        assert bad.given > 0
        assert pieces_in(folder) < sum(SIZES.values()) // PIECE - 6
        with Seeder(torrent, content.parent) as good:
            download(f"{bad.link}&x.pe={good.peer}", folder, HERE, stop_after(20))
    assert contents(folder) == needed(content)


def test_a_full_disk_is_told_and_the_rest_fetched_later(content: Path, folder: Path) -> None:
    with seeding(content) as seeder:
        process = start(seeder.link, folder, 300_000)
        _, error = process.communicate(timeout=20)
        assert process.returncode == 1
        assert error.startswith(f"error: cannot write {folder}/consolidated.00.pth: ")
        assert error.count("\n") == 1
        download(seeder.link, folder, HERE)
    assert contents(folder) == needed(content)


def test_a_folder_of_something_else_is_left_alone(
    content: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "a.torrent"
    file.write_bytes(make_torrent(content))
    (folder / "model.gguf").write_bytes(b"x")
    with pytest.raises(UsageError, match=r"model\.gguf is not of this torrent"):
        download(file, folder, HERE, stop_after(1))
    (folder / "model.gguf").rename(tmp_path / "params.json")
    (folder / "params.json").symlink_to(tmp_path / "params.json")
    with pytest.raises(UsageError, match=r"params\.json is not of this torrent"):
        download(file, folder, HERE, stop_after(1))
    (folder / "params.json").unlink()
    with pytest.raises(Stop):
        download(file, folder, HERE, stop_after(0))
    other = write_content(tmp_path / "other" / "model", SIZES, seed=1)
    file.write_bytes(make_torrent(other))
    with pytest.raises(UsageError, match="another torrent"):
        download(file, folder, HERE, stop_after(1))


def test_too_large_a_torrent_is_refused_at_once(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "a.torrent"
    pieces = {b"piece length": 1 << 27, b"length": 1 << 43, b"pieces": bytes(20 << 16)}
    file.write_bytes(bencoded({b"info": {b"name": b"a.pth", **pieces}}))
    with pytest.raises(UsageError, match="not enough room"):
        download(file, folder, HERE, stop_after(1))
    assert contents(folder) == {}


# The network


def test_nobody_answers(folder: Path) -> None:
    link, notes = f"magnet:?xt=urn:btih:{HASH}&x.pe=127.0.0.1:9", []
    with pytest.raises(MixtralError, match=r"no peer found.*try again later"):
        download(link, folder, replace(HERE, patience=0.5), lambda *shown: notes.append(shown))
    assert notes
    assert contents(folder) == {}


@pytest.mark.parametrize("listen", ["nonsense", "192.0.2.1:0"])
def test_a_place_where_nobody_can_listen(listen: str) -> None:
    with pytest.raises(UsageError, match="cannot listen"):
        look(f"magnet:?xt=urn:btih:{HASH}", replace(HERE, listen=listen))


def test_a_port_that_is_taken_is_replaced(content: Path, folder: Path) -> None:
    with seeding(content) as seeder:
        download(seeder.link, folder, replace(HERE, listen=seeder.peer))
    assert contents(folder) == needed(content)


@pytest.mark.parametrize("peer", ["localhost:1", "127.0.0.1", "127.0.0.1:0", "::1:x", "", "1:1"])
def test_what_is_no_peer(peer: str, content: Path, folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "a.torrent"
    file.write_bytes(make_torrent(content))
    with pytest.raises(UsageError, match="IP:PORT"):
        download(file, folder, replace(HERE, peers=(peer,)))


def test_without_libtorrent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "libtorrent", None)
    with pytest.raises(UsageError, match=r"pip install 'mlx-mixtral\[magnet\]'"):
        look(f"magnet:?xt=urn:btih:{HASH}", HERE)


@contextmanager
def beside(work: Callable[..., object], *arguments: Any) -> Iterator[str]:
    """Do ``work`` in a thread, at a port of this computer that is given, until the block ends."""
    with socket.socket() as chosen:
        chosen.bind(("127.0.0.1", 0))
        peer = f"127.0.0.1:{chosen.getsockname()[1]}"
    ended = threading.Event()

    def progress(done: int, size: int, note: str) -> None:
        if ended.is_set():
            raise Stop

    def run() -> None:
        with suppress(Stop):
            work(*arguments[:-1], replace(arguments[-1], listen=peer), progress)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield peer
    finally:
        ended.set()
        thread.join()


def pieces_in(folder: Path) -> int:
    """How many pieces an interrupted download has, by libtorrent's record of it."""
    record = lt.bdecode((folder / ".torrent" / "record").read_bytes())
    return int(lt.read_resume_data(record[b"torrent"]).have_pieces.count(True))


def test_a_finished_download_is_given_to_others(
    content: Path, folder: Path, tmp_path: Path
) -> None:
    with seeding(content) as seeder:
        torrent = unmet(download(seeder.link, folder, HERE))
        final, other = folder.rename(tmp_path / "target"), tmp_path / "other"
        other.mkdir()
        settings = replace(HERE, peers=(seeder.peer,))
        with beside(seed, torrent, final, settings) as peer, pytest.raises(Stop):
            # What shares a piece with an unneeded file cannot be given, so this does not end.
            download(torrent, other, replace(HERE, peers=(peer,)), stop_after(1.0))
    shared = 4  # pieces, at most: two ends of each of the two unneeded files
    assert torrent.size // PIECE - shared <= pieces_in(other) < torrent.size // PIECE
    assert contents(final) == needed(content)


@pytest.mark.parametrize(("limit", "given", "wait"), [(0, False, 1.6), (None, True, 20)])
def test_what_is_given_while_downloading(
    limit: int | None, given: bool, wait: float, tmp_path: Path, folder: Path
) -> None:
    content = write_content(tmp_path / "given" / "model", {"a.pth": 4_000_000})
    first, file = tmp_path / "first", tmp_path / "a.torrent"
    first.mkdir()
    file.write_bytes(make_torrent(content))
    with seeding(content, limit=1_500_000) as seeder:
        settings = replace(HERE, upload_limit=limit, peers=(seeder.peer,))
        with beside(download, file, first, settings) as peer, pytest.raises(Stop):
            download(file, folder, replace(HERE, peers=(peer,)), stop_after(wait, early=given))
        assert 0 < seeder.given < 4_000_000
    assert (pieces_in(folder) > 0) == given


def unmet(torrent: Torrent) -> Torrent:
    """The same, without the peers that have told of it."""
    params = lt.read_resume_data(torrent.state)
    params.peers = []
    return replace(torrent, state=lt.write_resume_data_buf(params))


def test_ctrl_c_ends_seeding(content: Path, folder: Path, tmp_path: Path) -> None:
    with seeding(content) as seeder:
        torrent = download(seeder.link, folder, HERE)
    started = time.monotonic()

    def press(done: int, size: int, note: str) -> None:
        if time.monotonic() > started + 0.5:
            signal.raise_signal(signal.SIGINT)

    seed(torrent, folder, HERE, press)
    assert time.monotonic() - started < 2
    assert contents(folder) == needed(content)


# Hostile input


SEEDS = (
    f"magnet:?xt=urn:btih:{HASH}&dn=a%20b&tr=udp%3A%2F%2Fa.b%3A1&x.pe=1.2.3.4:5",
    f"?xt=urn:btmh:1220{'0f' * 32}&amp;tr=http://[::1/&x.pe=[::1]:70000",
    "magnet:?xt=urn:btih:KVDCOLNJAZPN323PZV773XXPLN2346NH\n RELEASE 1",
)


@pytest.mark.fuzz
@given(
    st.one_of(
        st.text(),
        st.tuples(st.sampled_from(SEEDS), st.lists(st.tuples(st.integers(0, 150), st.text()))).map(
            lambda drawn: edited(*drawn)
        ),
    )
)
def test_any_text_is_a_link_or_is_refused(text: str) -> None:
    is_magnet(text)
    try:
        link = repair(text)
    except UsageError:
        return
    assert link.isascii()
    assert link.isprintable()
    assert repair(link) == link
    lt.parse_magnet_uri(link)


def edited(text: str, edits: list[tuple[int, str]]) -> str:
    for at, new in edits:
        text = text[:at] + new + text[at + len(new) // 2 :]
    return text


KEYS = st.sampled_from(
    b"files,file tree,length,path,path.utf-8,attr,symlink path,pieces,name,name.utf-8,"
    b"piece length,meta version,private,pieces root,".split(b",")
)
NAMES = st.sampled_from([b"a.pth", b"..", b"", b"a/b", b"l", b"p", b"A.pth", b"\xff"]) | st.binary()
VALUES = st.recursive(
    st.integers(-(1 << 63), (1 << 63) - 1) | st.sampled_from([1, 2, 16384]) | NAMES,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS | NAMES, inner, max_size=5),
    max_leaves=12,
)


@pytest.mark.fuzz
@given(
    st.integers(0, 5), st.dictionaries(KEYS, VALUES, max_size=5), st.binary(max_size=40), st.data()
)
def test_any_bytes_are_a_torrent_or_are_refused(
    tmp_path_factory: pytest.TempPathFactory,
    kind: int,
    info: dict[bytes, Any],
    noise: bytes,
    data: st.DataObject,
) -> None:
    whole = bencoded({b"info": {**base_info(kind), **info}, b"announce": noise})
    if noise:
        at = data.draw(st.integers(0, len(whole)))
        whole = whole[:at] + noise + whole[at + data.draw(st.integers(0, 9)) :]
    file = tmp_path_factory.getbasetemp() / "fuzz.torrent"
    file.write_bytes(whole)
    try:
        torrent = look(file, HERE)
    except ModelError:
        return
    for held in torrent.files:
        assert not held.path.startswith("/")
        assert not {"", ".", ".."} & set(held.path.split("/"))
        assert held.path.isprintable()


def base_info(kind: int) -> dict[bytes, Any]:
    """Sound torrents of both versions, for the fuzzer to break."""
    root = {b"": {b"length": 5, b"pieces root": b"r" * 32}}
    one: dict[bytes, Any] = {b"name": b"a.pth", b"piece length": PIECE}
    return [
        {**one, b"length": 5, b"pieces": bytes(20)},
        {**one, b"files": [{b"length": 5, b"path": [b"b.pt"]}], b"pieces": bytes(20)},
        {**one, b"meta version": 2, b"file tree": {b"a.pth": root}},
        {**one, b"meta version": 2, b"file tree": {b"b": {b"a.pth": root}, b"c.json": root}},
        {
            **one,
            b"meta version": 2,
            b"file tree": {b"a.pth": root},
            b"length": 5,
            b"pieces": bytes(20),
        },
        {},
    ][kind]

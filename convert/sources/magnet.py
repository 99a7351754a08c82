"""Downloading by BitTorrent: from a magnet link or a .torrent file to the files of a model.

libtorrent does the work. What is added here: the needed files alone, each at the place that
it is to have; a start that takes up what an earlier one left; and certainty at the end.

libtorrent compares the hash of every piece when it comes. In the end everything is read from
the disk once more and compared again, a minute or two for 94 GB on an SSD: what is handed over
is what the disk gives, whatever crash, full disk or flipped bit there was since the first
attempt began.
"""

from __future__ import annotations

import base64
import re
import tempfile
import time
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote, unquote_plus, urlsplit

from convert.interrupt import held_interrupt
from convert.sources.swarm import Settings, Swarm, endpoint
from convert.sources.torrent import (
    UNSEEN,
    Torrent,
    describe,
    is_needed,
    libtorrent,
    listing,
    read_torrent,
)
from convert.sources.unfinished import Unfinished, kept, known_as, placed
from convert.target import check_room
from mlx_mixtral.errors import MixtralError, UsageError

if TYPE_CHECKING:
    import libtorrent as lt

__all__ = ["Progress", "Settings", "Torrent", "download", "is_magnet", "look", "repair", "seed"]

Progress = Callable[[int, int, str], None]
"""Takes the bytes done, the bytes in all, and a note such as ``12 peers, 5.2 MB/s``."""

_SCHEMES = ("udp", "http", "https", "ws", "wss")
_SHOW = 0.2  # seconds between two calls of a Progress
_SAVE = 3.0  # seconds between two records of what is there
_CHECKS = 3  # after so many it is the disk that loses what is written


def is_magnet(text: str) -> bool:
    """Whether ``text`` is meant as a magnet link, however mangled."""
    text = text.lower()
    return text.lstrip().startswith("magnet:") or re.search("urn(:|%3a)bt[im]h", text) is not None


def repair(link: str) -> str:
    """The magnet link that ``link`` was before it was copied around.

    The links that Mistral published were mangled on the way: every ``%2F`` before a tracker's
    name became ``%http://2F``, and clients then see no tracker. Mended besides: blanks, line
    breaks and a ``RELEASE`` line from copying, ``&amp;``, a link that is encoded as a whole,
    a missing ``magnet:?``, capitals, and the hash in base32. What comes back names the hash,
    the title, the trackers and the peers, each once; anything else, and a tracker or peer that
    is none, is left out. No tracker is added.

    Raises:
        UsageError: there is no hash of a torrent in it.
    """
    text = re.sub(r"\s+RELEASE\s+\w+\s*$", "", link)
    text = "".join(c for c in text if not c.isspace() and unicodedata.category(c) not in UNSEEN)
    text = re.sub(r"%https?://(?=[0-9a-f]{2})", "%", text, flags=re.IGNORECASE)
    if re.search(r"urn%3abt[im]h%3a", text, re.IGNORECASE) and "=" not in text:
        text = unquote(text)
    text = re.sub(r"&(amp;|#38;|#x26;)+", "&", text, flags=re.IGNORECASE)
    found: dict[str, list[str]] = {}
    for part in re.sub(r"^[^=]*\?", "", text).split("&"):
        key, _, value = part.partition("=")
        found.setdefault(re.sub(r"\.\d+$", "", key.lower()), []).append(value)
    topics = found.get("xt", []) or [text]
    hashes = list(dict.fromkeys(h for topic in topics for h in _hashes(unquote(topic))))
    if not hashes:
        raise UsageError("this magnet link names no torrent (xt=urn:btih:...); copy it again")
    names = [quote(unquote_plus(name), safe="") for name in found.get("dn", []) if name]
    trackers = dict.fromkeys(quote(t, safe="") for t in map(_tracker, found.get("tr", [])) if t)
    peers = [p for p in map(unquote, found.get("x.pe", [])) if endpoint(p) is not None]
    fields = [*(f"xt={h}" for h in hashes), *(f"dn={name}" for name in names[:1])]
    fields += [f"tr={tracker}" for tracker in trackers]
    return "magnet:?" + "&".join(fields + [f"x.pe={peer}" for peer in dict.fromkeys(peers)])


def _hashes(topic: str) -> Iterator[str]:
    if match := re.search(r"urn:btih:([0-9a-f]{40}|[a-z2-7]{32})(?![0-9a-z])", topic.lower()):
        text = match[1]
        hexadecimal = text if len(text) == 40 else base64.b32decode(text.upper()).hex()
        yield f"urn:btih:{hexadecimal}"
    if match := re.search(r"urn:btmh:1220[0-9a-f]{64}(?![0-9a-z])", topic.lower()):
        yield match[0]


def _tracker(text: str) -> str | None:
    """A tracker's address, decoded; None if it is none."""
    text = unquote(text)
    if "://" not in text:
        text = unquote(text)
    try:
        url = urlsplit(text)
        sane = url.scheme in _SCHEMES and bool(url.hostname) and url.port != 0
    except ValueError:
        return None
    return text if sane and text.isprintable() else None


def look(
    source: str | Path,
    settings: Settings,
    progress: Progress | None = None,
    folder: Path | None = None,
) -> Torrent:
    """What ``source`` names, a magnet link or the path of a .torrent file.

    A link is asked of its peers, unless an earlier download of it in ``folder`` has kept the
    answer.

    Raises:
        UsageError: the link is none.
        ModelError: the torrent is damaged, hostile, or not of a model.
        MixtralError: no peer has answered within ``settings.patience``.
    """
    if isinstance(source, Path) or not is_magnet(source):
        return read_torrent(Path(source).expanduser())
    lib = libtorrent()
    try:
        params = lib.parse_magnet_uri(repair(source))
    except (RuntimeError, UnicodeError):
        raise UsageError("this magnet link cannot be read; copy it again") from None
    earlier = kept(folder) if folder else None
    if earlier and earlier.info_hash in _hexadecimal(params.info_hashes):
        return describe(known_as(lib.read_resume_data(earlier.state), params))
    with tempfile.TemporaryDirectory() as place, held_interrupt() as pressed:
        # Nothing of it is written before its names have been looked at.
        params.save_path, params.flags = place, lib.torrent_flags.default_dont_download
        with Swarm(params, settings) as swarm:
            record = _ask(swarm, settings, _Show(progress, 0), pressed)
        if record is None:
            raise KeyboardInterrupt
    return describe(lib.read_resume_data(record))


def _hexadecimal(hashes: lt.info_hash_t) -> set[str]:
    both = (hashes.has_v1(), hashes.v1), (hashes.has_v2(), hashes.v2)
    return {str(value) for there, value in both if there}


def _ask(
    swarm: Swarm, settings: Settings, show: _Show, pressed: Callable[[], bool]
) -> bytes | None:
    """Wait for a magnet link's contents; None if interrupted."""
    started = time.monotonic()
    while not pressed():
        status = swarm.wait()
        if status.has_metadata and swarm.save():
            return swarm.record
        waited = time.monotonic() - started
        if waited > settings.patience:
            met = f"{status.num_peers} peers, none knows" if status.num_peers else "no peer found"
            said = f"; a tracker failed, {swarm.complaint}" if swarm.complaint else ""
            raise MixtralError(
                f"what the link holds could not be learnt in {waited:.0f} seconds "
                f"({met}{said}); try again later, or give a .torrent file"
            )
        show(0, f"asking what the link holds: {_peers(status, waited)}")
    return None


def download(
    source: str | Path | Torrent,
    folder: Path,
    settings: Settings,
    progress: Progress | None = None,
) -> Torrent:
    """Fetch the needed files of a torrent straight into ``folder``, which exists.

    What an earlier call left there is taken up, however that ended. When this returns, the
    files are complete and correct, alone in the folder, and the session with the peers is over.
    Ctrl-C ends it within about a second, and so does an exception of ``progress``.

    Raises:
        UsageError: ``folder`` holds something else, or there is not enough room.
        ModelError, MixtralError: as ``look`` does; or the disk fails.
    """
    torrent = source if isinstance(source, Torrent) else look(source, settings, progress, folder)
    unfinished = Unfinished(folder, torrent)
    check_room(folder, torrent.size - unfinished.here())
    with held_interrupt() as pressed:
        with Swarm(unfinished.params(), settings) as swarm:
            try:
                complete = _fetch(swarm, unfinished, _Show(progress, torrent.size), pressed)
            finally:
                swarm.rest()
                unfinished.keep(swarm)
        if not complete:
            raise KeyboardInterrupt
        unfinished.finish()
    if progress is not None:
        progress(torrent.size, torrent.size, "complete and correct")
    return torrent


def _fetch(swarm: Swarm, unfinished: Unfinished, show: _Show, pressed: Callable[[], bool]) -> bool:
    """Download until all that is needed has been read from the disk and found right.

    False if interrupted.
    """
    checks, saved = 0, time.monotonic()
    met = saved
    while not pressed():
        status, now = swarm.wait(), time.monotonic()
        met = now if status.num_peers else met
        if not swarm.ready:
            show(
                status.progress, f"checking {'all of it once more' if checks else 'what is there'}"
            )
            continue
        show(status.total_wanted_done / status.total_wanted, _peers(status, now - met))
        if status.is_finished:
            if swarm.checked and not status.total_payload_download:
                return True
            if checks == _CHECKS:
                raise MixtralError(
                    f"{unfinished.folder}: the disk gives back other bytes than were written; "
                    f"check the disk, or choose another with -o"
                )
            checks += 1
        if status.is_finished or now > saved + _SAVE:
            unfinished.keep(swarm)
            saved = now
        if status.is_finished:
            swarm.recheck()
    return False


def seed(
    torrent: Torrent, folder: Path, settings: Settings, progress: Progress | None = None
) -> None:
    """Give a finished download in ``folder`` to others, until Ctrl-C.

    Pieces that reach into a file that was not needed are left out. ``progress`` takes the bytes
    that were given.
    """
    lib = libtorrent()
    params = placed(lib.read_resume_data(torrent.state), folder)
    params.flags = lib.torrent_flags.upload_mode
    params.have_pieces, params.unfinished_pieces = _whole_pieces(params.ti), {}
    show = _Show(progress, torrent.size)
    with suppress(KeyboardInterrupt), held_interrupt() as pressed, Swarm(params, settings) as swarm:
        while not pressed():
            status = swarm.wait()
            rate = status.upload_payload_rate / 1e6
            show(
                status.total_payload_upload / torrent.size,
                f"{_count(status)}, {rate:.1f} MB/s given",
            )


def _whole_pieces(info: Any) -> list[bool]:
    """For each piece of the torrent whether needed files alone are in it."""
    layout, length = info.layout(), info.piece_length()
    whole = [True] * info.num_pieces()
    for number, file in listing(info):
        if file.size and not is_needed(file.path):
            start = layout.file_offset(number)
            for piece in range(start // length, (start + file.size - 1) // length + 1):
                whole[piece] = False
    return whole


def _peers(status: lt.torrent_status, alone: float) -> str:
    """Peers and the rate of what they give; or for how many seconds there was none."""
    if status.num_peers:
        return f"{_count(status)}, {status.download_payload_rate / 1e6:.1f} MB/s"
    return "looking for peers" if alone < 60 else f"no peer for {alone / 60:.0f} min, waiting"


def _count(status: lt.torrent_status) -> str:
    return "1 peer" if status.num_peers == 1 else f"{status.num_peers} peers"


class _Show:
    """Calls a ``Progress`` as often as an eye can follow."""

    def __init__(self, progress: Progress | None, size: int) -> None:
        self._progress, self._size, self._next = progress, size, 0.0

    def __call__(self, done: float, note: str) -> None:
        """``done``: a part of 1."""
        if self._progress is not None and time.monotonic() >= self._next:
            self._next = time.monotonic() + _SHOW
            self._progress(int(done * self._size), self._size, note)

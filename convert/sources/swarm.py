"""One torrent among its peers: a libtorrent session, and what it reports.

Settings: https://www.libtorrent.org/reference-Settings.html
"""

from __future__ import annotations

import errno
import ipaddress
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from convert.sources.torrent import libtorrent, reason_of
from mlx_mixtral.errors import MixtralError, UsageError

if TYPE_CHECKING:
    import libtorrent as lt

_TICK = 0.25  # seconds between two looks at the session
_PATIENCE = 2.0  # seconds for an answer of the session itself
_BOOTSTRAP = "dht.libtorrent.org:25401,router.bittorrent.com:6881,dht.transmissionbt.com:6881"
_TRACKERS = (
    "udp://tracker.opentrackr.org:1337/announce",
    "udp://open.demonii.com:1337/announce",
    "udp://opentracker.i2p.rocks:6969/announce",
    "http://tracker.openbittorrent.com:80/announce",
)
"""Those of Mistral's own links: asked where a link names none."""


@dataclass(frozen=True)
class Settings:
    """How to take part in the network.

    ``listen``: addresses and ports for other peers, in libtorrent's form; a port that is taken
    is replaced by the next free one.
    ``upload_limit``: bytes per second that are given to others, while downloading and while
    seeding; None is no limit, 0 gives nothing (and makes others give less).
    ``discover``: find peers by the distributed hash table, in the local network and by
    well-known trackers where a link names none, and ask the router for an open port. Without
    it only what the torrent itself names is asked, and ``peers``.
    ``peers``: more of them, each ``IP:PORT``.
    ``patience``: seconds until a magnet link is given up that no peer tells the contents of.
    """

    listen: str = "0.0.0.0:6881,[::]:6881"
    upload_limit: int | None = 1_000_000
    discover: bool = True
    peers: tuple[str, ...] = ()
    patience: float = 600.0


def endpoint(text: str) -> tuple[str, int] | None:
    """``IP:PORT``, or ``[IP]:PORT`` for version 6, in its two parts; None if it is neither."""
    host, _, port = text.rpartition(":")
    try:
        address = ipaddress.ip_address(host.removeprefix("[").removesuffix("]"))
    except ValueError:
        return None
    if not re.fullmatch("[0-9]{1,5}", port) or not 0 < int(port) < 65536:
        return None
    return str(address), int(port)


class Swarm:
    """A session with one torrent; leaving the block ends it.

    ``ready``: what was on the disk in the beginning has been looked at.
    ``checked``: all of it has been read and its hashes compared.
    ``record``: libtorrent's last resume data.
    ``complaint``: the last tracker's, if one complained.
    """

    def __init__(self, params: lt.add_torrent_params, settings: Settings) -> None:
        lib = libtorrent()
        self.ready = self.checked = False
        self.record, self.complaint = b"", ""
        self._error: MixtralError | None = None
        self._reading = self._flushed = False
        self._settings, self._started = settings, time.monotonic()
        try:
            _join(lib, params, settings)
            self._session: Any = lib.session(_session_settings(lib, settings))
            if settings.upload_limit == 0:
                # Peers in the local network, too, are then bound by the number of slots.
                local = self._session.get_peer_class(lib.session.local_peer_class_id)
                local["ignore_unchoke_slots"] = False
                self._session.set_peer_class(lib.session.local_peer_class_id, local)
            self._handle: Any = self._session.add_torrent(params)
        except (RuntimeError, OverflowError, TypeError, UnicodeError) as error:
            raise MixtralError(f"libtorrent cannot start: {reason_of(error)}") from None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """End the session: nothing is written, sent or taken any more when this returns."""
        self._handle = self._session = None

    @property
    def broken(self) -> bool:
        """Whether the disk failed, so that libtorrent's idea of what is on it may be wrong."""
        return self._error is not None

    def wait(self) -> lt.torrent_status:
        """How the torrent stands, after a quarter of a second or when something happens.

        Raises:
            MixtralError: the disk failed, or there is no way to listen for peers.
        """
        self._listen()
        if self._error is not None:
            raise self._error
        if time.monotonic() > self._started + 0.5 and not self._session.is_listening():
            raise UsageError(
                f"cannot listen for peers at {self._settings.listen!a}; name an address of this "
                f"computer and a free port"
            )
        status: lt.torrent_status = self._handle.status()
        return status

    def recheck(self) -> None:
        """Read all of it from the disk and compare the hashes; ``ready`` when that is done."""
        self.ready = self.checked = False
        self._handle.force_recheck()

    def rest(self) -> None:
        """Leave the peers; only the disk goes on."""
        self._session.pause()

    def flush(self) -> bool:
        """Have all that came written to its files; False if that failed or takes too long."""
        self._flushed = False
        self._handle.flush_cache()
        return self._await(lambda: self._flushed)

    def save(self) -> bool:
        """Take libtorrent's ``record`` of what is in the files; False if that failed."""
        self.record = b""
        self._handle.save_resume_data(libtorrent().save_resume_flags_t.save_info_dict)
        return self._await(lambda: bool(self.record))

    def _await(self, done: Callable[[], bool]) -> bool:
        deadline = time.monotonic() + _PATIENCE
        while not done() and not self.broken and time.monotonic() < deadline:
            self._listen()
        return done() and not self.broken

    def _listen(self) -> None:
        self._session.wait_for_alert(int(_TICK * 1000))
        for alert in self._session.pop_alerts():
            self._take(alert)

    def _take(self, alert: Any) -> None:
        lib = libtorrent()
        if isinstance(alert, lib.save_resume_data_alert):
            self.record = lib.write_resume_data_buf(alert.params)
        elif isinstance(alert, lib.cache_flushed_alert):
            self._flushed = True
        elif isinstance(alert, lib.state_changed_alert):
            self._reading |= alert.state == lib.torrent_status.states.checking_files
        elif isinstance(alert, lib.torrent_checked_alert):
            self.ready, self.checked, self._reading = True, self._reading, False
        elif isinstance(alert, lib.tracker_error_alert):
            said = alert.failure_reason() or alert.error.message()
            self.complaint = reason_of(RuntimeError(f"{alert.url}: {said}"))
        elif isinstance(alert, lib.file_error_alert):
            self._error = _disk_error(alert.filename(), alert.error)
        elif isinstance(alert, lib.torrent_error_alert):
            self._error = self._error or _disk_error(alert.filename(), alert.error)


def _join(lib: Any, params: lt.add_torrent_params, settings: Settings) -> None:
    """Set in ``params`` what the settings say of one torrent."""
    flags = lib.torrent_flags
    params.flags |= flags.apply_ip_filter | flags.update_subscribe
    params.flags &= ~(flags.auto_managed | flags.paused)
    private = params.ti is not None and params.ti.priv()
    if not settings.discover:
        params.flags |= flags.disable_dht | flags.disable_lsd | flags.disable_pex
    elif not params.trackers and not private:
        params.trackers = list(_TRACKERS)
    params.upload_limit = params.download_limit = -1
    if settings.upload_limit:
        params.upload_limit = settings.upload_limit
    peers = [endpoint(peer) for peer in settings.peers]
    if None in peers:
        raise UsageError(f"{settings.peers[peers.index(None)]!a} is no peer; write IP:PORT")
    params.peers = list(dict.fromkeys([*params.peers, *(peer for peer in peers if peer)]))


def _session_settings(lib: Any, settings: Settings) -> dict[str, Any]:
    categories = lib.alert_category
    pack = {
        "alert_mask": categories.error | categories.status | categories.storage,
        "listen_interfaces": settings.listen,
        "enable_dht": settings.discover,
        "enable_lsd": settings.discover,
        "enable_upnp": settings.discover,
        "enable_natpmp": settings.discover,
        "dht_bootstrap_nodes": _BOOTSTRAP,
        # Peers that are all named may well be on one machine.
        "allow_multiple_connections_per_ip": not settings.discover,
        # One peer gave 300 MB/s by TCP and 8 by uTP, both on one machine; uTP still comes in.
        "enable_outgoing_utp": False,
        "mixed_mode_algorithm": int(lib.bandwidth_mixed_algo_t.prefer_tcp),
        "stop_tracker_timeout": 1,  # seconds that a tracker may hold up the end
        "hashing_threads": 4,
    }
    if settings.upload_limit == 0:
        pack |= {"unchoke_slots_limit": 0, "allowed_fast_set_size": 0}
    return pack


def _disk_error(file: str, error: Any) -> MixtralError:
    known = error.category().name() in ("system", "generic")
    if known and error.value() in (errno.ENOSPC, errno.EDQUOT):
        reason = "the disk is full; make room and run the same command again"
    else:
        reason = reason_of(RuntimeError(error.message()))
    return MixtralError(f"cannot write {file}: {reason}")

"""Talking with the Hugging Face Hub: its client's connections, our patience, errors in a line."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

from convert.sources.cache import cached
from mlx_mixtral.errors import MixtralError, UsageError

if TYPE_CHECKING:
    from httpx2 import Response
    from huggingface_hub.errors import HfHubHTTPError

PATIENCE = (1.0, 2.0, 4.0, 8.0, 16.0)
"""Seconds before the second try, the third and so on; then it is given up."""
LONGEST_WAIT = 60.0
"""Seconds that a server may ask for; if it wants more, the person is told."""

_PASSING = (408, 429, 500, 502, 503, 504)
_AGAIN = "run the same command again, it goes on where it stopped"
_LOGIN = "log in with: hf auth login (or set HF_TOKEN)"
_RANGE = re.compile(r"bytes (\d{1,18})-\d{1,18}/(\d{1,18})")

T = TypeVar("T")


class Cut(Exception):
    """A connection that ended before everything had come."""


def patiently(
    work: Callable[[], T],
    name: str,
    revision: str | None = None,
    gained: Callable[[], int] = lambda: 0,
    patience: tuple[float, ...] | None = None,
) -> T:
    """Do ``work``, which talks about repository ``name``; again after faults that pass.

    ``gained`` counts what ``work`` has got so far. Where that grew before a fault, patience
    begins anew: a bad line may break off any number of times if each time something comes.

    Raises:
        MixtralError: the fault, in one line with its remedy.
    """
    from httpx2 import HTTPError, InvalidURL
    from huggingface_hub.errors import OfflineModeIsEnabled

    pauses = PATIENCE if patience is None else patience
    failures, before = 0, gained()
    while True:
        try:
            with quiet():
                return work()
        except (HTTPError, InvalidURL, OfflineModeIsEnabled, Cut) as error:
            if gained() > before:
                failures, before = 0, gained()
            pause = _pause(error)
            if pause is None or failures == len(pauses):
                raise explained(error, name, revision) from error
            time.sleep(max(pause, pauses[failures]))
            failures += 1


@contextmanager
def quiet() -> Iterator[None]:
    """Hold back what the library would print: retries, and addresses with keys in them."""
    logger = logging.getLogger("huggingface_hub")
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(before)


def stream(url: str, start: int, end: int, size: int) -> Generator[tuple[int, bytes], None, None]:
    """Bytes ``start`` to ``end`` of a remote file of ``size`` bytes, in pieces with their offsets.

    A server that knows no ranges sends the file from its beginning: the offsets say so.

    Raises:
        Cut: the answer ended early.
        MixtralError: the file has another size.
        httpx2.HTTPError: any other fault.
    """
    from huggingface_hub import constants, get_session
    from huggingface_hub.utils import hf_raise_for_status  # type: ignore[attr-defined]

    asked = headers()
    if (start, end) != (0, size):
        asked["Range"] = f"bytes={start}-{end - 1}"
    timeout = constants.HF_HUB_DOWNLOAD_TIMEOUT
    # The token is left out where the hub sends us on to another host: the client sees to it.
    with get_session().stream("GET", url, headers=asked, timeout=timeout) as response:
        hf_raise_for_status(response)
        at = _offset(response, start, size)
        for piece in response.iter_bytes():
            yield at, piece
            at += len(piece)
            if at >= end:
                return
    if at < end:
        raise Cut(f"{at:,} of {end:,} bytes came")


def headers() -> dict[str, str]:
    """Of every request: the login, and no compression, which has no ranges."""
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

    own: dict[str, str] = build_hf_headers(library_name="mixtral-mlx")
    return own | {"Accept-Encoding": "identity"}


def _offset(response: Response, start: int, size: int) -> int:
    """Where the body begins in the file: at ``start``, or at 0."""
    found = _RANGE.fullmatch(response.headers.get("Content-Range", ""))
    if response.status_code == 206 and found and int(found[1]) == start:
        offset, total = start, int(found[2])
    else:
        offset, total = 0, int(response.headers.get("Content-Length", size))
    if total != size and "Content-Encoding" not in response.headers:
        raise MixtralError(
            f"{response.url.host} holds {total:,} bytes where {size:,} are announced; "
            f"try again later, or without the proxy or mirror in between"
        )
    return offset


def _pause(error: Exception) -> float | None:
    """Seconds to wait before another try, at least; None: it would not help."""
    from httpx2 import LocalProtocolError, ProxyError, TransportError, UnsupportedProtocol
    from huggingface_hub.errors import HfHubHTTPError

    if isinstance(error, HfHubHTTPError):
        if error.response.status_code not in _PASSING:
            return None
        asked = asked_pause(error)
        return asked if asked <= LONGEST_WAIT else None
    lasting = isinstance(error, LocalProtocolError | ProxyError | UnsupportedProtocol)
    return 0.0 if isinstance(error, TransportError | Cut) and not lasting else None


def asked_pause(error: HfHubHTTPError) -> float:
    """The seconds that the server asks to wait; 0 where it says nothing."""
    from huggingface_hub.utils import parse_ratelimit_headers  # type: ignore[attr-defined]

    headers = error.response.headers
    asked = headers.get("Retry-After", "").strip()
    if asked.isdecimal() and len(asked) < 9:
        return float(asked)
    limit = parse_ratelimit_headers(headers) if error.response.status_code == 429 else None
    return float(limit.reset_in_seconds + 1) if limit and not limit.remaining else 0.0


def explained(error: Exception, name: str, revision: str | None) -> MixtralError:
    """A fault of the library's, in the words of this program."""
    from httpx2 import ConnectError, InvalidURL, UnsupportedProtocol
    from huggingface_hub import constants
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    if isinstance(error, OfflineModeIsEnabled):
        return MixtralError(f"HF_HUB_OFFLINE is set, unset it; {_in_cache(name, revision)}")
    if isinstance(error, HfHubHTTPError):
        return _refused(error, name, revision, f"{constants.ENDPOINT}/{name}")
    reason = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, ConnectError | InvalidURL | UnsupportedProtocol):
        return MixtralError(
            f"cannot reach {constants.ENDPOINT} ({reason}); check the network, then {_AGAIN}; "
            f"{_in_cache(name, revision)}"
        )
    return MixtralError(f"the connection broke off ({reason}); {_AGAIN}")


def _in_cache(name: str, revision: str | None) -> str:
    """What there is without a network."""
    folder = cached(name, revision)
    where = f"is in {folder}, which can be named instead" if folder else "is not there"
    return f"in the Hugging Face cache {name} {where}"


def _refused(error: HfHubHTTPError, name: str, revision: str | None, page: str) -> MixtralError:
    """What an answer with an error means."""
    from huggingface_hub.errors import (
        DisabledRepoError,
        GatedRepoError,
        RemoteEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    status = error.response.status_code
    if isinstance(error, GatedRepoError):
        return MixtralError(f"{name} wants its terms accepted: do that at {page}, then {_LOGIN}")
    if isinstance(error, DisabledRepoError):
        return MixtralError(f"{name} was disabled at Hugging Face; look for another copy")
    if isinstance(error, RevisionNotFoundError):
        return UsageError(f"{name} has no revision {revision}; see {page}/commits/main")
    if isinstance(error, RemoteEntryNotFoundError):
        return MixtralError(f"{name} changed in the meantime; {_AGAIN}")
    if status == 401 and "credentials" in error.response.headers.get("X-Error-Message", ""):
        return MixtralError(f"Hugging Face does not know the token in use; renew it and {_LOGIN}")
    if isinstance(error, RepositoryNotFoundError) or status in (401, 404):
        return UsageError(
            f"there is no repository {name} at Hugging Face, or it is private: check the name "
            f"at {page}; if it is private, {_LOGIN}"
        )
    if status == 403:
        return MixtralError(f"the token in use may not read {name}; see {page}, then {_LOGIN}")
    if status == 429:
        wait = asked_pause(error)
        when = f"in {wait:.0f} seconds" if wait else "later"
        return MixtralError(
            f"Hugging Face limits how often one may ask; {_AGAIN} if that is {when} "
            f"(who is logged in may ask more often: hf auth login)"
        )
    return MixtralError(f"Hugging Face has a fault just now (error {status}); later, {_AGAIN}")

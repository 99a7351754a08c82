"""Files by Xet, Hugging Face's storage in pieces, which comes faster than one connection can.

Protocol: https://huggingface.co/docs/xet
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from threading import Thread
from typing import Any

from convert.sources.connection import headers

STALL = 30.0
"""Seconds without a byte after which it is given up."""
_BEAT = 0.1


class Xet:
    """The quick way for a download's files, as long as it works."""

    def __init__(self) -> None:
        from huggingface_hub import constants

        self._works = not constants.HF_HUB_DISABLE_XET

    def fetch(self, url: str, path: Path, size: int, tell: Callable[[int], None]) -> None:
        """Write the file at ``url``, of ``size`` bytes, to ``path``, if the hub offers it by Xet.

        It is written from front to back. What is not, since Xet fails or the hub does not have
        the file there, is for the caller to fetch, who will see then what is wrong.

        Raises:
            httpx2.HTTPError: the hub refuses to tell about the file.
        """
        if not self._works:
            return
        from huggingface_hub import constants, get_hf_file_metadata

        timeout = constants.HF_HUB_ETAG_TIMEOUT
        found = get_hf_file_metadata(url, timeout=timeout, headers=headers()).xet_file_data
        if found is None:
            return
        try:
            _reconstruct(found, path, size, tell)
        except Exception:
            # Not there on this platform, blocked in this network, a fault of its servers: all
            # one, and it takes long to find out, so the next files do not try.
            self._works = False


def _reconstruct(found: Any, path: Path, size: int, tell: Callable[[int], None]) -> None:
    """Have ``path`` written, by threads of the library's own.

    The library waits for minutes where nothing answers; here somebody looks at the clock.
    """
    from hf_xet import XetFileInfo, XetSession  # type: ignore[import-untyped]

    session, route, failed = XetSession(), found.refresh_route, list[BaseException]()
    group = session.new_file_download_group(
        **_access(route), token_refresh_url=route, token_refresh_headers=headers()
    )

    def wait() -> None:
        try:
            group.wait_to_finish()
        except BaseException as error:
            failed.append(error)

    waiting = Thread(target=wait, daemon=True)
    last, since = -1, time.monotonic()
    try:
        group.start_download_file(XetFileInfo(found.file_hash, size), str(path))
        waiting.start()
        while waiting.is_alive():
            waiting.join(_BEAT)
            progress = group.progress()
            tell(min(progress.total_bytes_completed, size))
            came = progress.total_transfer_bytes_completed + progress.total_bytes_completed
            if came != last:
                last, since = came, time.monotonic()
            elif time.monotonic() - since > STALL:
                raise TimeoutError("nothing came")
    except BaseException:
        session.sigint_abort()
        raise
    if failed:
        raise failed[0]


def _access(route: str) -> dict[str, Any]:
    """Where the storage is, and a token for it; the hub's own is for the hub alone."""
    from huggingface_hub import constants, get_session

    answer = get_session().get(route, headers=headers(), timeout=constants.HF_HUB_ETAG_TIMEOUT)
    access = answer.raise_for_status().json()
    return {
        "endpoint": access["casUrl"],
        "token": access["accessToken"],
        "token_expiry_unix_secs": access["exp"],
    }

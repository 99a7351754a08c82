"""How reading experts from disk goes, for a person."""

from typing import TYPE_CHECKING

from mlx_mixtral.cli.sizes import size

if TYPE_CHECKING:
    from mlx_mixtral.experts.policy import Streamed


def brief(streamed: "Streamed") -> str:
    """For a status line: ``74% hits, 0.8 MB/token, disk 1.2 GB/s: at most 15 tok/s``."""
    parts = f"{streamed.hit_rate:.0%} hits, {size(streamed.bytes_a_token)}/token"
    if streamed.bound_tps is None:
        return parts
    return f"{parts}, disk {size(streamed.disk_rate)}/s: at most {streamed.bound_tps:.1f} tok/s"


def rows(streamed: "Streamed") -> list[tuple[str, str]]:
    """For a table."""
    ahead = f", {streamed.ahead_rate:.1%} of all because read ahead" if streamed.ahead_rate else ""
    found = [
        ("experts in memory", f"{streamed.hit_rate:.1%} of those asked for{ahead}"),
        ("read from disk", f"{size(streamed.bytes_a_token)} a token"),
    ]
    if streamed.bound_tps is not None:
        found += [
            ("", f"{streamed.wasted:.1%} of the reads were ahead, and for nothing"),
            ("disk", f"{size(streamed.disk_rate)}/s while reading"),
            ("waiting for it", f"{1000 * streamed.waiting_s:.0f} ms a token"),
            ("bound by it", f"{streamed.bound_tps:.1f} tok/s"),
        ]
    return found

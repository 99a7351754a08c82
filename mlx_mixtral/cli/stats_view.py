"""The figures of an answer, for a person."""

from typing import TYPE_CHECKING

from mlx_mixtral.cli.sizes import size
from mlx_mixtral.cli.streamed_view import rows

if TYPE_CHECKING:
    from mlx_mixtral.generation.text import Stats


def lines_of(stats: "Stats") -> list[str]:
    """A line a figure, their names in a column."""
    known = f", {stats.cached_tokens} known before" if stats.cached_tokens else ""
    found = [
        ("prompt", f"{stats.prompt_tokens} tokens{known}, {stats.prompt_tps:.3g} tok/s"),
        ("first token", f"after {stats.ttft_s:.2f} s"),
        ("answer", f"{stats.completion_tokens} tokens, {stats.generation_tps:.3g} tok/s"),
        ("memory", f"{size(stats.peak_memory_bytes)} of arrays at most"),
    ]
    if stats.drafted_tokens:
        found.append(("drafts", f"{stats.accepted_tokens} of {stats.drafted_tokens} came true"))
    found += rows(stats.streamed) if stats.streamed else []
    width = max(len(name) for name, _ in found)
    return [f"{name:<{width}}  {what}" for name, what in found]

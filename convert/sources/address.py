"""What a person types for a model to fetch or convert, told apart by its looks alone."""

from dataclasses import dataclass
from pathlib import Path

from convert.sources import hub
from convert.sources.magnet import is_magnet
from convert.sources.published import PUBLISHED, Published
from mlx_mixtral.errors import UsageError


@dataclass(frozen=True)
class Local:
    """A folder or file of weights."""

    path: Path


@dataclass(frozen=True)
class Hub:
    """A Hugging Face repository: ``owner/name``, at a revision."""

    name: str
    revision: str | None = None


@dataclass(frozen=True)
class Swarm:
    """A magnet link, or the path of a ``.torrent`` file."""

    link: str


@dataclass(frozen=True)
class Address:
    """Where a model is, and what is known of it beforehand if it is a published one."""

    place: Local | Hub | Swarm
    published: Published | None = None


def parse(text: str) -> Address:
    """Tell what ``text`` names: a catalog name, a link, something on disk, or a repository.

    Raises:
        UsageError: it is none of them.
    """
    if text in PUBLISHED:
        published = PUBLISHED[text]
        return Address(_remote(published.source), published)
    if is_magnet(text):
        return Address(Swarm(text))
    path = Path(text).expanduser()
    if path.suffix == ".torrent" and path.is_file():
        return Address(Swarm(str(path)))
    if text.strip() and path.exists():
        return Address(Local(path))
    if repository := hub.parse(text):
        return Address(Hub(*repository))
    raise UsageError(
        f"{text!r} is neither a folder or file here, nor owner/name on Hugging Face, nor a magnet "
        f"link, nor one of {', '.join(PUBLISHED)}"
    )


def _remote(source: str) -> Hub | Swarm:
    return Swarm(source) if is_magnet(source) else Hub(source)

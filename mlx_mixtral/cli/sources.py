"""What ``pull`` and ``convert`` share: from what a person typed to files on the disk."""

import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated
from urllib.parse import parse_qs, urlsplit

import typer

from mlx_mixtral.cli.progress import kept_on_interrupt, progress_bar
from mlx_mixtral.cli.sizes import size

if TYPE_CHECKING:
    from convert.sources.address import Address, Hub, Swarm
    from convert.sources.hub import Repository
    from convert.sources.magnet import Settings

FileOption = Annotated[
    str | None, typer.Option("--file", help="Which of several files or forms, by name or pattern.")
]
ListenOption = Annotated[
    str | None, typer.Option(help="BitTorrent: the address to listen on, such as 0.0.0.0:6881.")
]
UploadOption = Annotated[
    int | None, typer.Option(help="BitTorrent: kilobytes a second given to others, at most.")
]
PeerOption = Annotated[
    list[str] | None, typer.Option("--peer", help="BitTorrent: host:port to fetch from.")
]
PrivateOption = Annotated[
    bool,
    typer.Option("--no-discovery", help="BitTorrent: only trackers and --peer, no DHT or UPnP."),
]


@dataclass(frozen=True)
class Fetched:
    """A model on the disk, and what to write down of where it comes from."""

    path: Path
    origin: str


def fetch(
    place: "Hub | Swarm",
    target: Path | None,
    homes: Sequence[Path],
    file: str | None,
    settings: "Settings",
) -> Fetched:
    """Download what ``place`` names to ``target``, or to a folder of its own in a home.

    Without a target, a model that is in any of ``homes`` is not fetched again, and one that
    is in none goes to the first.
    """
    from convert.sources import hub
    from convert.sources.address import Hub

    if isinstance(place, Hub):
        repository = hub.look(place.name, place.revision, file)
        origin, name = repository.origin, repository.name.rpartition("/")[2]
    else:
        origin, name = _identity(place.link)
    targets = [target] if target else [home / name for home in homes]
    if there := already(origin, *targets):
        return Fetched(there, origin)
    if isinstance(place, Hub):
        tell(describe(repository))
        _fetch_repository(repository, targets[0])
    else:
        _fetch_torrent(place.link, targets[0], origin, settings)
    return Fetched(targets[0], origin)


def announce(address: "Address") -> None:
    """Say what a published model is, its licence and its size, before anything starts."""
    if published := address.published:
        tell(f"{published.name}: {published.description}")
        tell(f"licence {published.licence}, {size(published.size)} to download")


def describe(repository: "Repository") -> str:
    """The repository's name, licence and size, in a line."""
    licence = repository.licence or "unknown"
    return f"{repository.name}: licence {licence}, {size(repository.size)} to download"


def already(origin: str, *folders: Path) -> Path | None:
    """The first of ``folders`` that holds what was fetched from ``origin``."""
    from convert import manifest

    for folder in folders:
        if folder.is_dir() and manifest.read(folder).get("source") == origin:
            return folder
    return None


def tell(line: str) -> None:
    """A line beside the result, on standard error."""
    from mlx_mixtral.cli.printable import printable

    print(printable(line), file=sys.stderr)


def _fetch_repository(repository: "Repository", target: Path) -> None:
    from convert import manifest
    from convert.sources import hub
    from convert.target import partial

    with kept_on_interrupt(target), partial(target) as folder:
        with progress_bar(f"fetching {repository.name}") as progress:
            hub.download(repository, folder, progress)
        known = {f.local: f.sha256 for f in repository.files if f.sha256}
        about = {"source": repository.origin, "licence": repository.licence}
        manifest.write(folder, about, known)


def give(place: "Swarm", folder: Path, settings: "Settings") -> None:
    """Give a model that was fetched to others, until Ctrl-C."""
    from convert.sources import magnet

    tell("giving to others; Ctrl-C ends it")
    torrent = magnet.look(place.link, settings)
    with progress_bar(f"giving {folder.name}") as progress:
        magnet.seed(torrent, folder, settings, progress)


def _identity(link: str) -> tuple[str, str]:
    """What manifests name a torrent, and a name for its folder; nothing is fetched for it."""
    from convert.sources import magnet
    from convert.sources.torrent import read_torrent

    if magnet.is_magnet(link):
        fields = parse_qs(urlsplit(magnet.repair(link)).query)
        code, names = fields["xt"][0].rpartition(":")[2].lower(), fields.get("dn", [])
    else:
        torrent = read_torrent(Path(link))
        code, names = torrent.info_hash, [torrent.name]
    name = names[0] if names else ""
    plain = re.fullmatch(r"[\w][\w.+ -]{0,99}", name)
    return f"magnet:?xt=urn:btih:{code}", name if plain else code


def _fetch_torrent(link: str, target: Path, origin: str, settings: "Settings") -> None:
    from convert import manifest
    from convert.sources import magnet
    from convert.target import partial

    with kept_on_interrupt(target), partial(target) as folder:
        with progress_bar(f"fetching {target.name}") as progress:
            magnet.download(link, folder, settings, progress)
        manifest.write(folder, {"source": origin}, {})


def swarm_settings(
    listen: str | None, upload_limit: int | None, peers: list[str] | None, private: bool
) -> "Settings":
    """The options of BitTorrent as ``convert.sources.magnet`` wants them."""
    from convert.sources.magnet import Settings

    settings = Settings(peers=tuple(peers or ()), discover=not private)
    if listen is not None:
        settings = replace(settings, listen=listen)
    if upload_limit is not None:
        settings = replace(settings, upload_limit=upload_limit * 1000)
    return settings

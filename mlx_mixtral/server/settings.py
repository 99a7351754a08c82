"""How the server is run: who may talk to it, and how much of everything a request may take."""

from __future__ import annotations

import ipaddress
import re
import socket
from dataclasses import dataclass, field

from mlx_mixtral.errors import UsageError

LOOPBACK = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True)
class Limits:
    """What a connection may come to; ``schema.py`` has the limits of what requests ask for.

    Attributes:
        body_bytes, header_bytes, headers: of a request.
        connections: open at once.
        header_seconds, body_seconds: for a client to send what it began to send.
        write_seconds: for a client to take what waits for it.
        idle_seconds: that a connection stays open between two requests.
        keep_alive_seconds: of silence in a stream before a comment is sent.
        drain_seconds: for the answers under way when the server is told to stop.
    """

    body_bytes: int = 4 << 20
    header_bytes: int = 32 << 10
    headers: int = 100
    connections: int = 512
    header_seconds: float = 15
    body_seconds: float = 60
    write_seconds: float = 30
    idle_seconds: float = 30
    keep_alive_seconds: float = 5
    drain_seconds: float = 60


@dataclass(frozen=True)
class Settings:
    """One server.

    Attributes:
        host, port: where it listens; port 0 takes a free one.
        api_key: what clients have to show, or None.
        open_to_all: another address than the loopback without a key is meant.
        hosts: names beside its own that clients may call it by.
        origins: pages of other servers that may use it from a browser (CORS).
        name: of the model, for clients; ``aliases`` (with * for anything) mean it too.
        log_prompts: write prompts and answers into the log.
        speculates: what an answer repeats is drafted (``generation/speculative.py``).

    Raises:
        UsageError: another address than the loopback with neither a key nor ``open_to_all``;
            an empty key; an origin that is none.
    """

    host: str = "127.0.0.1"
    port: int = 8080
    api_key: str | None = None
    open_to_all: bool = False
    hosts: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()
    name: str | None = None
    aliases: tuple[str, ...] = ()
    log_prompts: bool = False
    speculates: bool = True
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise UsageError(f"port {self.port} is none; there are 0 to 65535")
        if self.api_key is not None and not (self.api_key.isascii() and self.api_key.isprintable()):
            raise UsageError("the API key has to be of printable ASCII characters")
        if self.api_key is not None and len(self.api_key) < 8:
            raise UsageError("the API key is too short: give at least 8 characters")
        if not (self.on_loopback or self.api_key or self.open_to_all):
            raise UsageError(
                f"{self.host} can be reached from elsewhere: set an API key (MIXTRAL_MLX_API_KEY), "
                "or say --open if anybody there may use the model"
            )
        for origin in self.origins:
            if not re.fullmatch(r"[a-z][a-z0-9+.-]*://[^/*\s]+", origin):
                raise UsageError(
                    f"origin {origin!r} is not of the form https://host[:port] (or app://name)"
                )

    @property
    def on_loopback(self) -> bool:
        """Whether only this machine reaches the server."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"

    def may_be_called(self, host: str) -> bool:
        """Whether ``host``, of a Host header, is a name of this server.

        A page of another site that had its name point here (DNS rebinding) sends that name.
        An address cannot be pointed elsewhere, so any will do where others may connect.
        """
        name = host_name(host)
        if name is None:
            return False
        if name in (*LOOPBACK, self.host.lower(), *(known.lower() for known in self.hosts)):
            return True
        if self.on_loopback:
            return False
        own = socket.gethostname().lower()
        return _is_address(name) or name in (own, f"{own.removesuffix('.local')}.local")


def host_name(host: str) -> str | None:
    """``localhost`` of ``localhost:8080``, ``::1`` of ``[::1]:8080``; None of what is neither."""
    if host.startswith("["):
        name, bracket, port = host[1:].partition("]")
        usable = bracket and _is_address(name) and (not port or port.startswith(":"))
        port = port[1:]
    else:
        name, _, port = host.partition(":")
        usable = bool(name)
    return name.lower().removesuffix(".") if usable and (not port or port.isdecimal()) else None


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True

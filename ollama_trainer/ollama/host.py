"""OLLAMA_HOST, read as Ollama's own client reads it (its envconfig/config.go)."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass

from ollama_trainer.errors import PublishError

_DEFAULT_PORT = 11434
_SCHEME_PORTS = {"http": 80, "https": 443}
_HOST_NAME = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_.-]*[A-Za-z0-9_])?\.?")


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where Ollama is."""

    #: Scheme, host, port and perhaps a path, without a final slash.
    url: str
    #: Whether it is on this machine, where no proxy may come between.
    loopback: bool


def resolve(value: str) -> Endpoint:
    """The address to connect to.

    Takes host, host:port, :port, scheme://host, an IPv6 address with or without brackets, and a
    path after any of them. An address to listen on (0.0.0.0, ::) becomes the loopback one.

    Raises:
        PublishError: it is none of these.
    """
    text = value.strip().strip("\"'")
    scheme, mark, rest = text.rpartition("://")
    port = _SCHEME_PORTS.get(scheme, _DEFAULT_PORT)
    if not mark:
        scheme = "http"
        if rest == "ollama.com":
            scheme, port = "https", 443
    elif scheme not in _SCHEME_PORTS:
        raise _unreadable(value)
    address, _, path = rest.partition("/")
    host, given_port = _split(address)
    if given_port:
        if not re.fullmatch(r"[0-9]{1,5}", given_port) or int(given_port) > 65535:
            raise _unreadable(value)
        port = int(given_port)
    try:
        ip = ipaddress.ip_address(host or "127.0.0.1")
    except ValueError:
        if not _HOST_NAME.fullmatch(host):
            raise _unreadable(value) from None
        loopback = host.lower().rstrip(".") == "localhost"
    else:
        if ip.is_unspecified:
            ip = ipaddress.ip_address("127.0.0.1" if ip.version == 4 else "::1")
        host, loopback = (str(ip) if ip.version == 4 else f"[{ip}]"), ip.is_loopback
    tail = "/" + path.strip("/") if path.strip("/") else ""
    return Endpoint(f"{scheme}://{host}:{port}{tail}", loopback)


def _split(address: str) -> tuple[str, str]:
    """Host and port, either of them perhaps empty; an IPv6 address without its brackets."""
    bracketed = re.fullmatch(r"\[(.*)\](?::(.*))?", address)
    if bracketed:
        return bracketed[1], bracketed[2] or ""
    if address.count(":") > 1:
        return address, ""
    host, _, port = address.partition(":")
    return host, port


def _unreadable(value: str) -> PublishError:
    return PublishError(
        # What stands before an @ may be a password.
        f"OLLAMA_HOST is {re.sub('[^/]*@', '…@', value)[:200]!r}, which is no address",
        "Write it as host, host:port or http(s)://host:port, for instance 127.0.0.1:11434.",
    )

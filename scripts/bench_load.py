"""A load generator that takes little of the cores which it shares with the server.

An HTTP client's own time would hide what one server does more than another: here requests are
ready-made bytes, connections are kept, and a reply is read by its Content-Length.
"""

from __future__ import annotations

import json
import selectors
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any, Self

#: Host and port.
Address = tuple[str, int]
_TIMEOUT_S = 30.0


class Connection:
    """A kept connection with one request at a time on it. Used as a context, which closes it."""

    def __init__(self, address: Address) -> None:
        self.socket = socket.create_connection(address, _TIMEOUT_S)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._reply = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, request: bytes) -> None:
        self._reply = b""
        self.socket.sendall(request)

    def receive(self) -> bytes | None:
        """Reads what is there; returns the reply's body once it is whole.

        Raises:
            RuntimeError: the reply is no success.
        """
        chunk = self.socket.recv(1 << 18)
        self._reply += chunk
        head, end, body = self._reply.partition(b"\r\n\r\n")
        if not chunk or (end and not head.startswith(b"HTTP/1.1 200 ")):
            raise RuntimeError(f"no success: {self._reply[:2000]!r}")
        if not end:
            return None
        _, _, length = head.partition(b"Content-Length: ")
        return body if len(body) == int(length.partition(b"\r\n")[0]) else None

    def ask(self, request: bytes) -> bytes:
        """Sends a request and waits for the reply; returns its body."""
        self.send(request)
        while (body := self.receive()) is None:
            pass
        return body


def get(path: str) -> bytes:
    """The bytes of a request."""
    return f"GET {path} HTTP/1.1\r\nHost: localhost\r\nAccept: */*\r\n\r\n".encode()


def post(path: str, body: object) -> bytes:
    """The bytes of a request with JSON."""
    content = json.dumps(body).encode()
    head = (
        f"POST {path} HTTP/1.1\r\nHost: localhost\r\nAccept: */*\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
    )
    return head.encode() + content


def ask(address: Address, request: bytes) -> Any:
    """One request on a connection of its own; returns the JSON of the reply."""
    with Connection(address) as connection:
        return json.loads(connection.ask(request))


def latencies(address: Address, requests: Iterator[bytes], n: int, pace_s: float) -> list[float]:
    """Milliseconds of each of `n` requests on one connection, one after another.

    Args:
        pace_s: seconds from one request to the next, so that none waits behind another.
    """
    taken = []
    with Connection(address) as connection:
        due = time.perf_counter()
        for _ in range(n):
            request = next(requests)
            time.sleep(max(0.0, due - time.perf_counter()))
            started = time.perf_counter()
            connection.ask(request)
            ended = time.perf_counter()
            taken.append(1000 * (ended - started))
            due = max(due + pace_s, ended)
    return taken


def throughput(
    address: Address, requests: Iterator[bytes], seconds: float, n_connections: int
) -> float:
    """Requests a second on so many connections, each of which always waits for a reply."""
    n_done = 0
    with ExitStack() as stack, selectors.DefaultSelector() as selector:
        for _ in range(n_connections):
            connection = stack.enter_context(Connection(address))
            selector.register(connection.socket, selectors.EVENT_READ, connection)
            connection.send(next(requests))
        started = time.perf_counter()
        while (taken := time.perf_counter() - started) < seconds:
            for key, _ in selector.select(_TIMEOUT_S):
                if key.data.receive() is not None:
                    n_done += 1
                    key.data.send(next(requests))
        _end(selector)
    return n_done / taken


def _end(selector: selectors.BaseSelector) -> None:
    """Waits for the replies that are still to come: the next measurement starts in quiet."""
    while selector.get_map():
        for key, _ in selector.select(_TIMEOUT_S):
            if key.data.receive() is not None:
                selector.unregister(key.fileobj)

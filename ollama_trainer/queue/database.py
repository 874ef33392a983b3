"""SQLite as this program uses it: durable, migrated, its statements named in .sql files."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import shutil
import sqlite3
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from importlib import resources
from pathlib import Path
from typing import Concatenate, ParamSpec, TypeVar

from ollama_trainer.errors import ServerError, StoreUnavailable
from ollama_trainer.workspace import BALLAST, atomic_path

_log = logging.getLogger(__name__)
_P = ParamSpec("_P")
_T = TypeVar("_T")
#: Seconds between two looks at whether there is room for the ballast again.
_LOOK_S = 30.0
_NAME = re.compile(r"^-- name: (\w+)$", re.MULTILINE)


def load_queries(file_name: str = "queries.sql") -> dict[str, str]:
    """Name -> statement, of a file in which each statement follows a line `-- name: <name>`."""
    text = resources.files(__package__).joinpath(file_name).read_text(encoding="utf-8")
    _, *parts = _NAME.split(text)
    return {name: sql.strip() for name, sql in zip(parts[::2], parts[1::2], strict=True)}


def connect(path: Path, *, read_only: bool = False) -> sqlite3.Connection:
    """Opens the database. Transactions are begun by hand; a commit has reached the disk.

    The connection may be used from any thread, by one at a time.
    """
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=30)
    connection.row_factory = sqlite3.Row
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA foreign_keys = ON")
    if read_only:
        connection.execute("PRAGMA query_only = ON")
    return connection


@contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[sqlite3.Connection]:
    """One writing transaction: all of it is stored, or nothing."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield connection
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


class Ballast:
    """A file that only takes room, and gives it back when the disk is full.

    On a full disk nothing could be stored any more, not even why a run failed. A few megabytes
    hold the rows of thousands of runs.
    """

    def __init__(self, path: Path, n_bytes: int = 4 << 20) -> None:
        self._path = path
        self._n_bytes = n_bytes
        self._next_look = 0.0

    def put(self) -> None:
        """Takes the room, if it is not taken and there is plenty."""
        if time.monotonic() < self._next_look or self._path.exists():
            return
        self._next_look = time.monotonic() + _LOOK_S
        with suppress(OSError):
            if shutil.disk_usage(self._path.parent).free > 16 * self._n_bytes:
                with atomic_path(self._path) as partial:
                    # Random, so that no file system packs it into nothing.
                    partial.write_bytes(os.urandom(self._n_bytes))

    def drop(self) -> bool:
        """Gives the room back if the disk needs it; returns whether it did."""
        try:
            if shutil.disk_usage(self._path.parent).free > self._n_bytes:
                return False
            self._path.unlink()
        except OSError:
            return False
        _log.warning("the disk is full: %s was removed so that runs can be stored", self._path)
        return True


@contextmanager
def _unavailable(what: str) -> Iterator[None]:
    """Whatever the disk or another program does to the database may pass."""
    try:
        yield
    except sqlite3.OperationalError as error:
        raise StoreUnavailable(
            f"the database of runs cannot be {what}: {error}",
            "Make sure that the disk of the data directory works and has room, then try again.",
        ) from error


class Database:
    """One writer, which has a thread of its own, and one reader on the caller's.

    Raises:
        ServerError: on opening, a newer program wrote the database.
    """

    def __init__(self, path: Path) -> None:
        self.sql = load_queries()
        self._path = path
        self._writer = connect(path)
        migrate(self._writer)
        self._reader = connect(path, read_only=True)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="runs-writer")
        self._ballast = Ballast(path.parent / BALLAST)
        self._ballast.put()

    def close(self) -> None:
        self._thread.shutdown()
        self._reader.close()
        self._writer.close()

    def rows(self, query: str, **values: object) -> list[sqlite3.Row]:
        """What a named query reads, on the caller's thread.

        Raises:
            StoreUnavailable: nothing can be read now.
        """
        with _unavailable("read"):
            return self._reader.execute(self.sql[query], values).fetchall()

    def row(self, query: str, **values: object) -> sqlite3.Row | None:
        """The first row of `rows`."""
        with _unavailable("read"):
            found: sqlite3.Row | None = self._reader.execute(self.sql[query], values).fetchone()
        return found

    async def search(self, query: str, **values: object) -> list[sqlite3.Row]:
        """As `rows`, for what goes through many: requests are answered meanwhile."""

        def search() -> list[sqlite3.Row]:
            with closing(connect(self._path, read_only=True)) as connection:
                return connection.execute(self.sql[query], values).fetchall()

        return await asyncio.to_thread(search)

    async def write(
        self,
        step: Callable[Concatenate[sqlite3.Connection, _P], _T],
        *args: _P.args,
        **kwargs: _P.kwargs,
    ) -> _T:
        """Runs `step` in one transaction on the writer's thread; the disk has it on return.

        Raises:
            StoreUnavailable: nothing can be written now; nothing was.
        """

        def write() -> _T:
            try:
                return once()
            except sqlite3.OperationalError:
                # Full, over quota, or no room for the shared memory: words differ.
                if self._ballast.drop():
                    return once()
                raise

        def once() -> _T:
            with transaction(self._writer) as connection:
                done = step(connection, *args, **kwargs)
            self._ballast.put()
            return done

        with _unavailable("written"):
            return await asyncio.get_running_loop().run_in_executor(self._thread, write)


def migrations() -> list[tuple[int, str]]:
    """(number, SQL) of each migration, in order; the numbers run from 1 without a gap."""
    folder = resources.files(__package__).joinpath("migrations")
    files = sorted((f for f in folder.iterdir() if f.name.endswith(".sql")), key=lambda f: f.name)
    return [(int(file.name[:4]), file.read_text(encoding="utf-8")) for file in files]


def migrate(connection: sqlite3.Connection) -> int:
    """Brings the schema to the newest version, each step in a transaction; returns the version.

    Raises:
        ServerError: a newer program wrote this database.
    """
    known = migrations()
    version = int(connection.execute("PRAGMA user_version").fetchone()[0])
    if version > len(known):
        raise ServerError(
            f"the database has version {version}, this program knows versions up to {len(known)}",
            "Start the newer ollama-trainer that wrote it, or choose another data directory.",
        )
    for number, sql in known[version:]:
        with transaction(connection):
            for statement in split_statements(sql):
                connection.execute(statement)
            connection.execute(f"PRAGMA user_version = {number:d}")
    return len(known)


def split_statements(sql: str) -> Iterator[str]:
    """Splits a script; `executescript` would commit the transaction that it runs in."""
    statement = ""
    for line in sql.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""

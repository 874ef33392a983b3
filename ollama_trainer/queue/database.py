"""SQLite as this program uses it: durable, migrated, its statements named in .sql files."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import resources
from pathlib import Path

from ollama_trainer.errors import ServerError

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
            for statement in _statements(sql):
                connection.execute(statement)
            connection.execute(f"PRAGMA user_version = {number:d}")
    return len(known)


def _statements(sql: str) -> Iterator[str]:
    """Splits a script; `executescript` would commit the transaction that it runs in."""
    statement = ""
    for line in sql.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""

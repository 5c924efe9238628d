"""Connections to a search's database: how they are opened, what an outage is, and locks that hold on all machines."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import sqlite3
import time
from collections.abc import Iterator
from typing import Any

import optuna
import sqlalchemy

# Whoever holds the lock proposes or ends a trial, which takes a second, and more only for the first; else it hangs.
_LONGEST_HOLD = 60.0
_LONGEST_WAIT = 600.0
# One file write for each commit, and none that waits for the disk: what a killed process wrote is there all the same.
# A machine that loses power may lose the last trials, never the file.
_PRAGMAS = ("PRAGMA journal_mode=WAL", "PRAGMA synchronous=NORMAL")
# A server that is gone without a word would else be waited for a quarter of an hour.
_KEEPALIVE = {"connect_timeout": 10, "keepalives": 1, "keepalives_idle": 30, "keepalives_interval": 10,
              "keepalives_count": 3, "tcp_user_timeout": 60_000}  # fmt: skip


class Opened:
    """A storage of Optuna, its engine if it has one, and locks that last until the process lets go of them or ends.

    Args:
        url: of an SQLite or PostgreSQL database; of another kind, or a storage of Optuna, for one process only.

    Raises:
        ConnectionError: the database does not answer, or turns this user away.
        ImportError: the driver is not installed.
    """

    def __init__(self, url: Any) -> None:
        self.engine: Any = None
        self.shared = False
        self._lock_file: str | None = None
        if not isinstance(url, str):
            self.storage = optuna.storages.get_storage(url)
            return
        parsed = sqlalchemy.make_url(url)
        kind = parsed.get_backend_name()
        arguments: dict[str, Any] = {}
        if kind == "sqlite":
            arguments = {"timeout": 60}
            if parsed.database and parsed.database != ":memory:":
                self.shared, self._lock_file = True, parsed.database + ".lock"
        elif kind == "postgresql":
            parsed = _with_driver(parsed)
            arguments = _KEEPALIVE if parsed.get_driver_name().startswith("psycopg") else {}
            self.shared = True
        text = parsed.render_as_string(hide_password=False)
        self.engine = sqlalchemy.create_engine(text, connect_args=arguments, poolclass=sqlalchemy.pool.NullPool)
        try:
            # Two that make the tables at the same moment would trip over each other.
            with self.lock("keras_trainkit tables"):
                made = optuna.storages.RDBStorage(text, engine_kwargs={"connect_args": arguments})
        except Exception as error:
            if kind != "sqlite" and is_outage(error):
                raise ConnectionError(
                    f"the database {parsed.render_as_string()} cannot be used: {first_line(error)}"
                ) from error
            raise
        if kind == "sqlite":
            sqlalchemy.event.listen(made.engine, "connect", _write_ahead)
            made.engine.dispose()
        self.engine = made.engine
        self.storage = optuna.storages.get_storage(made)

    @contextlib.contextmanager
    def lock(self, name: str) -> Iterator[Lock]:
        """Nobody else on any machine is in a lock of the same name; a process that dies lets go of it.

        Raises:
            TimeoutError: another process held it all the time.
        """
        if self._lock_file is not None:
            with _file_lock(self._lock_file):
                yield Lock(None)
        elif self.shared:
            with self.engine.connect() as connection, connection.begin():
                # The server ends a holder that hangs, so that the others can go on.
                connection.execute(
                    sqlalchemy.text(f"SET LOCAL idle_in_transaction_session_timeout = {_LONGEST_HOLD * 1000:.0f}")
                )
                connection.execute(sqlalchemy.text("SELECT pg_advisory_xact_lock(:key)"), {"key": _key(name)})
                yield Lock(connection)
        else:
            yield Lock(None)

    def now(self) -> float:
        """Seconds by the database's clock: those of machines differ."""
        if self.has_outages:
            with self.engine.connect() as connection:
                return float(
                    connection.execute(sqlalchemy.text("SELECT extract(epoch FROM clock_timestamp())")).scalar()
                )
        return time.time()

    @property
    def has_outages(self) -> bool:
        """Whether there is a way to it that may fail."""
        return self._lock_file is None and self.shared

    def forget_connections(self) -> None:
        """Drops connections that an outage may have broken."""
        if self.engine is not None:
            self.engine.dispose()


class Lock:
    """A lock that is held."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection

    def check(self) -> None:
        """Fails as an outage where the connection that holds the lock is gone, and with it the lock."""
        if self._connection is not None:
            self._connection.execute(sqlalchemy.text("SELECT 1"))


def is_outage(error: BaseException | None) -> bool:
    """Whether an error comes from the way to the database, and trying again may help."""
    while error is not None:
        if isinstance(error, sqlalchemy.exc.OperationalError | sqlalchemy.exc.InterfaceError):
            busy = ("locked", "busy")
            return not isinstance(error.orig, sqlite3.Error) or any(word in str(error.orig) for word in busy)
        if isinstance(error, sqlalchemy.exc.DBAPIError) and error.connection_invalidated:
            return True
        if isinstance(error, sqlalchemy.exc.PendingRollbackError | TimeoutError):
            return True
        error = error.__cause__ or error.__context__
    return False


def first_line(error: BaseException) -> str:
    """What the driver said, without the statement and without Optuna's words around it."""
    found = error
    while (inner := getattr(found, "orig", None) or found.__cause__) is not None:
        found = inner
    return str(found).strip().splitlines()[0] if str(found).strip() else type(found).__name__


def _with_driver(url: sqlalchemy.URL) -> sqlalchemy.URL:
    if url.drivername == "postgresql":
        url = url.set(drivername="postgresql+psycopg")
    if url.drivername == "postgresql+psycopg" and importlib.util.find_spec("psycopg") is None:
        raise ImportError(
            f"`storage` needs psycopg, the extra `postgresql`. Received: storage={url.render_as_string()!r}"
        )
    return url


def _write_ahead(connection: Any, _: Any) -> None:
    for pragma in _PRAGMAS:
        connection.execute(pragma)


@contextlib.contextmanager
def _file_lock(path: str) -> Iterator[None]:
    # SQLite's own locking of an empty file beside the database: it works where SQLite does, and ends with its process.
    connection = sqlite3.connect(path, timeout=_LONGEST_WAIT, isolation_level=None, check_same_thread=False)
    try:
        try:
            connection.execute("BEGIN EXCLUSIVE")
        except sqlite3.OperationalError as error:
            raise TimeoutError(f"another process held {path} for {_LONGEST_WAIT:g} s: {error}") from error
        yield
    finally:
        connection.close()


def _key(name: str) -> int:
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big", signed=True)

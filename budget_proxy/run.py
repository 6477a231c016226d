"""Run the proxy in the foreground, with its signals: `serve`, and `demo` with the sandbox.

SIGHUP reloads, SIGTERM and SIGINT stop with grace, a second one ends at once; SIGUSR2 replaces the
workers, where there are several.
"""

from __future__ import annotations

import asyncio
import contextlib
import shlex
import signal
import sys
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any, Protocol

from budget_proxy.app import App
from budget_proxy.call_log import standard_output
from budget_proxy.core.house import House
from budget_proxy.ledgers import LedgerDownError, LedgerRefusedError
from budget_proxy.listener import slow_parser
from budget_proxy.supervisor import StartError, Supervisor

OK, FAILED, WRONG = 0, 1, 2
SWITCH_S = 0.001
"""How long the loop may keep the interpreter from a thread that wants it; by default 5 ms. The
ledger's has the write lock then, which others wait for."""
DEMO_BALANCE = "5 USD"
DEMO_KEY = "demo-key-0000"
OTHER_PORTS = (
    "Ports in use? Choose others: "
    "BUDGET_PROXY_LISTEN=127.0.0.1:18080 BUDGET_PROXY_ADMIN=127.0.0.1:19090 budget-proxy demo"
)


def serve(policy: Path, load: Callable[[Path], House], workers: int) -> int:
    """Serve until told to stop; the exit code. Raises PolicyError."""
    if slow_parser():
        print(
            "aiohttp's C parser is missing (unset AIOHTTP_NO_EXTENSIONS, or install a wheel): its "
            "Python one is slower and has had more security holes",
            file=sys.stderr,
        )
        return WRONG
    if workers > 1:
        try:
            supervisor = Supervisor(policy, load, workers)
        except OSError as error:
            print(
                f"cannot start: no folder for copies of the policy: {error}. Remedy: name a folder "
                "that can be written in TMPDIR.",
                file=sys.stderr,
            )
            return WRONG
        return on_a_loop(_supervise(supervisor))
    app = App(lambda: load(policy), log=standard_output())
    return on_a_loop(_serve(app, app))


def on_a_loop(main: Coroutine[Any, Any, int]) -> int:
    """Run it on the fastest event loop there is."""
    sys.setswitchinterval(SWITCH_S)
    with asyncio.Runner(loop_factory=_fastest_loop()) as runner:
        return runner.run(main)


def _fastest_loop() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """What makes it; None: the standard library's."""
    try:
        import uvloop  # noqa: PLC0415 - an extra
    except ImportError:
        return None
    return uvloop.new_event_loop


class _Running(Protocol):
    """What is started, and stopped by signals."""

    async def start(self) -> None:
        """Begin to serve."""

    async def stop(self, grace_s: float | None = None) -> None:
        """Let calls finish, and stop."""


async def _supervise(supervisor: Supervisor) -> int:
    def roll() -> None:
        if supervisor.app.state == "serving":
            rolling.append(loop.create_task(supervisor.roll()))

    rolling: list[asyncio.Task[None]] = []
    loop = asyncio.get_running_loop()
    return await _serve(supervisor.app, supervisor, replace=roll)


def _nothing_to_replace() -> None:
    print(
        "SIGUSR2: a single process has no workers to replace; restart it, or serve with --workers",
        file=sys.stderr,
        flush=True,
    )


async def _serve(
    app: App,
    running: _Running,
    announce: Callable[[], None] = lambda: None,
    replace: Callable[[], None] = _nothing_to_replace,
) -> int:
    stopping, ending = _signals(app)
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR2, replace)
    try:
        await running.start()
    except LedgerRefusedError as error:
        print(error, file=sys.stderr)
        await running.stop(0)
        return WRONG
    except (OSError, LedgerDownError, StartError) as error:
        await running.stop(0)
        if stopping.is_set() and isinstance(error, StartError):
            # Who stops a service tells all of its processes: a worker may be gone before we are.
            print("stopped before it was ready: it was told to stop", file=sys.stderr)
            return OK
        print(f"cannot start: {error}", file=sys.stderr)
        return FAILED
    announce()
    _say_ready(app)
    await stopping.wait()
    print("stopping: calls may finish; a second signal ends at once", file=sys.stderr, flush=True)
    stop = asyncio.create_task(running.stop())
    end = asyncio.create_task(ending.wait())
    await asyncio.wait((stop, end), return_when=asyncio.FIRST_COMPLETED)
    end.cancel()
    if not stop.done():
        stop.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await stop
        await running.stop(0)
    return OK


def _say_ready(app: App) -> None:
    proxy, admin = _url(app.address), _url(app.admin_address)
    where = f"metrics at {admin}/metrics, ledger {app.ledger_name}"
    print(f"budget-proxy serves {proxy}, {where}", file=sys.stderr, flush=True)


def _url(address: tuple[str, int]) -> str:
    host, port = address
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _signals(app: App) -> tuple[asyncio.Event, asyncio.Event]:
    """What SIGTERM and SIGINT set: the first one stops, the second one ends."""
    loop = asyncio.get_running_loop()
    stopping, ending, changed = asyncio.Event(), asyncio.Event(), asyncio.Event()
    reloading: set[asyncio.Task[None]] = set()

    def stop() -> None:
        (ending if stopping.is_set() else stopping).set()

    def reload() -> None:
        changed.set()
        if not reloading:
            reloading.add(loop.create_task(read_again()))

    async def read_again() -> None:
        """However often we were told meanwhile, once."""
        try:
            while changed.is_set() and app.state == "serving":
                changed.clear()
                await app.reload()
        finally:
            changed.clear()
            reloading.clear()

    loop.add_signal_handler(signal.SIGTERM, stop)
    loop.add_signal_handler(signal.SIGINT, stop)
    loop.add_signal_handler(signal.SIGHUP, reload)
    return stopping, ending


def demo(load: Callable[[str], House]) -> int:
    """The proxy in front of the sandbox, until Ctrl-C. `load` reads the policy for a sandbox at
    this URL. Raises PolicyError."""
    return on_a_loop(_demo(load))


async def _demo(load: Callable[[str], House]) -> int:
    try:
        async with _sandbox() as url:
            app = App(lambda: load(url))
            code = await _serve(app, app, lambda: print(demo_text(app, url), flush=True))
            if code == FAILED:
                print(OTHER_PORTS, file=sys.stderr)
            return code
    except OSError as error:
        print(f"cannot start the sandbox: {error}", file=sys.stderr)
        return FAILED


@contextlib.asynccontextmanager
async def _sandbox() -> AsyncIterator[str]:
    """The sandbox on a free port; its URL."""
    from budget_proxy import sandbox  # noqa: PLC0415 - loads the price data

    ready: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    settings = sandbox.Settings(balance_nanos=sandbox.parse_amount(DEMO_BALANCE))
    task = asyncio.create_task(sandbox.run(settings, "127.0.0.1", 0, ready.set_result))
    await asyncio.wait((task, ready), return_when=asyncio.FIRST_COMPLETED)
    try:
        if not ready.done():
            await task  # raises what kept it from listening
        yield ready.result()
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


def _this_command() -> str:
    """How another terminal, without this one's PATH, runs the budget-proxy that runs here."""
    script = Path(sys.executable).with_name("budget-proxy")
    words = [str(script)] if script.is_file() else [sys.executable, "-m", "budget_proxy"]
    return shlex.join(words)


def demo_text(app: App, sandbox_url: str) -> str:
    """What the demo prints: lines to paste into another terminal."""
    proxy, admin = _url(app.address), _url(app.admin_address)
    key = f"-H 'Authorization: Bearer {DEMO_KEY}'"
    messages = '[{"role": "user", "content": "hi"}]'
    chat = f'{{"model": "gpt-4o-mini", "max_tokens": 16, "messages": {messages}}}'
    return f"""\
budget-proxy demo: policies/quickstart.yaml in front of the sandbox (no real API, no real money).
Paste these into another terminal:

# passes: priced, held, forwarded, settled
curl -s {proxy}/openai/v1/chat/completions {key} -H 'Content-Type: application/json' \\
  -d '{chat}'

# streams
curl -sN {proxy}/openai/v1/chat/completions {key} -H 'Content-Type: application/json' \\
  -d '{chat.replace('"max_tokens"', '"stream": true, "max_tokens"')}'

# is refused: one call may not cost more than the policy's 'single' budget
curl -si {proxy}/openai/v1/chat/completions {key} -H 'Content-Type: application/json' \\
  -d '{chat.replace("16", "4000000")}'

# four of these pass, the fifth is refused: 0.02 USD a day buy four geocodes
curl -si '{proxy}/geo/v1/geocode?q=Berlin' {key}

# what is left, what the sandbox charged, and the metrics
{_this_command()} status --admin {admin}
curl -s {sandbox_url}/_sandbox/charges
curl -s {admin}/metrics | grep -E '^budget_proxy_(requests|cost|account)' | grep -v ' 0.0$'

Ctrl-C stops.
"""

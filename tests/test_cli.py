"""Every command and its exit code, as a shell sees them: 0 done, 1 could not, 2 given something
wrong; one readable message, and never a traceback."""

from __future__ import annotations

import asyncio
import csv
import fcntl
import io
import json
import os
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from harness import running_sandbox
from processes import (
    CAP,
    DEADLINE_S,
    GEO,
    POLICY,
    Process,
    command,
    environment,
    run,
    serving,
    settle,
    started,
    status_of,
)

from budget_proxy import __version__, upkeep
from budget_proxy.__main__ import main, read_policy
from budget_proxy.core.book import Hold, Leg, Settle
from budget_proxy.core.window import Span
from budget_proxy.ledgers import sqlite
from budget_proxy.ledgers.sqlite import SqliteLedger
from budget_proxy.policy import PolicyError

COMMANDS = (
    "serve",
    "check",
    "status",
    "balance",
    "pause",
    "resume",
    "ledger",
    "schema",
    "demo",
    "sandbox",
)
LIMIT = 1_000_000_000
BUDGETS = (
    "budgets:\n"
    "  single: {limit: 1 USD, per: request}\n"
    "  other: {limit: 1 USD, per: total}\n"
    "  cap: {limit: 1 USD, per: total}\n"
    "  rate: {limit: 100 requests, per: year, for_each: team}\n"
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A policy, and a ledger with one settled call of 0.3 USD and one hold of 0.1 USD."""
    (tmp_path / "policy.yaml").write_text(POLICY + BUDGETS)

    def hold(name: str, amount: int) -> Hold:
        leg = Leg("cap", "(all)", "USD", Span("total"), LIMIT, amount)
        return Hold(name, "owner", (leg,), 60.0, b'{"service":"tests","upstream":"geo"}')

    async def fill() -> None:
        ledger = SqliteLedger.open(tmp_path / "ledger.db")
        settled = Settle("one", {"USD": 300_000_000}, "actual", b'{"amounts":{"USD":300000000}}')
        await ledger.commit([hold("one", 400_000_000), settled, hold("two", 100_000_000)])
        await ledger.close()

    asyncio.run(fill())
    return tmp_path


class Shell:
    """Runs commands in this process, which is a second faster than one of their own."""

    def __init__(
        self,
        folder: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        self.folder = folder
        self._monkeypatch = monkeypatch
        self._capsys = capsys

    def __call__(self, *words: str, **variables: str) -> tuple[int, str, str]:
        """Run one command; exit code, output and errors."""
        self._capsys.readouterr()
        with self._monkeypatch.context() as place:
            place.chdir(self.folder)
            for name in ("OPENAI_API_KEY", "BUDGET_PROXY_KEY", "BUDGET_PROXY_TOKEN"):
                place.delenv(name, raising=False)
            for name, value in variables.items():
                place.setenv(name, value)
            try:
                code = main(words)
            except SystemExit as left:  # argparse
                code = int(left.code or 0)
        captured = self._capsys.readouterr()
        assert "Traceback" not in captured.err
        return code, captured.out, captured.err

    def fine(self, *words: str, **variables: str) -> str:
        """What a command prints that works."""
        code, out, err = self(*words, **variables)
        assert (code, err) == (0, ""), (code, err)
        return out

    def entries(self) -> list[dict[str, Any]]:
        """The audit trail of the ledger."""
        return [
            json.loads(line) for line in self.fine("ledger", "entries", "ledger.db").splitlines()
        ]


@pytest.fixture
def shell(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Shell:
    return Shell(folder, monkeypatch, capsys)


def fine(*words: str | Path, cwd: Path, **variables: str) -> str:
    """What a command of a process of its own prints that works."""
    done = run(*words, cwd=cwd, **variables)
    assert (done.returncode, done.stderr) == (0, ""), done
    return done.stdout


# -- the command line itself -----------------------------------------------------------------------


def test_help_names_every_command(shell: Shell) -> None:
    text = shell.fine("--help")
    for name in COMMANDS:
        assert re.search(rf"^ +{name} ", text, re.MULTILINE), name
        assert f"usage: budget-proxy {name}" in shell.fine(name, "--help")
    assert fine("--version", cwd=shell.folder) == f"budget-proxy {__version__}\n"


WRONG: list[tuple[tuple[str, ...], str]] = [
    ((), "usage: budget-proxy"),
    (("ledger",), "usage: budget-proxy ledger"),
    (("surve",), "invalid choice: 'surve'"),
    (("serve",), "the following arguments are required: policy"),
    (("check", "nowhere/openai.yaml"), "nowhere/openai.yaml"),
    (("check", "."), "cannot be read"),
    (("check", "no-such-policy.yaml"), "no-such-policy.yaml"),
    (("check", "ledger.db"), "ledger.db"),
    (("status", "--ledger", "missing.db"), "missing.db is not a ledger file"),
    (("status", "--ledger", "."), ". is not a ledger file"),
    (("status", "--ledger", "policy.yaml"), "policy.yaml is a policy; its ledger is"),
    (("status", "--admin", "ftp://x"), "'ftp://x' is not the URL of an admin port, as in http://"),
    (("status", "--ledger", "x", "--admin", "y"), "not allowed with argument"),
    (("ledger", "holds", "missing.db"), "missing.db is not a ledger file"),
    (("ledger", "entries", "policy.yaml"), "policy.yaml is a policy; its ledger is"),
    (("ledger", "check", "missing.db"), "missing.db is not a ledger file"),
    (("sandbox", "--listen", "nonsense"), "sandbox: --listen must be HOST:PORT"),
    (("sandbox", "--latency-s", "soon"), "sandbox: latency_s: must be a number"),
    (("sandbox", "--nonsense"), "unrecognized arguments: --nonsense"),
]


@pytest.mark.parametrize(("words", "says"), WRONG, ids=[" ".join(words) for words, _ in WRONG])
def test_a_mistake_is_exit_code_2_and_a_readable_line(
    shell: Shell, words: tuple[str, ...], says: str
) -> None:
    code, out, err = shell(*words)
    assert code == 2
    assert says in err + out
    assert out == "" or words in ((), ("ledger",)), "mistakes are not output"


@pytest.mark.parametrize("name", ["no-such-policy.yaml", "nowhere/openai.yaml", "wrong.yaml"])
def test_serve_does_not_begin_without_a_policy(folder: Path, name: str) -> None:
    (folder / "wrong.yaml").write_text("listen: 1\n")
    done = run("serve", name, cwd=folder)
    assert (done.returncode, done.stdout) == (2, "")
    assert name in done.stderr
    assert "Traceback" not in done.stderr


UNREACHABLE = [
    ("http://127.0.0.1:9", "(Connection refused)"),
    ("http://127.0.0.1:nine", "no budget-proxy answers at"),
    ("http://[::1", "no budget-proxy answers at"),
    ("http://", "no budget-proxy answers at"),
    ("http://no-such-host.invalid", "no budget-proxy answers at"),
]


@pytest.mark.parametrize(("admin", "says"), UNREACHABLE, ids=[admin for admin, _ in UNREACHABLE])
def test_a_proxy_that_does_not_answer_is_exit_code_1(tmp_path: Path, admin: str, says: str) -> None:
    done = run("status", "--admin", admin, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert says in done.stderr
    assert "--ledger" in done.stderr, "it says what else can be done"
    assert done.stderr.count("\n") == 1


OTHERS: list[tuple[bytes, str]] = [
    (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n[]", "no budget-proxy answers"),
    (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}", "no budget-proxy answers"),
    (b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nhelo", "no budget-proxy answers"),
    (b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{}", "no budget-proxy answers"),
    (b"HTTP/1.1 401 No\r\nContent-Length: 0\r\n\r\n", "answered 401 (set BUDGET_PROXY_TOKEN"),
    (b"HTTP/1.1 404 No\r\nContent-Length: 0\r\n\r\n", "answered 404\n"),
    (b'HTTP/1.1 503 No\r\n\r\n{"detail":"not\\nnow"}', "answered 503: not now\n"),
    (b"HTTP/1.1 503 No\r\n\r\n" + b"[" * 9999, "answered 503\n"),
    (b"SSH-2.0-OpenSSH\r\n", "no budget-proxy answers"),
    (b"", "no budget-proxy answers"),
]


@pytest.mark.parametrize(("answer", "says"), OTHERS, ids=[str(answer[:40]) for answer, _ in OTHERS])
def test_something_else_on_the_admin_port_is_exit_code_1(
    shell: Shell, answer: bytes, says: str
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        code, out, err = shell("status", "--admin", f"http://127.0.0.1:{server.getsockname()[1]}")
        thread.join()
    assert (code, out) == (1, "")
    assert says in err
    assert err.count("\n") == 1


def test_output_that_nobody_reads_is_no_error(folder: Path) -> None:
    for words in (("schema",), ("ledger", "entries", "ledger.db")):
        with subprocess.Popen(
            command(*words),
            cwd=folder,
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        ) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            process.stdout.close()  # as `| head -0` does
            said = process.stderr.read()
            assert b"Error" not in said, said
            assert b"Exception" not in said, said
            assert process.wait(DEADLINE_S) == 0


def test_output_that_cannot_be_written_is_said(folder: Path) -> None:
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            command("schema"),
            cwd=folder,
            env=environment(),
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=DEADLINE_S,
            check=False,
        )
    assert done.returncode == 1
    assert done.stderr.startswith("the output cannot be written: ")
    assert done.stderr.count("\n") == 1


# -- policies --------------------------------------------------------------------------------------


def test_check_prints_what_binds_each_service(shell: Shell) -> None:
    code, text, notes = shell("check", "policy.yaml", SANDBOX="http://127.0.0.1:9")
    rows = [line.split()[:2] for line in text.splitlines()]
    assert rows[0] == ["SERVICE", "BUDGET"]
    assert [row for row in rows if row[0] == "tests"] == [
        ["tests", name] for name in ("single", "other", "cap", "rate")
    ]
    assert text.endswith("policy.yaml: ok\n")
    assert all(
        re.match(r"(?:policy\.yaml:\d+:\d+: )?warning: \S", note) for note in notes.splitlines()
    )
    assert "policy.yaml:4:14: warning: admin_token: " in notes
    assert code == 0


def test_check_prints_every_mistake_at_once_with_its_place(shell: Shell) -> None:
    wrong = POLICY + "budgets: {cap: {limt: 1 USD, per: dya}}\n"
    (shell.folder / "wrong.yaml").write_text(wrong)
    code, out, err = shell("check", "wrong.yaml")
    assert (code, out) == (2, "")
    places = re.findall(r"^wrong\.yaml:(\d+):\d+: ", err, re.MULTILINE)
    assert len(places) >= 2
    assert set(places) == {str(POLICY.count("\n") + 1)}
    assert "did you mean" in err


def test_check_speaks_json(shell: Shell) -> None:
    good = json.loads(shell.fine("check", "policy.yaml", "--json"))
    assert good["ok"] is True
    names = [row["budget"] for row in good["services"]["tests"]]
    assert names == ["single", "other", "cap", "rate"]
    # The ledger has calls, but was never served: every budget is new to it, and said to be.
    assert any("'cap' begins in a running window" in note for note in good["warnings"])
    (shell.folder / "wrong.yaml").write_text("listen: 1\n")
    code, out, err = shell("check", "wrong.yaml", "--json")
    assert (code, err) == (2, "")
    wrong = json.loads(out)
    assert wrong["ok"] is False
    assert {"line", "column", "message"} <= wrong["mistakes"][0].keys()


@pytest.mark.parametrize("name", ["openai", "openai.yaml", "policies/openai.yaml"])
def test_a_shipped_policy_is_found_by_its_name(shell: Shell, name: str) -> None:
    keys = {"OPENAI_API_KEY": "sk-canary-0000", "BUDGET_PROXY_KEY": "service-canary-0000"}
    (shell.folder / "ledger.db").rename(shell.folder / "budget-proxy.db")
    code, text, notes = shell("check", name, **keys)
    assert code == 0
    assert text.endswith("openai.yaml: ok\n")
    assert "canary" not in text + notes


def test_an_unset_variable_is_named(shell: Shell) -> None:
    code, _, err = shell("check", "openai")
    assert code == 2
    assert "the variable OPENAI_API_KEY is not set" in err


def check_schema(schema: Any, root: Any, where: str) -> int:
    """A JSON Schema as the standard has it, as far as ours goes; how many schemas are in it."""
    if isinstance(schema, bool):
        return 1
    assert isinstance(schema, dict), where
    known = {"array", "boolean", "integer", "null", "number", "object", "string"}
    count = 1
    for key, value in schema.items():
        here = f"{where}/{key}"
        if key == "$ref":
            node = root
            for step in value.removeprefix("#/").split("/"):
                node = node[step]
        elif key == "type":
            assert {value} <= known if isinstance(value, str) else set(value) <= known, here
        elif key in ("properties", "$defs", "patternProperties"):
            count += sum(check_schema(one, root, f"{here}/{name}") for name, one in value.items())
        elif key in ("anyOf", "oneOf", "allOf", "prefixItems"):
            assert value, here
            count += sum(check_schema(one, root, here) for one in value)
        elif key in ("items", "additionalProperties", "propertyNames", "not"):
            count += check_schema(value, root, here)
        elif key == "required":
            properties: Any = schema.get("properties", value)
            assert set(value) <= set(properties), here
        elif key == "pattern":
            re.compile(value)
        elif key in ("title", "description", "$schema", "$id"):
            assert isinstance(value, str), here
    return count


def test_schema_is_a_json_schema(shell: Shell) -> None:
    schema = json.loads(shell.fine("schema"))
    assert schema["$schema"].startswith("https://json-schema.org/draft/")
    assert check_schema(schema, schema, "#") > 100
    assert {"upstreams", "services", "budgets"} <= schema["properties"].keys()


# -- ledgers ---------------------------------------------------------------------------------------


def test_status_reads_a_ledger_file(shell: Shell) -> None:
    table = shell.fine("status", "--ledger", "ledger.db").splitlines()
    assert table[0].split() == ["BUDGET", "PAYER", "SPENT", "HELD", "LIMIT", "UNIT", "RESETS"]
    assert table[1].split() == [
        *("cap", "(all)", "0.3", "0.1", "1", "USD", "######++............", "never")
    ]
    assert "\x1b" not in "".join(table), "no colours but on a terminal"
    (account,) = json.loads(shell.fine("status", "--ledger", "ledger.db", "--json"))["accounts"]
    assert (
        account
        | {
            "budget": "cap",
            "payer": "(all)",
            "window_start": None,
            "window_end": None,
            "unit": "USD",
            "limit": "1",
            "spent": "0.3",
            "held": "0.1",
            "free": "0.6",
        }
        == account
    )


def test_a_ledger_is_named_as_in_a_policy_too(shell: Shell) -> None:
    for words in (("status", "--ledger"), ("ledger", "holds"), ("ledger", "entries")):
        path = shell.folder / "ledger.db"
        plain = shell.fine(*words, "ledger.db")
        assert plain.count("\n") >= 1
        assert shell.fine(*words, "sqlite:///ledger.db") == plain
        assert shell.fine(*words, f"sqlite:///{path}") == plain


def test_status_asks_where_the_shipped_policies_listen(shell: Shell) -> None:
    code, _, err = shell("status", BUDGET_PROXY_ADMIN="127.0.0.1:9")
    assert (code, "no budget-proxy answers at http://127.0.0.1:9 " in err) == (1, True), err


def test_status_of_an_empty_ledger_says_so(shell: Shell) -> None:
    (shell.folder / "ledger.db").unlink()

    async def make() -> None:
        await SqliteLedger.open(shell.folder / "ledger.db").close()

    asyncio.run(make())
    assert shell.fine("status", "--ledger", "ledger.db") == "no open accounts\n"


def test_holds_and_entries_are_json_lines(shell: Shell) -> None:
    (hold,) = map(json.loads, shell.fine("ledger", "holds", "ledger.db").splitlines())
    assert (hold["id"], hold["owner"], hold["about"]["service"]) == ("two", "owner", "tests")
    leg = {"budget": "cap", "payer": "(all)", "window": "total", "unit": "USD"}
    assert hold["legs"] == [leg | {"amount": 100_000_000}]
    (entry,) = shell.entries()
    assert (entry["id"], entry["kind"], entry["rule"]) == ("one", "settled", "actual")
    assert (entry["service"], entry["amounts"]) == ("tests", {"USD": 300_000_000})
    assert entry["budgets"] == [leg | {"held": 400_000_000, "amount": 300_000_000}]


def test_ledger_check_finds_what_is_wrong(shell: Shell) -> None:
    assert shell.fine("ledger", "check", "ledger.db") == "ledger.db: ok\n"
    assert json.loads(shell.fine("ledger", "check", "ledger.db", "--json")) == {
        "ok": True,
        "findings": [],
    }
    with sqlite3.connect(shell.folder / "ledger.db") as db:
        db.execute("UPDATE accounts SET held = held + 1")
    db.close()
    code, out, err = shell("ledger", "check", "ledger.db")
    assert (code, err) == (1, "")
    assert out == (
        "account 'cap' of '(all)' (total, USD) holds 0.100000001 USD, its open holds 0.1 USD\n"
    )
    code, out, err = shell("ledger", "check", "--json", "ledger.db")
    assert (code, err) == (1, "")
    assert json.loads(out)["ok"] is False
    assert len(json.loads(out)["findings"]) == 1


def test_the_audit_trail_is_exported_as_a_table_and_as_json_lines(shell: Shell) -> None:
    (row,) = csv.DictReader(io.StringIO(shell.fine("ledger", "export", "ledger.db")))
    assert (row["id"], row["kind"], row["rule"], row["service"]) == (
        *("one", "settled", "actual", "tests"),
    )
    assert (row["budget"], row["payer"], row["window"], row["unit"]) == (
        *("cap", "(all)", "total", "USD"),
    )
    assert (row["held"], row["amount"]) == ("0.4", "0.3")
    lines = shell.fine("ledger", "export", "ledger.db", "--format", "jsonl").splitlines()
    (entry,) = map(json.loads, lines)
    assert entry["amounts"] == {"USD": "0.3"}
    assert entry["budgets"][0]["amount"] == "0.3"
    later = shell.fine("ledger", "export", "ledger.db", "--since", "9000-01-01")
    assert later.splitlines() == [",".join(row)], "the names of the columns alone"
    code, out, err = shell("ledger", "export", "ledger.db", "--until", "tomorrow")
    assert (code, out) == (2, "")
    assert "'tomorrow' is not a time" in err


def adjust(*words: str, reason: str = "a test") -> tuple[str, ...]:
    """The words of a correction."""
    return ("ledger", "adjust", *words, "--reason", reason, "--policy", "policy.yaml")


@pytest.mark.parametrize(
    ("amount", "spent"),
    [
        ("-0.10USD", "0.2"),
        ("-0.10 USD", "0.2"),
        ("+0.25USD", "0.55"),
        ("0.000000001USD", "0.300000001"),
        ("-5USD", "0"),
        ("+1_000USD", "1000.3"),
    ],
)
def test_a_person_corrects_an_account(shell: Shell, amount: str, spent: str) -> None:
    shown = shell.fine(*adjust("cap", "(all)", amount, reason="a crash on Monday"))
    row = shown.splitlines()[1].split()
    assert row[:4] == ["cap", "(all)", spent, "0.1"], "the account that was corrected is shown"
    (entry,) = [entry for entry in shell.entries() if entry["kind"] == "adjusted"]
    assert entry["why"] == "a crash on Monday"
    assert entry["who"]
    assert shell.fine("ledger", "check", "ledger.db") == "ledger.db: ok\n"
    assert json.loads(shell.fine("ledger", "check", "ledger.db", "--json")) == {
        "ok": True,
        "findings": [],
    }


TAKEN_BACK: dict[str, tuple[tuple[str, ...], str, str]] = {
    "all of it": (("-0.30USD",), "-0.3", ""),
    "more than was spent": (
        ("-0.50USD",),
        "-0.3",
        "only 0.3 USD of 0.5 USD was given back: budget 'cap' of '(all)' had spent no more\n",
    ),
    "what is not there any more": (
        ("-0.30USD", "-0.50USD"),
        "0",
        "nothing was given back of 0.5 USD: budget 'cap' of '(all)' has spent nothing\n",
    ),
}


@pytest.mark.parametrize("case", TAKEN_BACK)
def test_a_correction_that_takes_less_than_asked_says_so(shell: Shell, case: str) -> None:
    (*before, last), applied, said = TAKEN_BACK[case]
    for amount in before:
        shell.fine(*adjust("cap", "(all)", amount))
    shown = shell.fine(*adjust("cap", "(all)", last))
    assert shown.partition("\n")[2].partition("\n")[2] == said
    (leg,) = shell.entries()[-1]["budgets"]
    assert leg["amount"] == round(float(applied) * 10**9)


@pytest.mark.parametrize("case", TAKEN_BACK)
def test_as_json_a_correction_says_what_was_applied(shell: Shell, case: str) -> None:
    (*before, last), applied, _ = TAKEN_BACK[case]
    for amount in before:
        shell.fine(*adjust("cap", "(all)", amount))
    told = json.loads(shell.fine(*adjust("cap", "(all)", last), "--json"))
    asked = last.removesuffix("USD").rstrip("0")
    assert (told["asked"], told["applied"], told["spent"]) == (asked, applied, "0")
    assert (told["budget"], told["payer"]) == ("cap", "(all)")


ADJUST_WRONG: list[tuple[tuple[str, ...], str]] = [
    (("cup", "(all)", "1USD"), "there is no budget 'cup'; the policy has single, other, cap, rate"),
    (("single", "(all)", "1USD"), "'single' is per request and keeps no account"),
    (("cap", "(all)", "1EUR"), "budget 'cap' is in USD, not in EUR"),
    (("cap", "(all)", "20requests"), "budget 'cap' is in USD, not in requests"),
    (("cap", "(all)", "lots"), "'lots' is not an amount"),
    (("cap", "(all)", "1"), "'1' is not an amount"),
    (("cap", "(all)", "0.0000000001USD"), "more decimal places"),
    (("cap", "(all)", "9e99USD"), "is not an amount"),
    (("cap", "", "1USD"), "the payer '' is not a line of text"),
    (("cap", "(all)", "1USD", "two\nlines"), "is not a line of text"),
]


@pytest.mark.parametrize(
    ("words", "says"), ADJUST_WRONG, ids=[" ".join(words) for words, _ in ADJUST_WRONG]
)
def test_a_correction_that_cannot_be_meant_is_refused(
    shell: Shell, words: tuple[str, ...], says: str
) -> None:
    reason = {"reason": words[3]} if len(words) > 3 else {}
    code, out, err = shell(*adjust(*words[:3], **reason))
    assert (code, out) == (2, "")
    assert says in err
    assert err.count("\n") == 1
    assert len(shell.entries()) == 1


SECRETIVE = """
listen: 127.0.0.1:0
admin: 127.0.0.1:0
admin_token: ${ADMIN_TOKEN}
ledger: sqlite:///${LEDGER:-ledger.db}
upstreams:
  openai: {url: "${OPENAI_URL}", tariff: openai, credential: "${OPENAI_API_KEY}"}
  basic: {url: "https://${HOST}/v1", tariff: &geo [{match: {path: /x}, price: {requests: 1 USD}}],
    credential: {basic: "${GEO_LOGIN}"}, proxy: "http://me:${PROXY_PASSWORD}@127.0.0.1:3128"}
  header: {url: "http://127.0.0.1:9", tariff: *geo, credential: {header: x-key, value: "${GEO}"}}
  query: {url: "http://127.0.0.1:9", tariff: *geo, credential: {query: key, value: "${GEO}"}}
  bearer: {url: "http://127.0.0.1:9", tariff: *geo, credential: {bearer: "${file:/no/such}"}}
services:
  one: {key: "${ONE_KEY}", labels: {team: "${TEAM:-red}"}}
  two: {keys: ["${TWO_KEY}", "${TWO_KEY_NEXT}"]}
budgets:
  cap: {limit: "${CAP:-1 USD}", per: total}
  other: {limit: 1 USD, per: total}
"""
"""As a policy is in production: nothing secret stands in it."""


def test_a_correction_needs_no_secrets(shell: Shell) -> None:
    (shell.folder / "policy.yaml").write_text(SECRETIVE)
    shown = shell.fine(*adjust("cap", "(all)", "-0.10USD"))
    assert shown.splitlines()[1].split()[:3] == ["cap", "(all)", "0.2"]
    code, _, err = shell("check", "policy.yaml")
    assert code == 2
    for name in ("ADMIN_TOKEN", "OPENAI_URL", "OPENAI_API_KEY", "GEO_LOGIN", "GEO", "TWO_KEY_NEXT"):
        assert f"the variable {name} is not set" in err
    code, _, err = shell("serve", "policy.yaml")
    assert code == 2
    assert "the variable ONE_KEY is not set" in err


MATTERS = {
    "the ledger": ("${LEDGER:-ledger.db}", "${LEDGER}", "LEDGER"),
    "a limit": ("${CAP:-1 USD}", "${CAP}", "CAP"),
    "a label": ("${TEAM:-red}", "${TEAM}", "TEAM"),
    "a price": ("requests: 1 USD", "requests: '${PRICE}'", "PRICE"),
}


@pytest.mark.parametrize("place", MATTERS)
def test_a_correction_needs_the_variables_that_matter_to_it(shell: Shell, place: str) -> None:
    """And these are the only mistakes."""
    there, instead, name = MATTERS[place]
    assert there in SECRETIVE
    (shell.folder / "policy.yaml").write_text(SECRETIVE.replace(there, instead))
    code, _, err = shell(*adjust("cap", "(all)", "-0.10USD"))
    assert code == 2
    assert err.count("\n") == 1
    assert f"the variable {name} is not set" in err
    assert len(shell.entries()) == 1


@pytest.mark.parametrize("name", ["openai", "anthropic", "teams"])
def test_shipped_policies_can_be_read_without_secrets(name: str) -> None:
    """Keys that are all unset are still the keys of different services."""
    with pytest.MonkeyPatch.context() as place:
        for variable in [key for key in os.environ if key.endswith(("KEY", "KEY_NEXT", "TOKEN"))]:
            place.delenv(variable)
        with pytest.raises(PolicyError, match="is not set"):
            read_policy(name)
        house = read_policy(name, with_secrets=False)
    keys = [key for service in house.services.values() for key in service.keys]
    assert len(set(keys)) == len(keys)


def test_bytes_that_are_no_text_are_refused(folder: Path) -> None:
    words = ("ledger", "adjust", "cap", b"\xff", "1USD", "--reason", "x", "--policy", "policy.yaml")
    done = subprocess.run(
        [*command(), *words],
        cwd=folder,
        env=environment(),
        capture_output=True,
        timeout=DEADLINE_S,
        check=False,
    )
    assert done.returncode == 2
    assert b"Traceback" not in done.stderr


def test_a_ledger_that_is_not_there_is_not_made(shell: Shell) -> None:
    (shell.folder / "ledger.db").unlink()
    code, _, err = shell(*adjust("cap", "(all)", "1USD"))
    assert code == 2
    assert "ledger.db is not a ledger file" in err
    assert not (shell.folder / "ledger.db").exists()


LOOKING = (
    "status --ledger",
    *(f"ledger {name}" for name in ("holds", "entries", "check", "export")),
)
SHARED = "postgresql://me:hidden@127.0.0.1/budget?password=hidden"


@pytest.mark.parametrize("words", LOOKING)
def test_a_policy_in_place_of_its_ledger_is_told_so(shell: Shell, words: str) -> None:
    code, out, err = shell(*words.split(), "policy.yaml")
    assert (code, out) == (2, "")
    assert err == (
        "policy.yaml is a policy; its ledger is sqlite:///ledger.db: "
        f"run budget-proxy {words} sqlite:///ledger.db\n"
    )
    shell.fine(*err.partition("budget-proxy ")[2].split())


def test_of_a_policy_in_place_of_its_ledger_no_password_is_shown(shell: Shell) -> None:
    policy = (shell.folder / "policy.yaml").read_text()
    (shell.folder / "policy.yaml").write_text(policy.replace("sqlite:///ledger.db", SHARED))
    code, _, err = shell("ledger", "check", "policy.yaml")
    assert code == 2
    assert "its ledger is postgresql://me@127.0.0.1/budget: run" in err
    assert "hidden" not in err


def test_a_policy_with_mistakes_in_place_of_a_ledger_is_told_so(shell: Shell) -> None:
    (shell.folder / "policy.yaml").write_text("ledger: [")
    code, out, err = shell("ledger", "check", "policy.yaml")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "policy.yaml is a policy; its ledger is what stands under 'ledger:' in it" in err


def test_a_file_that_is_neither_is_told_so(shell: Shell) -> None:
    (shell.folder / "notes.txt").write_text("not a ledger, and not a policy\n" * 99)
    for words in LOOKING:
        code, _, err = shell(*words.split(), "notes.txt")
        assert code == 2
        assert "notes.txt cannot be read as a ledger" in err


def test_a_ledger_may_be_called_anything(shell: Shell) -> None:
    (shell.folder / "ledger.db").rename(shell.folder / "ledger.yaml")
    assert shell.fine("ledger", "check", "ledger.yaml") == "ledger.yaml: ok\n"


READING = (
    ("status", "--ledger", "ledger.db"),
    *(("ledger", name, "ledger.db") for name in ("holds", "entries", "check")),
)


@pytest.mark.parametrize("words", READING, ids=" ".join)
def test_reading_commands_wait_for_no_lock_and_change_nothing(
    shell: Shell, words: tuple[str, ...]
) -> None:
    path = shell.folder / "ledger.db"
    before = path.read_bytes()
    with (shell.folder / "ledger.db.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        shell.fine(*words)
    assert path.read_bytes() == before


def test_reading_an_empty_file_does_not_make_it_a_ledger(shell: Shell) -> None:
    (shell.folder / "empty.db").touch()
    code, _, err = shell("status", "--ledger", "empty.db")
    assert code == 2
    assert err.endswith(
        "empty.db cannot be read as a ledger: it is empty, no proxy has used it yet\n"
    )
    assert (shell.folder / "empty.db").stat().st_size == 0


def test_reading_ends_by_its_deadline_whatever_keeps_the_file(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Here a program that has locked it, and a wait for that far beyond the deadline."""
    monkeypatch.setattr(upkeep, "ANSWER_S", 0.2)
    monkeypatch.setattr(sqlite, "LOCK_WAIT_S", 3600.0)
    other = sqlite3.connect(folder / "ledger.db", isolation_level=None)
    other.execute("PRAGMA locking_mode = EXCLUSIVE")
    other.execute("BEGIN IMMEDIATE")
    try:
        assert main(["status", "--ledger", str(folder / "ledger.db")]) == 1
    finally:
        other.close()
    said = capsys.readouterr().err
    assert "ledger.db was not read within 0.2 s: a disk or another program keeps it" in said
    assert said.count("\n") == 1


# -- beside a running proxy ------------------------------------------------------------------------


def rows_of(text: str) -> dict[tuple[str, str], dict[str, Any]]:
    return {(row["budget"], row["payer"]): row for row in json.loads(text)["accounts"]}


def test_corrections_and_status_beside_a_running_proxy(shell: Shell) -> None:
    """What a person gives back can be spent at once; from the proxy and from the file the same."""
    live_folder = shell.folder = shell.folder / "live"
    live_folder.mkdir()
    policy = POLICY + (
        "budgets:\n"
        "  cap: {limit: 0.01 USD, per: total}\n"
        "  rate: {limit: 20 requests, per: year, for_each: team}\n"
    )

    async def story() -> None:
        async with (
            running_sandbox() as sandbox,
            aiohttp.ClientSession() as session,
            serving(live_folder, policy, SANDBOX=sandbox) as process,
        ):

            async def calls(count: int) -> list[int]:
                return [await status_of(session, process.url + GEO) for _ in range(count)]

            async def aside(*words: str) -> str:
                return await asyncio.to_thread(shell.fine, *words)

            async def corrected(budget: str, payer: str, amount: str) -> str:
                return await aside(*adjust(budget, payer, amount))

            assert await calls(3) == [200, 200, 402]
            assert (await corrected("cap", "(all)", "-0.005USD")).splitlines()[1].split()[:3] == [
                *("cap", "(all)", "0.005")
            ]
            assert await calls(2) == [200, 402]
            await corrected("cap", "(all)", "-1.50USD")
            assert await calls(3) == [200, 200, 402]
            await corrected("rate", "tests", "+15requests")
            await corrected("cap", "(all)", "-1.50USD")
            assert await calls(1) == [402], "now by the rate: 5 calls and 15 of ours"

            live = rows_of(await aside("status", "--admin", process.admin, "--json"))
            file = rows_of(await aside("status", "--ledger", "ledger.db", "--json"))
            assert live["rate", "tests"]["spent"] == file["rate", "tests"]["spent"] == "20"
            for key, row in file.items():
                assert live[key] | row == live[key], "what both say is the same"
            table = await aside("status", "--admin", process.admin)
            assert re.search(r"^rate +tests +20 +0 +20 +requests +#{20} ", table, re.MULTILINE)
            process.send(signal.SIGTERM)
            assert await process.ended() == 0

    asyncio.run(story())


def test_status_shows_its_token_where_the_admin_port_wants_one(shell: Shell) -> None:
    async def story() -> None:
        async with serving(shell.folder, POLICY + CAP, ADMIN="0.0.0.0:0") as process:
            admin = process.admin.replace("0.0.0.0", "127.0.0.1")
            words = ("status", "--admin", admin)
            code, _, err = await asyncio.to_thread(shell, *words)
            assert code == 1
            assert "answered 401 (set BUDGET_PROXY_TOKEN" in err
            token = {"BUDGET_PROXY_TOKEN": "admin-token-0000", "http_proxy": "http://127.0.0.1:9"}
            # Asked directly, not through the proxy that the environment names.
            assert "cap" in await asyncio.to_thread(lambda: shell.fine(*words, **token))

    asyncio.run(story())


PREPAID = POLICY.replace("services:", "    balance: manual\nservices:") + (
    "budgets: {account: {limit: balance(geo)}}\n"
)
BY_HAND = [
    (("pause", "upstream", "gee", "--reason", "x"), "did you mean 'geo'?"),
    (("pause", "upstream", "geo", "--reason", "x", "--for", "2"), "has no unit"),
    (("pause", "upstream", "geo", "--reason", "x", "--until", "2001-01-01"), "is over already"),
    (("resume", "service", "test"), "did you mean 'tests'?"),
    (("balance", "set", "geo", "10EUR", "--reason", "x"), "is in USD, not in EUR"),
    (("balance", "add", "gee", "10USD", "--reason", "x"), "did you mean 'geo'?"),
    (("balance", "set", "a/../b", "10USD", "--reason", "x"), "there is no balance of an upstream"),
]


def test_balances_and_stops_by_hand_beside_a_running_proxy(shell: Shell) -> None:
    token = {"BUDGET_PROXY_TOKEN": "admin-token-0000"}

    async def story() -> None:
        async with serving(shell.folder, PREPAID) as process:

            async def fine(*words: str) -> str:
                there = ("--admin", process.admin)
                return await asyncio.to_thread(lambda: shell.fine(*words, *there, **token))

            async def fails(*words: str, **variables: str) -> tuple[int, str]:
                there = ("--admin", process.admin)
                code, out, err = await asyncio.to_thread(lambda: shell(*words, *there, **variables))
                assert out == ""
                assert err.count("\n") == 1
                return code, err

            assert "geo" in await fine("balance", "list")
            entered = await fine("balance", "set", "geo", "100USD", "--reason", "their page")
            assert "100 USD" in entered
            added = await fine("balance", "add", "geo", "-1.50USD", "--reason", "fees", "--json")
            assert json.loads(added)["balance"] == "98.5"
            paused = await fine("pause", "budget", "account", "--reason", "the bill", "--for", "2h")
            assert "the bill" in paused
            table = await fine("status")
            for word in ("account", "UPSTREAM", "98.5 USD", "STOPPED", "the bill"):
                assert word in table
            status = json.loads(await fine("status", "--json"))
            assert [one["usable"] for one in status["balances"]] == ["98.5"]
            assert [one["name"] for one in status["stops"]] == ["account"]
            assert "is resumed" in await fine("resume", "budget", "account")
            assert "was not stopped" in await fine("resume", "budget", "account")
            assert json.loads(await fine("status", "--json"))["stops"] == []
            for words, says in BY_HAND:
                code, err = await fails(*words, **token)
                assert (code, says in err) == (2, True), err
            code, err = await fails("resume", "budget", "account")
            assert (code, "set BUDGET_PROXY_TOKEN" in err) == (1, True)

    asyncio.run(story())


# -- the sandbox -----------------------------------------------------------------------------------


def test_the_sandbox_runs_on_its_own(tmp_path: Path) -> None:
    async def charges(url: str) -> list[dict[str, Any]]:
        async with aiohttp.ClientSession() as session:
            assert await status_of(session, f"{url}/v1/geocode?q=Oslo") == 200
            assert await status_of(session, f"{url}/v1/geocode?q=Oslo") == 402
            async with session.get(f"{url}/_sandbox/charges") as answer:
                return list((await answer.json())["charges"])

    def url_of(process: Process) -> re.Match[str] | None:
        return re.search(r"sandbox listens on (\S+)", process.out)

    words = ("sandbox", "--listen", "127.0.0.1:0", "--balance", "0.006USD")
    with started(*words, cwd=tmp_path) as process:
        settle(lambda: url_of(process) is not None or not process.running, "it does not start")
        found = url_of(process)
        assert found is not None, process.err
        (charge,) = asyncio.run(charges(found[1]))
        assert charge["amount"] == "0.005"
        address = found[1].removeprefix("http://")
        second = run("sandbox", "--listen", address, cwd=tmp_path)
        assert second.returncode == 1
        said = f"sandbox: cannot listen on {address}: Address already in use\n"
        assert second.stderr == said
        process.send(signal.SIGTERM)
        assert asyncio.run(process.ended()) == 0


HEAVY = ("aiohttp", "prometheus_client", "pydantic", "yaml", "genai_prices", "budget_proxy.sandbox")
COSTS: dict[tuple[str, ...], tuple[str, ...]] = {
    ("check", "policy.yaml"): ("genai_prices", "budget_proxy.sandbox"),
    ("status", "--ledger", "ledger.db"): HEAVY,
    ("ledger", "holds", "ledger.db"): HEAVY,
}


@pytest.mark.parametrize("words", COSTS, ids=" ".join)
def test_commands_do_not_load_what_they_do_not_need(folder: Path, words: tuple[str, ...]) -> None:
    """Prices are a third of a second, the rest another: on a machine that is short of computing
    time, when somebody looks at a ledger, a minute."""
    script = (
        "import sys\n"
        "from budget_proxy.__main__ import main\n"
        f"assert main({list(words)}) == 0\n"
        f"loaded = set({COSTS[words]}) & set(sys.modules)\n"
        "assert not loaded, loaded\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr

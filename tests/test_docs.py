"""The documentation is a tested part: it cannot fall behind a green build.

Tables between `<!-- table: NAME -->` and `<!-- end -->` are made from the code:
`python tests/test_docs.py` writes them anew. Tables that need a person's words (refusals, outcomes,
commands) are compared with the code column by column. Examples are loaded, parsed or run.
"""

from __future__ import annotations

import argparse
import asyncio
import re
import shlex
import textwrap
import threading
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml
from harness import running

from budget_proxy import sandbox
from budget_proxy.__main__ import build_parser, find_policy
from budget_proxy.catalogue import Catalogue
from budget_proxy.core import events, house, settlement
from budget_proxy.core.balance import Watch
from budget_proxy.core.budget import Budget
from budget_proxy.core.refusal import REASONS
from budget_proxy.core.route import Route
from budget_proxy.core.topup import Plan
from budget_proxy.metrics.families import FAMILIES
from budget_proxy.policy import check, load
from budget_proxy.policy.entry import Entry
from budget_proxy.policy.model import PolicyEntry
from budget_proxy.policy.providers import packaged
from budget_proxy.sandbox.balances import BALANCES, Standing
from budget_proxy.sandbox.call import dumps
from budget_proxy.sandbox.emptiness import REFUSALS

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").glob("*.md"))]
TARIFFS = sorted(Path(str(files("budget_proxy"))).glob("tariffs/*.yaml"))
BLOCK = re.compile(r"<!-- table: ([\w /]+) -->\n(.*?)<!-- end -->", re.DOTALL)
FENCE = re.compile(r"^( *)```(\w+)\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
DEFAULT = re.compile(r" *\b[Dd]efault:? ([^.]+?)\.(?= |$)")

CORE = {
    "UpstreamEntry": house.Upstream,
    "BalanceEntry": Watch,
    "TopUpEntry": Plan,
    "TimeoutsEntry": house.Timeouts,
    "ServiceEntry": house.Service,
    "BudgetEntry": Budget,
    "LimitsEntry": house.Limits,
    "WaitingEntry": house.Waiting,
}
"""What each section builds: there the defaults really stand."""
PLACES = ("json", "query", "header", "path")
DEPENDS = {("BudgetEntry", "max_wait"), ("UpstreamEntry", "dialect")}
DEPENDS |= {("BalanceEntry", "unit"), ("BalanceEntry", "url")}
"""Defaults that another key decides."""

SHOWN = Standing(12_340_000_000, 660_000_000, "USD", {"sid": "AC1"})
"""What the sandbox's balance endpoints show in the documentation: 12.34 USD of 13 are left."""

JANITOR = typing.get_type_hints(events.HoldPresumed)["why"]

BASE = """
upstreams:
  geo:
    url: https://geo.example.com
    credential: {query: key, value: "${GEO_KEY}"}
    tariff: [{match: {method: GET, path: /v1/geocode}, price: {requests: 0.005 USD}}]
services: {app: {key: "${APP_KEY}", labels: {team: app}}}
budgets: {rate: {limit: 60 requests, per: minute}}
"""
"""What an example that is a part of a policy is completed with."""


class Anything(dict[str, str]):
    """An environment in which every variable is set."""

    def __missing__(self, name: str) -> str:
        value = f"a-value-for-{name.lower()}"
        return f"https://example.com/{value}" if name.endswith("WEBHOOK") else value


# -- what the tables say --------------------------------------------------------------------------


def table(head: str, rows: Iterable[tuple[str, ...]]) -> str:
    columns = head.split("|")
    lines = [f"| {' | '.join(columns)} |", f"|{' --- |' * len(columns)}"]
    for row in rows:
        cells = (cell.replace("|", "\\|") for cell in row)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def metrics_table() -> str:
    return table(
        "metric|labels|what it says",
        [
            (f"`{family.name}`", ", ".join(family.labels), " ".join(family.help.split()))
            for family in FAMILIES
        ],
    )


def defaults_of(kind: type[Any]) -> dict[str, Any]:
    """What each field of a core type is where nothing is said."""
    found = fields(kind) if is_dataclass(kind) else msgspec.structs.fields(kind)
    return {field.name: field.default for field in found}


def shown(default: Any) -> str:
    """A default as it would be written; empty for nothing."""
    if isinstance(default, bool):
        return str(default).lower()
    return str(default) if isinstance(default, str | int) else ""


def keys_table(entry: type[Entry]) -> str:
    built = defaults_of(CORE[entry.__name__]) if entry.__name__ in CORE else {}
    rows = []
    for name, field in entry.model_fields.items():
        said = DEFAULT.search(field.description or "")
        default = field.default if field.default is not None else built.get(name)
        if said is not None or field.is_required():
            value = said[1] if said is not None else "required"
        else:
            value = shown(default)
        meaning = DEFAULT.sub("", field.description or "")
        rows.append((f"`{field.alias or name}`", value, meaning.strip().rstrip(";,")))
    return table("key|default|meaning", rows)


def entries(root: type[Entry] = PolicyEntry) -> dict[str, type[Entry]]:
    """Every mapping that can stand in a policy, by the name of its model."""
    found: dict[str, type[Entry]] = {}

    def visit(form: Any) -> None:
        is_entry = isinstance(form, type) and issubclass(form, Entry)
        if is_entry and form.__name__ not in found:
            found[form.__name__] = form
            for field in form.model_fields.values():
                visit(field.annotation)
        for inner in typing.get_args(form):
            visit(inner)

    visit(root)
    return found


def tariff_of(file: Path, tmp_path: Path) -> tuple[Route, ...]:
    policy = tmp_path / "policy.yaml"
    policy.write_text(
        f"upstreams: {{it: {{url: 'https://api.example.com', tariff: {file.stem}, "
        "credential: pass}}\nservices: {app: {key: app-key-0000}}\n"
        "budgets: {rate: {limit: 1 requests, per: minute}}\n"
    )
    return load(policy, environment={}, prices=Catalogue).upstreams["it"].tariff.routes


def routes_table(tmp_path: Path) -> str:
    rows = []
    for file in TARIFFS:
        raw = yaml.safe_load(file.read_text())
        built = tariff_of(file, tmp_path)
        for route, written in zip(built, raw["routes"], strict=True):
            methods = written["match"].get("method", "any")
            methods = methods if isinstance(methods, str) else ", ".join(methods)
            priced = f"by model: {', '.join(f'`{q.name}`' for q in route.quantities)}"
            cost = "free" if route.free else priced
            where = f"`{methods} {written['match']['path']}`"
            rows.append((f"`{file.stem}`", f"`{route.name}`", where, cost))
    return table("tariff|route|request|cost", rows)


def unbounded_table() -> str:
    """Requests without a bound, one row for each reason of a tariff."""
    rows: dict[tuple[str, str], list[str]] = {}
    for file in TARIFFS:
        for route in yaml.safe_load(file.read_text())["routes"]:
            found = [
                (next(t[k] for k in PLACES if k in t), t["why"]) for t in route.get("unbounded", ())
            ]
            for part in route.get("parts", ()):
                if part["ceiling"] is None:
                    found += [(f"type: {kind}", part["why"]) for kind in part["types"]]
            for what, why in found:
                places = rows.setdefault((file.stem, why), [])
                if f"`{what}`" not in places:
                    places.append(f"`{what}`")
    return table(
        "tariff|in the request|why",
        [(f"`{tariff}`", ", ".join(places), why) for (tariff, why), places in rows.items()],
    )


def max_output_table() -> str:
    rows = []
    for file in TARIFFS:
        raw = yaml.safe_load(file.read_text())
        by_size: dict[int, list[str]] = {}
        for glob, size in raw["max_output"].items():
            by_size.setdefault(size, []).append(f"`{glob}`")
        rows += [
            (f"`{file.stem}`", f"{size:,}", ", ".join(globs)) for size, globs in by_size.items()
        ]
    return table("tariff|tokens|models", rows)


def outcomes_table() -> str:
    """The table at the top of `settlement`, the janitor's rules in full."""
    rows = re.findall(r"^\| ([^|]+)\| ([^|]+)\| ([^|]+)\|$", settlement.__doc__ or "", re.MULTILINE)
    janitors = ", ".join(f"`{why}`" for why in typing.get_args(JANITOR))
    return table(
        "what happened|rule|what is charged",
        [
            (what.strip(), janitors if "..." in rule else f"`{rule.strip()}`", charged.strip())
            for what, rule, charged in rows[1:]
        ],
    )


def providers_table() -> str:
    known, rows = packaged(), []
    for name in known.names():
        provider = known.named(name)
        hosts = ", ".join(f"`{host}`" for host in provider.hosts) or "any other"
        asked = "" if provider.preset is None else f"`{provider.preset.url}`"
        kinds = sorted({rule.means for rule in provider.rules.rules} - {"transient"})
        rows.append((f"`{name}`", hosts, asked, ", ".join(f"`{kind}`" for kind in kinds)))
    return table("provider|hosts|balance|errors tell", rows)


def sandbox_table() -> str:
    parser = argparse.ArgumentParser()
    sandbox.add_arguments(parser)
    return table(
        "option|what it does",
        [
            (f"`{action.option_strings[0]}`", (action.help or "") % {"default": action.default})
            for action in parser._actions
            if action.dest != "help"
        ],
    )


def refusals_table() -> str:
    rows: list[tuple[str, ...]] = []
    for row in REFUSALS.values():
        headers = ", ".join(f"`{name}`" for name in row.headers)
        rows.append((f"`{row.name}`", row.meaning.replace("_", " "), str(row.status), headers))
    return table("name|what it means|status|headers", rows)


def balances_table() -> str:
    return table(
        "provider|path|`GET` shows",
        [
            (
                endpoint.name.replace("_", " "),
                f"`{endpoint.path}`",
                f"`{dumps(endpoint.show(SHOWN)).decode()}`",
            )
            for endpoint in BALANCES
        ],
    )


def generated(tmp_path: Path) -> dict[str, Callable[[], str]]:
    made: dict[str, Callable[[], str]] = {
        "metrics": metrics_table,
        "outcomes": outcomes_table,
        "routes": lambda: routes_table(tmp_path),
        "max output": max_output_table,
        "unbounded": unbounded_table,
        "sandbox options": sandbox_table,
        "providers": providers_table,
        "sandbox balances": balances_table,
        "sandbox refusals": refusals_table,
    }
    for name, entry in entries().items():
        made[f"keys {name}"] = lambda entry=entry: keys_table(entry)  # type: ignore[misc]
    return made


# -- the tables -----------------------------------------------------------------------------------


def test_every_generated_table_stands_somewhere_and_is_up_to_date(tmp_path: Path) -> None:
    made = generated(tmp_path)
    found = [(page, name, text) for page in PAGES for name, text in BLOCK.findall(page.read_text())]
    assert sorted(name for _, name, _ in found) == sorted(made), "each table stands once"
    for page, name, text in found:
        assert text == made[name](), f"{page.name}: {name}: run python tests/test_docs.py"


def test_no_key_of_the_policy_lacks_a_meaning() -> None:
    for name, entry in entries().items():
        for key, field in entry.model_fields.items():
            assert field.description, f"{name}.{key}"


def written_default(value: Any) -> set[str]:
    """The ways in which a default of the core can be written in a description."""
    if isinstance(value, bool):
        return {str(value).lower()}
    if isinstance(value, float):
        return {f"{value:g}s"}
    if isinstance(value, int) and value % 1024 == 0:
        return {f"{value // 1024} KiB", f"{value // 1024**2} MiB"}
    return {str(value)}


def test_the_defaults_that_descriptions_name_are_the_real_ones() -> None:
    compared = 0
    for name, core in CORE.items():
        real = defaults_of(core)
        for key, field in entries()[name].model_fields.items():
            said = DEFAULT.search(field.description or "")
            here = real.get(key, real.get(f"{key}_s"))
            if said is None or here is None or not isinstance(here, int | float | str):
                continue
            if (name, key) in DEPENDS:
                continue
            words = re.split(r"[:,;]", said[1])[0].strip()
            assert words in written_default(here), f"{name}.{key}: {said[1]} is really {here}"
            compared += 1
    assert compared > 15


def rows_under(heading: str) -> list[list[str]]:
    """The cells of the first table under a heading of the README."""
    _, _, section = README.read_text().partition(f"\n## {heading}\n")
    assert section, f"README has no section {heading!r}"
    lines = re.search(r"(?:^\|.*\n)+", section.partition("\n## ")[0], re.MULTILINE)
    assert lines is not None, f"{heading!r} has no table"
    return [
        [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        for line in lines[0].splitlines()[2:]
    ]


def test_the_refusal_table_is_that_of_the_code() -> None:
    retry = {True: "true", False: "false", None: "-"}
    expected = [
        [str(rule.status), f"`{reason.value}`", retry[rule.should_retry], rule.title]
        for reason, rule in REASONS.items()
    ]
    written = rows_under("When a call is refused")
    assert [row[:4] for row in written] == expected
    assert all(row[4] for row in written), "each says what to do"


def rules_in_code() -> set[str]:
    """Every rule by which a call can end: those of `settle`, and those of the janitor."""
    source = Path(settlement.__file__).read_text()
    rules = set(re.findall(r'Settlement\(\s*"(\w+)"', source))
    rules |= set(re.findall(r'"(hold_\w+)"', source))
    return rules | set(typing.get_args(JANITOR))


def test_the_outcome_table_has_every_rule_there_is() -> None:
    rules = re.findall(r"^\|[^|]+\| ((?:`\w+`(?:, )?)+) \|", outcomes_table(), re.MULTILINE)
    named = [rule for cell in rules for rule in re.findall(r"\w+", cell)]
    assert set(named) == rules_in_code()


def commands(
    parser: argparse.ArgumentParser, path: str = "budget-proxy"
) -> Iterator[tuple[str, argparse.ArgumentParser]]:
    """Every command that does something, with its parser."""
    inner = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
    if not inner:
        yield path, parser
    for action in inner:
        for name, command in action.choices.items():
            yield from commands(command, f"{path} {name}")


def test_the_command_table_has_every_command_with_every_option() -> None:
    written = {row[0].strip("`").replace("\\|", "|"): row for row in rows_under("Commands")}
    parsers = dict(commands(build_parser()))
    by_command = {
        max((path for path in parsers if usage.startswith(path)), key=len): usage
        for usage in written
    }
    assert by_command.keys() == parsers.keys()
    for path, parser in parsers.items():
        usage = by_command[path]
        if path == "budget-proxy sandbox":
            assert "[OPTIONS]" in usage  # they have a table of their own
            continue
        options = {option for a in parser._actions for option in a.option_strings}
        assert set(re.findall(r"--[\w-]+", usage)) == options - {"-h", "--help"}, path
        positional = [a.dest for a in parser._actions if not a.option_strings]
        bare = re.sub(r"\[[^]]*\]|\([^)]*\)|--[\w-]+ [A-Z]+", "", usage.removeprefix(path))
        assert bare.lower().split() == positional, path


# -- the examples ---------------------------------------------------------------------------------


def examples(language: str) -> list[Any]:
    return [
        pytest.param(textwrap.dedent(text), id=f"{page.stem}-{number}")
        for page in PAGES
        for number, (_, kind, text) in enumerate(FENCE.findall(page.read_text()), 1)
        if kind == language
    ]


def as_policy(text: str) -> str:
    """An example as a whole policy: as it stands, completed, or as the tariff of an upstream."""
    document = yaml.safe_load(text)
    tariff = isinstance(document, list) or "routes" in document
    if not tariff:
        missing = [part for part in yaml.safe_load(BASE) if part not in document]
        base = {part: value for part, value in yaml.safe_load(BASE).items() if part in missing}
        return text + (yaml.safe_dump(base) if base else "")
    upstream = {"url": "https://api.example.com", "credential": "pass", "tariff": document}
    base = {**yaml.safe_load(BASE), "upstreams": {"example": upstream}}
    return yaml.safe_dump(base)


@pytest.mark.parametrize("text", examples("yaml"))
def test_every_policy_and_tariff_in_the_docs_loads(text: str, tmp_path: Path) -> None:
    file = tmp_path / "policy.yaml"
    file.write_text(as_policy(text))
    checked = check(
        file,
        environment=Anything(),
        prices=Catalogue,
        read_file=lambda path: f"what is in {path}".replace(" ", "-"),
    )
    assert checked.house.upstreams


def test_the_readme_shows_one_policy_that_is_whole() -> None:
    whole = [
        text
        for _, kind, text in FENCE.findall(README.read_text())
        if kind == "yaml" and {"upstreams", "services", "budgets"} <= yaml.safe_load(text).keys()
    ]
    assert len(whole) == 1


def command_lines() -> Iterator[tuple[str, Mapping[str, str], list[str]]]:
    """`budget-proxy ...` in shell examples: page, variables set on the line, words."""
    for page in PAGES:
        for _, kind, text in FENCE.findall(page.read_text()):
            if kind != "sh":
                continue
            for line in text.replace("\\\n", " ").splitlines():
                for part in re.split(r"&&|\||>", line.partition(" #")[0]):
                    words = shlex.split(part, comments=True)
                    given = dict(w.split("=", 1) for w in words if re.match(r"[A-Z_]+=", w))
                    words = words[len(given) :]
                    if words and words[0].endswith("budget-proxy"):
                        yield page.name, given, words[1:]


def test_every_command_line_in_the_docs_is_one() -> None:
    lines = list(command_lines())
    assert len(lines) > 5
    for page, given, words in lines:
        # As the command line itself does: an amount below zero is no option.
        spaced = [f" {word}" if re.match(r"-[0-9]", word) else word for word in words]
        try:
            options = build_parser().parse_args(spaced)
        except SystemExit:
            pytest.fail(f"{page}: budget-proxy {shlex.join(words)}")
        policy = getattr(options, "policy", "")
        if policy.startswith("policies/"):
            assert (ROOT / policy).is_file(), f"{page}: {policy}"
            if given:
                load(find_policy(str(ROOT / policy)), environment=given, prices=Catalogue)


def test_the_two_commands_stand_alone_on_their_lines() -> None:
    lines = [line for line in README.read_text().splitlines() if line.startswith("python3 -m venv")]
    assert len(lines) == 2, "one runs the demo, one the tests"
    assert all(line.startswith("python3 -m venv .venv && .venv/bin/pip install") for line in lines)
    assert lines[0].endswith("budget-proxy demo")
    assert lines[1].endswith(".venv/bin/python -m pytest -n auto")


@pytest.mark.parametrize("text", examples("python"))
def test_the_python_examples_run(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    needs = re.findall(r"^(?:from|import) (\w+)", text, re.MULTILINE)
    if "langchain_openai" in needs:
        compile(text, "example", "exec")  # its package is not among our tests'
        return

    async def story() -> None:
        async with running(tmp_path) as rig:
            monkeypatch.setenv("BUDGET_PROXY_KEY", "test-key-0000")
            here = text.replace("http://127.0.0.1:8080", rig.url)
            assert here != text, "the example names the proxy"
            failed: list[BaseException] = []

            def run() -> None:
                try:
                    exec(compile(here, "example", "exec"), {"__name__": "example"})
                except BaseException as error:
                    failed.append(error)

            thread = threading.Thread(target=run)
            thread.start()
            await asyncio.to_thread(thread.join)
            assert failed == []
            assert [call.outcome for call in rig.calls] == ["served"]

    asyncio.run(story())
    assert capsys.readouterr().out.strip()


# -- links and names ------------------------------------------------------------------------------


def anchor(heading: str) -> str:
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def test_every_link_leads_somewhere() -> None:
    for page in PAGES:
        text = FENCE.sub("", page.read_text())
        for target in re.findall(r"\]\(([^)]+)\)", text):
            if target.startswith("https://"):
                continue
            path, _, fragment = target.partition("#")
            file = (page.parent / path).resolve() if path else page
            assert file.exists(), f"{page.name}: {target}"
            if fragment:
                headings = re.findall(r"^#+ (.+)$", file.read_text(), re.MULTILINE)
                assert fragment in map(anchor, headings), f"{page.name}: {target}"


def test_every_metric_named_in_the_docs_is_exported() -> None:
    known = {family.name for family in FAMILIES}
    for page in PAGES:
        for name in re.findall(r"\bbudget_proxy_[a-z_]+\b", page.read_text()):
            base = re.sub(r"_(?:bucket|sum|count)$", "", name)
            assert name in known or base in known, f"{page.name}: {name}"


def test_every_reason_that_an_alert_waits_for_is_one() -> None:
    alerts = README.read_text().replace("\\|", "|")
    named = [name for part in re.findall(r'reason=~"([^"]+)"', alerts) for name in part.split("|")]
    assert len(named) >= 5
    assert set(named) <= {str(reason) for reason in REASONS}


def test_every_metric_that_is_worth_an_alert_is_explained_to_who_is_on_call() -> None:
    alerts = " ".join(row[0] for row in rows_under("On call"))
    for name in (
        "budget_proxy_ledger_up",
        "budget_proxy_refusals_total",
        "budget_proxy_invariant_violations_total",
        "budget_proxy_presumed_holds_total",
        "budget_proxy_overruns_total",
        "budget_proxy_unknown_outcomes_total",
        "budget_proxy_log_lines_dropped_total",
    ):
        assert name in alerts


def test_every_shipped_policy_and_page_is_spoken_of() -> None:
    text = README.read_text()
    for file in [*(ROOT / "policies").glob("*.yaml"), *PAGES[1:]]:
        assert file.relative_to(ROOT).as_posix() in text, file.name


def rewrite(tmp_path: Path) -> None:
    """Write every generated table anew."""
    made = generated(tmp_path)
    for page in PAGES:
        text = page.read_text()
        page.write_text(
            BLOCK.sub(
                lambda found: f"<!-- table: {found[1]} -->\n{made[found[1]]()}<!-- end -->", text
            )
        )


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        rewrite(Path(folder))

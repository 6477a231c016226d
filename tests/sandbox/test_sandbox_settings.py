"""The knobs: one table read by the command line, the control endpoint and a request's headers."""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import subprocess
import sys
import urllib.request

import pytest

from budget_proxy.sandbox import SettingError, Settings, add_arguments, main, run
from budget_proxy.sandbox import settings_from_args as from_args
from budget_proxy.sandbox.settings import KNOBS, as_json, changed, for_request, parse_listen


def parsed(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return parser.parse_args(words)


def test_the_command_line_sets_every_kind_of_knob() -> None:
    words = "--balance 5USD --latency-s 0.2 --fail 503 --fail-billed --tokens bytes"
    assert from_args(parsed(*words.split())) == Settings(
        balance_nanos=5_000_000_000, latency_s=0.2, fail=503, fail_billed=True, tokens="bytes"
    )


def test_without_flags_the_command_line_gives_the_defaults() -> None:
    assert from_args(parsed()) == Settings()


def test_settings_written_as_json_are_read_back_the_same() -> None:
    settings = Settings(balance_nanos=1, fail=500, garbage="json", require_key="k", cut_after=0)
    assert changed(Settings(), as_json(settings)) == settings
    settings = Settings(
        drain_nanos_per_s=1, empty_as="xai", topup_fail="declined", topup_fail_after=502
    )
    assert changed(Settings(), as_json(settings)) == settings


def test_every_setting_has_a_knob() -> None:
    assert {knob.field for knob in KNOBS.values()} == set(Settings.__dataclass_fields__)


def test_a_requests_own_headers_are_laid_over_the_settings() -> None:
    headers = [("Host", "x"), ("X-Sandbox-Cut-After", "3"), ("x-sandbox-fail", "none")]
    assert for_request(Settings(fail=500, output_tokens=2), headers) == Settings(
        cut_after=3, output_tokens=2
    )


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("latency_s", "soon"),
        ("latency_s", -1),
        ("latency_s", "nan"),
        ("latency_s", 10**400),
        ("latency_s", None),
        ("fail", 200),
        ("fail", True),
        ("cut_after", 1.5),
        ("output_tokens", "inf"),
        ("tokens", ["words"]),
        ("cut_clean", "perhaps"),
        ("balance", 1.5),
        ("balance", "5 EUR"),
        ("service_header", ""),
        ("drain_per_s", "fast"),
        ("drain_per_s", None),
        ("empty_as", "no_such"),
        ("refuse_as", 402),
        ("refuse_every", 0),
        ("balance_lag_s", 601),
        ("balance_fail", 200),
        ("balance_garbage", "http"),
        ("balance_key", 7),
        ("topup_fail", "cut"),
        ("topup_fail_after", "declined"),
        ("topup_delay_s", -1),
        ("no_such", 1),
    ],
)
def test_a_wrong_value_is_refused_by_name(name: str, value: object) -> None:
    with pytest.raises(SettingError, match=name):
        changed(Settings(), {name: value})


@pytest.mark.parametrize(
    "name",
    [
        *("balance", "require-key", "fail-every", "service-header"),
        *("drain-per-s", "balance-key", "refuse-every"),
    ],
)
def test_what_belongs_to_the_sandbox_cannot_be_set_by_one_request(name: str) -> None:
    with pytest.raises(SettingError, match="single request"):
        for_request(Settings(), [(f"x-sandbox-{name}", "1")])


@pytest.mark.parametrize(
    ("text", "place"),
    [("127.0.0.1:9099", ("127.0.0.1", 9099)), (":0", ("127.0.0.1", 0)), ("[::1]:8", ("::1", 8))],
)
def test_a_listen_address_is_split(text: str, place: tuple[str, int]) -> None:
    assert parse_listen(text) == place


@pytest.mark.parametrize("text", ["localhost", "h:99999", "h:", "h:-1"])
def test_a_wrong_listen_address_is_refused(text: str) -> None:
    with pytest.raises(SettingError, match="HOST:PORT"):
        parse_listen(text)


def test_the_command_answers_2_to_a_wrong_flag(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(parsed("--latency-s", "soon")) == 2
    assert "latency_s" in capsys.readouterr().err


def test_run_says_where_it_listens_and_stops_when_cancelled() -> None:
    async def scenario() -> str:
        ready: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        task = asyncio.create_task(run(Settings(), "127.0.0.1", 0, ready.set_result))
        url = await asyncio.wait_for(ready, 5)
        task.cancel()
        await asyncio.wait([task], timeout=5)
        assert task.cancelled()
        return url

    assert asyncio.run(scenario()).startswith("http://127.0.0.1:")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_command_serves_until_it_is_told_to_stop(number: signal.Signals) -> None:
    program = (
        "import argparse, sys; from budget_proxy.sandbox import add_arguments, main;"
        "p = argparse.ArgumentParser(); add_arguments(p);"
        "sys.exit(main(p.parse_args(['--listen', '127.0.0.1:0', '--balance', '5USD'])))"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    ) as process:
        assert process.stdout is not None
        first = process.stdout.readline().split()
        url = next(word for word in first if word.startswith("http://"))
        with urllib.request.urlopen(f"{url}/_sandbox/balance", timeout=5) as answer:
            assert b'"balance":"5"' in answer.read()
        process.send_signal(number)
        assert process.wait(timeout=10) == 0

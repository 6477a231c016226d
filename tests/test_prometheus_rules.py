"""The alert rules for Prometheus that are shipped: they fire when they should, on metrics that are
there."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from budget_proxy.core.alert import CONDITIONS
from budget_proxy.metrics.families import FAMILIES

ROOT = Path(__file__).resolve().parent.parent
RULES = ROOT / "policies" / "prometheus" / "budget-proxy.rules.yaml"
TESTS = ROOT / "tests" / "prometheus" / "budget-proxy.test.yaml"
TOPUPS = {
    "budget_proxy_topups_total": ("upstream", "outcome"),
    "budget_proxy_topup_amount_total": ("upstream", "currency"),
}
METRICS = {family.name: family.labels for family in FAMILIES} | TOPUPS
GIVEN = {"instance", "pod", "job"}
"""Labels that Prometheus adds."""
SERIES = re.compile(r"\b(budget_proxy_\w+)(?:\{([^}]*)\})?")


def rules() -> list[dict[str, Any]]:
    return [
        rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]
    ]


def promtool(*words: str) -> subprocess.CompletedProcess[str]:
    tool = shutil.which("promtool")
    if tool is None:
        pytest.skip("promtool is not on the PATH")
    return subprocess.run([tool, *words], capture_output=True, text=True, check=False)


def test_promtool_reads_the_rules() -> None:
    run = promtool("check", "rules", str(RULES))
    assert run.returncode == 0, run.stdout + run.stderr
    assert f"SUCCESS: {len(rules())} rules found" in run.stdout


def test_every_rule_fires_when_it_should_and_not_before() -> None:
    run = promtool("test", "rules", str(TESTS))
    assert run.returncode == 0, run.stdout + run.stderr


def test_a_rule_that_never_fires_is_noticed(tmp_path: Path) -> None:
    """The tests of the rules can fail, those of each one."""
    broken = yaml.safe_load(RULES.read_text())
    for group in broken["groups"]:
        for rule in group["rules"]:
            rule["expr"] = f"({rule['expr']}) * 0 > 1"
    (tmp_path / RULES.name).write_text(yaml.safe_dump(broken))
    tests = yaml.safe_load(TESTS.read_text())
    tests["rule_files"] = [str(tmp_path / RULES.name)]
    (tmp_path / TESTS.name).write_text(yaml.safe_dump(tests))
    run = promtool("test", "rules", str(tmp_path / TESTS.name))
    assert run.returncode != 0
    said = run.stdout + run.stderr
    assert [rule["alert"] for rule in rules() if rule["alert"] not in said] == []


def test_every_rule_is_tried_with_and_without_an_alert() -> None:
    expected: dict[str, set[bool]] = {}
    for test in yaml.safe_load(TESTS.read_text())["tests"]:
        for case in test["alert_rule_test"]:
            expected.setdefault(case["alertname"], set()).add(bool(case["exp_alerts"]))
    assert expected == {rule["alert"]: {True, False} for rule in rules()}


@pytest.mark.parametrize("path", [RULES, TESTS], ids=["rules", "tests"])
def test_every_metric_and_label_is_one(path: Path) -> None:
    found = SERIES.findall(path.read_text())
    assert len(found) > 15
    for name, matchers in found:
        assert name in METRICS, name
        labels = set(re.findall(r"(\w+)=~?\"", matchers))
        assert labels <= {*METRICS[name], *GIVEN}, f"{name} has no {labels}"


def test_what_a_rule_says_it_takes_from_labels_that_are_there() -> None:
    for rule in rules():
        said = " ".join(rule["annotations"].values())
        metrics = [METRICS[name] for name, _ in SERIES.findall(rule["expr"])]
        for label in re.findall(r"\$labels\.(\w+)", said):
            assert label in GIVEN or label in metrics[0], f"{rule['alert']}: {label}"
        # Joined over machines, there is no instance to speak of.
        assert not ("without (instance" in rule["expr"] and "$labels.instance" in said)


def test_every_rule_is_named_graded_and_explained() -> None:
    names = [rule["alert"] for rule in rules()]
    assert len(set(names)) == len(names)
    for rule in rules():
        assert rule["alert"].startswith("BudgetProxy")
        assert rule["labels"]["severity"] in ("warning", "critical")
        assert rule["annotations"].keys() == {"summary", "description"}


def test_what_is_told_of_upstreams_is_told_by_prometheus_too() -> None:
    """But for what only asks somebody, and a reading that fails: it gets stale."""
    told = {
        "balance_stale": "BudgetProxyBalanceStale",
        "breaker_open": "BudgetProxyBreakerOpen",
        "drift": "BudgetProxyBalanceDrift",
        "topup_failed": "BudgetProxyTopupFailed",
        "topup_unknown": "BudgetProxyTopupUnknown",
    }
    assert told.keys() == CONDITIONS.keys() - {"bad_reading", "topup_asked"}
    assert set(told.values()) <= {rule["alert"] for rule in rules()}

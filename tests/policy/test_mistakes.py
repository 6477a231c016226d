"""One small policy per mistake: each file says in its first lines what is to be found where."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from policy_support import HERE, SECRETS, TARIFFS, Prices, read_file

from budget_proxy.policy import PolicyError, check, nodes

FILES = sorted((HERE / "mistakes").glob("*.yaml"))
EXPECT = re.compile(r"# expect: (\d+):(\d+): (.*)")


def found_in(path: Path) -> list[str]:
    with pytest.raises(PolicyError) as caught:
        check(path, environment=SECRETS, read_file=read_file, catalogue=TARIFFS, prices=Prices)
    return str(caught.value).splitlines()


def expected_in(path: Path) -> list[str]:
    lines = path.read_text().splitlines()
    matches = [match for line in lines if (match := EXPECT.match(line))]
    return [
        f"{path}:{line}:{column}: {message}"
        for line, column, message in (match.groups() for match in matches)
    ]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_mistake_is_said_at_its_place(path: Path) -> None:
    assert expected_in(path), "each file says what it expects"
    assert found_in(path) == expected_in(path)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_same_is_found_without_libyaml(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nodes, "_LOADER", yaml.BaseLoader)
    expected = expected_in(path)
    if any("not YAML" in line for line in expected):
        # The two parsers have words of their own.
        assert all("not YAML" in line for line in found_in(path))
    else:
        assert found_in(path) == expected


def test_no_mistake_shows_a_secret() -> None:
    for path in FILES:
        said = "\n".join(found_in(path))
        for secret in [*SECRETS.values(), "hunter22"]:
            assert secret == "short" or secret not in said


FILE_POLICY = """upstreams:
  geo:
    url: https://geo.example.com
    tariff: [{match: {path: /x}, price: {requests: 1 USD}}]
services: {app: {key: "${file:PATH}"}}
budgets: {day: {limit: 5 USD, per: day}}
"""


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "cannot be read: No such file or directory"),
        ("a folder", "cannot be read: Is a directory"),
        (b"hunter22-\xff-hunter22", "is not UTF-8 text"),
        (b"hunter22" * 10_000, "has more than 65536 characters"),
        (b"hunter22 hunter22 hunter22", "services.app.key: "),
        (b"hunter2", "services.app.key: "),
    ],
    ids=["none", "a folder", "no text", "too long", "with spaces", "too short"],
)
def test_a_real_file_that_cannot_be_used_is_said_by_its_name(
    tmp_path: Path, content: bytes | str | None, says: str
) -> None:
    """And never by what is in it."""
    secret = tmp_path / "secret"
    if isinstance(content, bytes):
        secret.write_bytes(content)
    elif content is not None:
        secret.mkdir()
    policy = tmp_path / "policy.yaml"
    policy.write_text(FILE_POLICY.replace("PATH", str(secret)))
    with pytest.raises(PolicyError) as caught:
        check(policy, environment={}, prices=Prices)
    (said,) = str(caught.value).splitlines()
    assert said.startswith(f"{policy}:5:"), said
    assert says in said
    assert "hunter2" not in said
    if "services.app" not in says:
        assert f"'{secret}'" in said


def test_there_are_many_of_them_and_each_has_words_of_its_own() -> None:
    words = [tuple(line.split(": ", 1)[1] for line in expected_in(path)) for path in FILES]
    assert len(FILES) >= 100
    # A few differ only in what is wrong, not in what is said.
    assert len(set(words)) >= len(FILES) * 0.95


@pytest.mark.parametrize(
    ("name", "reason"),
    [("missing.yaml", "No such file or directory"), (".", "Is a directory")],
)
def test_a_file_that_cannot_be_read_is_a_mistake(tmp_path: Path, name: str, reason: str) -> None:
    path = tmp_path / name
    with pytest.raises(PolicyError) as caught:
        check(path, environment={})
    assert str(caught.value) == f"{path}:1:1: cannot be read: {reason}"


@pytest.mark.parametrize(
    ("data", "place", "said"),
    [
        (b"a: 1\nb: \xff\xfe\n", "2:4", "not UTF-8"),
        (b"a: \x00\n", "1:1", "control character"),
        (b"a: \x07\n", "1:1", "control character"),
        ("a: 1\n b\ue07b\n".encode(), "2:3", "U+E07B"),
        (b"a: b\n" * 300_000, "1:1", "larger than"),
        (b"a: " + b"x" * 70_000, "1:4", "more than 65536 characters"),
        (b"\xff\xfe\x00a", "1:1", "not UTF-8"),
        ("\ufeff- a\n".encode(), "1:1", "must be a mapping"),
    ],
)
def test_a_file_that_is_no_text_is_a_mistake(
    tmp_path: Path, data: bytes, place: str, said: str
) -> None:
    path = tmp_path / "policy.yaml"
    path.write_bytes(data)
    with pytest.raises(PolicyError) as caught:
        check(path, environment={})
    assert str(caught.value).startswith(f"{path}:{place}: ")
    assert said in str(caught.value)


def test_a_file_of_junk_does_not_fill_the_terminal(tmp_path: Path) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text("".join(f"key{number}: x\n" for number in range(2000)))
    with pytest.raises(PolicyError) as caught:
        check(path, environment={})
    lines = str(caught.value).splitlines()
    assert len(lines) == 501
    assert lines[-1].endswith(f"and {len(caught.value.mistakes) - 500} more")

"""The Dockerfile, run step by step without an engine; and what the wheel and the sdist contain.

Real: the build context (what .dockerignore lets through, copied as COPY says), every RUN step in
its order in its own folder, the wheel and its installation from the package index, the folder that
is copied to the last stage, ENV, WORKDIR, ENTRYPOINT with CMD, the health check against the running
proxy, the stop signal.

Mapped: the image's root is a folder, and absolute paths point into it; `python` is the one that
runs the tests, instead of the image's; ports are free ones. Checked but not carried out: useradd,
USER, VOLUME, EXPOSE. Not seen at all: the base image.
"""

from __future__ import annotations

import fcntl
import json
import os
import pickle
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import NamedTuple

import pytest

from budget_proxy import __version__
from budget_proxy.policy.model import PolicyEntry

pytestmark = pytest.mark.timeout(300)

ROOT = Path(__file__).resolve().parent.parent
ABSOLUTE = re.compile(r"(?<![^\s\"'=(:])/(?=\w)")
DEADLINE_S = 30.0
POLICY = """
listen: 127.0.0.1:0
admin: 127.0.0.1:0
upstreams:
  geo:
    url: http://127.0.0.1:9
    tariff: [{match: {method: GET, path: /v1/geocode}, price: {requests: 0.005 USD}}]
services: {app: {key: "${KEY}"}}
budgets: {day: {limit: 1 USD, per: day}}
"""


class Step(NamedTuple):
    """One instruction and what stands after it, continuation lines joined."""

    instruction: str
    rest: str


def steps() -> list[Step]:
    lines = (ROOT / "Dockerfile").read_text().splitlines()
    text = "\n".join(line for line in lines if line.strip() and not line.startswith("#"))
    joined = re.sub(r"\\\n\s*", "", text)
    return [Step(*line.split(None, 1)) for line in joined.splitlines()]


def of(instruction: str) -> list[str]:
    return [step.rest for step in steps() if step.instruction == instruction]


def in_context(path: Path) -> bool:
    """Whether .dockerignore lets a file of the checkout through: the last line that fits counts."""
    kept = True
    parts = path.parts
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        pattern = line.strip()
        if not pattern or pattern.startswith("#"):
            continue
        bare = pattern.removeprefix("!")
        if bare.startswith("**/"):
            fits = any(fnmatch(part, bare.removeprefix("**/")) for part in parts)
        else:
            fits = fnmatch(parts[0], bare)
        if fits:
            kept = pattern.startswith("!")
    return kept


class Image:
    """Carries the steps out. The root of the stage at hand is always the same folder, as it is
    always `/` in an image; the roots of earlier stages are put aside under their names."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.root = folder / "root"
        self.ran: list[str] = []
        self._bin = folder / "bin"
        self._bin.mkdir()
        python = self._bin / "python"
        python.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} "$@"\n')
        python.chmod(0o755)
        self._begin("")

    def _begin(self, name: str) -> None:
        self.name, self.cwd = name, self.root
        self.root.mkdir()
        self.env = {"PATH": f"{self._bin}:/usr/bin:/bin", "HOME": str(self.root)}
        index = {name: value for name, value in os.environ.items() if name.startswith("PIP_")}
        self.env.update(index)

    def mapped(self, text: str) -> str:
        return ABSOLUTE.sub(f"{self.root}/", text)

    def build(self) -> None:
        for instruction, rest in steps():
            act = getattr(self, f"_{instruction.lower()}", None)
            if act is not None:
                act(rest)
                self.ran.append(f"{instruction} {rest}")

    def _from(self, rest: str) -> None:
        if self.ran:
            self.root.rename(self.folder / f"stage-{self.name}")
        else:
            self.root.rmdir()
        self._begin(rest.partition(" AS ")[2])

    def _workdir(self, rest: str) -> None:
        self.cwd = Path(self.mapped(rest))
        self.cwd.mkdir(parents=True, exist_ok=True)

    def _env(self, rest: str) -> None:
        for pair in shlex.split(self.mapped(rest)):
            name, _, value = pair.partition("=")
            self.env[name] = value.replace("$PATH", self.env["PATH"])

    def _copy(self, rest: str) -> None:
        *sources, target = shlex.split(rest)
        stage = re.match(r"--from=(\w+)$", sources[0])
        base = self.folder / f"stage-{stage[1]}" if stage else ROOT
        to = self.cwd / self.mapped(target)
        for source in sources[1:] if stage else sources:
            found = base / source.lstrip("/")
            assert stage or in_context(Path(source)), f"{source} is not in the build context"
            if found.is_dir():
                # What is copied from a stage is linked: thousands of files that nobody changes.
                kind = {"copy_function": os.link} if stage else {"ignore": self._ignored}
                shutil.copytree(found, to, symlinks=True, **kind)
            else:
                to.mkdir(parents=True, exist_ok=True)
                shutil.copy2(found, to)

    @staticmethod
    def _ignored(folder: str, names: list[str]) -> set[str]:
        inside = Path(folder).relative_to(ROOT)
        return {name for name in names if not in_context(inside / name)}

    def _run(self, rest: str) -> None:
        if rest.startswith("useradd"):
            return
        self.do(["/bin/sh", "-ec", self.mapped(rest)])

    def do(self, command: list[str]) -> str:
        run = subprocess.run(
            command, cwd=self.cwd, env=self.env, capture_output=True, text=True, check=False
        )
        assert run.returncode == 0, f"{command}\n{run.stdout}\n{run.stderr}"
        return run.stdout


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Image:
    """The image, built once: of the workers of a run, the first that comes here builds it."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    done = folder / "image" / "done"
    with (folder / "image.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not done.exists():
            shutil.rmtree(done.parent, ignore_errors=True)
            done.parent.mkdir()
            built = Image(done.parent)
            built.build()
            done.write_bytes(pickle.dumps(built))
        image: Image = pickle.loads(done.read_bytes())
    return image


@pytest.fixture
def container(image: Image) -> Iterator[subprocess.Popen[str]]:
    """The image's own command, running."""
    policy = image.root / "etc" / "budget-proxy" / "policy.yaml"
    policy.parent.mkdir(parents=True, exist_ok=True)
    policy.write_text(POLICY)
    command = json.loads(of("ENTRYPOINT")[0]) + json.loads(image.mapped(of("CMD")[0]))
    running = subprocess.Popen(
        command,
        cwd=image.cwd,
        env={**image.env, "KEY": "a-key-of-this-test"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield running
    finally:
        running.kill()
        running.communicate()


def test_every_step_of_the_dockerfile_works(image: Image) -> None:
    known = {"FROM", "WORKDIR", "COPY", "RUN", "ENV"}
    carried_out = [
        f"{step.instruction} {step.rest}" for step in steps() if step.instruction in known
    ]
    assert image.ran == carried_out
    assert image.do(["budget-proxy", "--version"]) == f"budget-proxy {__version__}\n"
    assert "uvloop" in image.do(["python", "-c", "import uvloop; print(uvloop.__name__)"])


def test_the_image_holds_nothing_that_only_building_needs(image: Image) -> None:
    [packages] = (image.root / "opt" / "venv" / "lib").glob("python*/site-packages")
    names = {entry.name for entry in packages.iterdir()}
    assert "budget_proxy" in names
    assert not names & {"pip", "hatchling", "pytest", "tests", "openai"}
    assert not (image.root / "src").exists()


def test_the_container_serves_is_well_and_stops(
    image: Image, container: subprocess.Popen[str]
) -> None:
    assert container.stderr is not None
    ready = container.stderr.readline()
    metrics = re.search(r"metrics at http://(127\.0\.0\.1:\d+)/metrics", ready)
    assert metrics is not None, ready + container.stderr.read()

    def health() -> int:
        command = json.loads(of("HEALTHCHECK")[0].partition(" CMD ")[2])
        mapped = [word.replace("127.0.0.1:9090", metrics[1]) for word in command]
        assert mapped != command
        run = subprocess.run(mapped, env=image.env, capture_output=True, check=False)
        return run.returncode

    assert health() == 0
    [volume] = of("VOLUME")
    assert Path(image.mapped(volume)) == image.cwd
    assert (image.cwd / "budget-proxy.db").is_file(), "the ledger lies in the volume"
    container.send_signal(getattr(signal, of("STOPSIGNAL")[0]))
    assert container.wait(DEADLINE_S) == 0
    assert health() == 1


def test_the_container_is_not_root() -> None:
    [user] = of("USER")
    uid, gid = (int(number) for number in user.split(":"))
    assert uid == gid > 0
    [useradd] = [rest for rest in of("RUN") if rest.startswith("useradd")]
    assert f"--uid {uid} --user-group" in useradd
    [home] = of("VOLUME")
    assert f"--home-dir {home} --create-home" in useradd, "the user can write its ledger"
    order = [step.instruction for step in steps()]
    assert order.index("USER") > len(order) - order[::-1].index("RUN") - 1, "needs root"


def test_the_ports_are_those_of_a_policy_that_says_nothing() -> None:
    ports = {
        PolicyEntry.model_fields[name].default.rpartition(":")[2] for name in ("listen", "admin")
    }
    assert set(of("EXPOSE")[0].split()) == ports
    assert (
        f":{PolicyEntry.model_fields['admin'].default.rpartition(':')[2]}/livez"
        in (of("HEALTHCHECK")[0])
    )


def test_both_stages_have_the_same_small_base() -> None:
    bases = {rest.partition(" AS ")[0] for rest in of("FROM")}
    assert len(bases) == 1
    assert re.fullmatch(r"python:3\.\d+-slim", bases.pop())


# -- the wheel and the sdist ----------------------------------------------------------------------


def shipped() -> set[str]:
    """What has to be in every wheel: the code, and the files it reads."""
    files = {
        file.relative_to(ROOT).as_posix()
        for file in (ROOT / "budget_proxy").rglob("*")
        if file.is_file() and file.suffix != ".pyc"
    }
    policies = {
        f"budget_proxy/{file.relative_to(ROOT).as_posix()}"
        for file in (ROOT / "policies").rglob("*")
        if file.is_file()
    }
    assert policies
    assert {"budget_proxy/py.typed", "budget_proxy/tariffs/openai.yaml"} <= files
    return files | policies


def contents(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as opened:
        return {name for name in opened.namelist() if not name.endswith("/")}


def test_the_wheel_has_the_tariffs_the_policies_and_the_types_and_nothing_else(
    image: Image,
) -> None:
    [wheel] = (image.folder / "stage-build" / "src" / "dist").iterdir()
    info = f"budget_proxy-{__version__}.dist-info"
    files = contents(wheel)
    assert {name for name in files if not name.startswith(info)} == shipped()
    assert f"{info}/licenses/LICENSE" in files
    assert f"{info}/entry_points.txt" in files


def test_the_sdist_builds_the_same_wheel_and_has_the_tests(tmp_path: Path) -> None:
    venv, dist = tmp_path / "venv", tmp_path / "dist"
    python = venv / "bin" / "python"
    for command in (
        [sys.executable, "-m", "venv", str(venv)],
        [str(python), "-m", "pip", "install", "--quiet", "hatchling"],
        [str(python), "-m", "hatchling", "build", "--target", "sdist", "--directory", str(dist)],
    ):
        run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        assert run.returncode == 0, run.stderr
    [sdist] = dist.iterdir()
    with tarfile.open(sdist) as opened:
        names = {name.partition("/")[2] for name in opened.getnames()}
    for file in ("tests/test_dockerfile.py", "Dockerfile", "CHANGELOG.md", "docs/policy.md"):
        assert file in names
    assert not any(name.startswith((".git/", ".venv")) for name in names)
    command = [str(python), "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    run = subprocess.run(
        [*command, "--wheel-dir", str(tmp_path), str(sdist)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    [wheel] = tmp_path.glob("*.whl")
    assert shipped() <= contents(wheel)


def test_an_installed_policy_is_found_by_its_name(image: Image) -> None:
    said = image.do(["budget-proxy", "check", "quickstart.yaml"])
    assert said.rstrip().endswith("quickstart.yaml: ok")

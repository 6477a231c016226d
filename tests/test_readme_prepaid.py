"""The README's way to protect a prepaid account, pasted into a shell line by line.

Changed are only the addresses, which have to be free, and how often the balance is looked at: the
preset's ten seconds at least are a long time in a test.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from processes import DEADLINE_S, environment, settle, started

ROOT = Path(__file__).resolve().parent.parent
PRESET = "preset: deepseek #"
SPELLED_OUT = """url: /user/balance
      path: "balance_infos[currency=USD].total_balance"
      gate: is_available #"""


def section() -> list[str]:
    """The shell blocks under its heading."""
    _, _, text = (ROOT / "README.md").read_text().partition("\n## Prepaid balances\n")
    assert text, "README has no section on prepaid balances"
    return re.findall(r"^```sh\n(.*?)^```$", text.partition("\n## ")[0], re.MULTILINE | re.DOTALL)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Shells:
    """The addresses of the README, and shells in which they are others."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ports = {port: str(free_port()) for port in ("9099", "8080", "9090")}
        command = folder / "bin" / "budget-proxy"
        command.parent.mkdir()
        command.write_text(f'#!/bin/sh\nexec {sys.executable} -m budget_proxy "$@"\n')
        command.chmod(0o755)
        self.variables = {
            "PATH": f"{command.parent}:{os.environ['PATH']}",
            "BUDGET_PROXY_LISTEN": f"127.0.0.1:{self.ports['8080']}",
            "BUDGET_PROXY_ADMIN": f"127.0.0.1:{self.ports['9090']}",
        }

    def here(self, text: str) -> str:
        for port, other in self.ports.items():
            text = text.replace(f":{port}", f":{other}")
        return text

    def variables_of(self, block: str) -> dict[str, str]:
        lines = [line for line in self.here(block).splitlines() if line.startswith("export ")]
        return dict(word.split("=", 1) for line in lines for word in line.split()[1:])

    def paste(self, commands: str) -> str:
        """Into a shell; what it prints."""
        done = subprocess.run(
            ["/bin/sh", "-e", "-c", self.here(commands)],
            cwd=self.folder,
            env=environment(**self.variables),
            capture_output=True,
            text=True,
            timeout=DEADLINE_S,
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, ""), done
        return done.stdout


def line_of(block: str, start: str) -> str:
    return next(line for line in block.splitlines() if line.startswith(start))


def test_the_readme_protects_a_prepaid_account(tmp_path: Path) -> None:
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    sandbox, serve, spends, then = section()
    shells = Shells(tmp_path)
    policies = tmp_path / "policies"
    policies.mkdir()
    text = (ROOT / "policies" / "prepaid.yaml").read_text()
    assert text.count(PRESET) == text.count("every: 30s") == 1
    text = text.replace(PRESET, SPELLED_OUT).replace("every: 30s", "every: 1s")
    (policies / "prepaid.yaml").write_text(text)
    prepare, _, chat = spends.partition("chat batch-key-0000")
    chat = "chat batch-key-0000" + chat

    words = shells.here(sandbox).split()[1:]
    variables = shells.variables | shells.variables_of(serve)
    with started(*words, cwd=tmp_path) as provider:
        settle(lambda: "listens" in provider.out, "the sandbox does not start")
        proxy_words = serve.splitlines()[-1].split()[1:]
        with started(*proxy_words, cwd=tmp_path, **variables) as proxy:
            settle(lambda: proxy.ready or not proxy.running, "it does not start")
            assert proxy.ready, proxy.err

            def says(line: str) -> str:
                return shells.paste(prepare + line)

            settle(lambda: "200" in says("chat batch-key-0000"), "the balance is not read")
            printed = shells.paste(prepare + chat)
            assert printed.startswith("200\n")
            assert re.search(r"deepseek +fresh", printed)
            settle(lambda: "402" in says("chat batch-key-0000"), "batch goes on")
            assert says(line_of(then, "chat checkout-key-0000")) == "200\n"
            hooks = line_of(then, "curl")
            settle(lambda: "deepseek" in says(hooks), "nobody was told")
            asked = line_of(then, "budget-proxy topup list")
            settle(lambda: "50" in says(asked), "nothing was asked for")
            found = re.search(r"[0-9a-f]{8}-[0-9a-f-]{27}", says(asked))
            assert found is not None
            says(line_of(then, "budget-proxy topup approve").replace("ID", found[0]))
            settle(lambda: "200" in says("chat batch-key-0000"), "the money does not come")
            assert "62.99 USD" in says(line_of(spends, "budget-proxy balance list"))

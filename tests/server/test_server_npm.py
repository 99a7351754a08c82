"""The OpenAI client of npm, where there is one."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

VERSION = "6.49.0"
SCRIPT = Path(__file__).with_name("client.mjs")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with the client in it."""
    if not (shutil.which("node") and shutil.which("npm")):
        pytest.skip("there is no node here")
    home = tmp_path_factory.mktemp("npm")
    command = ["npm", "install", "--silent", "--no-audit", "--no-fund", f"openai@{VERSION}"]
    done = subprocess.run(command, cwd=home, capture_output=True, text=True, timeout=120)
    if done.returncode:
        pytest.skip(f"npm cannot fetch the client: {done.stderr.strip()[-200:]}")
    shutil.copy(SCRIPT, home)
    return home


def test_everything_that_it_does(server, folder):
    done = subprocess.run(
        ["node", SCRIPT.name, server.url], cwd=folder, capture_output=True, text=True, timeout=120
    )
    assert done.stdout.strip() == "ok", done.stderr

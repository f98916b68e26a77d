"""requirements/system.sh installs what is missing, and nothing that starts a service of itself."""

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
WITHOUT = "its tests are skipped; for them"


@pytest.fixture
def call(tmp_path):
    """Run it where apt-get and root are stand-ins; what it says, and what was installed."""
    log, tool = tmp_path / "log", tmp_path / "new-tool"
    for name, text in {
        "apt-get": f'echo "$@" >>{log}; touch {tool}; chmod +x {tool}',
        "id": "echo 0",
    }.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)

    def call(*words):
        environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
        command = ["sh", str(ROOT / "requirements" / "system.sh"), "tools", *words]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        lines = log.read_text().splitlines() if log.exists() else []
        return done.stdout, [line.split()[-2:] for line in lines if " install " in line]

    return call


def test_what_is_there_is_left_alone(call):
    assert call("bin:sh,no-such-shell", WITHOUT, "a-shell") == ("tools: is installed\n", [])


def test_what_is_missing_is_installed(call):
    said, installed = call("bin:sh bin:new-tool", WITHOUT, "one", "two")
    assert said == "tools: installing one two\ntools: installed\n"
    assert installed == [["one", "two"]]


def test_what_stays_missing_is_said_with_what_is_done_without_it(call):
    said, _ = call("bin:no-such-tool", WITHOUT, "one")
    assert said.splitlines()[1:] == [
        "tools: could not be installed",
        f"tools: {WITHOUT}, as root:",
        "tools:   apt-get install one",
    ]


def test_a_package_with_a_service_is_installed_only_where_nothing_would_start_it(call):
    said, installed = call("bin:new-tool", WITHOUT, "one", "service:two")
    if Path("/run/systemd/system").is_dir():
        assert "would start a service on this machine" in said
        assert said.endswith("apt-get install one two\n")
        assert installed == []
    else:
        assert said == "tools: installing one two\ntools: installed\n"
        assert installed == [["one", "two"]]

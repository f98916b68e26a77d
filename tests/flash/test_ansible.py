"""The Ansible role, run by ansible-playbook itself: `make test-ansible` installs it."""

import os
import subprocess
from pathlib import Path

import pytest

from export.release.config import AnyBoardConfig

ROOT = Path(__file__).parents[2]
PLAYBOOK = ROOT / "export/release/ansible/flash.yml"
ANSIBLE = ROOT / "build/ansible/bin/ansible-playbook"


@pytest.fixture
def play(board, make, tmp_path):
    if not ANSIBLE.exists():
        pytest.skip("no ansible here: make test-ansible installs it for this test")

    def play(*behaviour, number, hosts=None):
        release = make(*behaviour, number=number).release
        config = board.config()
        host, _, port = board.server.address.partition("@")[2].partition(":")
        inventory = tmp_path / "boards"
        inventory.write_text(
            "\n".join(hosts or [f"orin ansible_host={host} ansible_port={port}"])
            + f"\n[all:vars]\nansible_user={board.server.user}\n"
        )
        options = [
            *("--wheelhouse", str(release.wheelhouse), "--backend", "onnxruntime"),
            *("--health-s", "20", "--ssh-option", *config.ssh_option),
        ]
        for name in sorted({"root", "system", "python"} & set(AnyBoardConfig.__slots__)):
            options += [f"--{name}", getattr(config, name)]
        done = subprocess.run(
            [
                *(ANSIBLE, "-i", inventory, PLAYBOOK),
                *("-e", f"anchorvla_bundle={release.bundle}"),
                *("-e", f"anchorvla_trust={release.trust}"),
                *("-e", f"{{anchorvla_options: {options!r}}}"),
            ],
            capture_output=True,
            text=True,
            env={**os.environ, "ANSIBLE_NOCOLOR": "1", "LC_ALL": "C.UTF-8"},
        )
        return done.returncode, done.stdout + done.stderr

    return play


def test_the_role_flashes_once_and_changes_nothing_the_second_time(play, board):
    code, said = play(number=1)
    assert code == 0 and "changed=1" in said, said
    assert board.current.startswith("1-")
    code, said = play(number=1)
    assert code == 0 and "changed=0" in said, said


def test_a_board_that_fails_ends_the_play_before_the_next(play, board):
    address = board.server.address.partition("@")[2]
    host, _, port = address.partition(":")
    hosts = [f"{name} ansible_host={host} ansible_port={port}" for name in ("first", "second")]
    code, said = play("crash", number=1, hosts=hosts)
    assert code != 0 and "was not confirmed" in said
    recap = said.partition("PLAY RECAP")[2]
    assert "first" in recap and "second" not in recap, said

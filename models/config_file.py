"""python -m models config: a `config.json` alone, written to be edited, or checked."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

from models.families import CONFIGS, read_config, to_json
from models.layouts import runs
from models.policy_config import PolicyConfig
from models.verbs import Config
from runtime.errors import OutputError
from runtime.storage.files import write_file


def config(arguments: Config) -> None:
    """Do what `Config` says.

    Raises:
        OutputError: there is a file already, which may hold somebody's work, or it cannot be made.
        ValueError: the file that is checked is no configuration of a policy.
    """
    if arguments.check is not None:
        if runs.is_in(arguments.check):
            run = runs.open_run(arguments.check)
            policy = run.config
            print("\n".join(f"  {line}" for line in run.said))
        else:
            policy = configuration(arguments.check)
        print(f"{arguments.check}: sound\n{describe(policy)}")
        return
    assert arguments.name is not None and arguments.out is not None
    if os.path.lexists(arguments.out):
        raise OutputError(f"{arguments.out}: is there already; name another file, or remove it")
    write_file(arguments.out, to_json(CONFIGS[arguments.name]()))
    edited = f"python -m models config --check {shlex.quote(str(arguments.out))}"
    print(f"{arguments.out}: written; after an edit: {edited}")


def configuration(what: str | Path) -> PolicyConfig:
    """By name, or from a file or a folder that holds a `config.json`, or from a folder of
    `models.layouts.runs`.

    Raises:
        ValueError: the file is no configuration of a policy.
    """
    if what in CONFIGS:
        return CONFIGS[str(what)]()
    path = Path(what)
    if runs.is_in(path):
        return runs.open_run(path).config
    return read_config(path / "config.json" if path.is_dir() else path)


def describe(policy: PolicyConfig) -> str:
    """Its networks in a line each."""
    n, (num_actions, width) = policy.normalization, policy.chunk
    v, lm = policy.vision, policy.language
    rows = {
        "vision": f"{v.words}, patches of {v.patch_size} pixels",
        "language": f"{lm.num_hidden_layers} layers of width {lm.hidden_size}, vocabulary of "
        f"{lm.vocab_size:,}",
        **policy.other_networks,
        "actions": f"chunks of {num_actions} x {width}: "
        + ", ".join(f"{u} {m}" for u, m in zip(n.action_units, n.action, strict=True)),
        "state": f"{policy.state_dim}: "
        + ", ".join(f"{u} {m}" for u, m in zip(n.state_units, n.state, strict=True)),
        "licence": policy.license,
    }
    return "\n".join(f"  {name:<9} {words}" for name, words in rows.items())

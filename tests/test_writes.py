"""Nothing writes or removes a file past the modules that know what is ours."""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[1]

WRITES = {
    "write_text", "write_bytes", "touch", "mkdir", "unlink", "rename", "rmdir", "rmtree", "tofile",
    "savez", "savez_compressed", "save_file", "copyfile", "copytree", "symlink_to", "link",
}  # fmt: skip
MAY_WRITE = {
    "runtime/storage/files.py": "the mechanism",
    "runtime/storage/folders.py": "the mechanism",
    "runtime/storage/trust.py": "a key's file, read as one",
    "runtime/control/heartbeat.py": "into what `beside` gives, once `check_output` has looked",
    "runtime/plans/folder.py": "the folder plans/ of a bundle",
    "runtime/plans/build.py": "in plans/, locked",
    "runtime/plans/compiler.py": "into what `beside` gives; /proc",
    "runtime/plans/record.py": "into what `beside` gives",
    "runtime/recordings/recording.py": "into what `replacing` gives",
    "runtime/recordings/lerobot_writer.py": "into the folder that `temporary` gives",
    "export/build.py": "into the folder that `temporary` gives; its own page, seen to be one",
    "export/twin.py": "into the folder that `temporary` gives",
    "export/engines/engine.py": "into the folder that `temporary` gives",
    "export/engines/onnx_file.py": "into the folder that `temporary` gives",
    "export/engines/ranges.py": "into the folder that `temporary` gives",
    "export/destination.py": "its own work folder, looked through",
    "export/kept.py": "into that folder",
    "export/evidence/full_size.py": "the folder of a case, looked through",
    "export/evidence/planted.py": "into the folder that `temporary` gives",
    "export/evidence/kept_episodes.py": "into what `replacing` gives",
    "export/release/root_files.py": "no link is followed, nothing replaced that is not ours",
    "export/release/agent/first_boot.py": "its own mark",
    "export/release/agent/service.py": "a unit of ours",
    "export/release/wheelhouse.py": "into what `temporary` gives; its own cache, by hash",
    "export/release/agent/place.py": "links of a board's own folder",
    "export/release/agent/trial.py": "the trial in that folder",
    "export/release/agent/lock.py": "its holder there",
    "export/release/agent/transfer.py": "what was received there, by its hash",
    "export/release/agent/install.py": "releases there, by names of that form",
    "export/release/flash_os.py": "the staged release's name, where nobody else may write",
    "quant/calibrate.py": "into what `replacing` gives",
    "quant/codes.py": "into what `replacing` gives",
    "models/checkpoint.py": "into the folder that `temporary` gives",
    "models/anchorvla4d/checkpoint.py": "into the folder that `temporary` gives",
    "models/anchorvla4d/megatron_writer.py": "into the folder that `temporary` gives",
    "models/layouts/lerobot_writer.py": "into the folder that `temporary` gives",
    "models/layouts/own_writer.py": "into the folder that `temporary` gives",
    "models/layouts/prismatic_writer.py": "into the folder that `temporary` gives",
    "models/layouts/showo_writer.py": "into the folder that `temporary` gives",
    "models/layouts/starvla_writer.py": "into the folder that `temporary` gives",
    "models/layouts/writers.py": "into the folder that `temporary` gives",
    "models/synthesize.py": "into the folder that `temporary` gives",
    "models/imported.py": "into the folder that `temporary` gives",
    "models/demo/collect.py": "into what `replacing` gives",
    "models/demo/readout.py": "into what `replacing` gives",
    "models/demo/training.py": "into what `replacing` gives",
}
"""Modules that write or remove by themselves, and why nobody's file is lost to them."""


def written(source: str) -> set[str]:
    """Names of the calls in `source` that write or remove."""
    calls = (node.func for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call))
    names = {getattr(call, "attr", getattr(call, "id", "")) for call in calls}
    return names & WRITES


def test_nothing_writes_past_the_two_modules_that_know_what_is_ours():
    packages = ("runtime", "models", "quant", "export", "device_tests")
    found = {
        path.relative_to(ROOT).as_posix(): names
        for package in packages
        for path in (ROOT / package).rglob("*.py")
        if (names := written(path.read_text()))
    }
    assert {p: names for p, names in found.items() if p not in MAY_WRITE} == {}
    assert MAY_WRITE.keys() - found.keys() == set(), "no longer needed"


def test_a_planted_write_is_found():
    assert written("from shutil import rmtree\nrmtree(folder)") == {"rmtree"}
    assert written("path.with_name('x').write_text(words)") == {"write_text"}

"""The lean wheel as a robot gets it: built, installed on each Python that JetPack has, and used.

JetPack 6 has Python 3.10, JetPack 7 has 3.12. A Python that is not here is skipped with a reason.
"""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
EPISODE = ROOT / "models" / "demo" / "episodes" / "touch-red-1.npz"

MAX_MB = {"robot.txt": 150, "robot-onnxruntime.txt": 230}
DISTRIBUTIONS = {"msgspec", "numpy", "pillow", "tokenizers", "onnxruntime", "anchorvla-runtime"}
HEAVY = {"torch", "transformers", "onnx", "models", "quant", "export"}
HTTP_CLIENTS = {
    "aiohttp",
    "httpcore",
    "httpcore2",
    "httpx",
    "httpx2",
    "huggingface-hub",
    "pycurl",
    "requests",
    "tornado",
    "urllib3",
}


@dataclass(frozen=True)
class LeanVenv:
    """A venv with nothing but the wheel and the pins."""

    folder: Path
    sizes_mb: dict[str, float]
    """Disk usage without pip after each requirements file."""

    def run(self, program: str, *arguments: object) -> subprocess.CompletedProcess[str]:
        """A program of the venv, from a folder that is not the repository."""
        return _run(self.folder / "bin" / program, *arguments, cwd=self.folder)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    build = ["-m", "build", "--wheel", "--no-isolation", "--outdir", folder, "runtime"]
    _run(sys.executable, *build, cwd=ROOT)
    (wheel,) = folder.glob("*.whl")
    return wheel


@pytest.fixture(scope="module", params=["3.10", "3.12"])
def lean_venv(
    request: pytest.FixtureRequest, wheel: Path, tmp_path_factory: pytest.TempPathFactory
) -> LeanVenv:
    folder = tmp_path_factory.mktemp(f"lean-{request.param}-")
    _run(_python(request.param), "-m", "venv", folder, cwd=folder)
    sizes_mb = {}
    for name in MAX_MB:
        pins = ROOT / "requirements" / name
        install = ["-m", "pip", "--quiet", "install", "--no-deps"]
        _run(folder / "bin" / "python", *install, "-r", pins, wheel, cwd=folder)
        sizes_mb[name] = _size_mb(folder)
    return LeanVenv(folder, sizes_mb)


def test_the_wheel_holds_the_package_and_nothing_else(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    inside = {name.removeprefix("runtime/") for name in names if name.startswith("runtime/")}
    package = ROOT / "runtime"
    modules = {path.relative_to(package).as_posix() for path in package.rglob("*.py")}
    assert "backends/tensorrt.py" in modules
    assert inside == modules | {"py.typed", "robots/metaworld.json"}
    assert {name.split("/")[0].split("-")[0] for name in names} == {"runtime", "anchorvla_runtime"}
    assert any(name.endswith("/LICENSE") for name in names)


def test_the_venv_is_small(lean_venv, capsys):
    with capsys.disabled():
        for name, size_mb in lean_venv.sizes_mb.items():
            print(
                f"\n  {lean_venv.folder.name} {name}: {size_mb:.0f} MB of {MAX_MB[name]} MB", end=""
            )
    for name, size_mb in lean_venv.sizes_mb.items():
        assert size_mb <= MAX_MB[name], name


def test_nothing_else_is_installed_and_no_http_client(lean_venv):
    listed = lean_venv.run("python", "-m", "pip", "list", "--format", "json").stdout
    names = {package["name"].lower().replace("_", "-") for package in json.loads(listed)}
    assert not names & HTTP_CLIENTS
    assert names - {"pip", "setuptools"} == DISTRIBUTIONS


def test_importing_the_runtime_loads_nothing_heavy(lean_venv):
    code = "import runtime, sys; print(runtime.__file__, *{m.split('.')[0] for m in sys.modules})"
    file, *loaded = lean_venv.run("python", "-c", code).stdout.split()
    assert Path(file).is_relative_to(lean_venv.folder)
    assert not HEAVY.intersection(loaded)


def test_the_commands_work_on_the_demo_bundle(lean_venv, demo_bundle, tmp_path):
    lean_venv.run("anchorvla", "check", demo_bundle)
    report = tmp_path / "report.html"
    pace = ("--rate-hz", 50, "--max-steps", 20)
    lean_venv.run("anchorvla", "run", demo_bundle, "--episodes", EPISODE, *pace, "--report", report)
    assert report.stat().st_size > 0


def test_a_lerobot_dataset_is_refused_with_the_way_to_convert_it(lean_venv, tmp_path):
    (tmp_path / "meta").mkdir()
    (tmp_path / "meta" / "info.json").write_text("{}")
    code = f"""
from pathlib import Path
from runtime.recordings.read import read_recordings
try:
    read_recordings([Path({str(tmp_path)!r})])
except ValueError as error:
    print(type(error).__name__, error)
"""
    said = lean_venv.run("python", "-c", code).stdout
    assert said.startswith("RecordingError ") and "python -m quant convert" in said


ON_A_SIMULATED_GPU = """
import sys
from types import SimpleNamespace
import numpy as np
import runtime
from runtime.backends.tensorrt import TensorRTBackend
from runtime.golden import Golden
from tests.simulation import install, make_plan

patch = SimpleNamespace(setitem=lambda modules, name, module: modules.update({name: module}))
world = install(patch)
world.is_verified = True
simulated = runtime.load(sys.argv[1], backend=lambda _: TensorRTBackend(make_plan))
both = simulated, runtime.load(sys.argv[1])
golden = Golden.of(simulated.bundle)
episodes = [p.start(**{**golden.given, "instruction": "open the drawer"}) for p in both]
for shift in range(3):
    seen = {**golden.observed, "frame": np.roll(golden.observed["frame"], shift, axis=1)}
    chunks = [episode.act(seen).actions for episode in episodes]
    assert np.array_equal(*chunks)
simulated.close()
assert world.num_launches and not world.violations, world.violations
print("the same", runtime.__file__)
"""


def test_the_tensorrt_engine_works_on_a_simulated_gpu(lean_venv, demo_bundle):
    simulation = Path("tests", "simulation")
    shutil.copytree(ROOT / simulation, lean_venv.folder / simulation, dirs_exist_ok=True)
    words = lean_venv.run("python", "-c", ON_A_SIMULATED_GPU, demo_bundle).stdout.split()
    assert words[:2] == ["the", "same"]
    assert Path(words[2]).is_relative_to(lean_venv.folder)


def _python(version: str) -> Path:
    """An interpreter of `version` that runs: on the path, or one that pyenv keeps."""
    on_path = shutil.which(f"python{version}")
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    kept = sorted(pyenv.glob(f"versions/{version}.*/bin/python{version}"), reverse=True)
    for candidate in [*([Path(on_path)] if on_path else []), *kept]:
        # A shim of pyenv's is on the path even where its version is not switched on.
        if (
            subprocess.run([candidate, "-c", "import ensurepip"], capture_output=True).returncode
            == 0
        ):
            return candidate
    pytest.skip(f"no python{version} that runs is installed here")


def _run(*command: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    hidden = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
    result = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env={key: value for key, value in os.environ.items() if key not in hidden},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, f"{command}\n{result.stdout}\n{result.stderr}"
    return result


def _size_mb(venv: Path) -> float:
    """What the venv takes on the disk, without pip."""
    files = [
        path.lstat()
        for path in venv.rglob("*")
        if not any(part.split("-")[0] == "pip" for part in path.relative_to(venv).parts)
    ]
    return sum(stat.st_blocks * 512 for stat in files) / 1e6

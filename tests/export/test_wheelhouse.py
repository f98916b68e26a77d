"""A wheelhouse holds the files that are meant, whole, and nothing of theirs was run for it.

pip is the real one; the index is one on this machine, whose files these tests make.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from export.__main__ import main
from export.errors import ExportError
from export.release.config import KINDS
from export.release.targets import (
    JETPACKS,
    File,
    Target,
    choose,
    fitting,
    pins_for,
    read_table,
)
from export.release.wheelhouse import assemble
from runtime.errors import OutputError
from tests.simple_index import SimpleIndex, serving, sha256, source, wheel
from tests.wheelhouse_bench import HERE, SOURCE, TOOLS, WHEEL, Bench

MOST_MB = 120
"""Of what a board is sent beside the bundle."""
OUR_OWN_MB = 0.4
ON_A_ROBOT = ("tensorrt", "serve", "signed", "cameras")


@pytest.fixture(params=["json", "html"])
def pages(request):
    """What the pages of the index are made of."""
    return request.param


@pytest.fixture
def index():
    with serving(SimpleIndex()) as index:
        yield index


@pytest.fixture
def bench(index, tmp_path, monkeypatch):
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    for name, value in {
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_INDEX_URL": index.url,
        "PIP_RETRIES": "0",
        "PIP_NO_CACHE_DIR": "1",
        "NO_PROXY": "*",
    }.items():
        monkeypatch.setenv(name, value)
    bench = Bench(index, tmp_path)
    index.files = {f"{name}-1.0-py3-none-any.whl": wheel(name) for name in ("alpha", *TOOLS)}
    index.files[SOURCE] = bench.trap("pycuda", "2026.1")
    (tmp_path / "requirements").mkdir()
    bench.require("", "alpha==1.0")
    bench.require("tensorrt", "pycuda==2026.1", *(f"{tool}==1.0" for tool in TOOLS))
    bench.require("serve", "beta==1.0")
    return bench


def install(folder: Path, into: Path) -> subprocess.CompletedProcess[str]:
    """As a board does, without a network."""
    words = ["--isolated", "install", "--no-index", "--no-deps", "--require-hashes", "--quiet"]
    words += ["--find-links", "wheels", "-r", "requirements.txt", "--target", str(into)]
    return subprocess.run(
        [sys.executable, "-m", "pip", *words], cwd=folder, capture_output=True, text=True
    )


def names(folder: Path) -> set[str]:
    return {path.name for path in (folder / "wheels").iterdir()}


def test_a_wheelhouse_is_installed_without_a_network_and_with_every_hash(bench, tmp_path):
    made = bench.assemble()
    assert names(made.folder) == made.files.keys()
    assert made.size == sum(p.stat().st_size for p in (made.folder / "wheels").iterdir())
    done = install(made.folder, tmp_path / "site")
    assert done.returncode == 0, done.stderr
    code = "import alpha, runtime; print(alpha.__file__, runtime.__file__)"
    found = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path, env={"PYTHONPATH": str(tmp_path / "site")},
        capture_output=True, text=True, check=True,
    ).stdout.split()  # fmt: skip
    assert found == [str(tmp_path / "site" / p) for p in ("alpha.py", "runtime/__init__.py")]


def test_a_wheel_that_was_changed_on_the_way_is_not_installed(bench, tmp_path):
    made = bench.assemble()
    (made.folder / "wheels" / WHEEL).write_bytes(wheel("alpha", content="import os"))
    done = install(made.folder, tmp_path / "site")
    assert done.returncode != 0 and "DO NOT MATCH THE HASHES" in done.stderr
    assert not (tmp_path / "site").exists()


def test_a_source_is_brought_and_no_line_of_it_runs(bench, pages):
    bench.index.in_html = pages == "html"
    made = bench.assemble("tensorrt")
    assert (made.folder / "wheels" / SOURCE).read_bytes() == bench.index.files[SOURCE]
    listed = (made.folder / "requirements.txt").read_text()
    assert f"pycuda==2026.1 --hash=sha256:{sha256(bench.index.files[SOURCE])}\n" in listed
    assert not bench.marker.exists()


def test_pip_itself_would_run_it(bench, tmp_path):
    """So the trap of the other tests is one."""
    words = ["download", "--no-deps", "--no-build-isolation", "--no-binary", "pycuda"]
    subprocess.run(
        [sys.executable, "-m", "pip", *words, "--dest", str(tmp_path), "pycuda==2026.1"],
        check=True,
    )
    assert bench.marker.exists()


def test_a_source_in_the_place_of_a_wheel_is_refused_and_not_run(bench):
    del bench.index.files[WHEEL]
    bench.index.files["alpha-1.0.tar.gz"] = bench.trap("alpha", "1.0")
    with pytest.raises(ExportError, match=r"No matching distribution found for alpha==1\.0"):
        bench.assemble()
    assert not bench.marker.exists() and not bench.out.exists()


@pytest.mark.parametrize("target", JETPACKS.values(), ids=lambda target: target.name)
def test_a_table_with_a_source_in_the_place_of_a_wheel_is_refused_too(bench, target):
    del bench.index.files[WHEEL]
    bench.index.files["alpha-1.0.tar.gz"] = bench.trap("alpha", "1.0")
    with pytest.raises(ExportError, match=r"alpha==1\.0: no file for it: alpha-1\.0\.tar\.gz"):
        bench.assemble(target=target, table=bench.known())
    assert bench.index.asked == [] and not bench.marker.exists() and not bench.out.exists()


@pytest.mark.parametrize("file", [WHEEL, SOURCE])
def test_another_file_than_the_table_of_a_jetpack_knows_is_refused_with_both_hashes(bench, file):
    recorded, name = sha256(b"what make resolve saw"), file.split("-")[0]
    with pytest.raises(ExportError) as caught:
        bench.assemble("tensorrt", target=JETPACKS[6], table=bench.known(**{name: recorded}))
    words = str(caught.value)
    assert words.startswith(f"{file}: http://127.0.0.1:{bench.index.port}/files/{file} has sha256 ")
    assert f"{sha256(bench.index.files[file])}, expected {recorded}: another file" in words
    assert not bench.out.exists() and not list(bench.cache.rglob(file))
    assert not bench.marker.exists()


@pytest.mark.parametrize("target", [HERE, JETPACKS[7]], ids=["here", "jetpack"])
@pytest.mark.parametrize("file", [WHEEL, SOURCE])
def test_other_bytes_than_the_index_states_are_refused(bench, file, target):
    bench.index.served[file] = bench.index.files[file][:-1] + b"?"
    with pytest.raises(ExportError) as caught:
        bench.assemble("tensorrt", target=target, table=bench.known())
    for data in (bench.index.served[file], bench.index.files[file]):
        assert sha256(data) in str(caught.value)
    assert not bench.out.exists() and not list(bench.cache.rglob(file))


@pytest.mark.parametrize("file", [WHEEL, SOURCE])
def test_a_download_that_ends_early_is_refused_and_the_next_one_is_whole(bench, file):
    bench.index.cut[file] = 100
    with pytest.raises(ExportError):
        bench.assemble("tensorrt", target=JETPACKS[6], table=bench.known())
    assert not bench.out.exists() and not list(bench.cache.rglob(file))
    bench.index.cut.clear()
    made = bench.assemble("tensorrt", target=JETPACKS[6], table=bench.known())
    assert (made.folder / "wheels" / file).read_bytes() == bench.index.files[file]


@pytest.mark.parametrize("left", [b"cut", None])
def test_what_pip_says_it_fetched_is_looked_at(bench, monkeypatch, left):
    def fetch_wheels(files, target, folder):
        if left:
            for name in files:
                (folder / name).write_bytes(left)

    monkeypatch.setattr("export.release.wheelhouse.fetch_wheels", fetch_wheels)
    got = sha256(left) if left else "no such file"
    with pytest.raises(ExportError, match=f"^alpha-.*: pip fetched {got}, expected sha256 "):
        bench.assemble()
    assert not bench.out.exists() and not list(bench.cache.rglob("alpha*"))


@pytest.mark.parametrize("file", [WHEEL, SOURCE])
def test_what_lies_damaged_in_the_cache_is_fetched_again(bench, file):
    given = {"target": JETPACKS[6], "table": bench.known()}
    bench.assemble("tensorrt", **given)
    (kept,) = bench.cache.rglob(file)
    whole = kept.read_bytes()
    for left in (whole[:100], whole[:-1] + b"?"):
        kept.write_bytes(left)
        made = bench.assemble("tensorrt", **given)
        assert (made.folder / "wheels" / file).read_bytes() == whole == kept.read_bytes()


@pytest.mark.parametrize("target", [HERE, JETPACKS[6]], ids=["here", "jetpack"])
def test_a_second_one_asks_nobody_and_is_the_same(bench, target, tmp_path):
    first = bench.assemble("tensorrt", target=target, table=bench.known())
    assert bench.index.asked
    bench.index.asked.clear()
    again = {"target": target, "table": bench.known(), "out": tmp_path / "second"}
    second = bench.assemble("tensorrt", **again)
    assert bench.index.asked == []
    assert second.files == first.files
    lists = [(made.folder / "requirements.txt").read_bytes() for made in (first, second)]
    assert lists[0] == lists[1]


def test_with_nobody_to_ask_what_is_there_does(bench, monkeypatch, tmp_path):
    bench.assemble("tensorrt")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:1/simple")
    bench.assemble("tensorrt", out=tmp_path / "second")
    bench.index.files["beta-1.0-py3-none-any.whl"] = wheel("beta")
    with pytest.raises(ExportError, match=r"No matching distribution found for beta==1\.0"):
        bench.assemble("serve", out=tmp_path / "third")
    assert not (tmp_path / "third").exists()


def test_another_one_takes_its_place_and_leaves_nothing_behind(bench):
    bench.assemble("tensorrt")
    made = bench.assemble()
    assert SOURCE not in names(made.folder) and names(made.folder) == made.files.keys()


def test_a_file_of_somebodys_in_the_cache_or_among_the_wheels_stays(bench):
    made = bench.assemble()
    for path in (bench.cache / "notes.txt", made.folder / "wheels" / "mine-1.0.tar.gz"):
        path.write_text("mine")
        with pytest.raises(OutputError, match=path.name):
            bench.assemble()
        assert path.read_text() == "mine"
        path.unlink()
    bench.assemble()


def test_no_torch_gets_in(bench):
    bench.require("serve", "torch==2.13.0")
    with pytest.raises(ValueError, match="torch among the pins of a robot, which runs without"):
        bench.assemble("serve")
    assert bench.index.asked == [] and not bench.out.exists()


def test_what_a_wheel_needs_has_to_be_pinned(bench):
    bench.index.files[WHEEL] = wheel("alpha", requires=["gamma>=2", "delta ; extra == 'fast'"])
    with pytest.raises(ExportError, match=r"alpha==1\.0: declares gamma>=2, which is no pin"):
        bench.assemble()
    assert not bench.out.exists()


def test_what_a_source_declares_counts_as_what_a_wheel_does(bench):
    needs = ["mako", "gamma"]
    bench.index.files[SOURCE] = source("pycuda", "2026.1", "", python=">=3.99", requires=needs)
    with pytest.raises(ExportError) as caught:
        bench.assemble("tensorrt")
    words = f"{HERE.name}: pycuda==2026.1: "
    assert str(caught.value) == (
        f"{words}needs Python >=3.99; {words}declares gamma, which is no pin and not left out on "
        "purpose"
    )


def test_what_a_source_is_built_with_has_to_be_pinned(bench):
    bench.require("tensorrt", "pycuda==2026.1", "numpy==1.0", "setuptools==1.0")
    with pytest.raises(ExportError, match=r"pycuda==2026\.1: is built with wheel, which is no pin"):
        bench.assemble("tensorrt")


def test_an_address_that_is_not_encrypted_is_not_followed(bench):
    bench.index.moved[SOURCE] = f"http://127.0.0.2:{bench.index.port}/files/{SOURCE}"
    with pytest.raises(ExportError, match=r"http://127\.0\.0\.2.*: not https, so anybody on the"):
        bench.assemble("tensorrt")
    assert f"/files/{SOURCE}" not in bench.index.asked


def test_a_way_that_ends_where_nothing_is_encrypted_is_not_trusted(bench):
    away = f"http://127.0.0.2:{bench.index.port}/files/elsewhere.tar.gz"
    bench.index.files["elsewhere.tar.gz"] = bench.index.files[SOURCE]
    bench.index.redirected[SOURCE] = away
    with pytest.raises(ExportError, match=r"elsewhere\.tar\.gz: not https"):
        bench.assemble("tensorrt")
    assert not list(bench.cache.rglob(SOURCE))


@pytest.mark.parametrize("target", [HERE, JETPACKS[6]], ids=["here", "jetpack"])
def test_an_index_beside_the_first_is_looked_at_too(bench, monkeypatch, target):
    """The first has no such page, or another file of that name, which a JetPack does not take."""
    known, other = bench.known(), SimpleIndex(files={SOURCE: bench.index.files[SOURCE]})
    if target is HERE:
        bench.index.in_html = True
        del bench.index.files[SOURCE]
    else:
        bench.index.files[SOURCE] = b"of somebody else"
    with serving(other):
        monkeypatch.setenv("PIP_EXTRA_INDEX_URL", other.url)
        made = bench.assemble("tensorrt", target=target, table=known)
    assert (made.folder / "wheels" / SOURCE).read_bytes() == other.files[SOURCE]


def test_a_source_without_an_end_is_not_read(bench, monkeypatch):
    monkeypatch.setattr("export.release.index.MOST_BYTES", 1 << 20)
    bench.index.served[SOURCE] = bytes((1 << 20) + 1)
    with pytest.raises(
        ExportError, match=r"pycuda-2026\.1\.tar\.gz: more than 1 MiB, so it is not"
    ):
        bench.assemble("tensorrt", target=JETPACKS[6], table=bench.known())


def test_without_our_own_wheel_there_is_none(bench, monkeypatch, tmp_path):
    monkeypatch.setattr("export.release.wheelhouse.RUNTIME", tmp_path / "requirements")
    with pytest.raises(ExportError, match="the lean wheel: "):
        bench.assemble()
    assert not bench.out.exists()


def test_no_name_of_a_file_leads_out_of_the_cache(bench, pages, tmp_path):
    bench.index.in_html = pages == "html"
    for file in (WHEEL, SOURCE):
        bench.index.moved[file] = f"../../files/..%2F..%2F..%2F{file}"
    made = bench.assemble("tensorrt")
    for file in (WHEEL, SOURCE):
        kept = bench.cache / sha256(bench.index.files[file]) / file
        assert {*tmp_path.rglob(file)} == {kept, made.folder / "wheels" / file}


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (("riscv64", (3, 12), 39), "machine must be one of aarch64, x86_64, got 'riscv64'"),
        (("x86_64", (3, 9), 35), r"python must be from 3\.10 to 3\.14, got 3\.9"),
        (("x86_64", (3, 15), 35), r"python must be from 3\.10 to 3\.14, got 3\.15"),
        (("x86_64", (3, 12), 16), r"glibc must be 2\.17 or newer, got 2\.16"),
    ],
)
def test_a_machine_for_which_there_are_no_pins_is_refused(given, words):
    with pytest.raises(ValueError, match=words):
        Target.of(*given)


def test_an_unknown_kind_is_refused(bench):
    with pytest.raises(ValueError, match="unknown kind 'tensorflow'; there are tensorrt, onnxrun"):
        bench.assemble("tensorflow")


def test_of_several_wheels_the_one_is_taken_that_pip_would_take():
    best_first = [
        "alpha-1.0-cp312-cp312-manylinux_2_28_aarch64.whl",
        "alpha-1.0-cp312-cp312-manylinux2014_aarch64.whl",
        "alpha-1.0-cp312-abi3-manylinux_2_28_aarch64.whl",
        "alpha-1.0-cp310-abi3-manylinux_2_39_aarch64.whl",
        "alpha-1.0-py3-none-any.whl",
    ]
    others = ["alpha-1.0-cp313-cp313-linux_aarch64.whl", "alpha-1.1-cp312-cp312-linux_aarch64.whl"]
    known = {name: File(sha256="") for name in sorted([*best_first, *others], reverse=True)}
    pin = Requirement("alpha==1.0")
    assert fitting("alpha", pin, known, JETPACKS[7]) == best_first


def test_each_jetpack_gets_the_wheel_that_pip_would_take():
    known = read_table()
    found = [choose(pins_for(KINDS, t), known, t)["cryptography"] for t in JETPACKS.values()]
    assert [name.split("-")[2] for name in found] == ["cp39", "cp311"]


@pytest.mark.parametrize("target", JETPACKS.values(), ids=lambda target: target.name)
def test_what_a_jetpack_is_sent_is_small(target, capsys):
    known = read_table()
    chosen = choose(pins_for(ON_A_ROBOT, target), known, target).values()
    assert all(known[file].size for file in chosen)
    size_mb = sum(known[file].size for file in chosen) / 1e6
    with capsys.disabled():
        print(f"\n  {target.name}: {size_mb:.1f} MB of {MOST_MB} MB", end="")
    assert size_mb + OUR_OWN_MB <= MOST_MB
    docs = (Path(__file__).parents[2] / "docs" / "on_the_robot.md").read_text()
    assert f"{size_mb + OUR_OWN_MB:.0f} MB for {target.name}" in " ".join(docs.split())


@pytest.mark.full
@pytest.mark.parametrize("number", JETPACKS)
def test_the_real_files_of_a_jetpack_are_those_of_the_table(number, tmp_path, capsys):
    """Fetched from the index of this machine, unless build/wheels has them."""
    line = ["wheelhouse", "--jetpack", str(number), "--out", str(tmp_path / "wheelhouse")]
    assert main([*line, "--kinds", *ON_A_ROBOT]) == 0
    said = capsys.readouterr().out.splitlines()[-1]
    assert f"files for JetPack {number}: " in said and float(said.split()[0]) <= MOST_MB
    known = read_table()
    for path in (tmp_path / "wheelhouse" / "wheels").iterdir():
        if not path.name.startswith("anchorvla_runtime-"):
            assert sha256(path.read_bytes()) == known[path.name].sha256


@pytest.mark.full
def test_the_real_thing_runs_from_a_wheelhouse_without_a_network(tmp_path):
    made = assemble(HERE, ("onnxruntime", "serve", "signed"), tmp_path / "wheelhouse")
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    words = ["--isolated", "install", "--no-index", "--no-deps", "--require-hashes", "--quiet"]
    words += ["--find-links", "wheels", "-r", "requirements.txt"]
    pip = tmp_path / "venv" / "bin" / "pip"
    subprocess.run([pip, *words], cwd=made.folder, check=True)
    own = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [tmp_path / "venv" / "bin" / "anchorvla", "--help"],
        cwd=tmp_path, env=own, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.startswith("usage: anchorvla ")

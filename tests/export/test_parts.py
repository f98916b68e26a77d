"""Trunks in parts compute and run as they do whole, and weigh what the plan says."""

import io
import re
from collections.abc import Mapping
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from rich.console import Console

import runtime
from export.build import build
from export.config import BuildConfig
from export.engines.torch_engine import TorchEngine
from export.evidence.bench import roofline
from export.measure import golden_of, made_up, reference_actions
from export.parts import EngineSizes, choose_layers
from export.subject import prepare
from export.twin import write_twin
from models.anchorvla4d.presets import demo
from models.anchorvla4d.split import split
from models.checkpoint import load_checkpoint
from models.declared import ACTIONS, TOKENIZER
from models.demo import CHECKPOINT
from models.networks.parts import WHOLE, cut
from models.split import TOKENS
from quant.boards import BOARDS
from quant.recipes import RECIPES
from runtime.backends.onnxruntime import HostMemory
from runtime.backends.schedule import plan
from runtime.backends.tensorrt import TensorRTBackend
from runtime.control.loop import LoopConfig
from runtime.control.trace import Step, Trace
from runtime.engine import in_order
from runtime.functions.function import Resources
from runtime.golden import Golden
from runtime.graph import whole_of
from runtime.inputs import takers
from runtime.interpreter import assemble
from runtime.pages.benchmark import measure
from runtime.pages.report import draw_page, summarize
from runtime.pages.show import describe, draw
from runtime.robots.robot import Observation
from tests.export.conftest import cut_config, write_random
from tests.once import once
from tests.oracles import END_TO_END, relative_error
from tests.pages import Page
from tests.runtime.test_cache import STATE, Expectation, Pair, drive
from tests.simulation import install, make_plan

LAYERS = 12
CUTS = {
    "1 layer": {"vision": 1, "language": 1, "spatial": 1},
    "5 of 12": {"vision": 2, "language": 5, "spatial": 4},
    "all": WHOLE,
}


@pytest.fixture(scope="session")
def checkpoint_path(shared_folder):
    """The demo's widths with 12 layers of the language model, random weights."""
    config = demo()
    config = replace(config, language=replace(config.language, num_hidden_layers=LAYERS))

    def write(folder):
        write_random(folder, config)

    return once(shared_folder / "twelve-layers", write)


@pytest.fixture(scope="session")
def checkpoint(checkpoint_path):
    return load_checkpoint(checkpoint_path)


def divided(checkpoint, layers):
    return split(checkpoint.model, checkpoint.parts, checkpoint.image, (112, 112), 64, layers)


class Modules:
    """The torch modules of a split behind the runtime's interpreter, and what ran in a tick."""

    def __init__(self, checkpoint, parts) -> None:
        self.graph, self.memory = parts.graph, HostMemory(parts.graph)
        self._take = takers(parts.graph, {TOKENIZER: checkpoint.tokenizer})
        engines = {name: TorchEngine(spec) for name, spec in parts.engines.items()}
        resources = Resources(
            tables={TOKENS: checkpoint.model.vlm.model.embed_tokens.weight.detach().numpy()},
            statistics=next(iter(checkpoint.statistics.values())),
        )
        self.interpreter = assemble(parts.graph, engines, self.memory, resources, in_order)

    def tick(self, seen) -> tuple[np.ndarray, set[str]]:
        """The actions, and the engine stages that ran."""
        golden = Golden.from_arrays(self.graph, seen)
        for name, value in {**golden.given, **golden.observed, **golden.drawn}.items():
            self.interpreter.set(name, self._take[name](value))
        self.interpreter.run(ACTIONS)
        engines = {stage.name for stage in self.graph.stages if stage.engine}
        return self.memory.host(ACTIONS).copy(), engines & self.interpreter.last_run.keys()


@pytest.fixture(scope="module")
def ticks(checkpoint):
    """Observations of which each differs from the one before it in one input."""
    one, two, three = (
        golden_of(checkpoint, made_up(checkpoint, (112, 112), seed=n), seed=0) for n in range(3)
    )
    frame = {**one, "frame": two["frame"]}
    anchor = {**frame, "anchor": three["anchor"]}
    spoken = {**anchor, "instruction": np.array("open the drawer")}
    return {
        "first": one,
        "frame": frame,
        "anchor": anchor,
        "instruction": spoken,
        "nothing": spoken,
    }


@pytest.fixture(scope="module")
def whole(checkpoint, ticks):
    """What the policy in one piece does: actions, stages, and the streams of its stages."""
    parts = divided(checkpoint, WHOLE)
    modules = Modules(checkpoint, parts)
    did = {name: modules.tick(seen) for name, seen in ticks.items()}
    return SimpleNamespace(did=did, graph=parts.graph, streams=plan(parts.graph).stream)


@pytest.mark.parametrize("layers", CUTS.values(), ids=CUTS)
def test_parts_act_as_the_whole_and_run_when_it_runs(checkpoint, ticks, whole, layers):
    modules = Modules(checkpoint, divided(checkpoint, layers))
    rows = modules.graph.rows
    members = {row: {name for name in rows if rows[name] == row} for row in rows.values()}
    for name, seen in ticks.items():
        actions, ran = modules.tick(seen)
        want, ran_whole = whole.did[name]
        # The same sums in the same order: all that may differ is how a library adds up what lies
        # elsewhere in memory, and the sampler multiplies that by 204 (tests.oracles).
        assert relative_error(actions, want) <= END_TO_END, name
        assert relative_error(actions, reference_actions(checkpoint, seen)) <= END_TO_END, name
        assert {rows[stage] for stage in ran} == {whole.graph.rows[stage] for stage in ran_whole}
        assert ran == set().union(*(members[rows[stage]] for stage in ran)), "a part was left out"
        modules.interpreter.forget()
        again, _ = modules.tick(seen)
        assert actions.tobytes() == again.tobytes(), f"{name}: warm is not cold"


def test_the_ticks_differ_as_they_should(whole):
    """Or the test above proves nothing."""
    ran = {name: stages for name, (_, stages) in whole.did.items()}
    assert {"prefix", "suffix", "anchor_vision", "spatial"} <= ran["first"]
    assert {"suffix", "frame_vision"} <= ran["frame"] and "prefix" not in ran["frame"]
    assert {"prefix", "suffix"} <= ran["anchor"] and "frame_vision" not in ran["anchor"]
    assert "suffix" in ran["instruction"] and not {"prefix", "spatial"} & ran["instruction"]
    assert not ran["nothing"]


@pytest.mark.parametrize("layers", [CUTS["1 layer"], CUTS["5 of 12"]], ids=["1", "5"])
def test_a_part_keeps_its_own_keys_and_nothing_is_copied_between_parts(checkpoint, whole, layers):
    graph = divided(checkpoint, layers).graph
    stages = {stage.name: stage for stage in graph.stages}
    sizes = [len(part) for part in cut(LAYERS, layers["language"])]
    for i, size in enumerate(sizes):
        prefix, suffix = stages[f"prefix_{i}"], stages[f"suffix_{i}"]
        assert prefix.engine == suffix.engine == f"language_{i}"
        assert suffix.inputs["past"] == prefix.outputs["kv"]
        assert graph.tensors[prefix.outputs["kv"]].shape == (64, size, 2, 2, 32)
        assert [s.name for s in graph.writers(suffix.inputs["past"])] == [prefix.name]
    assert f"prefix_{len(sizes)}" not in stages
    functions = [stage for stage in graph.stages if stage.function]
    assert functions == [stage for stage in whole.graph.stages if stage.function]
    roots = {name: graph.tensors[name].num_bytes for name in graph.roots}
    kept = sum(size for name, size in roots.items() if whole_of(name) in ("prefix_kv", "suffix_kv"))
    assert kept == 2 * whole.graph.tensors["prefix_kv"].num_bytes
    assert roots["empty_past"] == 64 * max(sizes) * 2 * 2 * 32 * 4


@pytest.mark.parametrize("layers", [CUTS["1 layer"], CUTS["5 of 12"]], ids=["1", "5"])
def test_parts_stay_on_the_stream_of_the_whole(checkpoint, whole, layers):
    graph = divided(checkpoint, layers).graph
    found = plan(graph)
    for stage, stream in found.stream.items():
        row = graph.rows[stage]
        assert stream == whole.streams.get(row, whole.streams.get(stage)), stage
    inner = [f"{call}_{i}" for call in ("prefix", "suffix") for i in range(1, 3)]
    assert not any(found.after[name] for name in inner), "a part waits for another stream"


def test_parts_are_one_thing_to_a_reader(checkpoint, whole):
    graph = divided(checkpoint, CUTS["1 layer"]).graph
    assert list(dict.fromkeys(graph.rows.values())) == list(
        dict.fromkeys(whole.graph.rows.values())
    )
    assert set(graph.networks.values()) == set(whole.graph.networks.values())
    assert graph.rows["prefix_7"] == "prefix" and graph.networks["language_7"] == "language"


def test_a_cut_leaves_no_layer_out_and_the_rest_to_the_last_part():
    assert cut(12, 5) == [range(5), range(5, 10), range(10, 12)]
    assert cut(12, None) == cut(12, 12) == cut(12, 99) == [range(12)]
    assert cut(3, 1) == [range(1), range(1, 2), range(2, 3)]
    with pytest.raises(ValueError, match="layers per part must be at least 1, got 0"):
        cut(3, 0)


@pytest.fixture(scope="module")
def exported(checkpoint_path, tmp_path_factory):
    """12 layers, 5 in a part, exported whole: the bundle, and what was printed."""
    config = BuildConfig(
        recipe="float32",
        checkpoint=checkpoint_path,
        out=tmp_path_factory.mktemp("parts") / "bundle",
        image_size=(112, 112),
        tokens=64,
        layers_per_part=5,
        compile_check=False,
    )
    printed = io.StringIO()
    return build(config, Console(file=printed, width=200)), printed.getvalue()


@pytest.fixture(scope="module")
def bundle(exported):
    return exported[0]


def test_an_exported_policy_in_parts_acts_as_the_whole(bundle, checkpoint, ticks):
    with runtime.load(bundle) as policy:
        assert list(policy.bundle.manifest.engines)[:4] == [
            "vision", "language_0", "language_1", "language_2",
        ]  # fmt: skip
        assert not [verdict for verdict in policy.check() if not verdict.passed]
        for seen in ticks.values():
            episode = policy.start(anchor=seen["anchor"], instruction=str(seen["instruction"]))
            observed = {name: seen[name] for name in ("frame", "state", "noise")}
            actions = episode.act(observed).actions
            # ONNX Runtime sums in an order of its own, as it does for the policy in one piece.
            assert relative_error(actions, reference_actions(checkpoint, seen)) <= END_TO_END


def test_the_cache_of_a_policy_in_parts_is_right(bundle, image):
    pair = Pair(runtime.load(bundle), runtime.load(bundle), Expectation(bundle))
    drive(pair, image, STATE, num_sequences=5, steps=6)


def test_a_tick_of_parts_is_one_launch_of_a_captured_graph(bundle, ticks, monkeypatch):
    world = install(monkeypatch)
    runtime.read_bundle(bundle)
    world.is_verified = True
    backends = (lambda _: TensorRTBackend(make_plan), "onnxruntime")
    gpu, cpu = (runtime.load(bundle, backend=backend) for backend in backends)
    first = ticks["first"]
    episodes = [p.start(anchor=first["anchor"], instruction="open the drawer") for p in (gpu, cpu)]
    for number, frame in enumerate(("first", "frame", "first", "frame")):  # never one twice
        for episode in episodes if number == 2 else ():
            episode.give(anchor=ticks["anchor"]["anchor"])
        before = world.num_launches, world.num_synchronizations
        seen = {key: ticks[frame][key] for key in ("frame", "state", "noise")}
        chunks = [episode.act(seen).actions for episode in episodes]
        assert np.array_equal(*chunks), number
        now = world.num_launches, world.num_synchronizations
        assert number == 0 or now == (before[0] + 1, before[1] + 1), number
    gpu.close()
    assert not world.violations


def test_whoever_reads_about_it_sees_each_network_once(bundle):
    verified = runtime.read_bundle(bundle)
    table = [re.split("  +", line) for line in describe(verified).splitlines() if line]
    rows = {row[0]: row[1:] for row in table}
    assert rows["prefix x 3"][:2] == [
        "language x 3", "prefix_embeddings empty_past_0..2 prefix_mask prefix_cos prefix_sin"
    ]  # fmt: skip
    assert rows["prefix_kv_0..2"][:4] == [
        "64x5x2x2x32 64x2x2x2x32", f"{64 * LAYERS * 2 * 2 * 32 * 4:,}", "prefix x 3", "anchor"
    ]  # fmt: skip
    assert not [name for name in rows if re.match(r"(prefix|suffix)_\d", name)]
    picture = str(draw(verified.manifest.graph))
    assert ">prefix x 3<" in picture and ">suffix x 3<" in picture and "prefix_" not in picture


def test_the_memory_plan_names_the_largest_engine(bundle):
    weights: dict[str, int] = {}
    for path in (bundle / "engines").iterdir():
        weights[path.stem] = weights.get(path.stem, 0) + path.stat().st_size
    (words,) = (
        line for line in describe(runtime.read_bundle(bundle)).splitlines() if "allo" in line
    )
    total, largest = sum(weights.values()), max(weights.values())
    assert words.endswith(f"weights {total:,} bytes, {largest:,} of them in one engine")


def test_pages_add_up_the_parts_of_a_network(bundle):
    manifest = runtime.read_bundle(bundle).manifest
    parts = [manifest.engines[f"language_{i}"] for i in range(3)]
    weights, parity = sum(e.parameters for e in parts), max(e.parity for e in parts)
    size = sum(
        file.bytes
        for name, file in manifest.files.items()
        if name.startswith(tuple(f"engines/language_{i}." for i in range(3)))
    )
    exported = Page(bundle.with_name("bundle-report.html").read_text()).rows("Engines")
    assert exported["language x 3"][1:4] == [f"{weights:,}", f"{4 * weights:,}", f"{size:,}"]
    assert f"{7 * LAYERS} float32" in exported["language x 3"][7]
    with runtime.load(bundle) as policy:
        page = Page(draw_page(policy, [], measure(policy, 1), LoopConfig(), "A run"))
    ran = page.rows("Engines")
    assert ran["language x 3"][1:4] == [f"{weights:,}", f"{size:,}", f"{parity:.1e}"]
    assert not [name for name in (*exported, *ran) if name.startswith("language_")]
    assert {"prefix", "suffix"} <= set(page.texts) and "prefix_0" not in page.texts


def test_what_the_anchor_saves_counts_every_part(bundle):
    graph = runtime.read_bundle(bundle).manifest.graph
    kept = {"prefix_0": 0.1, "prefix_1": 0.2, "prefix_2": 0.3, "suffix_0": 5.0}
    action = np.zeros(4, np.float32)
    first = Observation({"frame": np.zeros((2, 2, 3), np.uint8)}, {"frame": 0.0}, {"frame": 0})
    steps = [Step(0.0, 6.0, kept, action, action, 6.0)]
    assert summarize(graph, [Trace("do", 0.1, first, steps)]).saved_ms == pytest.approx(600.0)


def test_an_export_prints_networks_and_the_largest_engine(exported):
    bundle, printed = exported
    assert "language x 3" in printed and not re.search(r"language_\d +\S* +[\d,]+ ", printed)
    manifest = runtime.read_bundle(bundle).manifest
    sizes = {
        name: sum(
            f.bytes
            for file, f in manifest.files.items()
            if file.split("/")[-1].split(".")[0] == name
        )
        for name in manifest.engines
    }
    largest = max(sizes, key=sizes.get)
    assert f"the largest single block is {largest}, {sizes[largest] / 1e6:.1f} MB" in printed


@pytest.fixture(scope="module")
def quantized(tmp_path_factory):
    """The shipped policy, one layer in a part, in the precision of a board."""
    out = tmp_path_factory.mktemp("quantized") / "bundle"
    return build(cut_config(CHECKPOINT, out, "orin-w8a8", layers_per_part=1))


def test_a_quantized_policy_in_parts_passes_every_gate(quantized, tmp_path):
    manifest = runtime.read_bundle(quantized).manifest
    counts: dict[str, int] = {}
    for engine in manifest.engines:
        counts[whole_of(engine)] = counts.get(whole_of(engine), 0) + 1
    assert counts["language"] == 4 and counts["vision"] == 3 and counts["spatial"] > 1
    assert not manifest.failed_gates
    for gate in ("engine_parity", "precision_audit", "stage_error", "rounding", "graph_parity"):
        assert manifest.gates[gate].kind == "pass", gate
    # Four products a layer, whichever file they are in: q, k and v are one, gate and up another.
    language = [manifest.quantization.precisions[f"language_{i}"] for i in range(4)]
    assert [sum(kinds.values()) for kinds in language] == [4] * 4
    twin = tmp_path / "twin"
    twin.mkdir()
    write_twin(quantized, twin)
    with runtime.load(twin) as policy:
        assert not [verdict for verdict in policy.check() if not verdict.passed]


def test_an_export_for_a_board_keeps_below_its_limit(tmp_path, monkeypatch):
    board = replace(BOARDS["orin-nano-8gb"], largest_engine_bytes=2_000_000)
    monkeypatch.setitem(BOARDS, "orin-nano-8gb", board)
    for named, number in (("orin-nano-8gb", 2), ("agx-orin-64gb", 1)):
        config = cut_config(CHECKPOINT, tmp_path / "bundle", "float32", board=named)
        parts = prepare(config, RECIPES["float32"](), load_checkpoint(CHECKPOINT)).parts
        # Four layers of 246 528 numbers in float32: two are 1.97 MB.
        assert sum(whole_of(engine) == "language" for engine in parts.engines) == number


def test_the_padding_of_language_calls_is_left_out_of_every_part(bundle):
    with runtime.load(bundle) as policy:
        seconds = roofline(policy, 1.0, 1e30)
        share = policy.bundle.manifest.padded_share
    used, kept = 1 - share["suffix"], 1 - sum(share.values()) / 2
    # Per layer and token: products, and scores and sums of 128 numbers over twice 64 tokens.
    weights = 2 * 64 * 5 * (2 * 128**2 + 2 * 128 * 64 + 3 * 128 * 512)
    attention = 5 * 2 * 2 * 64 * 128 * 128
    assert seconds["suffix_0"] == pytest.approx(weights * used + attention * used * kept)


def engine_files(bundle) -> dict[str, int]:
    """Bytes of the weights beside every engine, as they lie on the disk."""
    return {path.stem: path.stat().st_size for path in (bundle / "engines").glob("*.weights")}


def planned(config, recipe_name, layers) -> Mapping[str, int]:
    sizes = EngineSizes(config, RECIPES[recipe_name]())
    return {name: engine.num_bytes for name, engine in sizes.engines(layers).items()}


@pytest.mark.parametrize("kind", ["float32", "orin-w8a8"])
def test_engines_weigh_on_the_disk_what_the_plan_says(kind, request, checkpoint_path):
    """Constants of the graph and weights below a kilobyte, which are in the graph, make the rest.

    They are 2.5 KB a layer and the rotary tables of the vision tower, 2 * 64 * 32 * 4 bytes.
    """
    path = request.getfixturevalue("bundle" if kind == "float32" else "quantized")
    config = load_checkpoint(checkpoint_path if kind == "float32" else CHECKPOINT).config
    sizes = EngineSizes(config, RECIPES[kind]())
    layers = choose_layers(sizes, per_part=5 if kind == "float32" else 1, limit=None)
    plan_of = planned(config, kind, layers)
    found = engine_files(path)
    assert plan_of.keys() == runtime.read_bundle(path).manifest.engines.keys()
    for engine, size in plan_of.items():
        assert size == pytest.approx(found.get(engine, 0), rel=0.05, abs=40_000), engine

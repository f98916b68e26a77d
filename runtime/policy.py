"""The public API: load a bundle, start an episode, act.

A policy owns one set of buffers, so one episode runs at a time. Starting the next one ends the
last; what both have in common (the same anchor, the same instruction) is not computed again.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from . import prompt
from .anchor import AnchorPolicy, First, Tick
from .bundle import GOLDEN, Bundle, read_bundle
from .engine import Backend, Engine, Launch, Memory
from .errors import BundleError, EpisodeError, ObservationError
from .functions import FUNCTIONS, Resources
from .graph import Graph, Stage
from .image import ImageConfig, check_image
from .interpreter import HostCall, Interpreter
from .normalization import Normalization, choose_robot

ACTIONS = "actions"
SIMILARITY = "anchor_similarity"
CHANGING = ("frame", "state", "noise", "instruction")
"""Inputs that change while an anchor stays."""


@dataclass(frozen=True, slots=True)
class Stats:
    """What an episode cost so far."""

    num_runs: Mapping[str, int]
    """How often each stage ran."""
    total_s: Mapping[str, float]
    """Seconds spent in each stage."""
    last_s: Mapping[str, float]
    """Seconds of the stages that the last tick ran; a stage that is missing was not needed."""
    anchor_bytes: int
    """Bytes kept because they depend on the anchor alone."""
    repeated_frames: int
    """Ticks whose image was the one before, to the bit: a slow or frozen camera."""


def load(
    path: str | os.PathLike[str],
    *,
    robot: str | None = None,
    make_backend: Callable[[Bundle], Backend] | None = None,
    accept_failed_gates: bool = False,
) -> Policy:
    """Verify a bundle, load its engines and run it once on its golden observation.

    Args:
        path: the bundle's folder.
        robot: key of the statistics to use; may be left out if there is one.
        make_backend: where to run, one of `runtime.backends`; ONNX Runtime on the CPU by default.
            It is given the verified bundle.
        accept_failed_gates: load a bundle too that was exported against its gates' verdict.

    Raises:
        BundleError: the bundle is damaged or does not fit, a gate failed at its export, or the
            robot is not in it.
        EngineError: an engine does not load on this machine.
    """
    bundle = read_bundle(path)
    if bundle.manifest.failed_gates and not accept_failed_gates:
        words = "; ".join(f"{name}: {w}" for name, w in bundle.manifest.failed_gates.items())
        raise BundleError(
            f"{bundle.path}: its export was forced although gates failed ({words}); export it "
            "again without --force, or say --accept-failed-gates to run it as it is"
        )
    from .backends import BACKENDS  # not above: it needs what this module defines

    make_backend = make_backend or BACKENDS["onnxruntime"]
    policy = Policy(bundle, robot, make_backend(bundle))
    try:
        policy.warm_up()
    except BaseException:
        policy.close()
        raise
    return policy


class Policy:
    """A loaded bundle. Make one with `load`. Not safe to share between threads."""

    def __init__(self, bundle: Bundle, robot: str | None, backend: Backend) -> None:
        manifest = bundle.manifest
        self.bundle = bundle
        self.backend = backend
        self.graph = manifest.graph
        try:
            self.robot = choose_robot(manifest.normalization["robots"], robot)
            statistics = manifest.normalization["robots"][self.robot]
            self.state_normalization, self.action_normalization = (
                Normalization.from_statistics(
                    statistics[kind],
                    manifest.normalization[kind]["modes"],
                    manifest.normalization[kind]["units"],
                    what=f"{self.robot}.{kind}",
                )
                for kind in ("state", "action")
            )
        except (ValueError, KeyError) as error:
            raise BundleError(f"{bundle.path}: {error}") from None
        self._tokenizer = Tokenizer.from_file(str(bundle.file("tokenizer.json")))
        resources = Resources(
            embedding_VD=_embedding(bundle),
            image=ImageConfig(**manifest.image),
            grid=manifest.grid,
            state=self.state_normalization,
            action=self.action_normalization,
        )
        self.memory = backend.memory(self.graph)
        engines = {n: backend.engine(bundle.file(e.file)) for n, e in manifest.engines.items()}
        self.interpreter = assemble(self.graph, engines, self.memory, resources, backend.launcher)
        self._episode: Episode | None = None

    @property
    def chunk_shape(self) -> tuple[int, int]:
        """(actions in a chunk, action dimensions)."""
        shape = self.graph.tensors[ACTIONS].shape
        return shape[0], shape[1]

    @property
    def state_dim(self) -> int:
        return len(self.state_normalization.modes)

    def start(
        self,
        *,
        anchor: NDArray[np.uint8],
        instruction: str,
        seed: int = 0,
        anchor_policy: AnchorPolicy | None = None,
    ) -> Episode:
        """Start an episode. The one before ends.

        Args:
            anchor: first frame, uint8 [H, W, 3] RGB.
            instruction: what the robot should do, one line.
            seed: of the action noise; the noise of a tick depends on (seed, tick) alone.
            anchor_policy: when the anchor is replaced; `First()` by default.

        Raises:
            ObservationError: the image or the instruction cannot be taken.
        """
        check_image(anchor, what="anchor")
        ids = self.encode(instruction)
        if not 0 <= seed < 2**64:
            raise ObservationError(f"seed must be in [0, 2**64), got {seed}")
        episode = Episode(self, seed, anchor_policy or First())
        self._episode = episode
        self.interpreter.reset_statistics()
        self.interpreter.set("anchor", anchor.copy())
        self.interpreter.set("instruction", ids)
        return episode

    def encode(self, instruction: str) -> tuple[int, ...]:
        """Token ids behind the frame image, checked to fit the engines.

        Raises:
            ObservationError: see `runtime.prompt.check_instruction`, or too many tokens.
        """
        spec = self.bundle.manifest.prompt
        ids = prompt.encode_tail(self._tokenizer, spec["tail"], spec["end_ids"], instruction)
        if len(ids) > spec["max_tail"]:
            raise ObservationError(
                f"the instruction with its frame takes {len(ids)} tokens, this bundle was exported "
                f"for at most {spec['max_tail']}: shorten it, or export again with more --tokens"
            )
        return ids

    def forget(self) -> None:
        """Recompute everything at the next `Episode.act`, as if every input had changed."""
        self.interpreter.forget()

    def warm_up(self) -> None:
        """Run every kind of tick, so that the first of an episode is not the slow one."""
        golden = read_golden(self.bundle)
        episode = self.start(
            anchor=golden["anchor"], instruction=str(golden["instruction"]), seed=0
        )
        for _ in range(2):
            episode.act(golden["frame"], golden["state"], noise=golden["noise"])
            self.interpreter.forget()
        for leaf in self.graph.outputs:
            self.interpreter.run(leaf)
        for shift in (1, 2):
            frame = np.roll(golden["frame"], shift, axis=1)
            episode.act(frame, golden["state"] + np.float32(1e-3 * shift))
        self.backend.settle()
        self._episode = None
        self.interpreter.reset_statistics()

    def close(self) -> None:
        """Give back what the engines hold; the policy cannot be used any more."""
        self._episode = None
        self.backend.close()


class Episode:
    """One run of the robot. Make one with `Policy.start`."""

    def __init__(self, policy: Policy, seed: int, anchor_policy: AnchorPolicy) -> None:
        self.policy = policy
        self.seed = seed
        self.step = 0
        self.repeated_frames = 0
        self._anchor_policy = anchor_policy
        self._anchor_step = 0

    def act(
        self,
        image: NDArray[np.uint8],
        state: NDArray[np.float32],
        *,
        noise: NDArray[np.float32] | None = None,
    ) -> NDArray[np.float32]:
        """One tick: observation -> action chunk.

        Args:
            image: current frame, uint8 [H, W, 3] RGB.
            state: [S] float32 in robot units.
            noise: [T, A] float32 standard normal; from (seed, tick) if left out.

        Returns:
            [T, A] float32 in robot units; the caller owns it.

        Raises:
            ObservationError: an argument cannot be taken; nothing was computed.
            EpisodeError: another episode was started on this policy.
        """
        interpreter = self._running()
        check_image(image, what="image")
        state = _vector(state, self.policy.state_dim)
        shape = self.policy.chunk_shape
        if noise is None:
            noise = draw_noise(self.seed, self.step, shape)
        elif noise.shape != shape or not np.isfinite(noise).all():
            raise ObservationError(f"noise must be finite {list(shape)}, got {list(noise.shape)}")
        if not interpreter.set("frame", image.copy()) and self.step:
            self.repeated_frames += 1
        interpreter.set("state", state)
        interpreter.set("noise", np.array(noise, np.float32))
        tick = Tick(self.step, self.step - self._anchor_step, state, self._similarity)
        if self._anchor_policy.wants(tick):
            self.re_anchor(image)
        interpreter.run(ACTIONS)
        self.step += 1
        chunk: NDArray[np.float32] = self.policy.memory.host(ACTIONS).copy()
        if not np.isfinite(chunk).all():
            raise ObservationError(
                f"tick {self.step - 1}: the policy answered with NaN or infinity; "
                "run: anchorvla check"
            )
        return chunk

    def say(self, instruction: str) -> None:
        """Give a new instruction; what depends on it is recomputed at the next `act`.

        Raises:
            ObservationError: the text cannot be taken; the old instruction stays.
            EpisodeError: another episode was started on this policy.
        """
        self._running().set("instruction", self.policy.encode(instruction))

    def re_anchor(self, image: NDArray[np.uint8]) -> None:
        """Make `image` the anchor; what depends on it is recomputed at the next `act`.

        Raises:
            ObservationError: the image cannot be taken; the old anchor stays.
            EpisodeError: another episode was started on this policy.
        """
        interpreter = self._running()
        check_image(image, what="anchor")
        interpreter.set("anchor", image.copy())
        self._anchor_step = self.step

    @property
    def stats(self) -> Stats:
        """What the episode cost so far."""
        interpreter = self._running()
        names = [stage.name for stage in self.policy.graph.stages]
        return Stats(
            num_runs=dict(zip(names, interpreter.num_runs, strict=True)),
            total_s=dict(zip(names, interpreter.total_s, strict=True)),
            last_s=dict(interpreter.last_run),
            anchor_bytes=self.policy.graph.kept_for("anchor", CHANGING),
            repeated_frames=self.repeated_frames,
        )

    def _similarity(self) -> float:
        self.policy.interpreter.run(SIMILARITY)
        return float(self.policy.memory.host(SIMILARITY)[0])

    def _running(self) -> Interpreter:
        if self.policy._episode is not self:
            raise EpisodeError(
                "this episode is over: another one was started on the same policy; "
                "load the bundle twice to run two at once"
            )
        return self.policy.interpreter


def assemble(
    graph: Graph,
    engines: Mapping[str, Engine],
    memory: Memory,
    resources: Resources,
    launcher: Callable[..., Launch],
) -> Interpreter:
    """Every stage of `graph` bound to its buffers."""
    runs, host_calls = {}, {}
    for stage in graph.stages:
        if stage.engine is not None:
            runs[stage.name] = engines[stage.engine].bind(stage.inputs, stage.outputs, memory)
        else:
            host_calls[stage.name] = _host_call(stage, graph.inputs, memory, resources)
    return Interpreter(graph, host_calls, launcher(graph, runs, memory))


def draw_noise(seed: int, tick: int, shape: tuple[int, int]) -> NDArray[np.float32]:
    """Standard normal noise [T, A] float32 of one tick, without any history.

    Philox counter generator (Salmon et al., 2011) keyed by the seed, its counter placed by the
    tick; Box-Muller on its raw words, so that the numbers do not depend on numpy's version.
    """
    count = -(-shape[0] * shape[1] // 2)
    raw = np.random.Philox(key=seed, counter=tick << 192).random_raw(2 * count)
    uniform = ((raw >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53
    radius = np.sqrt(-2.0 * np.log(uniform[:count]))
    angle = 2.0 * np.pi * uniform[count:]
    normal = np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])
    noise: NDArray[np.float32] = normal[: shape[0] * shape[1]].astype(np.float32)
    return noise.reshape(shape)


def read_golden(bundle: Bundle) -> dict[str, NDArray[Any]]:
    """The bundle's golden data: inputs, and the float32 reference's output of every stage."""
    with np.load(bundle.file(GOLDEN), allow_pickle=False) as golden:
        return {name: golden[name] for name in golden.files}


def _host_call(
    stage: Stage, graph_inputs: tuple[str, ...], memory: Memory, resources: Resources
) -> HostCall:
    function = FUNCTIONS[stage.function or ""](stage.params, resources)
    from_values = [(port, s) for port, s in stage.inputs.items() if s in graph_inputs]
    downloads = [(port, s) for port, s in stage.inputs.items() if s not in graph_inputs]
    from_memory = {port: memory.host(s) for port, s in downloads}
    outputs = {port: memory.host(name) for port, name in stage.outputs.items()}

    def call(values: Mapping[str, Any]) -> None:
        for _, name in downloads:
            memory.download(name)
        function({**from_memory, **{port: values[s] for port, s in from_values}}, outputs)
        for name in stage.outputs.values():
            memory.upload(name)

    return call


def _embedding(bundle: Bundle) -> NDArray[Any]:
    spec = bundle.manifest.embedding
    dtype = np.dtype("uint16" if spec["dtype"] == "bfloat16" else spec["dtype"])
    path, shape = bundle.file(spec["file"]), tuple(spec["shape"])
    if path.stat().st_size != int(np.prod(shape)) * dtype.itemsize:
        raise BundleError(f"{path}: size does not fit {spec['dtype']} {list(shape)}")
    return np.memmap(path, dtype, mode="r", shape=shape)


def _vector(state: NDArray[np.float32], width: int) -> NDArray[np.float32]:
    vector = np.array(state, np.float32)
    if vector.shape != (width,):
        raise ObservationError(f"state must be [{width}], got {list(vector.shape)}")
    if not np.isfinite(vector).all():
        raise ObservationError(f"state holds NaN or infinity: {vector.tolist()}")
    return vector

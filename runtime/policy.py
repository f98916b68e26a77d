"""The public API: load a bundle, start an episode, act.

A policy owns one set of buffers, so one episode runs at a time. Starting the next one ends the
last; what both have in common (the same anchor, the same instruction) is not computed again.

Every call is a transaction: a value that is refused, or a tick that fails on its way, leaves policy
and episode as they were, and the next good tick is the one that a policy without the failure would
have computed, bit for bit. Calls from several threads wait for each other.
"""

from __future__ import annotations

import contextlib
import copy
import math
import os
import threading
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from . import prompt
from .anchor import AnchorPolicy, First, Tick, check_anchor_policy
from .arguments import take_image, take_noise, take_seed, take_state
from .assembly import assemble
from .backends.registry import BACKENDS, MakeBackend
from .bundle import Bundle, read_bundle, read_golden
from .engine import Backend
from .errors import BundleError, EngineError, EpisodeError, ObservationError, UnmeasuredWarning
from .functions import Resources
from .image import ImageConfig
from .interpreter import Interpreter
from .noise import draw_noise
from .normalization import Normalization, choose_embodiment

ACTIONS = "actions"
SIMILARITY = "anchor_similarity"
CHANGING = ("frame", "state", "noise", "instruction")
"""Inputs that change while an anchor stays."""
CLOSED = "this policy was closed: load the bundle again"


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
    """Ticks whose image was the one before, to the bit: a slow or frozen camera. The same
    observation under another noise is no such tick."""
    failed_ticks: int
    """Calls of `act` that took their arguments and gave no chunk."""


def load(
    path: str | os.PathLike[str],
    *,
    embodiment: str | None = None,
    backend: str | MakeBackend = "onnxruntime",
    accept_failed_gates: bool = False,
) -> Policy:
    """Verify a bundle, load its engines and run it once on its golden observation.

    Args:
        path: the bundle's folder.
        embodiment: key of the statistics to use; may be left out if there is one.
        backend: what runs the engines, by its name (`onnxruntime`, `tensorrt`, `tensorrt_rtx`), or
            a function that makes one for the verified bundle.
        accept_failed_gates: load a bundle too that was exported against its gates' verdict.

    Warns:
        UnmeasuredWarning: its export could not judge it by every gate.

    Raises:
        BundleError: the bundle is damaged or does not fit, a gate failed at its export, or the
            embodiment is not in it.
        ValueError: there is no backend of that name.
        EngineError: an engine does not load on this machine.
    """
    if isinstance(backend, str) and backend not in BACKENDS:
        raise ValueError(f"no backend {backend!r}; there are {', '.join(BACKENDS)}")
    bundle = read_bundle(path)
    if bundle.manifest.failed_gates and not accept_failed_gates:
        words = "; ".join(f"{name}: {w}" for name, w in bundle.manifest.failed_gates.items())
        raise BundleError(
            f"{bundle.path}: its export was forced although gates failed ({words}); export it "
            "again without --force, or say --accept-failed-gates to run it as it is"
        )
    if bundle.manifest.unmeasured:
        warnings.warn(
            f"{bundle.path}: not measured when it was exported: "
            f"{', '.join(bundle.manifest.unmeasured)}; anchorvla show says why",
            UnmeasuredWarning,
            stacklevel=2,
        )
    made = BACKENDS[backend](bundle) if isinstance(backend, str) else backend(bundle)
    try:
        policy = Policy(bundle, embodiment, made)
        policy.warm_up()
    except BaseException:
        made.close()
        raise
    return policy


class Policy:
    """A loaded bundle. Make one with `load`, best in a `with` statement, which closes it."""

    def __init__(self, bundle: Bundle, embodiment: str | None, backend: Backend) -> None:
        manifest = bundle.manifest
        self.bundle = bundle
        self.backend = backend
        self.graph = manifest.graph
        try:
            self.embodiment = choose_embodiment(manifest.normalization["embodiments"], embodiment)
            statistics = manifest.normalization["embodiments"][self.embodiment]
            self.state_normalization, self.action_normalization = (
                Normalization.from_statistics(
                    statistics[kind],
                    manifest.normalization[kind]["modes"],
                    manifest.normalization[kind]["units"],
                    what=f"{self.embodiment}.{kind}",
                )
                for kind in ("state", "action")
            )
        except (ValueError, KeyError) as error:
            raise BundleError(f"{bundle.path}: {error}") from None
        self._tokenizer = Tokenizer.from_file(str(bundle.file("tokenizer.json")))
        self._image = ImageConfig(**manifest.image)
        resources = Resources(
            embedding_VD=_embedding(bundle),
            image=self._image,
            grid=manifest.grid,
            state=self.state_normalization,
            action=self.action_normalization,
        )
        self.memory = backend.memory(self.graph)
        engines = {n: backend.engine(bundle.file(e.file)) for n, e in manifest.engines.items()}
        self.interpreter = assemble(self.graph, engines, self.memory, resources, backend.launcher)
        self._episode: Episode | None = None
        self._is_closed = False
        self._lock = threading.RLock()  # an anchor policy may call its own episode

    def __enter__(self) -> Policy:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __repr__(self) -> str:
        manifest, (steps, actions) = self.bundle.manifest, self.chunk_shape
        closed = ", closed" if self._is_closed else ""
        return (
            f"<Policy {manifest.policy} ({manifest.recipe}) of {self.bundle.path} on "
            f"{self.backend.name}: {steps} actions of {actions}, "
            f"embodiment {self.embodiment}{closed}>"
        )

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
            ObservationError: an argument cannot be taken; the episode before goes on then.
            EpisodeError: the policy was closed.
        """
        picture = self._picture(anchor, "anchor")
        ids = self.encode(instruction)
        number = take_seed(seed)
        chosen = First() if anchor_policy is None else anchor_policy
        check_anchor_policy(chosen)
        with self._lock:
            if self._is_closed:
                raise EpisodeError(CLOSED)
            self._end_episode("another one was started on the same policy")
            self._episode = Episode(self, number, chosen)
            self.interpreter.reset_statistics()
            self.interpreter.set("anchor", picture)
            self.interpreter.set("instruction", ids)
            return self._episode

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
        with self._lock:
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
        self.interpreter.reset_statistics()

    def close(self) -> None:
        """Give back what the engines hold; the policy cannot be used any more."""
        with self._lock:
            if self._is_closed:
                return
            self._is_closed = True
            self._end_episode("its policy was closed")
            self.backend.close()

    def _end_episode(self, why: str) -> None:
        if self._episode is not None:
            self._episode._end = why
        self._episode = None

    def _picture(self, image: NDArray[np.uint8], what: str) -> NDArray[np.uint8]:
        return take_image(image, self._image, self.bundle.manifest.grid, what=what)


class Episode:
    """One run of the robot. Make one with `Policy.start`; a `with` statement ends it."""

    def __init__(self, policy: Policy, seed: int, anchor_policy: AnchorPolicy) -> None:
        self.policy = policy
        self.seed = seed
        self.step = 0
        self.repeated_frames = 0
        self.failed_ticks = 0
        self._anchor_policy = anchor_policy
        self._anchor_step = 0
        self._end: str | None = None

    def __enter__(self) -> Episode:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __repr__(self) -> str:
        state = f"ended, {self._end}" if self._end else "running"
        return f"<Episode at step {self.step}, seed {self.seed}, {state}>"

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
            EngineError: an engine failed, or the policy answered with NaN or infinity.
            EpisodeError: the episode is over.
        """
        picture = self.policy._picture(image, "image")
        vector = take_state(state, self.policy.state_dim)
        given = None if noise is None else take_noise(noise, self.policy.chunk_shape)
        with self._running() as interpreter, self._tick(interpreter):
            if given is None:
                given = draw_noise(self.seed, self.step, self.policy.chunk_shape)
            same_picture = not interpreter.set("frame", picture)
            is_resampled = not interpreter.set("state", vector) and noise is not None
            if self.step and same_picture and not is_resampled:
                self.repeated_frames += 1
            interpreter.set("noise", given)
            since_anchor = self.step - self._anchor_step
            tick = Tick(self.step, since_anchor, vector.copy(), self._similarity)
            if self._anchor_policy.wants(tick):
                self._set_anchor(picture)
            interpreter.run(ACTIONS)
            chunk: NDArray[np.float32] = self.policy.memory.host(ACTIONS).copy()
            if not np.isfinite(chunk).all():
                raise EngineError(
                    f"tick {self.step}: the policy answered with NaN or infinity, and the tick was "
                    "undone; if it comes again, run: anchorvla check"
                )
            self.step += 1
        return chunk

    def say(self, instruction: str) -> None:
        """Give a new instruction; what depends on it is recomputed at the next `act`.

        Raises:
            ObservationError: the text cannot be taken; the old instruction stays.
            EpisodeError: the episode is over.
        """
        ids = self.policy.encode(instruction)
        with self._running() as interpreter:
            interpreter.set("instruction", ids)

    def re_anchor(self, image: NDArray[np.uint8]) -> None:
        """Make `image` the anchor; what depends on it is recomputed at the next `act`.

        Raises:
            ObservationError: the image cannot be taken; the old anchor stays.
            EpisodeError: the episode is over.
        """
        picture = self.policy._picture(image, "anchor")
        with self._running():
            self._set_anchor(picture)

    def close(self) -> None:
        """End the episode; the policy stays loaded."""
        with self.policy._lock:
            if self._end is None:
                self.policy._end_episode("it was closed")

    @property
    def stats(self) -> Stats:
        """What the episode cost so far."""
        names = [stage.name for stage in self.policy.graph.stages]
        with self._running() as interpreter:
            return Stats(
                num_runs=dict(zip(names, interpreter.num_runs, strict=True)),
                total_s=dict(zip(names, interpreter.total_s, strict=True)),
                last_s=dict(interpreter.last_run),
                anchor_bytes=self.policy.graph.kept_for("anchor", CHANGING),
                repeated_frames=self.repeated_frames,
                failed_ticks=self.failed_ticks,
            )

    def _set_anchor(self, picture: NDArray[np.uint8]) -> None:
        self.policy.interpreter.set("anchor", picture)
        self._anchor_step = self.step

    def _similarity(self) -> float:
        self.policy.interpreter.run(SIMILARITY)
        similarity = float(self.policy.memory.host(SIMILARITY)[0])
        if not np.isfinite(similarity):
            raise EngineError(
                f"tick {self.step}: the anchor's similarity is {similarity}, and the tick was "
                "undone; if it comes again, run: anchorvla check"
            )
        return similarity

    @contextlib.contextmanager
    def _tick(self, interpreter: Interpreter) -> Iterator[None]:
        """All or nothing: of the episode too, its anchor policy included."""
        before = self.step, self.repeated_frames, self._anchor_step
        anchor_policy = copy.deepcopy(self._anchor_policy)
        try:
            with interpreter.transaction():
                yield
        except BaseException:
            self.step, self.repeated_frames, self._anchor_step = before
            self._anchor_policy = anchor_policy
            self.failed_ticks += 1
            raise

    @contextlib.contextmanager
    def _running(self) -> Iterator[Interpreter]:
        """The policy's interpreter, for one thread at a time."""
        with self.policy._lock:
            if self._end is not None:
                raise EpisodeError(
                    CLOSED
                    if self.policy._is_closed
                    else f"this episode is over: {self._end}; "
                    "start the next one, or load the bundle twice to run two at once"
                )
            yield self.policy.interpreter


def _embedding(bundle: Bundle) -> NDArray[Any]:
    spec = bundle.manifest.embedding
    dtype = np.dtype("uint16" if spec["dtype"] == "bfloat16" else spec["dtype"])
    path, shape = bundle.file(spec["file"]), tuple(spec["shape"])
    if path.stat().st_size != math.prod(shape) * dtype.itemsize:
        raise BundleError(f"{path}: size does not fit {spec['dtype']} {list(shape)}")
    return np.memmap(path, dtype, mode="r", shape=shape)

"""The public API: load a bundle, start an episode, act.

A policy owns one set of buffers, so one episode runs at a time. Starting the next one ends the
last; what both have in common (the same anchor, the same instruction) is not computed again.

Every call is a transaction: a value that is refused, or a tick that fails on its way, leaves policy
and episode as they were, and the next good tick is the one that a policy without the failure would
have computed, bit for bit. Calls from several threads wait for each other.
"""

from __future__ import annotations

import contextlib
import functools
import os
import threading
import time
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from .anchor import AnchorPolicies, AnchorPolicy, First, check_anchor_policy
from .backends.parity import Parity, relative_error
from .backends.registry import BACKENDS, MakeBackend
from .bundle import ITEM_TYPES, Bundle, read_bundle
from .declarations import Input, Output, from_source
from .engine import Backend
from .episode import FROM_OPERATOR, Answer, Episode
from .errors import BundleError, EpisodeError, ObservationError, UnmeasuredWarning
from .functions.calls import constants
from .functions.function import Resources
from .functions.tokens import Embed
from .golden import Golden, vary
from .graph import Graph, Stage
from .inputs import check_names, take_seed, takers
from .interpreter import assemble
from .normalization import choose_embodiment

LEFT_OVER = 1e-4
"""Relative error of a leftover that comes out again: it is scaled and scaled back, some 1e-7 of the
range of actions, of which a golden chunk takes a hundredth at least. Without a leftover it is 1."""
CLOSED = "this policy was closed: load the bundle again"


def load(
    path: str | os.PathLike[str],
    *,
    embodiment: str | None = None,
    backend: str | MakeBackend = "onnxruntime",
    accept_failed_gates: bool = False,
) -> Policy:
    """Verify a bundle, load its engines and run it once on its golden observation.

    On TensorRT its plans are verified and its ONNX files are not: nothing opens them.

    >>> policy = load("bundle")
    >>> sorted(policy.inputs)
    ['anchor', 'frame', 'instruction', 'leftover', 'noise', 'state']

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
    start = time.monotonic()
    bundle = read_bundle(path, engines=False)
    if bundle.manifest.failed_gates and not accept_failed_gates:
        words = "; ".join(f"{name}: {v}" for name, v in bundle.manifest.failed_gates.items())
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
    policy = None
    try:
        policy = Policy(bundle, embodiment, made)
        policy.warm_up()
        policy.start_up_s = time.monotonic() - start
    except BaseException:
        (policy or made).close()
        raise
    return policy


class Policy:
    """A loaded bundle. Make one with `load`, best in a `with` statement, which closes it."""

    start_up_s: float = 0.0
    """What `load` took, until the first tick could come."""

    def __init__(self, bundle: Bundle, embodiment: str | None, backend: Backend) -> None:
        manifest = bundle.manifest
        self.bundle = bundle
        self.backend = backend
        self.graph: Graph = manifest.graph
        self._take = takers(self.graph, _tokenizers(bundle))
        paths = {
            name: bundle.engine(name) if backend.reads_onnx else bundle.path / entry.file
            for name, entry in manifest.engines.items()
        }
        self.memory = backend.memory(self.graph)
        engines = {name: backend.engine(path) for name, path in paths.items()}
        try:
            self.embodiment = (
                choose_embodiment(manifest.statistics, embodiment) if manifest.statistics else ""
            )
            resources = Resources(
                tables=_tables(bundle), statistics=manifest.statistics.get(self.embodiment, {})
            )
            self.interpreter = assemble(
                self.graph, engines, self.memory, resources, backend.launcher
            )
        except ValueError as error:
            raise BundleError(f"{bundle.path}: {error}") from None
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
        embodiment = f", embodiment {self.embodiment}" if self.embodiment else ""
        return (
            f"<Policy {manifest.policy} ({manifest.recipe.name}) of {self.bundle.path} on "
            f"{self.backend.name}: {steps} actions of {actions}{embodiment}{closed}>"
        )

    @property
    def bytes_read(self) -> int:
        """Of files, so far: what was verified, and what the backend read of engines or plans."""
        return self.bundle.bytes_verified + self.backend.bytes_read

    @property
    def inputs(self) -> Mapping[str, Input]:
        """What it is fed with, by name."""
        return self.graph.inputs

    @property
    def outputs(self) -> Mapping[str, Output]:
        """What it can be asked for, by name; the first is the chunk of actions."""
        return self.graph.outputs

    @property
    def chunk_shape(self) -> tuple[int, int]:
        """(actions in a chunk, action dimensions)."""
        shape = self.graph.tensors[self.graph.target].shape
        return shape[0], shape[1]

    def start(
        self,
        *,
        seed: int = 0,
        anchor_policy: AnchorPolicies = None,
        **given: Any,
    ) -> Episode:
        """Start an episode. The one before ends.

        >>> with policy.start(instruction="touch the red marker", seed=0) as episode:
        ...     episode.step
        0

        Args:
            seed: of what is drawn; the noise of a tick depends on (seed, tick) alone.
            anchor_policy: when the latch takes a new value; `First()` by default. One per latch,
                by name, where the policy has several.
            given: inputs of the operator, such as the instruction. A latch may be given too; it
                keeps the first value it sees otherwise.

        Raises:
            ObservationError: an argument cannot be taken; the episode before goes on then.
            EpisodeError: the policy was closed.
        """
        check_names(given, self.graph, FROM_OPERATOR)
        values = {name: self.take(name, value) for name, value in given.items()}
        number = take_seed(seed)
        chosen = self._anchor_policies(anchor_policy)
        with self._lock:
            if self._is_closed:
                raise EpisodeError(CLOSED)
            self._end_episode("another one was started on the same policy")
            self._episode = Episode(self, number, chosen, values)
            self.interpreter.reset_statistics()
            for name, value in values.items():
                self.interpreter.set(name, value)
            return self._episode

    def take(self, name: str, value: Any) -> Any:
        """A value for an input, checked and copied, as it would be used.

        Raises:
            ObservationError: it cannot be taken.
        """
        if name not in self._take:
            raise ObservationError(
                f"this policy has no input {name!r}; it has {', '.join(self._take)}"
            )
        return self._take[name](value)

    def check(self) -> list[Parity]:
        """Run the golden observation and compare what every engine writes, leaves included, and the
        actions.

        Then again with every action left over, which is what has to come out of the last denoise
        step. The last verdict is about the golden actions, against the reference that knows nothing
        of stages. Of several samples all are compared, and not which of them is chosen: two may be
        as near to the others.
        """
        golden, graph = Golden.of(self.bundle), self.graph
        episode = self.start(**golden.given)
        episode.recall(golden.recalled)
        self.forget()
        actions = self._judged(episode.act({**golden.observed, **golden.drawn}), golden)
        for leaf in graph.outputs:  # those that no tick computes unasked
            episode.ask(leaf)
        errors = {}
        for name in graph.engine_outputs:
            self.memory.download(name)
            errors[name] = relative_error(self.memory.host(name), golden.tensors[name])
        manifest = self.bundle.manifest
        allowed = dict(manifest.tolerance)
        backwards_TA = golden.tensors[graph.target][::-1]  # as the robot could do, and nobody asked
        for name, stage in self._inpainted().items():
            leftover = np.insert(backwards_TA, 0, 1, axis=1)
            episode.act({**golden.observed, **golden.drawn, name: leftover})
            denoised = self.memory.host(stage.inputs["denoised"])
            errors[name], allowed[name] = relative_error(denoised, backwards_TA), LEFT_OVER
        errors[actions.name], allowed[actions.name] = actions.error, actions.allowed
        return [Parity(name, error, allowed[name]) for name, error in errors.items()]

    def probe(self) -> Parity:
        """Compute the golden tick anew, and judge its actions as `check` does.

        The episode that runs goes on as if nothing had been, to the bit. Its next tick computes
        everything again, unless `catch_up` has.

        Raises:
            EngineError: an engine failed, or the actions are not finite.
            BundleError: the golden data cannot be read.
            EpisodeError: the policy was closed.
        """
        golden = self._golden
        given = {name: self.take(name, value) for name, value in golden.given.items()}
        with self._lock:
            if self._is_closed:
                raise EpisodeError(CLOSED)
            with self.interpreter.aside():
                self.interpreter.forget()
                for name, value in given.items():
                    self.interpreter.set(name, value)
                episode = Episode(self, 0, self._anchor_policies(None), given)
                episode.recall(golden.recalled)
                return self._judged(episode.act({**golden.observed, **golden.drawn}), golden)

    def catch_up(self) -> None:
        """Compute again what the episode that runs kept before a `probe`, so that its next tick is
        a warm one.

        Raises:
            EngineError: an engine failed.
        """
        with self._lock:
            if self._episode is not None and self._episode.step:
                self.interpreter.run(self.graph.target)

    def _judged(self, answer: Answer, golden: Golden) -> Parity:
        """The actions that were just computed; of several samples all of them."""
        name = self.graph.sampled or self.graph.target
        got = self.memory.host(name) if self.graph.sampled else answer.actions
        allowed = self.bundle.manifest.tolerance[name] + self.bundle.manifest.action_error
        return Parity(name, relative_error(got, golden.tensors[name]), allowed)

    @functools.cached_property
    def _golden(self) -> Golden:
        """Read once, and without what engines wrote, which may be large."""
        golden = Golden.of(self.bundle)
        name = self.graph.sampled or self.graph.target
        return replace(golden, tensors={name: golden.tensors[name]})

    def _inpainted(self) -> dict[str, Stage]:
        """Per leftover, the stage that takes it over to the bit behind the denoise steps."""
        return {s.inputs["leftover"]: s for s in self.graph.stages if s.function == "commit"}

    def forget(self) -> None:
        """Recompute everything at the next `Episode.act`, as if every input had changed."""
        with self._lock:
            self.interpreter.forget()

    def warm_up(self) -> None:
        """Run every kind of tick, so that the first of an episode is not the slow one.

        Raises:
            BundleError: its golden observation does not fit it.
        """
        golden = Golden.of(self.bundle)
        try:
            episode = self.start(**golden.given)
            for _ in range(2):
                episode.act({**golden.observed, **golden.drawn})
                self.interpreter.forget()
            for leaf in self.graph.outputs:
                self.interpreter.run(leaf)
            for shift in (1, 2):
                episode.act(vary(self.inputs, golden.observed, shift))
            self._warm_up_delays(golden, episode)
        except ObservationError as error:
            raise BundleError(
                f"{self.bundle.path}: its golden observation does not fit it ({error}); export "
                "the bundle again"
            ) from None
        self.backend.settle()
        self.interpreter.reset_statistics()

    def _warm_up_delays(self, golden: Golden, episode: Episode) -> None:
        """What delayed inputs show was computed before, or nothing of it, or is all the same."""
        steps = max((declared.steps for declared in self.inputs.values()), default=0)
        if not steps:
            return
        known, *new = (vary(self.inputs, golden.observed, 2 + i) for i in range(steps + 4))
        for past in ([known] * steps, new[:steps]):
            for observation in past:
                episode.see(observation)
            episode.act(new.pop())
        told = {name: golden.given[name] for name in from_source(self.inputs, "operator")}
        self.start(seed=2**64 - 1, **told).act(new.pop())  # whose noise is of no other episode

    def close(self) -> None:
        """Give back what the engines hold; the policy cannot be used any more."""
        with self._lock:
            if self._is_closed:
                return
            self._is_closed = True
            self._end_episode("its policy was closed")
            self.interpreter.close()
            self.backend.close()

    @contextlib.contextmanager
    def running(self, episode: Episode) -> Iterator[None]:
        """One thread at a time, and only the episode that runs."""
        with self._lock:
            if episode.ended is not None:
                raise EpisodeError(
                    CLOSED
                    if self._is_closed
                    else f"this episode is over: {episode.ended}; "
                    "start the next one, or load the bundle twice to run two at once"
                )
            yield

    def end(self, episode: Episode, why: str) -> None:
        """The episode is over, if it is not yet."""
        with self._lock:
            if episode.ended is None:
                self._end_episode(why)

    def _end_episode(self, why: str) -> None:
        if self._episode is not None:
            self._episode.ended = why
        self._episode = None

    def _anchor_policies(self, chosen: AnchorPolicies) -> dict[str, AnchorPolicy]:
        """One per latch, each checked."""
        latches = [*from_source(self.inputs, "latch")]
        if chosen is None or isinstance(chosen, Mapping):
            named = dict(chosen or {})
        elif len(latches) == 1:
            named = {latches[0]: chosen}
        else:
            raise ObservationError(
                f"this policy has {len(latches)} latches ({', '.join(latches) or 'none'}): give "
                "anchor_policy={NAME: ...}, or --anchor NAME=POLICY, for those that shall not "
                "keep their first value"
            )
        if unknown := sorted(named.keys() - set(latches)):
            raise ObservationError(
                f"anchor_policy of {', '.join(unknown)}, but the latches are: "
                f"{', '.join(latches) or 'none'}"
            )
        for name, anchor_policy in named.items():
            check_anchor_policy(anchor_policy, name, self.graph)
        return {name: named.get(name, First()) for name in latches}


def _tables(bundle: Bundle) -> dict[str, NDArray[Any]]:
    return {
        name: np.memmap(
            bundle.file(table.file), ITEM_TYPES[table.dtype], mode="r", shape=table.shape
        )
        for name, table in bundle.manifest.tables.items()
    }


def _tokenizers(bundle: Bundle) -> dict[str, Tokenizer]:
    """Per file.

    Raises:
        BundleError: one is damaged, or has more tokens than the table its ids are looked up in.
    """
    manifest, found = bundle.manifest, {}
    for name, declared in manifest.graph.inputs.items():
        if declared.prompt is None:
            continue
        file = declared.prompt.tokenizer
        try:
            found[file] = Tokenizer.from_file(str(bundle.file(file)))
        except Exception as error:  # the library raises bare Exception
            raise BundleError(f"{bundle.path / file}: not a tokenizer ({error})") from None
        largest = max((*found[file].get_vocab().values(), *declared.prompt.end_ids))
        for stage in manifest.graph.stages:
            params = constants(stage) if stage.function and name in stage.inputs.values() else None
            if isinstance(params, Embed) and largest >= manifest.tables[params.table].shape[0]:
                raise BundleError(
                    f"{bundle.path / file}: has the id {largest}, which table {params.table!r} "
                    f"{list(manifest.tables[params.table].shape)} does not have"
                )
    return found

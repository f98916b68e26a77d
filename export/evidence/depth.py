"""Is the policy the libraries' at its full depth? One tick of either, compared stage by stage.

`export.evidence.chains` runs both, layer by layer in little memory, on seeded random weights. Each
stage of ours is given what the stage before it put out, and so is each layer of the libraries: what
is compared has the errors of all layers before it. A third tick, the libraries' in float64, tells
how much of a difference is rounding: two correct float32 programs err alike.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from export.evidence.bench import machine
from export.evidence.chains import Subject, Tensors, on_meta, placed, run_libraries, run_stages
from export.evidence.config import DEPTH, DepthConfig
from export.evidence.results import depth_table
from export.evidence.streamed import RandomWeights
from export.measure import golden_of, made_up, sampling
from models.checkpoint import read_tokenizer
from models.config_file import configuration
from models.demo import CHECKPOINT
from models.families import family_of
from models.policy_config import PolicyConfig
from models.split import Split
from runtime.backends.parity import relative_error
from runtime.board.machine import peak_bytes
from runtime.cli.progress import Progress
from runtime.storage.files import Kind, check_output, write_file

MEASURED = Kind("errors at full depth", (b'"machine"', b'"stages"', b'"of_libraries"'))
LIMIT = 1e-4
"""Of every stage and of the actions, against the libraries in float32."""
ALIKE = 3.0
"""Our distance from float64 in multiples of the libraries' own. Rounding errors of two programs are
independent, but the same layers pass them on, so that their norms are alike: over the stages of the
demo the ratio was at most 1.1."""
LEAST = 2.0**-22
"""A distance from float64 that is never too far: four roundings."""
PEAK_LIMIT = 12e9
"""Bytes of memory that a run may take."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StageErrors:
    """Of the worst output of a stage: norm of the difference over the norm."""

    stage: str
    error: float
    """Ours against the libraries', float32 both."""
    of_libraries: float
    """The libraries' float32 against their float64."""
    of_ours: float
    """Our float32 against the libraries' float64."""

    @property
    def complaint(self) -> str:
        """What is wrong with it; empty if nothing is."""
        if not self.error <= LIMIT:
            return f"{self.error:.2e} from the libraries, allowed are {LIMIT:.0e}"
        allowed = ALIKE * max(self.of_libraries, LEAST)
        if not self.of_ours <= allowed:
            return (
                f"{self.of_ours:.2e} from float64, where the libraries are {self.of_libraries:.2e} "
                f"from it and {allowed:.2e} is allowed"
            )
        return ""


def depth(config: DepthConfig) -> int:
    """Run all three ticks, print a table and one JSON line last.

    Returns:
        0, or 1 if a stage is too far off, or memory peaked above 12 GB.

    Raises:
        OutputError: the file of results cannot be written, or is somebody's.
        ValueError: the configuration is none, or has no image tokens for the prompt.
    """
    path = config.results and config.results / DEPTH
    if path:
        check_output(path, MEASURED)
    policy = configuration(config.config)
    start, here = time.monotonic(), machine()
    rows, parts = measure(policy, config)
    found = {
        "machine": here,
        "config": config.config,
        "weights": f"random, seed {config.seed}, outliers in every norm",
        "parameters": sum(p.numel() for p in on_meta(policy).parameters()),
        "image_size": list(config.image_size),
        "slots": parts.slots,
        "prefix_tokens": next(iter(parts.fixed.values())),
        "minutes": round((time.monotonic() - start) / 60, 1),
        "cpu_minutes": round(time.process_time() / 60, 1),
        "peak_gb": round(peak_bytes() / 1e9, 2),
        "stages": [dataclasses.asdict(row) for row in rows],
    }
    print(depth_table(found))
    if path:
        write_file(path, json.dumps(found, indent=1) + "\n", MEASURED)
    print(json.dumps({name: value for name, value in found.items() if name != "stages"}))
    complaints = [f"{row.stage}: {row.complaint}" for row in rows if row.complaint]
    if peak_bytes() > PEAK_LIMIT:
        complaints.append(f"memory peaked at {peak_bytes() / 1e9:.1f} GB, allowed are 12 GB")
    if complaints:
        others = f" (and {len(complaints) - 1} more)" if len(complaints) > 1 else ""
        print(f"error: {complaints[0]}{others}", file=sys.stderr)
    return int(bool(complaints))


def measure(policy: PolicyConfig, config: DepthConfig) -> tuple[list[StageErrors], Split]:
    """Errors of all stages in the order in which they run, and what ran."""
    subject = subject_of(policy, config)
    weights = RandomWeights(policy, seed=config.seed)
    golden = golden_for(subject)
    progress = Progress()
    progress.step("our stages")
    parts, ours = run_stages(subject, weights, golden)
    progress.step("the libraries in float32")
    library = placed(run_libraries(subject, weights, golden), subject, parts)
    progress.step("the libraries in float64")
    exact = placed(run_libraries(subject, weights, golden, torch.float64), subject, parts)
    progress.close()
    return list(compare(parts, ours, library, exact)), parts


def subject_of(policy: PolicyConfig, config: DepthConfig) -> Subject:
    """The policy with the demo's tokenizer, every trunk cut alike."""
    n = config.layers_per_stage
    return Subject(
        config=policy,
        tokenizer=read_tokenizer(CHECKPOINT / "tokenizer.json", policy),
        image_size=config.image_size,
        layers={trunk: n for trunk in family_of(policy).depths(policy) if n is not None},
    )


def golden_for(subject: Subject) -> Tensors:
    """A made-up observation."""
    checkpoint = subject.checkpoint(on_meta(subject.config))
    return golden_of(checkpoint, made_up(checkpoint, subject.image_size), seed=0)


def compare(parts: Split, ours: Tensors, library: Tensors, exact: Tensors) -> Iterator[StageErrors]:
    """Of every engine's call, and of the actions in policy units.

    Padded rows are left out, for the libraries have none.

    Args:
        ours: float32.
        library: float32.
        exact: the libraries' in float64.
    """
    written = {s.name: list(s.outputs.values()) for s in parts.graph.stages if s.engine}
    steps = sampling(parts.graph)
    for k, step in enumerate(steps):  # where the sampler clips, the next x would hide an error
        written[step.name].append(f"predicted_{k}")
    for stage, names in (written | {"actions": [steps[-1].outputs["x_next"]]}).items():
        got = {name: ours[name][tuple(map(slice, library[name].shape))] for name in names}
        yield StageErrors(
            stage=stage,
            error=max(relative_error(got[n], library[n]) for n in names),
            of_libraries=max(relative_error(library[n], exact[n]) for n in names),
            of_ours=max(relative_error(got[n], exact[n]) for n in names),
        )

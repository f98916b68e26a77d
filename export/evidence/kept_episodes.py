"""Evaluated episodes kept in files, so that a run that was cut off goes on where it was."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

from device_tests.success import motion
from device_tests.success.__main__ import show_progress
from device_tests.success.episodes import EpisodeResult, Evaluation, SuccessConfig, evaluate
from export.evidence.reference_policy import load_either
from models.checkpoint import load_checkpoint
from runtime import read_bundle
from runtime.bundle import MANIFEST
from runtime.storage.files import Kind, replacing

KEPT = Kind("kept episodes", (b"results.npy",))
DEFINITIONS = hashlib.sha256(Path(motion.__file__).read_bytes()).hexdigest()
"""Of the figures that are kept: by another definition they are measured anew."""


def evaluate_kept(folder: Path, config: SuccessConfig, *, num_strips: int = 0) -> Evaluation:
    """The policies of `config` one after the other, each one's episodes kept in `folder`.

    Policies are bundles, or checkpoints for the torch reference. Only the first one's strips are
    drawn.
    """
    parts = [
        _one(folder, replace(config, bundles=(policy,)), 0 if number else num_strips)
        for number, policy in enumerate(config.bundles)
    ]
    results = {p: part.results[p] for p, part in zip(config.bundles, parts, strict=True)}
    return Evaluation(config=config, results=results, strips=parts[0].strips)


def _one(folder: Path, config: SuccessConfig, num_strips: int) -> Evaluation:
    (policy,) = config.bundles
    if (policy / MANIFEST).exists():
        weights = read_bundle(policy).manifest.content_sha256
    else:
        weights = f"torch reference of {load_checkpoint(policy).sha256}"
    key = repr((weights, replace(config, bundles=(Path(),), jobs=1), num_strips, DEFINITIONS))
    kept = folder / f"{hashlib.sha256(key.encode()).hexdigest()[:16]}.npz"
    if kept.exists():
        return _read(kept, config)
    print(f"{policy}: {config.episodes} episodes of {', '.join(config.tasks)}", flush=True)
    progress = show_progress(len(config.tasks) * config.episodes)
    done = evaluate(config, load=load_either, num_strips=num_strips, on_episode=progress)
    _write(kept, done)
    return done


def _write(path: Path, evaluation: Evaluation) -> None:
    (results,) = evaluation.results.values()
    pictures = {str(results.index(r)): np.stack(frames) for r, frames in evaluation.strips}
    with replacing(path, KEPT) as partial, partial.open("wb") as file:
        np.savez_compressed(
            file, allow_pickle=False, results=json.dumps([asdict(r) for r in results]), **pictures
        )


def _read(path: Path, config: SuccessConfig) -> Evaluation:
    with np.load(path, allow_pickle=False) as kept:
        arrays = dict(kept)
    results = [
        EpisodeResult(**raw | {"motion": motion.read_motion(raw["motion"])})
        for raw in json.loads(str(arrays.pop("results")))
    ]
    strips = [(results[int(i)], tuple(frames)) for i, frames in arrays.items()]
    return Evaluation(config=config, results={config.bundles[0]: results}, strips=strips)

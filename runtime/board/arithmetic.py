"""Whether this kind of machine has the arithmetic that a bundle needs.

ONNX Runtime has no bfloat16 on a CPU, and says so in many ways, by operator. Whoever loads a bundle
there asks here first; `anchorvla doctor` does too.
"""

from __future__ import annotations

import shlex
from pathlib import Path

from ..bundle import Manifest


def needs_bfloat16(manifest: Manifest) -> bool:
    """Whether a GPU alone can run it."""
    return manifest.recipe.base == "bfloat16" and not manifest.twin_of


def no_bfloat16(bundle: Path) -> str:
    """Why a CPU refuses a bundle, and what helps."""
    return (
        "this bundle computes in bfloat16, which a CPU cannot; make its float32 twin: "
        f"{make_twin(bundle)}; or run it on its board's GPU: --backend tensorrt"
    )


def make_twin(bundle: Path) -> str:
    """The command."""
    return shlex.join(
        ["python", "-m", "export", "twin", "--bundle", f"{bundle}", "--out", f"{bundle}-twin"]
    )

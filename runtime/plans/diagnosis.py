"""What a compiler's messages mean: too little memory, no kernel for the graph, or neither.

"Could not find any implementation for node" ends all three, so it decides nothing. Memory was short
where an allocation failed or a kernel wanted more than there was, which TensorRT often says in
warnings only. A type that no rule of the compiler takes stays so with any memory (NVIDIA/TensorRT
issue 4832: builds on Thor, not on Orin), so such words win.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from ..errors import EngineError

SHORT_OF_WORKSPACE = re.compile(r"insufficient workspace|increas\w+ the workspace", re.IGNORECASE)
SHORT_OF_MEMORY = re.compile(
    r"out ?of ?memory|insuff?icient memory|memory is insufficient|bad_alloc|memoryerror"
    r"|requested amount of (gpu )?memory|nvmapmemalloc"
    rf"|{SHORT_OF_WORKSPACE.pattern}",
    re.IGNORECASE,
)
NO_KERNEL = re.compile(
    r"no matching rules|infer_type|could not infer output types|not supported|unsupported",
    re.IGNORECASE,
)
BLOCK = re.compile(
    r"requested (?:amount of (?:gpu )?memory \(|size was )(\d+) ?bytes", re.IGNORECASE
)
NODE = re.compile(r"implementation for node (.+?)(?: due to .*|\.\).*|\. .*|\.?)$", re.MULTILINE)
FREE_MEMORY = (
    "reboot and do this before anything else runs, for memory that was in use comes back in "
    "pieces; close other programs and the desktop (sudo systemctl isolate multi-user.target)"
)


class OutOfMemory(EngineError):
    """Memory was too little; the message names the layer where the compiler says which."""

    def __init__(
        self, message: str, *, block_bytes: int | None = None, is_workspace: bool = False
    ) -> None:
        super().__init__(message)
        self.block_bytes = block_bytes
        """The allocation that failed, where its size was told."""
        self.is_workspace = is_workspace
        """A kernel wanted more workspace than it was offered."""


def diagnose(messages: Sequence[str]) -> EngineError:
    """The error for a compiler that gave up with these messages.

    Args:
        messages: errors, and those warnings that `SHORT_OF_MEMORY` finds.
    """
    text = joined(messages)
    node = NODE.search(text)
    told = f"at layer {node[1]}: {text}" if node else text
    if NO_KERNEL.search(text):
        return EngineError(
            f"{told}\nThis GPU's compiler has no kernel for that, whatever the memory: use another "
            "recipe, or leave the layer in float by a rule"
        )
    if not SHORT_OF_MEMORY.search(text):
        return EngineError(told or "the compiler gave no reason")
    blocks = BLOCK.findall(text)
    return OutOfMemory(
        told,
        block_bytes=int(blocks[-1]) if blocks else None,
        is_workspace=not blocks and SHORT_OF_WORKSPACE.search(text) is not None,
    )


def joined(messages: Sequence[str]) -> str:
    """One line each; the parser says things twice."""
    return "\n".join(dict.fromkeys(messages))

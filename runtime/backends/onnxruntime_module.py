"""ONNX Runtime with its telemetry off. Nothing else imports it, `tests/test_rules.py` sees to that.

Its wheels from 1.29 on write a device id and a queue of events into the user's home folder as soon
as they are loaded. What is in the environment decides, and only before the import; whoever has set
the variable, to whatever, has decided. Processes that this one starts inherit it.
"""

from __future__ import annotations

import os

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import onnxruntime as ort

__all__ = ["ort"]

"""Checkpoints of SmolVLA: folders as LeRobot saves them, and folders of our own."""

from __future__ import annotations

from models.layouts.hugging_face import open_own as open_weights
from models.layouts.lerobot_writer import WRITTEN as written
from models.layouts.lerobot_writer import check_writable, write

__all__ = ["check_writable", "open_weights", "write", "written"]

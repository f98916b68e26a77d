"""Checkpoints of SG-VLA: folders of our own. The authors publish neither code nor weights."""

from __future__ import annotations

from models.layouts.hugging_face import open_own as open_weights
from models.layouts.own_writer import WRITTEN as written
from models.layouts.own_writer import check_writable, write

__all__ = ["check_writable", "open_weights", "write", "written"]

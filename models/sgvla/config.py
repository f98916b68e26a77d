"""What an SG-VLA policy is made of, as data. Light to import: no torch.

There is no public code. What the paper leaves open is a field, and its docstring begins with
"Open". `docs/sgvla.md` lists them all.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain
from typing import Any, Literal

from models.chat import check_views
from models.fields import check_divides
from models.networks.config import LanguageConfig
from models.networks.flow_expert_config import FlowExpertConfig
from models.networks.prismatic_config import PrismaticVisionConfig
from models.networks.token_head_config import TokenHeadConfig
from models.policy_config import NormalizationConfig, check_policy
from models.prismatic_chat import PromptConfig

MODEL_TYPE = "sgvla"


@dataclass(frozen=True, kw_only=True, slots=True)
class DepthConfig:
    """How a depth map becomes a picture: 1 - tanh(depth / scale), 1 at the camera."""

    scale_m: float = 1.0
    """The authors' 1000, taken as millimetres."""
    missing: float = 0.0
    """Open: nearness of a pixel of which nothing was measured. 0 is far away, 1 at the camera."""
    range_m: tuple[float, float] | None = None
    """Open: the nearest and the farthest depth that count as measured, as the camera's data sheet
    has them; all do if it is null."""

    def __post_init__(self) -> None:
        if not 0 < self.scale_m < float("inf"):
            raise ValueError(f"depth.scale_m must be a finite number above 0, got {self.scale_m}")
        if not 0 <= self.missing <= 1:
            raise ValueError(f"depth.missing must be from 0 to 1, got {self.missing}")
        if self.range_m is not None and not (
            len(self.range_m) == 2 and 0 <= self.range_m[0] < self.range_m[1] < float("inf")
        ):
            raise ValueError(
                f"depth.range_m must be a nearest and a farther depth in metres, or null, got "
                f"{self.range_m}"
            )

    @property
    def stated(self) -> dict[str, Any]:
        """Settings of `runtime.depth.DepthPatchMaker`."""
        found: dict[str, Any] = {"scale_m": self.scale_m, "missing": self.missing}
        return found if self.range_m is None else found | {"range_m": list(self.range_m)}


@dataclass(frozen=True, kw_only=True, slots=True)
class LeavesConfig:
    """The five auxiliary heads. None is upstream of the actions."""

    hidden_size: int = 256
    """Open: of the three MLPs, on the mean of all pictures' rows behind the decoder's norm."""
    position_dim: int = 3
    """x, y, z in metres. Open: the frame; the head's numbers are taken as they come."""
    quaternion: Literal["wxyz", "xyzw"] = "wxyz"
    """Open: order of the last four numbers of the object's pose, which are not brought to length 1.
    The first three are x, y, z in metres."""
    num_joints: int = 12
    joint_names: tuple[str, ...] = ()
    """As the robot description calls them; an empty text for one that is not felt. With names the
    joints as they are seen are held against the encoders. The authors name none."""
    joint_hidden_size: int = 256
    """Open: as the next three, of the transformer over joints' tokens and projected rows."""
    joint_intermediate_size: int = 1024
    joint_layers: int = 2
    joint_heads: int = 4
    mask_widths: tuple[int, ...] = (256, 128, 64, 32)
    """Open: channels in front of each transposed convolution. Their number is the authors'."""
    mask_view: str = "head"
    """Open: the picture whose rows the mask is made of."""

    def __post_init__(self) -> None:
        check_divides(
            self.joint_heads,
            self.joint_hidden_size,
            "leaves.joint_heads",
            "leaves.joint_hidden_size",
        )
        if not self.mask_widths or min(self.mask_widths) < 1:
            raise ValueError(f"leaves.mask_widths must be one at least, got {self.mask_widths}")
        for name in ("quaternion", "mask_view"):
            if not isinstance(getattr(self, name), str):
                raise ValueError(f"leaves.{name} must be a text, got {getattr(self, name)!r}")
        counted = {
            name: getattr(self, name)
            for name in (
                "hidden_size", "position_dim", "num_joints", "joint_hidden_size",
                "joint_intermediate_size", "joint_layers",
            )
        }  # fmt: skip
        for name, number in counted.items():
            if number < 1:
                raise ValueError(f"leaves.{name} must be at least 1, got {number}")
        if self.joint_names and len(self.joint_names) != self.num_joints:
            raise ValueError(
                f"leaves.joint_names must name {self.num_joints} joints or none, got "
                f"{len(self.joint_names)}: an empty text is a joint without a name"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class SGVLAConfig:
    """A whole SG-VLA policy, with a flow-matching head or one of discrete tokens."""

    vision: PrismaticVisionConfig
    """Open: depth passes through the same towers, under the same means and deviations."""
    language: LanguageConfig
    head: FlowExpertConfig | TokenHeadConfig
    """Open: all sizes of the first, but for about 100 M parameters. Of the second, that 256 bins
    are those of OpenVLA, that the decoder's own table scores them, and that no other token may
    follow."""
    normalization: NormalizationConfig
    """Open: q01 and q99 are -1 and 1 for all actions, and nothing is cut off."""
    views: tuple[str, ...] = ("head", "hand")
    """Open: the order in which the prompt shows the cameras' pictures."""
    depth_views: tuple[str, ...] = ("head_depth", "hand_depth")
    """Open: depth maps pass as pictures of three equal channels."""
    depth_order: Literal["behind", "beside"] = "behind"
    """Open: whether the prompt shows all depth maps behind all colour pictures, or each behind the
    picture of the same place in `views`."""
    depth: DepthConfig = DepthConfig()
    leaves: LeavesConfig = LeavesConfig()
    prompt: PromptConfig = PromptConfig()
    """Open: its words and its order, which are those of Prismatic policies on Qwen2.5."""
    model_type: str = MODEL_TYPE
    license: str = "unstated"
    """Licence of the weights; shown by every tool that touches them."""
    description: str = ""
    """What these weights are, in one line; shown beside the licence."""

    def __post_init__(self) -> None:
        check_policy(self, MODEL_TYPE)
        check_views(self.views)
        if self.depth_order == "beside" and len(self.views) != len(self.depth_views):
            raise ValueError(
                "depth_order='beside' shows a depth map behind each picture, and there are "
                f"{len(self.depth_views)} depth_views for {len(self.views)} views"
            )
        check_views(self.pictures)
        self.head.check_reads(self.language)
        if self.leaves.mask_view not in self.pictures:
            raise ValueError(
                f"leaves.mask_view must be one of {self.pictures}, got {self.leaves.mask_view!r}"
            )
        if self.vision.image_size // self.vision.patch_size % 2:
            raise ValueError(
                "the mask's first convolution halves the grid of patches, so vision.image_size / "
                "vision.patch_size must be even, got "
                f"{self.vision.image_size}/{self.vision.patch_size}"
            )

    @property
    def pictures(self) -> tuple[str, ...]:
        """In the order of the prompt."""
        if self.depth_order == "behind":
            return self.views + self.depth_views
        return tuple(chain.from_iterable(zip(self.views, self.depth_views, strict=True)))

    @property
    def mask_side(self) -> int:
        """Of the mask, in pixels."""
        grid = self.vision.image_size // self.vision.patch_size
        return grid // 2 * 2 ** len(self.leaves.mask_widths)

    @property
    def chunk(self) -> tuple[int, int]:
        return self.head.action_horizon, self.head.action_dim

    @property
    def state_dim(self) -> int:
        return 0

    @property
    def other_networks(self) -> dict[str, str]:
        c = self.vision
        projected = f"{c.embed_dim} to {4 * c.embed_dim} to {c.out_hidden_size} numbers a patch"
        if isinstance(self.head, TokenHeadConfig):
            head = f"{self.head.num_tokens} tokens of {self.head.num_bins}, decoded in turn"
        else:
            head = f"{self.head.num_hidden_layers} layers of width {self.head.hidden_size}"
        leaves = f"3 MLPs, {self.leaves.num_joints} joints, a mask {self.mask_side} pixels wide"
        return {"projector": projected, "head": head, "auxiliary heads": leaves}

    @property
    def special_tokens(self) -> tuple[str, ...]:
        return (self.prompt.before,)

    @property
    def special_ids(self) -> tuple[int, ...]:
        return ()

"""Depth map -> normalised patches, beside a colour picture that goes through the same network.

Depth becomes nearness, 1 - tanh(depth / scale): 1 at the camera, 0 far away. It stands in all three
channels, and is normalised as the colours of a picture from 0 to 1 are. A map is brought to size by
its nearest pixels, for the mean of a near and a far one is a surface that is not there.

H, W = height and width, N = patches.
"""

from __future__ import annotations

import functools
import math

import numpy as np
from numpy.typing import NDArray

from .image import ImageConfig


class DepthPatchMaker:
    """Turns depth maps into patches for one exported grid. Threads may share one."""

    def __init__(
        self,
        config: ImageConfig,
        grid: tuple[int, int],
        *,
        scale_m: float,
        missing: float,
        range_m: tuple[float, float] | None = None,
    ) -> None:
        """
        Args:
            config: of the colour pictures beside it: patches, mean, deviation, and the middle that
                is cut out.
            grid: rows and columns of patches.
            scale_m: depth whose nearness is 1 - tanh(1), in metres.
            missing: nearness of a pixel of which nothing was measured, 0 to 1.
            range_m: the nearest and the farthest depth that the camera measures well: beyond them
                nothing was measured. All depths if it is left out.
        """
        self.config, self.grid, self.range_m = config, grid, range_m
        self.scale_m, self.missing = np.float32(scale_m), np.float32(missing)
        self._mean, self._std = (
            np.array(values, np.float32)[:, None, None, None]
            for values in (config.image_mean, config.image_std)
        )

    def __call__(self, depth_m: NDArray[np.float32], out_NK: NDArray[np.float32]) -> None:
        """Write the patches of a map [H, W], metres and 0 where nothing was measured, to `out_NK`
        [N, patch_dim] float32."""
        c, (rows, columns) = self.config, self.grid
        m, p = c.merge_size, c.patch_size
        blocks = self.fitted(depth_m).reshape(rows // m, m, p, columns // m, m, p)
        patches = blocks.transpose(0, 3, 1, 4, 2, 5)[:, :, :, :, None, None]
        out = out_NK.reshape(rows // m, columns // m, m, m, 3, c.temporal_patch_size, p, p)
        np.subtract(patches, self._mean, out=out)
        np.divide(out, self._std, out=out)

    def fitted(self, depth_m: NDArray[np.float32]) -> NDArray[np.float32]:
        """Nearness of a map [H, W] as networks see it, [R, C] from 0 to 1."""
        c, (height, width) = self.config, depth_m.shape
        rows, columns = (side * c.patch_size for side in self.grid)
        area = 1.0 if c.crop_area is None else c.crop_area
        picked = depth_m[nearest(height, rows, area)[:, None], nearest(width, columns, area)]
        near: NDArray[np.float32] = 1 - np.tanh(picked / self.scale_m)
        near[picked == 0] = self.missing
        if self.range_m is not None:
            lowest, highest = self.range_m
            near[(picked < np.float32(lowest)) | (picked > np.float32(highest))] = self.missing
        return near


@functools.cache
def nearest(num_in: int, num_out: int, area: float) -> NDArray[np.intp]:
    """[R] the pixel of an axis that lies under the middle of each of its places, where the middle
    `area` of a picture is stretched to `num_out`."""
    share = math.sqrt(area)
    middles = (np.arange(num_out) + 0.5) / num_out
    places = np.floor((0.5 + share * (middles - 0.5)) * num_in).astype(np.intp)
    places.setflags(write=False)
    return places

"""Scales and codes chosen by what flows through a linear layer, as pure functions on arrays.

In: a weight [K, N] as an ONNX MatMul takes it, and rows [R, K] that were sampled from its input.
Rounding to nearest (`quant.formats`) treats all weights alike; these look after those that matter
to the layer's own inputs. The price is that the result depends on the sample: with fewer rows than
inputs, `gptq` can lose on other rows what it wins on these.

| function | chooses | after |
|---|---|---|
| `smooth_scales` | channel scales that move range to the weights | SmoothQuant, 2211.10438 |
| `awq_scales` | channel scales that keep the weights of large inputs precise | AWQ, 2306.00978 |
| `gptq` | int4 codes that make up for each other's rounding errors | GPTQ, 2210.17323 |
| `outlier_channels` | inputs to keep in floating point | LLM.int8, 2208.07339 |
| `nf4`, `llm_int8` | nothing: yardsticks, as bitsandbytes computes them | 2305.14314, 2208.07339 |

Channel scales s change nothing in exact arithmetic: X W = (X / s)(s W). Numbers beyond `LARGEST`
are refused: with them a product leaves float32.

Axes: R = sampled input rows, K = inputs, N = outputs, B = inputs of one block.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from types import ModuleType

import numpy as np
import torch
from numpy.typing import NDArray

from quant.formats import INT4_BLOCK, INT4_MAX, Quantized, Rounding, int4_blocks

LARGEST = 1e30
SCALE_LIMIT = 1e4
"""Channel scales stay within 1 / this and this, as in nvidia-modelopt."""
NF4_BLOCK = 64


def smooth_scales(
    channel_max_K: NDArray[np.float32], weight_KN: NDArray[np.float32], *, alpha: float = 0.5
) -> NDArray[np.float32]:
    """What to divide inputs by and multiply weight rows with, so that int8 suits both.

    max|x|^alpha / max|w|^(1 - alpha) for each channel, times the number that puts 1 in the middle
    of them (sqrt(max * min) = 1). Codes do not depend on that number; with it, what is divided
    keeps its size, whether it is folded into a norm or held in float16. A channel without inputs
    or weights counts as the smallest that has some: its scale never sets the range of the others.

    Args:
        channel_max_K: [K] largest magnitude of each input.
        alpha: how much of the range moves to the weights, 0 to 1.

    Returns:
        [K], finite and positive.

    Raises:
        ValueError: NaN, infinity or beyond `LARGEST`, shapes that do not fit, or a wrong alpha.
    """
    _check("weight", weight_KN, 2)
    _check("channel_max", channel_max_K, 1)
    _check_inputs("channel_max", len(channel_max_K), weight_KN)
    if (channel_max_K < 0).any():
        raise ValueError(
            f"channel_max holds {channel_max_K.min():g}: it takes magnitudes, so pass max|x|"
        )
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha must be from 0 (inputs as they are) to 1, got {alpha}")
    inputs_K = _alive(channel_max_K)
    weights_K = _alive(np.abs(weight_KN).max(axis=1))
    return _centred(inputs_K**alpha / weights_K ** (1 - alpha))


def awq_scales(
    rows_RK: NDArray[np.float32],
    weight_KN: NDArray[np.float32],
    quantize: Callable[[NDArray[np.float32]], NDArray[np.float32]],
    *,
    grid: int = 20,
) -> NDArray[np.float32]:
    """The best of `grid` channel scales mean|x|^a, 0 <= a < 1, for the outputs of the rows.

    a = 0, no scaling, is among them: on these rows the result is never worse than `quantize` alone.
    A channel without inputs counts as the smallest that has some.

    Args:
        quantize: a weight [K, N] to what an engine computes with: quantized and dequantized.
        grid: how many exponents are tried; each costs a `quantize` and a product X W.

    Returns:
        [K], finite and positive: divide inputs by it, multiply weight rows with it.

    Raises:
        ValueError: NaN, infinity or beyond `LARGEST`, shapes that do not fit, or an empty grid.
    """
    _check_layer(rows_RK, weight_KN)
    if grid < 1:
        raise ValueError(f"grid must be at least 1 (no scaling), got {grid}")
    unit_RK = _unit(rows_RK)
    mean_K = _alive(np.abs(unit_RK, dtype=np.float64).mean(axis=0))
    exact_RN = unit_RK @ weight_KN
    best_K, least = np.ones(len(weight_KN), np.float32), np.inf
    for exponent in np.arange(grid) / grid:
        scales_K = _centred(mean_K**exponent)
        outputs_RN = (unit_RK / scales_K) @ quantize(weight_KN * scales_K[:, None])
        loss = np.square(outputs_RN - exact_RN, dtype=np.float64).sum()
        if loss < least:
            best_K, least = scales_K, loss
    return best_K


def gptq(
    rows_RK: NDArray[np.float32],
    weight_KN: NDArray[np.float32],
    *,
    block: int = INT4_BLOCK,
    damping: float = 0.01,
    round_scales: Rounding | None = None,
) -> Quantized:
    """Int4 in blocks, like `int4_blocks`; each code makes up for the errors of those before it.

    Inputs are rounded in their order. Before each, the weights that are left move to where the
    outputs of the rows are closest to the exact ones, given the codes so far; a block's scales are
    those of its weights when its turn comes. A channel that no row uses is rounded to nearest.

    No matrix of K x K is made: how the weights that are left can help is asked of the rows (the
    push-through identity). Takes 24 R^2 bytes, and time as K R^2.

    Args:
        damping: added to the diagonal of X^T X, as a share of its mean; pulls towards plain
            rounding, the more the larger.

    Raises:
        ValueError: NaN, infinity or beyond `LARGEST`, shapes that do not fit, K is no multiple of
            `block`, or damping outside 1e-4 to 1.
    """
    _check_layer(rows_RK, weight_KN)
    num_inputs, num_outputs = weight_KN.shape
    if num_inputs % block:
        raise ValueError(
            f"a weight of {num_inputs} inputs does not divide into blocks of {block}: pad it "
            f"(pad_inputs) and the rows with zeros to {-(-num_inputs // block) * block}"
        )
    if not 1e-4 <= damping <= 1:
        raise ValueError(
            f"damping must be from 1e-4 (with less, the factorization may fail) to 1, got {damping}"
        )
    unit_RK = _unit(rows_RK)
    exact_RK = unit_RK.astype(np.float64)
    damped = damping * np.square(exact_RK).sum() / num_inputs or 1.0
    left_RR = exact_RK @ exact_RK.T + damped * np.eye(len(exact_RK))
    codes_KN = np.empty(weight_KN.shape, np.int8)
    scales = np.empty((num_inputs // block, num_outputs), np.float32)
    missed_RN = np.zeros((len(unit_RK), num_outputs), np.float32)
    for index, start in enumerate(range(0, num_inputs, block)):
        part = slice(start, start + block)
        exact_RB = exact_RK[:, part]
        left_RR -= exact_RB @ exact_RB.T
        inverse_BB, helps_BR = _looking_forward(exact_RB, left_RR)
        moved_BN = weight_KN[part] + helps_BR @ missed_RN
        scales[index] = int4_blocks(moved_BN, block=block, round_scales=round_scales).scales[0]
        codes_KN[part] = _round_in_order(moved_BN, scales[index], inverse_BB)
        error_BN = weight_KN[part] - codes_KN[part] * scales[index]
        missed_RN += unit_RK[:, part] @ error_BN
    return Quantized(codes_KN, scales, 0, block)


def outlier_channels(rows_RK: NDArray[np.float32], *, threshold: float = 6.0) -> NDArray[np.int64]:
    """Inputs, ascending, with a magnitude of `threshold` or more in any row.

    Raises:
        ValueError: NaN, infinity or beyond `LARGEST`, no rows, or a threshold that is not positive.
    """
    int8_vectorwise_quant = _bitsandbytes().int8_vectorwise_quant
    _check("rows", rows_RK, 2)
    _check_threshold(threshold)
    # A copy (torch.tensor): bitsandbytes zeroes the outliers in its argument and puts them back.
    _, _, channels = int8_vectorwise_quant(torch.tensor(rows_RK), threshold=threshold)
    assert channels is not None
    found: NDArray[np.int64] = channels.numpy().astype(np.int64)
    return found


def nf4(weight_KN: NDArray[np.float32]) -> tuple[NDArray[np.float32], int]:
    """NF4 with a float32 scale for 64 inputs of an output, there and back; and its bytes.

    Blocks run on from one output to the next where 64 does not divide K, as in bitsandbytes.

    Raises:
        ValueError: not [K, N], NaN, infinity or beyond `LARGEST`.
    """
    library = _bitsandbytes()
    _check("weight", weight_KN, 2)
    # Whole blocks: for an odd number of weights bitsandbytes would compile its fallback first.
    flat = np.pad(weight_KN.T.ravel(), (0, -weight_KN.size % NF4_BLOCK))
    packed, state = library.quantize_nf4(torch.from_numpy(flat), blocksize=NF4_BLOCK)
    back = library.dequantize_nf4(packed, state).numpy().ravel()[: weight_KN.size]
    num_bytes = -(-weight_KN.size // 2) + 4 * len(state.absmax)
    return np.ascontiguousarray(back.reshape(weight_KN.shape[::-1]).T), num_bytes


def llm_int8(
    rows_RK: NDArray[np.float32], weight_KN: NDArray[np.float32], *, threshold: float = 6.0
) -> tuple[NDArray[np.float32], int]:
    """Outputs [R, N] as LLM.int8 computes them, and the bytes of its weight.

    Weights are int8 with a scale per output. Outlier channels of these rows meet the dequantized
    weights in float32; all others are int8 with a scale per row.

    Raises:
        ValueError: NaN, infinity or beyond `LARGEST`, shapes that do not fit, a threshold that is
            not positive, or outputs that leave float32.
    """
    int8_vectorwise_quant = _bitsandbytes().int8_vectorwise_quant
    _check_layer(rows_RK, weight_KN)
    _check_threshold(threshold)
    rows = torch.tensor(rows_RK)
    codes, scales, _ = int8_vectorwise_quant(torch.tensor(np.ascontiguousarray(weight_KN.T)))
    row_codes, row_scales, outliers = int8_vectorwise_quant(rows, threshold=threshold)
    # Not bitsandbytes.matmul: on a CPU, in its default state, that leaves the inputs in float.
    outputs, _ = torch.ops.bitsandbytes.int8_mixed_scaled_mm(
        rows, row_codes, codes, row_scales, scales, outliers
    )
    if not outputs.isfinite().all():
        raise ValueError("outputs leave float32: scale down the rows or the weight")
    return outputs.numpy(), codes.numel() + 4 * scales.numel()


def _bitsandbytes() -> ModuleType:
    """Imported where it is used: it takes 3 seconds, and the other methods do without it.

    It warns, on CPUs with AVX512-BF16, that a package for products in 4 bits is not installed,
    which nothing here computes.
    """
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    import bitsandbytes.functional

    module: ModuleType = bitsandbytes.functional
    return module


def _looking_forward(
    rows_RB: NDArray[np.float64], left_RR: NDArray[np.float64]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """How a block's weights make up for errors, if those of later inputs help as best they can.

    With T = X'X'^T + damping over the later inputs X', what cannot be helped by them costs
    e^T M e in the block's errors e, where M = 1 + X^T T^-1 X; the inverse of M is the block's part
    of the inverse Hessian, up to a factor. float64, because damping may be 1e-8 of the largest
    eigenvalue.

    Args:
        rows_RB: X, the rows' inputs of this block.
        left_RR: T.

    Returns:
        [B, B] the upper triangular Cholesky factor of M^-1; and M^-1 X^T T^-1 [B, R], which takes
        what outputs miss by errors before to the move that makes up for it.
    """
    helps_BR = np.linalg.solve(left_RR, rows_RB).T
    needs_BB = np.eye(len(helps_BR)) + helps_BR @ rows_RB
    upside_down = np.linalg.cholesky(needs_BB[::-1, ::-1])
    factor_BB = np.linalg.inv(upside_down[::-1, ::-1])
    moves_BR = factor_BB.T @ (factor_BB @ helps_BR)
    return factor_BB.astype(np.float32), moves_BR.astype(np.float32)


def _round_in_order(
    weight_BN: NDArray[np.float32], scale_N: NDArray[np.float32], inverse_BB: NDArray[np.float32]
) -> NDArray[np.int8]:
    """Codes of a block; `inverse_BB` is upper triangular and spreads the error of each input."""
    codes_BN = np.empty(weight_BN.shape, np.int8)
    error_BN = np.empty_like(weight_BN)
    for k in range(len(weight_BN)):
        weight_N = weight_BN[k] - inverse_BB[:k, k] @ error_BN[:k]
        codes_BN[k] = np.clip(np.rint(weight_N / scale_N), -INT4_MAX, INT4_MAX)
        error_BN[k] = (weight_N - codes_BN[k] * scale_N) / inverse_BB[k, k]
    return codes_BN


def _alive(magnitudes_K: NDArray[np.floating]) -> NDArray[np.float64]:
    """The smallest positive one in place of zeros; ones if all are zero."""
    alive_K = magnitudes_K > 0
    least = magnitudes_K[alive_K].min() if alive_K.any() else 1.0
    return np.where(alive_K, magnitudes_K, least).astype(np.float64)


def _centred(scales_K: NDArray[np.float64]) -> NDArray[np.float32]:
    middle = np.sqrt(scales_K.max()) * np.sqrt(scales_K.min())
    return np.clip(scales_K / middle, 1 / SCALE_LIMIT, SCALE_LIMIT).astype(np.float32)


def _unit(rows_RK: NDArray[np.float32]) -> NDArray[np.float32]:
    """Divided by their largest magnitude: no choice depends on it, and no square overflows."""
    return rows_RK / (np.abs(rows_RK).max() or np.float32(1.0))


def _check(name: str, values: NDArray[np.float32], num_axes: int) -> None:
    if values.ndim != num_axes or not values.size:
        axes = {"rows": "[R, K]", "weight": "[K, N]", "channel_max": "[K]"}[name]
        raise ValueError(f"{name} must be {axes} and not empty, got shape {values.shape}")
    if count := int((~np.isfinite(values)).sum()):
        raise ValueError(
            f"{count} of {values.size} numbers in {name} are NaN or infinity: look at what made it"
        )
    if (largest := np.abs(values).max()) > LARGEST:
        raise ValueError(f"{name} holds {largest:g}, beyond {LARGEST:g}: scale it down first")


def _check_inputs(name: str, num_inputs: int, weight_KN: NDArray[np.float32]) -> None:
    if num_inputs != len(weight_KN):
        raise ValueError(
            f"{name} is of {num_inputs} inputs, the weight {list(weight_KN.shape)} of "
            f"{len(weight_KN)}: pass a weight as [K, N], and what enters this very layer"
        )


def _check_layer(rows_RK: NDArray[np.float32], weight_KN: NDArray[np.float32]) -> None:
    _check("rows", rows_RK, 2)
    _check("weight", weight_KN, 2)
    _check_inputs("rows", rows_RK.shape[1], weight_KN)


def _check_threshold(threshold: float) -> None:
    if not 0 < threshold < float("inf"):
        raise ValueError(
            f"threshold must be a positive number, got {threshold}; 6 is that of LLM.int8"
        )

"""How near training is to the edge of the numbers: attention logits, gradients, confidence.

Shapes: S steps, L passes, Q quantiles, K tiers or bins, B blocks.
"""

import math
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from prismatic.measures.numerics import FAINT

from .losses import NO_VALIDATION
from .record import Floats, NothingToDrawError, Record, Steps, require_last, require_series
from .routing import plot_passes, tick_passes
from .style import ACCENT, MUTED, SIZE, STEP, legend, styled, title

NO_ATTENTION = "The model has no attention, or the run ended before its first validation."


@dataclass(frozen=True)
class LogitRanges:
    """Attention logits after the row's maximum was subtracted; `limit` is where exp leaves."""

    quantile_Q: Floats
    value_LQ: Floats
    step_S: Steps
    largest_SL: Floats
    limit: float | None
    dtype: str


@dataclass(frozen=True)
class AttentionCurves:
    """Entropy of attention rows as a share of ln(row length), what the softmax gains on uniform
    attention, the share of logits below -20, and the log-partition.
    """

    step_S: Steps
    entropy_SL: Floats
    gain_SL: Floats
    outside_SL: Floats
    partition_SL: Floats


@dataclass(frozen=True)
class Gradients:
    """Gradient norms before clipping: of all, by magnitude tier of the weights, by block."""

    step_S: Steps
    norm_S: Floats
    tier_SK: Floats
    block_SB: Floats
    tiers: list[str]


@dataclass(frozen=True)
class Confidence:
    """The density of -ln p of the targets, and accuracy by confidence (mean, accuracy, share)."""

    nll_K2: Floats
    calibration_K3: Floats
    error: float


def compute_logits(record: Record) -> LogitRanges:
    """Quantiles by pass at the last validation, and the largest magnitude over training."""
    value_LQ = require_last(record, "edge/logit_LQ", NO_ATTENTION)
    step_S, largest_SL = require_series(record, "edge/logit_absmax_L", NO_ATTENTION)
    about = record.about
    quantile_Q = np.array(about["quantiles"], dtype=np.float64)
    limit, dtype = about.get("exp_limit"), about.get("dtype", "")
    return LogitRanges(quantile_Q, value_LQ, step_S, largest_SL, limit, dtype)


@styled
def draw_logits(figure: Figure, record: Record) -> None:
    """Attention logits by pass, and the largest over training, with the limits of the dtype."""
    found = compute_logits(record)
    title(figure, "Attention logits after max subtraction")
    last, over_time = figure.subplots(1, 2)
    plot_spread(last, found.value_LQ)
    plot_passes(over_time, found.step_S, found.largest_SL)
    faint = f"{FAINT:.0f}: exp < {math.exp(-FAINT):.1e}"
    for axes, sign in ((last, -1), (over_time, 1)):
        axes.set_yscale("symlog", linthresh=1)
        axes.yaxis.set_major_formatter("{x:g}")
        axes.axhline(sign * FAINT, color=ACCENT, linestyle=":", label=faint)
        if found.limit:
            name = f"{found.limit:.1f}: exp leaves {found.dtype}"
            axes.axhline(sign * found.limit, color=ACCENT, linestyle="--", label=name)
    ends = f"{found.quantile_Q[0]:g} to {found.quantile_Q[-1]:g}"
    last.set(xlabel="pass", ylabel="logit (nats)", title=f"quantiles {ends}")
    over_time.set(xlabel=STEP, ylabel="largest magnitude (nats)", ylim=(0, None))
    legend(figure, over_time)


def plot_spread(axes: Axes, value_LQ: Floats) -> None:
    """Nested bars between opposite quantiles, and the median."""
    pass_L, pairs = np.arange(len(value_LQ)), value_LQ.shape[1] // 2
    for pair in range(pairs):
        low_L, high_L = value_LQ[:, pair], value_LQ[:, -1 - pair]
        grey = str(0.8 - 0.6 * (pair + 1) / pairs)
        axes.vlines(pass_L, low_L, high_L, color=grey, linewidth=1.2 + 2.4 * pair)
    axes.plot(pass_L, np.median(value_LQ, axis=1), "o", color="white", mec="black", markersize=5)
    axes.set_xlim(-0.5, len(pass_L) - 0.5)
    tick_passes(axes, len(pass_L))


def compute_attention(record: Record) -> AttentionCurves:
    """What attention did at every validation."""
    names = ("attention_entropy", "softmax_gain", "out_of_range", "log_partition")
    found = [require_series(record, f"edge/{name}_L", NO_ATTENTION) for name in names]
    return AttentionCurves(found[0][0], *(value_SL for _, value_SL in found))


@styled
def draw_attention(figure: Figure, record: Record) -> None:
    """How spread out attention is, and how large its logits are, over training."""
    found = compute_attention(record)
    title(figure, "Attention: how spread out it is, and how large its logits are")
    figure.set_size_inches(SIZE[0], 5.6)
    (entropy, gain), (outside, partition) = figure.subplots(2, 2, sharex=True)
    for axes, value_SL, measure in (
        (entropy, found.entropy_SL, "entropy (share of ln n)"),
        (gain, found.gain_SL, "softmax gain (nats)"),
        (outside, found.outside_SL, f"logits below -{FAINT:.0f} (share)"),
        (partition, found.partition_SL, "log-partition (nats)"),
    ):
        plot_passes(axes, found.step_S, value_SL)
        axes.set(ylabel=measure)
    for axes in (outside, partition):
        axes.set_xlabel(STEP)
    entropy.set_ylim(0, 1.02)
    for axes in (gain, outside):
        axes.set_ylim(bottom=0)
    legend(figure, entropy)


def compute_gradients(record: Record) -> Gradients:
    """Gradient norms over training."""
    absent = "The run ended before its first gradient was recorded."
    steps, norm_S = require_series(record, "edge/grad_norm", absent)
    if not (norm_S > 0).any():
        raise NothingToDrawError("Every gradient that was recorded is 0: nothing is learned.")
    _, tier_SK = require_series(record, "edge/grad_tier_K", absent)
    _, block_SB = require_series(record, "edge/grad_block_B", absent)
    return Gradients(steps, norm_S, tier_SK, block_SB, list(record.about["tiers"]))


@styled
def draw_gradients(figure: Figure, record: Record) -> None:
    """Gradient norms by tier and by block over training."""
    found = compute_gradients(record)
    title(figure, "Gradient norms before clipping")
    tiers, blocks = figure.subplots(1, 2, sharey=True)
    tiers.plot(found.step_S, found.norm_S, color=MUTED, linewidth=4, alpha=0.5, label="all weights")
    for line, name, norm_S in zip(("-", "--", ":"), found.tiers, found.tier_SK.T, strict=False):
        tiers.plot(found.step_S, norm_S, linestyle=line, color="black", label=f"{name} tier")
    for block, norm_S in enumerate(found.block_SB.T):
        shade = str(0.75 * block / max(1, found.block_SB.shape[1] - 1))
        blocks.plot(found.step_S, norm_S, color=shade, linewidth=1.2, label=f"block {block}")
    tiers.set(xlabel=STEP, ylabel="gradient norm (nats / unit of weight)", yscale="log")
    tiers.set_title("by magnitude of the weights")
    blocks.set(xlabel=STEP, title="by block, the first is darkest")
    blocks.label_outer()
    legend(figure, tiers)


def compute_confidence(record: Record) -> Confidence:
    """Confidence of the predictions at the last validation."""
    nll_K2 = require_last(record, "edge/nll_K2", NO_VALIDATION)
    calibration_K3 = require_last(record, "edge/calibration_K3", NO_VALIDATION)
    error = float(require_last(record, "edge/calibration_error", NO_VALIDATION))
    return Confidence(nll_K2, calibration_K3, error)


@styled
def draw_confidence(figure: Figure, record: Record) -> None:
    """How surprised the model is by the targets, and whether its confidence is earned."""
    found = compute_confidence(record)
    title(figure, "Confidence of the predictions")
    surprise, calibration = figure.subplots(1, 2)
    surprise.fill_between(*found.nll_K2.T, step="mid", color=MUTED, alpha=0.6)
    surprise.set(xlabel="-ln p of the target (nats)", ylabel="density (1/nats)", ylim=(0, None))
    confidence_K, accuracy_K, share_K = found.calibration_K3.T
    calibration.plot([0, 1], [0, 1], color=MUTED, linewidth=1)
    calibration.scatter(confidence_K, accuracy_K, s=12 + 260 * share_K, color="black", alpha=0.7)
    calibration.set(xlabel="confidence (probability)", ylabel="accuracy (share)")
    calibration.set_title(f"calibration error {found.error:.3f}")

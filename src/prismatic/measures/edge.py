"""How near to the limits of the exponential a model computes: attention, predictions, gradients.

Shapes: B batch, T time, S attended time, M heads, V vocabulary, Q quantiles, K bins or tiers,
P positions of a parameter, R attention rows, L passes.
"""

import math
from collections.abc import MutableMapping, Sequence

import numpy as np
import torch

from prismatic.data import IGNORE
from prismatic.models import Transformer, full_tensor, watched
from prismatic.perturb import Edges, Perturbation, select

from .numerics import FAINT
from .views import entropy

QUANTILES = (0.001, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 0.999)
MOST_SORTED = 2**17  # quantiles of more values than that are those of every n-th one
BINS, SURPRISE_BINS, MOST_SURPRISE = 15, 64, 16.0  # of confidence; of -ln p, in nats
TIERS = ("top", "middle", "bottom")
SELECTED = Perturbation()  # the tiers: one rule for all runs, so that they can be compared


def quantiles(values: torch.Tensor) -> torch.Tensor:
    """(Q,) of the values of any shape, exact up to MOST_SORTED of them."""
    thinned = values.flatten()[:: max(1, values.numel() // MOST_SORTED)]
    return torch.quantile(thinned.float(), torch.tensor(QUANTILES, device=values.device))


def attention_measures(logits_BMTS: torch.Tensor, probs_BMTS: torch.Tensor) -> dict:
    """What one causal attention did; masked entries and rows of one entry are left out.

    Logits are measured after the row's largest was subtracted, as the softmax sees them.
    `softmax_gain` is ln n - entropy, in nats; `attention_entropy` is in units of ln n.
    """
    logits_BMTS, probs_BMTS = logits_BMTS[:, :, 1:], probs_BMTS[:, :, 1:]
    size_T = torch.arange(2, 2 + logits_BMTS.shape[2], device=logits_BMTS.device)
    shifted = (logits_BMTS - logits_BMTS.amax(-1, keepdim=True))[logits_BMTS != -math.inf]
    entropy_BMT, partition_BMT = entropy(probs_BMTS), logits_BMTS.logsumexp(-1)
    return {
        "edge/logit_LQ": quantiles(shifted),
        "edge/logit_absmax_L": shifted.abs().max(),
        "edge/out_of_range_L": (shifted < -FAINT).float().mean(),
        "edge/attention_entropy_L": (entropy_BMT / size_T.log()).mean(),
        "edge/softmax_gain_L": (size_T.log() - entropy_BMT).mean(),
        "edge/log_partition_L": partition_BMT.mean(),
        "edge/log_partition_LQ": quantiles(partition_BMT),
    }


@torch.no_grad()
def look_at_attention(model: Transformer, tokens_BT: torch.Tensor) -> dict[str, torch.Tensor]:
    """`attention_measures` of every pass by name; empty without attention or with one token."""
    found: list[dict] = []

    def see(logits_BMTS: torch.Tensor, probs_BMTS: torch.Tensor) -> None:
        if logits_BMTS.shape[-1] > 1:
            found.append(attention_measures(logits_BMTS, probs_BMTS))

    with watched(model, see):
        model(tokens_BT)
    return {name: torch.stack([pass_[name] for pass_ in found]) for name in (found or [{}])[0]}


class Predictions:
    """Sums over scored tokens: calibration, surprise -ln p, and eml(ln p, p) = p - ln p."""

    def __init__(self, device: torch.device) -> None:
        self.bin_K3 = torch.zeros(BINS, 3, dtype=torch.float64, device=device)
        self.surprise_K = torch.zeros(SURPRISE_BINS, dtype=torch.float64, device=device)
        self.eml = torch.zeros((), dtype=torch.float64, device=device)

    def update(self, logits_BTV: torch.Tensor, targets_BT: torch.Tensor) -> None:
        scored = targets_BT != IGNORE
        target_R, logp_RV = targets_BT[scored], logits_BTV[scored].float().log_softmax(-1)
        surprise_R = -logp_RV.gather(-1, target_R[:, None])[:, 0]
        best_R, guess_R = logp_RV.max(-1)
        confidence_R = best_R.exp().nan_to_num()
        bin_R = (confidence_R * BINS).long().clamp(max=BINS - 1)
        right_R = guess_R == target_R
        row_R3 = torch.stack([confidence_R, right_R, torch.ones_like(confidence_R)], -1)
        self.bin_K3.index_add_(0, bin_R, row_R3.double())
        share_R = (surprise_R / MOST_SURPRISE).nan_to_num(1.0)  # no number is most surprising
        place_R = (share_R * SURPRISE_BINS).clamp(max=SURPRISE_BINS - 1).long()
        self.surprise_K.index_add_(0, place_R, torch.ones_like(surprise_R).double())
        self.eml += (torch.exp(-surprise_R) + surprise_R).double().sum()

    def tensors(self) -> list[torch.Tensor]:
        """What must be summed over ranks before `compute`."""
        return [self.bin_K3, self.surprise_K, self.eml]

    def compute(self) -> dict[str, torch.Tensor]:
        """The last bin of surprise also holds what is beyond it; empty bins are NaN."""
        count_K = self.bin_K3[:, 2]
        total = count_K.sum()
        confidence_K, accuracy_K = (self.bin_K3[:, :2] / count_K[:, None]).T
        share_K, gap_K = count_K / total, (accuracy_K - confidence_K).abs().nan_to_num()
        width = MOST_SURPRISE / SURPRISE_BINS
        centre_K = (torch.arange(SURPRISE_BINS).to(total) + 0.5) * width
        return {
            "edge/nll_K2": torch.stack([centre_K, self.surprise_K / total / width], -1),
            "edge/calibration_K3": torch.stack([confidence_K, accuracy_K, share_K], -1),
            "edge/calibration_error": (share_K * gap_K).sum(),
            "edge/eml": self.eml / total,
        }


class Whole:
    """All positions of a tensor, as a region of it."""

    def of(self, x_P: torch.Tensor) -> torch.Tensor:
        return x_P


def gradient_norms(
    model: Transformer, hints: MutableMapping[str, Edges]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Norms of the wrapped weights' gradients: by tier (K,) as in TIERS, and by block (B,).

    A weight's tier is its magnitude's within its tensor, by the default dual-sided selection.
    `hints` are those of `select`.
    """
    blocks = []
    for router in model.routers:
        energy_K = torch.zeros(len(TIERS), dtype=torch.float64)
        for name, share in router.expert.named_parameters():
            if share.grad is not None:
                weight, grad = full_tensor(share), full_tensor(share.grad)
                found = select(weight, SELECTED, hints, f"{router.name}.{name}")
                energy_P = grad.detach().flatten().float().square()
                signed_P = found.signed(energy_P, weight.detach().flatten(), Whole())
                top, bottom = signed_P.clamp(min=0).sum(), -signed_P.clamp(max=0).sum()
                middle = (energy_P.sum() - top - bottom).clamp(min=0)
                energy_K += torch.stack([top, middle, bottom]).double().cpu()
        blocks.append(energy_K)
    energy_BK = torch.stack(blocks)
    return energy_BK.sum(0).sqrt(), energy_BK.sum(1).sqrt()


def spikes(log_norm_S: Sequence[float], window: int, factor: float, fewest: int = 20) -> int:
    """How many of the last `window` gradient norms are above `factor` times what was usual then.

    Usual is the median of up to `window` norms before, and of no fewer than `fewest`.
    """
    last_S = np.asarray(log_norm_S[-2 * window :])
    steps = range(max(fewest, len(last_S) - window), len(last_S))
    usual = [np.median(last_S[max(0, step - window) : step]) for step in steps]
    return int((last_S[steps.start :] > np.array(usual) + math.log(factor)).sum())

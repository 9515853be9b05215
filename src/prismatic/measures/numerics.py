"""How near to the limits of the exponential a model computes: attention logits and gradients.

Shapes: B batch, T time, S attended time, M heads, Q quantiles, K tiers, P positions of a parameter,
L passes.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch

from prismatic.models import RoutedModel, full_tensor, watched
from prismatic.perturb import Perturbation, select

from .routing import entropy

# How far below the largest logit of a row a logit still counts as in range, in nats: the band that
# source 000 gives. exp(-20) = 2.1e-9 vanishes beside a 1 in all formats of a model but float64.
FAINT = 20.0
QUANTILES = (0.001, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 0.999)
MOST_SORTED = 2**17  # quantiles of more values than that are those of every n-th one
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
def measure_attention(model: RoutedModel, tokens_BT: torch.Tensor) -> dict[str, torch.Tensor]:
    """`attention_measures` of every pass, by name; empty without attention or with one token."""
    found: list[dict] = []

    def see(logits_BMTS: torch.Tensor, probs_BMTS: torch.Tensor) -> None:
        if logits_BMTS.shape[-1] > 1:
            found.append(attention_measures(logits_BMTS, probs_BMTS))

    with watched(model, see):
        model(tokens_BT)
    return {name: torch.stack([pass_[name] for pass_ in found]) for name in (found or [{}])[0]}


def gradient_norms(model: RoutedModel) -> tuple[torch.Tensor, torch.Tensor]:
    """Norms of the wrapped weights' gradients: by tier (K,) as in TIERS, and by block (B,).

    A weight's tier is its magnitude's within its tensor, by the default dual-sided selection.
    """
    blocks = []
    for router in model.routers:
        energy_K = torch.zeros(len(TIERS), dtype=torch.float64)
        for share in router.expert.parameters():
            if share.grad is not None:
                weight, grad = full_tensor(share), full_tensor(share.grad)
                energy_P = grad.detach().flatten().float().square()
                (role_P,) = select([weight], [SELECTED.counts(weight.numel())])
                tiers = [energy_P[role_P == role].sum() for role in (1, 0, -1)]
                energy_K += torch.stack(tiers).double().cpu()
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

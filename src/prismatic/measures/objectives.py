"""What sweeps optimise: how far views are apart, and how steadily training goes.

Shapes: B batch, T time, V vocabulary, E views, K scored tokens, S steps.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch.nn import functional as F

from prismatic.data import IGNORE
from prismatic.models import RoutedModel

from .routing import entropy

# Of a normal distribution, its standard deviation over its median absolute deviation.
MAD = 1.4826


@torch.no_grad()
def forced_views(
    model: RoutedModel, tokens_BT: torch.Tensor, targets_BT: torch.Tensor
) -> torch.Tensor:
    """Log-probabilities that every view, run alone, gives at the scored tokens: (E, K, V)."""
    outputs = []
    for view in range(model.routers[0].num_experts):
        with model.forced(view):
            outputs.append(model(tokens_BT)[targets_BT != IGNORE].double().log_softmax(-1))
    return torch.stack(outputs)


def diversity(logp_EKV: torch.Tensor) -> float:
    """Jensen-Shannon divergence of several predictions of the same tokens, as a share of ln E."""
    p_EKV = logp_EKV.exp()
    together = entropy(p_EKV.mean(0)).mean() - entropy(p_EKV).mean()
    return float(together) / math.log(len(p_EKV))


def views_apart(
    model: RoutedModel, tokens_BT: torch.Tensor, targets_BT: torch.Tensor
) -> dict[str, float]:
    """How far the views' predictions are apart, each run alone on the same held-out tokens.

    `views/disagreement` is the mean pairwise Jensen-Shannon divergence, in bits, and
    `objective/diversity` that of all views at once as a share of the most possible.
    `views/closest` is how far the log-probabilities of the two closest views are apart, the root
    mean square in nats: it stays above 0 where a broken model is sure of one token.
    `views/{i}/loss` is in nats and `views/excess` the worst view's less the clean one's.
    `views/useful_diversity` is what the views' geometric mean gains over the best of them: negative
    where they only add noise. Empty for one view.
    """
    num_views = model.routers[0].num_experts
    if num_views == 1:
        return {}
    logp_EKV = forced_views(model, tokens_BT, targets_BT)
    p_EKV, target_K = logp_EKV.exp(), targets_BT[targets_BT != IGNORE]
    alone_E = entropy(p_EKV).mean(1)
    pairs = [
        entropy((p_EKV[i] + p_EKV[j]) / 2).mean() - (alone_E[i] + alone_E[j]) / 2
        for i in range(num_views)
        for j in range(i)
    ]
    differences = [logp_EKV[i] - logp_EKV[j] for i in range(num_views) for j in range(i)]
    loss_E = [float(F.nll_loss(logp_KV, target_K)) for logp_KV in logp_EKV]
    geometric = float(F.nll_loss(logp_EKV.mean(0).log_softmax(-1), target_K))
    return {
        "views/disagreement": float(torch.stack(pairs).mean()) / math.log(2),
        "views/closest": min(float(logp.square().mean().sqrt()) for logp in differences),
        "objective/diversity": diversity(logp_EKV),
        "views/excess": max(loss_E) - loss_E[0],
        "views/useful_diversity": min(loss_E) - geometric,
        **{f"views/{i}/loss": loss for i, loss in enumerate(loss_E)},
    }


def steadiness(log_norm_S: Sequence[float], sound: bool) -> dict[str, float]:
    """How steadily a run trained, from the log gradient norms of its steps after warm-up.

    `stability/spread` is their robust deviation from their own line over steps, and
    `objective/stability` exp(-spread), or 0 for a run that is not `sound`: not finite, or no better
    than a unigram table. Empty with fewer than three steps, which a line may fit too well.
    """
    if len(log_norm_S) < 3:
        return {}
    step_S = np.arange(len(log_norm_S))
    slope, level = np.polyfit(step_S, log_norm_S, 1)
    residual_S = np.asarray(log_norm_S) - (slope * step_S + level)
    spread = MAD * float(np.median(np.abs(residual_S - np.median(residual_S))))
    return {
        "stability/spread": spread,
        "objective/stability": math.exp(-spread) if sound else 0.0,
    }


def over_seeds(found: Sequence[Mapping[str, float]], num_seeds: int) -> dict[str, float]:
    """The means of the last metrics of several seeds, of which only those that ended are `found`.

    `objective/stability` is the share of all seeds that are sound times exp(-mean spread).
    """
    shared = set.intersection(*map(set, found))
    means = {name: sum(one[name] for one in found) / len(found) for name in sorted(shared)}
    if "stability/spread" in means:
        sound = sum(one["objective/stability"] > 0 for one in found)
        means["objective/stability"] = sound / num_seeds * math.exp(-means["stability/spread"])
    return means

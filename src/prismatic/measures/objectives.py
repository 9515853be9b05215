"""What sweeps optimise: how far views are apart, and how steadily training goes.

Shapes: B batch, T time, V vocabulary, E views, K scored tokens, S steps.
"""

import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from torch.nn import functional as F

from prismatic.data import IGNORE
from prismatic.models import RoutedModel

from .routing import entropy

# Of a normal distribution, its standard deviation over its median absolute deviation.
MAD = 1.4826
# Of what views predict: tokens of a forward, numbers computed with at once, numbers of a view kept.
TOKENS_AT_ONCE, LOGITS_AT_ONCE, LOGITS_KEPT = 64, 1 << 20, 1 << 22


@torch.no_grad()
def predicted(
    model: RoutedModel, tokens_BT: torch.Tensor, targets_BT: torch.Tensor
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Log-probabilities that every view, run alone, gives at scored tokens, (E, K, V) in float64.

    With the targets (K,), for some tokens at a time: what is held at once does not grow with how
    many there are, nor what is computed from it with the vocabulary.
    """
    num_views = model.routers[0].num_experts
    num_rows = max(1, TOKENS_AT_ONCE // tokens_BT.shape[1])
    for some_BT, target_BT in zip(
        tokens_BT.split(num_rows), targets_BT.split(num_rows), strict=True
    ):
        scored_BT = target_BT != IGNORE
        logits_E = []
        for view in range(num_views):
            with model.forced(view):
                logits_E.append(model(some_BT)[scored_BT])
        size = max(1, LOGITS_AT_ONCE // (num_views * logits_E[0].shape[-1]))
        parts = zip(*(logits_KV.split(size) for logits_KV in logits_E), strict=True)
        for part_E, target_K in zip(parts, target_BT[scored_BT].split(size), strict=True):
            yield torch.stack(part_E).double().log_softmax(-1), target_K


def forced_views(
    model: RoutedModel, tokens_BT: torch.Tensor, targets_BT: torch.Tensor
) -> torch.Tensor:
    """What the views predict, (E, K, V) in float32: of many tokens, evenly spread ones, so that
    there are no more than LOGITS_KEPT numbers of a view.
    """
    num_scored, seen, kept = int((targets_BT != IGNORE).sum()), 0, []
    for logp_EKV, _ in predicted(model, tokens_BT, targets_BT):
        every = -(-num_scored * logp_EKV.shape[-1] // LOGITS_KEPT)
        kept.append(logp_EKV[:, -seen % every :: every].float())
        seen += logp_EKV.shape[1]
    return torch.cat(kept, 1)


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
    i_P, j_P = torch.tril_indices(num_views, num_views, -1)
    sums: dict[str, torch.Tensor] = {}
    count = 0
    for logp_EKV, target_K in predicted(model, tokens_BT, targets_BT):
        p_EKV = logp_EKV.exp()
        geometric_KV = logp_EKV.mean(0).log_softmax(-1)
        found = {
            "alone_E": entropy(p_EKV).sum(1),
            "together": entropy(p_EKV.mean(0)).sum(),
            "paired_P": entropy((p_EKV[i_P] + p_EKV[j_P]) / 2).sum(1),
            "square_P": (logp_EKV[i_P] - logp_EKV[j_P]).square().mean(2).sum(1),
            "loss_E": -logp_EKV[:, torch.arange(len(target_K)), target_K].sum(1),
            "geometric": F.nll_loss(geometric_KV, target_K, reduction="sum"),
        }
        sums = {name: sums.get(name, 0) + value for name, value in found.items()}
        count += len(target_K)
    mean = {name: (value / count).cpu() for name, value in sums.items()}
    alone_E, loss_E = mean["alone_E"], mean["loss_E"].tolist()
    apart_P = mean["paired_P"] - (alone_E[i_P] + alone_E[j_P]) / 2
    return {
        "views/disagreement": float(apart_P.mean()) / math.log(2),
        "views/closest": float(mean["square_P"].min().sqrt()),
        "objective/diversity": float(mean["together"] - alone_E.mean()) / math.log(num_views),
        "views/excess": max(loss_E) - loss_E[0],
        "views/useful_diversity": min(loss_E) - float(mean["geometric"]),
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

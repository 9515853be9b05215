"""What an evaluation adds up over held-out data, and what a few held-out rows show.

Shapes: B batch, T time, V vocabulary, D domains, K bins, R scored tokens; in names of measures also
S sequences, L passes, E views, M heads, X and Y the two tokens of a mixed task.
"""

import re
from collections.abc import Sequence
from itertools import count

import torch
from torch.nn import functional as F

from prismatic.data import IGNORE, Batch, MixedTask, Task
from prismatic.models import RoutedModel, watched

from .numerics import measure_attention
from .objectives import LOGITS_AT_ONCE
from .routing import RoutingMeasure, is_routed, routing_by_row

PROBE_ROWS = 24  # held-out sequences on which views are compared and attention is looked at
BINS, SURPRISE_BINS, MOST_SURPRISE = 15, 64, 16.0  # of confidence; of -ln p, in nats


def metric_names(domains: Sequence[str]) -> list[str]:
    """The domains as parts of metrics' names: with other characters than MLflow takes as `_`, and
    still distinct, by a number where they would not be.
    """
    names: list[str] = []
    for domain in domains:
        safe = re.sub(r"[^\w .:-]", "_", domain)
        tries = (safe if k == 1 else f"{safe}_{k}" for k in count(1))
        names.append(next(name for name in tries if name not in names))
    return names


class HeldOut:
    """Sums over an evaluation: losses by domain, and routing."""

    def __init__(self, model: RoutedModel, num_domains: int, device: torch.device) -> None:
        self.loss_D = torch.zeros(num_domains, dtype=torch.float64, device=device)
        self.count_D = torch.zeros_like(self.loss_D)
        self.routing = RoutingMeasure(len(model.passes()), model.routers[0].num_experts, device)

    def update(self, model: RoutedModel, logits_BTV: torch.Tensor, batch: Batch) -> None:
        loss_BT = F.cross_entropy(
            logits_BTV.transpose(1, 2), batch.targets_BT, ignore_index=IGNORE, reduction="none"
        )
        scored_BT = batch.targets_BT != IGNORE
        self.loss_D.index_add_(0, batch.domain_B, loss_BT.double().sum(1))
        self.count_D.index_add_(0, batch.domain_B, scored_BT.double().sum(1))
        self.routing.update(model.routing, len(batch.tokens_BT))

    def tensors(self) -> list[torch.Tensor]:
        """What must be summed over ranks before anything is computed."""
        return [self.loss_D, self.count_D, *self.routing.tensors()]

    def losses(self, domains: Sequence[str]) -> tuple[float, dict[str, float]]:
        """Mean loss in nats per token, and that of each domain that was seen."""
        sums = zip(metric_names(domains), self.loss_D.tolist(), self.count_D.tolist(), strict=True)
        by_domain = {name: loss / count for name, loss, count in sums if count}
        return float(self.loss_D.sum() / self.count_D.sum()), by_domain


class Calibration:
    """Sums over scored tokens: calibration, surprise -ln p, and eml(ln p, p) = p - ln p."""

    def __init__(self, device: torch.device) -> None:
        self.bin_K3 = torch.zeros(BINS, 3, dtype=torch.float64, device=device)
        self.surprise_K = torch.zeros(SURPRISE_BINS, dtype=torch.float64, device=device)
        self.eml = torch.zeros((), dtype=torch.float64, device=device)

    def update(self, logits_BTV: torch.Tensor, targets_BT: torch.Tensor) -> None:
        logits_RV, target_R = logits_BTV.flatten(0, 1), targets_BT.flatten()
        scored_R = (target_R != IGNORE).nonzero()[:, 0]
        # A few at a time: a copy of all logits would be more than training holds of them.
        for row_R in scored_R.split(max(1, LOGITS_AT_ONCE // logits_RV.shape[-1])):
            self.add(logits_RV[row_R].float().log_softmax(-1), target_R[row_R])

    def add(self, logp_RV: torch.Tensor, target_R: torch.Tensor) -> None:
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


def probe_of(task: Task, rows: int = PROBE_ROWS) -> Batch:
    """A few held-out rows, evenly from all of them and so from all domains."""
    num_rows = task.num_rows("val")
    return task.held_out("val", torch.linspace(0, num_rows - 1, min(rows, num_rows)).long())


@torch.no_grad()
def views_over_merged(model: RoutedModel, batch: Batch) -> list[float]:
    """The loss of each view alone less that of all merged, in nats per scored token."""

    def total() -> float:
        parts = (part.split(PROBE_ROWS) for part in (batch.tokens_BT, batch.targets_BT))
        return sum(
            float(
                F.cross_entropy(
                    model(tokens_BT).flatten(0, 1).float(), targets_BT.flatten(),
                    ignore_index=IGNORE, reduction="sum",
                )
            )
            for tokens_BT, targets_BT in zip(*parts, strict=True)
        )  # fmt: skip

    num_scored, merged, over = int((batch.targets_BT != IGNORE).sum()), total(), []
    for view in range(model.routers[0].num_experts):
        with model.forced(view):
            over.append((total() - merged) / num_scored)
    return over


@torch.no_grad()
def measure_probe(
    model: RoutedModel, task: Task, tokens_BT: torch.Tensor
) -> dict[str, torch.Tensor]:
    """Attention and routing on a few held-out rows, and on all pairs of tokens of a mixed task."""
    measured = measure_attention(model, tokens_BT)
    if is_routed(model):
        row_LBE = routing_by_row(model.routing, len(tokens_BT))
        measured["routing/sample_SLE"] = row_LBE.transpose(0, 1)
    if isinstance(task, MixedTask):
        measured |= measure_pairs(model, task, tokens_BT.device)
    return measured


def measure_pairs(
    model: RoutedModel, task: MixedTask, device: torch.device
) -> dict[str, torch.Tensor]:
    """For every pair of tokens, at the last position and averaged over passes: routing, and each
    head's attention on x.
    """
    num_x, num_y, _ = task.joint_XYZ.shape
    pairs_BT = torch.cartesian_prod(torch.arange(num_x), torch.arange(num_y)).to(device)
    on_x: list[torch.Tensor] = []
    with watched(model, lambda logits, probs: on_x.append(probs[:, :, -1, 0])):
        model(pairs_BT)
    tables = {"table/attention_XYM": on_x} if on_x else {}
    if is_routed(model):
        last = [r.probs[:, -1].expand(len(pairs_BT), -1) for r in model.routing]
        tables["table/routing_XYE"] = last
    return {
        name: torch.stack(table).mean(0).unflatten(0, (num_x, num_y))
        for name, table in tables.items()
    }

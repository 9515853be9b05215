"""Does looking through several views help a model learn? (source 002)

Probes: whether routing adapts to its input, whether that matters, and whether views stay apart.

Shapes: B rows of one domain, T positions, D domains, E views, L passes.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import pytorch_lightning as pl
import torch
from torch.nn import functional as F

from prismatic.data import Batch, Task
from prismatic.errors import require
from prismatic.measures import views_apart
from prismatic.measures.routing import DomainRouting, Twins, is_routed, routing_by_router
from prismatic.models import Transformer
from prismatic.routers import Routing
from prismatic.training import Learner

from ..scripted import Scripted, scripted

PARTS = 4  # of training, at the end of each of which views are compared
ALIKE = 0.02  # bits: views that are never further apart than this predict the same


def gated(model: Transformer) -> list[torch.Tensor]:
    """What each pass's gate gave in the last forward."""
    passes = zip(model.passes(), model.routing, strict=True)
    return [router.temperature * routing.logits for router, routing in passes]


def replayed(model: Transformer, logits_L: Sequence[torch.Tensor]) -> AbstractContextManager[None]:
    """Within the context one forward routes as if its gates gave these, one per pass."""
    routers = model.routers
    return scripted(routers, [Scripted(logits_L[k :: len(routers)]) for k in range(len(routers))])


def rows_by_domain(task: Task, rows: int) -> list[Batch]:
    """As many held-out rows of each domain, evenly from all of its text."""
    held_out = task.held_out("val")
    count_D = torch.bincount(held_out.domain_B, minlength=len(task.domains))
    rows = min(rows, int(count_D.min()))
    batches = []
    for domain, count in enumerate(count_D.tolist()):
        of_domain = (held_out.domain_B == domain).nonzero().flatten()
        chosen = of_domain[torch.linspace(0, count - 1, rows).long()]
        batches.append(Batch(*(part[chosen] for part in held_out)))
    return batches


@torch.no_grad()
def swap_costs(model: Transformer, domains: Sequence[Batch]) -> dict[str, float]:
    """What it costs, in nats per token, to route each row by what another row's gates gave.

    `swap/row`: another row of its domain. `swap/domain`: a row of another domain, beyond that: what
    is lost when routing is that of the wrong domain. The batches have as many rows each, of which
    one is routed by one; at level batch, each batch by the whole other.
    """

    def loss(batch: Batch) -> float:
        logits_BTV = model(batch.tokens_BT)
        return float(F.cross_entropy(logits_BTV.transpose(1, 2), batch.targets_BT))

    own, logits_DL = 0.0, []
    for batch in domains:
        own += loss(batch) / len(domains)
        logits_DL.append(gated(model))
    same, other = 0.0, 0.0
    for here, batch in enumerate(domains):
        for there, logits_L in enumerate(logits_DL):
            moved_L = [logits.roll(1, 0) for logits in logits_L] if here == there else logits_L
            with replayed(model, moved_L):
                cost = loss(batch) / len(domains)
            same += cost if here == there else 0.0
            other += 0.0 if here == there else cost / (len(domains) - 1)
    return {"swap/row": same - own, "swap/domain": other - same}


class Swap(pl.Callback):
    """Logs `swap_costs` on held-out rows; nothing for one view or one domain."""

    def __init__(self, rows: int = 16) -> None:
        require(rows >= 2, "rows", rows, "give at least 2 rows per domain")
        self.rows = rows

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        if is_routed(pl_module.model) and len(pl_module.task.domains) > 1:
            batches = rows_by_domain(pl_module.task, self.rows)
            moved = [Batch(*(part.to(pl_module.device) for part in one)) for one in batches]
            pl_module.log_dict(swap_costs(pl_module.model, moved))


def told(model: Transformer, domain_B: torch.Tensor) -> list[Routing]:
    """Routing by the domain alone, in every pass, as far as there are views."""
    view_B = domain_B % model.routers[0].num_experts
    weight_B1E = F.one_hot(view_B, model.routers[0].num_experts).double()[:, None]
    return [Routing(weight_B1E.log(), weight_B1E)] * model.depth


class DomainInformation(pl.Callback):
    """Logs how much routing says of the domain, beside twins of its gates that nothing trains.

    `adaptation/information` is I(view; domain) of held-out rows as a share of the most possible,
    the mean over passes, `adaptation/twin` that of the untrained gates on the same inputs, and
    `adaptation/gain` the rest. `adaptation/control/told`, a control, is the information of routing
    that gives each domain a view of its own.
    """

    def on_fit_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self.twins = Twins(pl_module.model)

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        model = pl_module.model
        shape = model.depth, len(pl_module.task.domains), model.routers[0].num_experts
        self.trained, self.untrained, self.told = (
            DomainRouting(*shape, pl_module.device) for _ in range(3)
        )
        if is_routed(model):
            self.twins.begin(model)

    def on_validation_batch_end(
        self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, *args: Any
    ) -> None:
        if self.twins.routing:
            self.trained.update(pl_module.model.routing, batch.domain_B)
            self.untrained.update(self.twins.routing, batch.domain_B)
            self.twins.routing.clear()
            self.told.update(told(pl_module.model, batch.domain_B), batch.domain_B)

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self.twins.end()
        self.twins.routing.clear()
        if not is_routed(pl_module.model):
            return
        sums = self.trained, self.untrained, self.told
        trained, twin, known = (float(domains.information().mean()) for domains in sums)
        found = {"information": trained, "twin": twin, "gain": trained - twin}
        found["control/told"] = known
        pl_module.log_dict({f"adaptation/{name}": value for name, value in found.items()})


class History(pl.Callback):
    """Logs how views were used and how far apart they were all through training.

    `history/least_used` is the least that any view of any router got of its routing weight, the
    mean over a training batch, at any step; `history/part_{k}/disagreement`, in bits, is at the end
    of each quarter, and before training for k = 0; `history/kept` is the last as a share of the
    largest.
    """

    def on_fit_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self.marks = [-(-trainer.max_steps * part // PARTS) for part in range(1, PARTS + 1)]
        self.least_used = 1.0
        self.disagreements = [disagreement(pl_module)] if is_routed(pl_module.model) else []

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *args: Any) -> None:
        if not is_routed(pl_module.model):
            return
        self.least_used = min(self.least_used, float(routing_by_router(pl_module.model).min()))
        if trainer.global_step in self.marks:
            self.disagreements.append(disagreement(pl_module))

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        if self.disagreements:
            pl_module.log_dict(
                history(self.disagreements) | {"history/least_used": self.least_used}
            )


def disagreement(learner: Learner) -> float:
    """How far the views' predictions are apart now, in bits, on the learner's probe."""
    tokens_BT, targets_BT = (part.to(learner.device) for part in learner.probe[:2])
    return views_apart(learner.model, tokens_BT, targets_BT)["views/disagreement"]


def history(disagreements: Sequence[float]) -> dict[str, float]:
    """The disagreements by part of training, and how much of the largest is left at the end.

    Of views that are never further apart than `ALIKE`, how much of that.
    """
    parts = enumerate(disagreements)
    kept = disagreements[-1] / max(ALIKE, *disagreements)
    return {f"history/part_{k}/disagreement": value for k, value in parts} | {"history/kept": kept}

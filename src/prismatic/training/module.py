"""Training and evaluation of a routed transformer on a task.

Shapes: B batch, T time, V vocabulary, D domains, E views.
"""

import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import pytorch_lightning as pl
import torch
from torch.nn import functional as F

from prismatic.data import IGNORE, Batch, Task
from prismatic.errors import require
from prismatic.measures.objectives import steadiness, views_apart
from prismatic.measures.views import RoutingMeasure, view_measures
from prismatic.models import Transformer

from .losses import cross_entropy
from .optim import Optimization, clip_apart

TINY = 1e-300  # stands for a gradient of 0 in its logarithm
PROBE_ROWS = 24  # held-out sequences on which views are compared and attention is looked at


class DivergedError(FloatingPointError):
    """Training left the finite numbers."""


def refuse_leaks(model: Transformer, task: Task) -> None:
    """A language model's loss is no likelihood when its routing sees the future."""
    leaky = [r for r in model.routers if not (r.causal or r.allow_leak)]
    if task.predicts == "next" and leaky:
        raise ValueError(
            f"router.level={leaky[0].level} with this pool lets later tokens, or other sequences, "
            "decide how earlier ones are predicted: the loss of a language model measured so is "
            "not a likelihood. Use router.level=token, or router.level=sequence router.pool=first; "
            "router.allow_leak=true measures it anyway and tags the run as leaky"
        )


def probe_of(task: Task) -> Batch:
    """A few held-out rows, evenly from all of them and so from all domains."""
    held_out = task.held_out("val")
    num_rows = len(held_out.tokens_BT)
    rows_B = torch.linspace(0, num_rows - 1, min(PROBE_ROWS, num_rows)).long()
    return Batch(*(part[rows_B] for part in held_out))


class HeldOut:
    """Sums over an evaluation epoch: losses per domain, and routing."""

    def __init__(self, model: Transformer, num_domains: int, device: torch.device) -> None:
        self.loss_D = torch.zeros(num_domains, dtype=torch.float64, device=device)
        self.count_D = torch.zeros_like(self.loss_D)
        self.routing = RoutingMeasure(model.depth, model.routers[0].num_experts, device)

    def update(self, model: Transformer, logits_BTV: torch.Tensor, batch: Batch) -> None:
        loss_BT = F.cross_entropy(
            logits_BTV.transpose(1, 2), batch.targets_BT, ignore_index=IGNORE, reduction="none"
        )
        scored_BT = batch.targets_BT != IGNORE
        self.loss_D.index_add_(0, batch.domain_B, loss_BT.double().sum(1))
        self.count_D.index_add_(0, batch.domain_B, scored_BT.double().sum(1))
        self.routing.update(model.routing, len(batch.tokens_BT))

    def losses(self, domains: Sequence[str]) -> tuple[float, dict[str, float]]:
        """Mean loss in nats per token, and that of each domain that was seen."""
        names = [re.sub(r"[^\w .:-]", "_", domain) for domain in domains]
        sums = zip(names, self.loss_D.tolist(), self.count_D.tolist(), strict=True)
        by_domain = {name: loss / count for name, loss, count in sums if count}
        return float(self.loss_D.sum() / self.count_D.sum()), by_domain


class Learner(pl.LightningModule):
    """Trains a `Transformer` on a `Task` and records losses, routing and views.

    `criterion(logits, targets)` is what is optimised, beside the routers' penalties. Raises
    `ValueError` for a language model with a router that sees the future, `DivergedError` at the
    first loss that is not finite.
    """

    def __init__(
        self,
        model: Transformer,
        task: Task,
        optim: Optimization,
        criterion: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] = cross_entropy,
    ) -> None:
        super().__init__()
        refuse_leaks(model, task)
        self.model, self.task, self.optim, self.criterion = model, task, optim, criterion
        self.nats: float | None = None  # of the last training batch
        self.probe = probe_of(task)
        self.log_norms: list[float] = []  # of the gradient, at every step after warm-up
        self.best_loss = math.inf  # of all validations

    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        logits = self.model(batch.tokens_BT)
        criterion = self.criterion(logits, batch.targets_BT)
        nats = criterion.detach()
        if self.criterion is not cross_entropy:
            nats = cross_entropy(logits.detach(), batch.targets_BT)
        loss = criterion + self.model.penalty()
        # Reduced before it is looked at: all ranks stop at the same step, or none.
        reduced = self.trainer.strategy.reduce(torch.stack([loss.detach(), nats]))
        value, nats = reduced.tolist()  # type: ignore[union-attr]
        self.stop_if_diverged(value)
        self.log("loss/criterion", value)
        self.log("loss/train", nats)
        self.log("optim/lr", self.optimizers().param_groups[0]["lr"])  # type: ignore[union-attr]
        self.nats = nats
        return loss

    def on_train_batch_end(self, *args: Any) -> None:
        # Lightning validates when it is told to stop, so that no run ends with unvalidated steps.
        if self.global_step == self.trainer.max_steps:
            self.trainer.should_stop = True

    def stop_if_diverged(self, loss: float) -> None:
        if not math.isfinite(loss):
            raise DivergedError(
                f"training stopped at step {self.global_step}: the loss is {loss}. What "
                "the last validation saved is kept. Lower optim.lr, perturbation.scale or "
                "perturbation.sparsity, or lengthen optim.warmup_steps"
            )

    @property
    def live(self) -> dict[str, float]:
        """What the progress bar shows of the last step; measured when it asks."""
        if self.nats is None:
            return {}
        measure = RoutingMeasure(self.model.depth, self.model.routers[0].num_experts, self.device)
        measure.update(self.model.routing, 1)
        shown = {"loss": self.nats}
        if self.task.is_text:
            shown["bits/byte"] = shown["loss"] / math.log(2)
        return shown | {"routing entropy": measure.compute()["routing/entropy"]}

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        limit = math.inf if gradient_clip_val is None else gradient_clip_val
        require(limit > 0, "trainer.gradient_clip_val", limit, "give null or a number > 0")
        norm = clip_apart(self.model, limit)
        self.log("edge/grad_norm", norm)
        if self.global_step >= self.optim.warmup_steps:
            self.log_norms.append(math.log(max(norm, TINY)))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["log_norms"], checkpoint["best_loss"] = list(self.log_norms), self.best_loss

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.log_norms, self.best_loss = list(checkpoint["log_norms"]), checkpoint["best_loss"]

    def configure_optimizers(self) -> Any:
        optimizer = self.optim.optimizer(self.model)
        schedule = {"scheduler": self.optim.schedule(optimizer), "interval": "step"}
        return {"optimizer": optimizer, "lr_scheduler": schedule}

    def on_validation_epoch_start(self) -> None:
        self.held_out = HeldOut(self.model, len(self.task.domains), self.device)

    def validation_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        logits = self.model(batch.tokens_BT)
        self.held_out.update(self.model, logits, batch)
        return logits

    def on_validation_epoch_end(self) -> None:
        nats, by_domain = self.summed("loss/val")
        self.stop_if_diverged(nats)  # before a checkpoint is written
        self.best_loss = min(self.best_loss, nats)
        recorded = {"loss/val": nats, "best/loss/val": self.best_loss}
        recorded |= self.held_out.routing.compute(len(self.model.routers))
        recorded["loss/bits"] = nats / math.log(2)
        if self.task.is_text:
            recorded["loss/bits_per_byte"] = nats / math.log(2)
        if len(by_domain) > 1:
            recorded |= {f"loss/val/{name}": loss for name, loss in by_domain.items()}
        recorded |= view_measures(self.model, self.held_out.routing.mean_LE)
        recorded |= views_apart(self.model, *(part.to(self.device) for part in self.probe[:2]))
        unigram = self.task.baselines.get("unigram", math.log(self.task.vocab_size))
        recorded |= steadiness(self.log_norms, sound=nats < unigram)
        self.log_dict(recorded)

    def on_test_epoch_start(self) -> None:
        self.on_validation_epoch_start()

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self.validation_step(batch, batch_idx)

    def on_test_epoch_end(self) -> None:
        nats, by_domain = self.summed("loss/test")
        self.log_dict({"loss/test": nats, **{f"loss/test/{k}": v for k, v in by_domain.items()}})

    def summed(self, name: str) -> tuple[float, dict[str, float]]:
        """The epoch's losses, after its sums were added up over ranks."""
        held_out = self.held_out
        for tensor in (held_out.loss_D, held_out.count_D, *held_out.routing.tensors()):
            tensor.copy_(self.trainer.strategy.reduce(tensor, reduce_op="sum"))
        return held_out.losses(self.task.domains)

"""What happens in a training step and in a validation, as a LightningModule.

Shapes: B batch, T time, V vocabulary, L passes, E views.
"""

import math
from collections.abc import Callable
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.strategies import Strategy

from prismatic.data import Batch, Task
from prismatic.errors import require
from prismatic.measures.held_out import HeldOut, probe_of
from prismatic.measures.objectives import steadiness, views_apart
from prismatic.measures.routing import RoutingMeasure, is_routed
from prismatic.measures.views import TINY, view_measures
from prismatic.models import RoutedModel

from .losses import cross_entropy
from .optim import Optimization, clip_apart
from .sharding import FullySharded


class DivergedError(FloatingPointError):
    """Training left the finite numbers."""


class Arriving:
    """One number on its way to the host, which waits for it only in `read`."""

    def __init__(self, value: torch.Tensor) -> None:
        self.value = value.to("cpu", non_blocking=True)
        self.copied = torch.cuda.current_stream().record_event() if value.is_cuda else None

    def read(self) -> float:
        if self.copied is not None:
            self.copied.synchronize()
        return self.value.item()


def stop_if_diverged(step: int, loss: float) -> None:
    if not math.isfinite(loss):
        raise DivergedError(
            f"training stopped at step {step}: the loss is {loss}. What the last validation saved "
            "is kept. Lower optim.lr, perturbation.scale or perturbation.sparsity, or lengthen "
            "optim.warmup_steps"
        )


def refuse_leaks(model: RoutedModel, task: Task) -> None:
    """A language model's loss is no likelihood when its routing sees the future."""
    leaky = [r for r in model.routers if not (r.causal or r.allow_leak)]
    if task.predicts == "next" and leaky:
        raise ValueError(
            f"router.level={leaky[0].level} with this pool lets later tokens, or other sequences, "
            "decide how earlier ones are predicted: the loss of a language model measured so is "
            "not a likelihood. Use router.level=token, or router.level=sequence router.pool=first; "
            "router.allow_leak=true measures it anyway and tags the run as leaky"
        )


def go_on_from_step(checkpoint: dict[str, Any], batches_per_step: int) -> None:
    """Let Lightning's loops go on from the checkpoint's step alone, whatever they were doing.

    A half accumulated step begins anew, since its gradients are lost; so does an epoch, which here
    is no more than `limit_train_batches`; and so does a validation that was cut short.
    """
    loops = checkpoint["loops"]["fit_loop"]
    training, validation = (loops[f"epoch_loop.{name}batch_progress"] for name in ("", "val_loop."))
    done = checkpoint["global_step"] * batches_per_step
    training["total"] = dict.fromkeys(training["total"], done)
    training["current"] = dict.fromkeys(training["current"], 0)
    if validation["current"]["completed"] and not validation["is_last_batch"]:
        validation["current"] = dict.fromkeys(validation["current"], 0)
        # Lightning takes up a validation of which a batch was begun and not processed.
        validation["total"] = {"ready": 1, "started": 1, "processed": 0, "completed": 0}


class Learner(pl.LightningModule):
    """Trains a `RoutedModel` on a `Task` and records losses, routing and views.

    `criterion(logits, targets)` is what is optimised, beside the routers' penalties. Raises
    `ValueError` for a language model with a router that sees the future, `DivergedError` for the
    first loss that is not finite: one step later, but before anything is logged, validated or saved
    of it. In between a step waits for nothing that its device computes.
    """

    def __init__(
        self,
        model: RoutedModel,
        task: Task,
        optim: Optimization,
        criterion: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] = cross_entropy,
    ) -> None:
        super().__init__()
        refuse_leaks(model, task)
        self.model, self.task, self.optim, self.criterion = model, task, optim, criterion
        self.compiled: Callable[[torch.Tensor], torch.Tensor] | None = None
        self.nats: torch.Tensor | None = None  # of the last training batch
        self.probe = probe_of(task)
        self.unread_loss: tuple[int, Arriving] | None = None  # of the last training batch, its step
        self.unread_norms: list[torch.Tensor] = []
        self.read_log_norms: list[float] = []
        self.best_loss = math.inf  # of all validations

    def compile_training(self, strategy: Strategy) -> None:
        """Train by a compiled forward: one graph, on a GPU one of CUDA's, with the same parameters.

        What forces views, watches attention or has batches of other sizes (validation, diagnostics,
        evaluation) runs as before. Raises `ValueError` where blocks gather their weights.
        """
        wanted = "trainer=fsdp gathers weights as a block begins: use trainer=ddp or one device"
        require(not isinstance(strategy, FullySharded), "trainer.compile", True, wanted)
        # It splits a graph for Lightning's ddp, and cannot split autograd functions.
        torch._dynamo.config.optimize_ddp = False
        mode = "reduce-overhead" if strategy.root_device.type == "cuda" else None
        self.compiled = torch.compile(self.model.forward, fullgraph=True, dynamic=False, mode=mode)

    def configure_optimizers(self) -> Any:
        optimizer = self.optim.optimizer(self.model)
        schedule = {"scheduler": self.optim.schedule(optimizer), "interval": "step"}
        return {"optimizer": optimizer, "lr_scheduler": schedule}

    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        logits = (self.compiled or self.model)(batch.tokens_BT)
        criterion = self.criterion(logits, batch.targets_BT)
        nats = criterion.detach()
        if self.criterion is not cross_entropy:
            nats = cross_entropy(logits.detach(), batch.targets_BT)
        loss = criterion + self.model.penalty()
        # Reduced before it is looked at: all ranks stop at the same step, or none.
        reduced = self.trainer.strategy.reduce(torch.stack([loss.detach(), nats]))
        value, self.nats = reduced.unbind()  # type: ignore[union-attr]
        self.check_last_loss()
        self.unread_loss = self.global_step, Arriving(value)
        if self.trainer._logger_connector.should_update_logs:
            self.check_last_loss()
        self.log("loss/criterion", value)
        self.log("loss/train", self.nats)
        lr = self.optimizers().param_groups[0]["lr"]  # type: ignore[union-attr]
        # Filled on the device: for a number that is copied to it the host would wait.
        self.log("optim/lr", torch.full_like(value, lr))
        return loss

    def check_last_loss(self) -> None:
        """Read the loss of the last training step, if that was not done."""
        if self.unread_loss is not None:
            (step, loss), self.unread_loss = self.unread_loss, None
            stop_if_diverged(step, loss.read())

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
            self.unread_norms.append(norm)

    @property
    def log_norms(self) -> list[float]:
        """Of the gradient, at every step after warm-up; the host waits for those not read yet."""
        if self.unread_norms:
            norms = torch.stack(self.unread_norms).tolist()
            self.read_log_norms += [math.log(max(norm, TINY)) for norm in norms]
            self.unread_norms = []
        return self.read_log_norms

    def on_train_batch_end(self, *args: Any) -> None:
        # Lightning validates when it is told to stop, so that no run ends with unvalidated steps.
        if self.global_step == self.trainer.max_steps:
            self.trainer.should_stop = True

    def on_train_start(self) -> None:
        self.unread_loss = None  # of a training that was broken off

    def on_train_end(self) -> None:
        self.check_last_loss()

    def on_validation_epoch_start(self) -> None:
        self.check_last_loss()
        self.held_out = HeldOut(self.model, len(self.task.domains), self.device)

    def validation_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        logits = self.model(batch.tokens_BT)
        self.held_out.update(self.model, logits, batch)
        return logits

    def on_validation_epoch_end(self) -> None:
        for tensor in self.held_out.tensors():
            tensor.copy_(self.trainer.strategy.reduce(tensor, reduce_op="sum"))
        nats, by_domain = self.held_out.losses(self.task.domains)
        stop_if_diverged(self.global_step, nats)  # before a checkpoint is written
        self.best_loss = min(self.best_loss, nats)
        recorded = {"loss/val": nats, "best/loss/val": self.best_loss}
        recorded |= self.held_out.routing.compute(len(self.model.routers))
        recorded["loss/bits"] = nats / math.log(2)
        if self.task.bytes_per_token:
            bytes_per_token = self.task.bytes_per_token["val"]
            recorded["loss/bits_per_byte"] = nats / math.log(2) / bytes_per_token
        if len(by_domain) > 1:
            recorded |= {f"loss/val/{name}": loss for name, loss in by_domain.items()}
        recorded |= view_measures(self.model, self.held_out.routing.mean_LE)
        recorded |= views_apart(self.model, *(part.to(self.device) for part in self.probe[:2]))
        unigram = self.task.baselines.get("unigram", math.log(self.task.vocab_size))
        recorded |= steadiness(self.log_norms, sound=nats < unigram)
        self.log_dict(recorded)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.check_last_loss()  # before it is written
        checkpoint["log_norms"], checkpoint["best_loss"] = list(self.log_norms), self.best_loss

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.read_log_norms = list(checkpoint["log_norms"])
        self.unread_norms, self.best_loss = [], checkpoint["best_loss"]
        checkpoint["callbacks"].pop("Timer", None)  # trainer.max_time is of one process
        go_on_from_step(checkpoint, self.trainer.accumulate_grad_batches)

    @property
    def live(self) -> dict[str, float]:
        """What the progress bar shows of the last step; measured when it asks."""
        if self.nats is None:
            return {}
        shown = {"loss": float(self.nats)}
        if self.task.bytes_per_token:
            shown["bits/byte"] = shown["loss"] / math.log(2) / self.task.bytes_per_token["train"]
        if not is_routed(self.model):
            return shown
        passes = self.model.passes()
        measure = RoutingMeasure(len(passes), passes[0].num_experts, self.device)
        measure.update(self.model.routing, 1)
        return shown | {"routing entropy": measure.compute()["routing/entropy"]}

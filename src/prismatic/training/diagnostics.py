"""Measures a run while it trains, keeps what it finds in the run's record, and lets a guard see it.

Shapes: R routers, E views, B blocks, K tiers.
"""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.rank_zero import rank_zero_only

from prismatic.data import Batch
from prismatic.measures.adaptation import Twins
from prismatic.measures.edge import TIERS, gradient_norms, spikes
from prismatic.measures.guard import CLOSEST, LOSS, RISE, SHARPEST, SPIKES, Alarm, Guard
from prismatic.measures.views import changes, view_measures
from prismatic.perturb import Edges
from prismatic.report import record

from .about import about, views
from .findings import (
    Arrays,
    HeldOutSums,
    by_router,
    held_out,
    is_routed,
    look_at_probe,
    passes,
    scalars,
    strength,
    use,
)
from .module import DivergedError, Learner

# Of what a validation logs, what its record keeps.
KEPT = (
    "loss/val",
    "views/disagreement",
    "views/useful_diversity",
    "routing/input_dependence",
)

log = logging.getLogger(__name__)


class Diagnostics(pl.Callback):
    """Writes `diagnostics.jsonl` into the run's folder (see `prismatic.report.record`).

    At every step that Lightning logs: routing on the batch, gradient norms by block and by tier of
    magnitude. At every validation: attention, calibration, and routing by domain beside a twin
    router that is never trained. The guard is shown all of it. An alarm is a warning in the log, a
    line of the record, the metric `alarm/{name}` and the tag `alarm.{name}`. Between these steps
    nothing is measured and no hook is set.
    """

    def __init__(self, guard: Guard | None = None) -> None:
        self.guard = guard or Guard()
        self.hints: dict[str, Edges] = {}
        self.gradients: Arrays = {}
        self.first_loss: float | None = None

    def setup(self, trainer: pl.Trainer, pl_module: Any, stage: str) -> None:
        # Before a checkpoint is loaded: a gate's first weights come from a generator of its own, so
        # the twins of a resumed run are those of its first part.
        self.twins = Twins(pl_module.model)
        self.path = Path(trainer.default_root_dir) / record.FILE

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        described = about(pl_module.model, pl_module.task)  # by all ranks: each holds a share
        if trainer.is_global_zero and not (trainer.global_step and self.path.exists()):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            record.begin(self.path, described)

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: Any, optimizer: torch.optim.Optimizer
    ) -> None:
        if trainer._logger_connector.should_update_logs:
            tier_K, block_B = gradient_norms(pl_module.model, self.hints)
            self.gradients = {"edge/grad_tier_K": tier_K, "edge/grad_block_B": block_B}

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, *args: Any) -> None:
        # Here, not as training starts: a run that is stopped does a step, and validates.
        if self.first_loss is None:
            self.show_guard(trainer, strength(view_measures(pl_module.model)))

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *args: Any) -> None:
        if self.first_loss is None:
            self.first_loss = float(trainer.callback_metrics["loss/train"])
        if self.gradients:
            gradients, self.gradients = self.gradients, {}
            self.look_at_training(trainer, pl_module, gradients)

    def look_at_training(self, trainer: pl.Trainer, learner: Learner, found: Arrays) -> None:
        guard, logged = self.guard, trainer.callback_metrics
        count = spikes(learner.log_norms, guard.spike_window, guard.spike_factor)
        tiers = zip(TIERS, found["edge/grad_tier_K"].tolist(), strict=True)
        blocks = enumerate(found["edge/grad_block_B"].tolist())
        learner.log_dict(
            {SPIKES: float(count)}
            | {f"edge/grad_norm/{tier}": norm for tier, norm in tiers}
            | {f"edge/grad_norm/block_{k}": norm for k, norm in blocks}
        )
        found = found | {name: logged[name] for name in ("loss/train", "edge/grad_norm")}
        assert self.first_loss is not None
        measures = {SPIKES: float(count), RISE: float(found["loss/train"]) - self.first_loss}
        if is_routed(learner.model):
            weight_RE = trainer.strategy.reduce(by_router(learner.model), reduce_op="mean")
            found["routing/train_E"] = weight_RE.mean(0)
            measures |= use(weight_RE)
        self.keep(trainer, found)
        self.show_guard(trainer, measures)

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self.sums = HeldOutSums(pl_module)
        if is_routed(pl_module.model):
            self.twins.begin(pl_module.model)

    def on_validation_batch_end(
        self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, *args: Any
    ) -> None:
        self.sums.update(outputs, Batch(*batch), pl_module.model.routing, self.twins.routing)
        self.twins.routing.clear()

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self.twins.end()
        for tensor in self.sums.tensors():
            tensor.copy_(trainer.strategy.reduce(tensor, reduce_op="sum"))
        self.found = self.sums.compute() | look_at_probe(pl_module)
        pl_module.log_dict({**scalars(self.found), **passes(self.found)})

    def on_validation_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        logged = trainer.callback_metrics
        self.found |= {name: logged[name] for name in KEPT if name in logged}
        self.found |= held_out(pl_module, logged)
        self.keep(trainer, self.found)
        shown = {CLOSEST: logged[CLOSEST]} if CLOSEST in logged else {}
        if "edge/attention_entropy_L" in self.found:
            shown[SHARPEST] = self.found["edge/attention_entropy_L"].min()
        self.show_guard(trainer, strength(logged) | {k: float(v) for k, v in shown.items()})

    def on_train_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Selections follow the weights, so the lens is no longer what it was."""
        described = views(changes(pl_module.model))  # by all ranks
        if trainer.is_global_zero and described:
            record.amend(self.path, trainer.global_step, described)

    def on_exception(self, trainer: pl.Trainer, pl_module: Any, exception: BaseException) -> None:
        if isinstance(exception, DivergedError):
            self.show_guard(trainer, {LOSS: float("nan")})

    def state_dict(self) -> dict[str, Any]:
        return {"guard": self.guard.state(), "first_loss": self.first_loss}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.guard.restore(state_dict["guard"])
        self.first_loss = state_dict["first_loss"]

    @rank_zero_only
    def keep(self, trainer: pl.Trainer, found: Arrays) -> None:
        arrays = {name: array.detach().cpu() for name, array in found.items()}
        record.append(self.path, trainer.global_step, arrays)

    def show_guard(self, trainer: pl.Trainer, measures: Mapping[str, float]) -> None:
        """On every rank alike, since all of them must stop together."""
        for alarm in self.guard.see(trainer.global_step, measures):
            self.sound(trainer, alarm)
            trainer.should_stop |= self.guard.action == "stop"

    @rank_zero_only
    def sound(self, trainer: pl.Trainer, alarm: Alarm) -> None:
        step = trainer.global_step
        log.warning(f"alarm {alarm.name} at step {step}: {alarm.message}. Remedy: {alarm.remedy}")
        record.note(self.path, step, *alarm)
        for logger in trainer.loggers:
            logger.log_metrics({f"alarm/{alarm.name}": 1.0}, step)
            if hasattr(logger, "set_tags"):
                logger.set_tags({f"alarm.{alarm.name}": f"step {step}: {alarm.message}"})

"""Measures a run while it trains, keeps the measures in its record, and shows them to a guard.

Arrays are kept by names that end in their axes: L passes, R routers, E views, B blocks, K tiers, D
domains.
"""

import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.rank_zero import rank_zero_only

from prismatic.data import MixedTask, Task
from prismatic.measures.guard import (
    CLOSEST,
    CONCENTRATION,
    LEAST_USED,
    LOSS,
    RISE,
    SHARPEST,
    SPIKES,
    STRENGTH,
    Alarm,
    Guard,
)
from prismatic.measures.held_out import Calibration, measure_probe
from prismatic.measures.numerics import QUANTILES, TIERS, gradient_norms, spikes
from prismatic.measures.routing import (
    AdaptationSums,
    Twins,
    entropy,
    is_routed,
    max_entropy,
    routing_by_router,
)
from prismatic.measures.views import changes, describe_views, view_measures
from prismatic.models import RoutedModel, attentions
from prismatic.report import record

from .module import DivergedError, Learner

Arrays = dict[str, torch.Tensor]
# Of what a validation logs, what its record keeps.
KEPT = ("loss/val", "views/disagreement", "views/useful_diversity", "routing/input_dependence")

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
        self.gradients: Arrays = {}
        self.first_loss: float | None = None

    def setup(self, trainer: pl.Trainer, pl_module: Any, stage: str) -> None:
        # Before a checkpoint is loaded: a gate's first weights come from a generator of its own, so
        # the twins of a resumed run are those of its first part.
        self.twins = Twins(pl_module.model)
        self.path = Path(trainer.default_root_dir) / record.FILE

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        described = describe_run(pl_module.model, pl_module.task)  # by all ranks: each has a share
        if trainer.is_global_zero and not attentions(pl_module.model):
            log.info("attention is not looked at: only that of prismatic.models can be")
        if trainer.is_global_zero and trainer.global_step and self.path.exists():
            record.rewind(self.path, trainer.global_step)
        elif trainer.is_global_zero:
            record.begin(self.path, described)

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, *args: Any) -> None:
        # Here, not as training starts: a run that is stopped does a step, and validates.
        if self.first_loss is None:
            self.show_guard(trainer, least_strength(view_measures(pl_module.model)))

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: Any, optimizer: torch.optim.Optimizer
    ) -> None:
        if trainer._logger_connector.should_update_logs:
            tier_K, block_B = gradient_norms(pl_module.model)
            self.gradients = {"edge/grad_tier_K": tier_K, "edge/grad_block_B": block_B}

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *args: Any) -> None:
        if self.first_loss is None:
            self.first_loss = float(trainer.callback_metrics["loss/train"])
        if not self.gradients:
            return
        kept, self.gradients = self.gradients, {}
        guard, logged = self.guard, trainer.callback_metrics
        num_spikes = spikes(pl_module.log_norms, guard.spike_window, guard.spike_factor)
        tiers = zip(TIERS, kept["edge/grad_tier_K"].tolist(), strict=True)
        blocks = enumerate(kept["edge/grad_block_B"].tolist())
        pl_module.log_dict(
            {SPIKES: float(num_spikes)}
            | {f"edge/grad_norm/{tier}": norm for tier, norm in tiers}
            | {f"edge/grad_norm/block_{k}": norm for k, norm in blocks}
        )
        kept |= {name: logged[name] for name in ("loss/train", "edge/grad_norm")}
        shown = {SPIKES: num_spikes, RISE: float(kept["loss/train"]) - self.first_loss}
        if is_routed(pl_module.model):
            by_router = routing_by_router(pl_module.model)
            weight_RE = trainer.strategy.reduce(by_router, reduce_op="mean")
            kept["routing/train_E"] = weight_RE.mean(0)
            # The most that even the least collapsed router gives one view, and the most that any
            # router gives the least used view.
            shown[CONCENTRATION] = float(weight_RE.amax(1).min())
            shown[LEAST_USED] = float(weight_RE.amax(0).min())
        self.keep(trainer, kept)
        self.show_guard(trainer, shown)

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        model, num_domains = pl_module.model, len(pl_module.task.domains)
        self.calibration = Calibration(pl_module.device)
        self.adaptation: AdaptationSums | None = None
        if is_routed(model):
            self.adaptation = AdaptationSums(model, num_domains, pl_module.device)
            self.twins.begin(model)

    def on_validation_batch_end(
        self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, *args: Any
    ) -> None:
        self.calibration.update(outputs, batch.targets_BT)
        if self.adaptation:
            self.adaptation.update(pl_module.model.routing, self.twins.routing, batch.domain_B)
            self.twins.routing.clear()

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self.twins.end()
        self.measured: Arrays = {}
        measured_sums: list[Calibration | AdaptationSums] = [self.calibration]
        measured_sums += [self.adaptation] if self.adaptation else []
        for sums in measured_sums:
            for tensor in sums.tensors():
                tensor.copy_(trainer.strategy.reduce(tensor, reduce_op="sum"))
            self.measured |= sums.compute()
        tokens_BT = pl_module.probe.tokens_BT.to(pl_module.device)
        self.measured |= measure_probe(pl_module.model, pl_module.task, tokens_BT)
        pl_module.log_dict(as_numbers(self.measured))

    def on_validation_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        logged, measured = trainer.callback_metrics, self.measured
        measured |= {name: logged[name] for name in KEPT if name in logged}
        measured |= held_out_arrays(pl_module, logged)
        self.keep(trainer, measured)
        shown = least_strength(logged)
        if CLOSEST in logged:
            shown[CLOSEST] = float(logged[CLOSEST])
        if "edge/attention_entropy_L" in measured:
            shown[SHARPEST] = float(measured["edge/attention_entropy_L"].min())
        self.show_guard(trainer, shown)

    def on_train_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Selections follow the weights, so the lens is no longer what it was."""
        described = describe_views(changes(pl_module.model))  # by all ranks
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
    def keep(self, trainer: pl.Trainer, measured: Arrays) -> None:
        arrays = {name: array.detach().cpu() for name, array in measured.items()}
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


def describe_run(model: RoutedModel, task: Task) -> dict[str, Any]:
    """The first line of a record: axes, views, and what the task allows; without what is absent."""
    router, dtype = model.routers[0], next(model.parameters()).dtype
    return {
        "views": router.num_experts,
        "passes": len(model.passes()),
        "router": type(router).__name__.removesuffix("Router").lower(),
        "level": router.level,
        "domains": list(task.domains),
        "quantiles": list(QUANTILES),
        "tiers": list(TIERS),
        "dtype": str(dtype).removeprefix("torch."),
        "exp_limit": math.log(torch.finfo(dtype).max),
        "task": type(task).__name__.removesuffix("Task").lower(),
        "predicts": task.predicts,
        "classes": task.joint_XYZ.shape[2] if isinstance(task, MixedTask) else task.vocab_size,
        "vocab": task.vocab_size,
        "baselines": task.baselines,
        "bayes": task.bayes_loss,
        **describe_views(changes(model)),
    }


def least_strength(measures: Mapping[str, Any]) -> dict[str, float]:
    """The strongest view's relative norm, over all weights or over matrices if that is less."""
    if "views/relative_norm" not in measures:
        return {}
    norms = measures["views/relative_norm"], measures["views/relative_norm_matrices"]
    return {STRENGTH: float(min(norms))}


def as_numbers(measured: Arrays) -> dict[str, float]:
    """What a logger gets of a validation's arrays: what is one number, or one per pass."""
    logged: dict[str, float] = {}
    for name, value in measured.items():
        if value.ndim == 0:
            logged[name] = float(value)
        elif name.endswith("_L"):
            room, _, measure = name.removesuffix("_L").partition("/")
            logged |= {f"{room}/pass_{t}/{measure}": x for t, x in enumerate(value.tolist())}
    if "edge/logit_absmax_L" in measured:
        logged["edge/logit_absmax"] = float(measured["edge/logit_absmax_L"].max())
        for name in ("out_of_range", "attention_entropy", "softmax_gain", "log_partition"):
            logged[f"edge/{name}"] = float(measured[f"edge/{name}_L"].mean())
    return logged


def held_out_arrays(learner: Learner, logged: Mapping[str, torch.Tensor]) -> Arrays:
    """Losses by domain and by view, and routing by pass, of the validation that just ended."""
    sums, arrays = learner.held_out, {}
    if len(learner.task.domains) > 1:
        arrays["loss/domain_D"] = sums.loss_D / sums.count_D
    if is_routed(learner.model):
        num_views = learner.model.routers[0].num_experts
        weight_LE = arrays["routing/weight_LE"] = sums.routing.mean_LE
        arrays["routing/entropy_L"] = entropy(weight_LE) / max_entropy(num_views)
        arrays["loss/forced_E"] = torch.stack([logged[f"views/{i}/loss"] for i in range(num_views)])
    return arrays

"""Many seeds of a small model trained at once on a mixed task: full batches, exact losses.

Every step sees every pair of tokens, weighted by its probability, with P(z | x, y) as its target:
nothing is drawn, and a loss is the expectation itself. Seeds of dense models are stacked, which
computes what each would alone; those of routed models are trained in turn.

Shapes: S seeds, C pairs of tokens, T positions, V vocabulary, X, Y the two tokens, E views, M
heads, K either.
"""

import copy
import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import NamedTuple

import pytorch_lightning as pl
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig
from torch import nn
from torch.func import functional_call, stack_module_state, vmap

from prismatic.data import MixedTask
from prismatic.errors import require
from prismatic.experiment import build_model
from prismatic.measures.held_out import measure_pairs
from prismatic.models import RoutedModel
from prismatic.routers import DenseRouter
from prismatic.stats import loss_ladder
from prismatic.training import Optimization, cross_entropy
from prismatic.training.optim import clip_apart, split_parameters

ESCAPED = 0.01  # nats below the additive floor
LADDER = {
    "H(Z)": "table/entropy_z",
    "H(Z|X)": "table/entropy_z_given_x",
    "H(Z|Y)": "table/entropy_z_given_y",
    "additive floor": "table/floor",
    "H(Z|X,Y)": "table/bayes",
}


class Cells(NamedTuple):
    """The pairs of tokens that occur, with their probability and that of every token after them."""

    tokens_CT: torch.Tensor
    weight_C: torch.Tensor
    target_CV: torch.Tensor

    def loss(self, model: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        """The expected -ln p of z, in nats and in the precision of the model."""
        log_probs_CV = model(self.tokens_CT)[:, -1].log_softmax(-1)
        surprise_C = -(self.target_CV.to(log_probs_CV.dtype) * log_probs_CV).sum(-1)
        return (self.weight_C.to(log_probs_CV.dtype) * surprise_C).sum()


def cells_of(task: MixedTask) -> Cells:
    """A mixed task as one full batch."""
    joint_XYZ = torch.from_numpy(task.joint_XYZ)
    weight_XY = joint_XYZ.sum(-1)
    tokens_CT = weight_XY.nonzero()
    joint_CZ, weight_C = joint_XYZ[tuple(tokens_CT.T)], weight_XY[tuple(tokens_CT.T)]
    unused = task.vocab_size - joint_CZ.shape[1]
    target_CV = nn.functional.pad(joint_CZ / weight_C[:, None], (0, unused))
    return Cells(tokens_CT, weight_C, target_CV)


class Learners(ABC):
    """Models of several seeds in training."""

    models: Sequence[RoutedModel]

    @abstractmethod
    def optimizer(self, optim: Optimization) -> torch.optim.Optimizer:
        """One for all, with the groups that `optim` gives a single model."""

    @abstractmethod
    def losses(self, cells: Cells) -> tuple[torch.Tensor, torch.Tensor]:
        """What is optimised and the loss in nats, of each seed: (S,) and (S,)."""

    @abstractmethod
    def clip(self, limit: float) -> None:
        """Clip each seed's gradient, trunk and router apart."""

    @abstractmethod
    def trained(self) -> Sequence[RoutedModel]:
        """The models with what they have learned."""


class Alone(Learners):
    """One model, trained as any other."""

    def __init__(self, model: RoutedModel) -> None:
        self.model = model

    def optimizer(self, optim: Optimization) -> torch.optim.Optimizer:
        return optim.optimizer(self.model)

    def losses(self, cells: Cells) -> tuple[torch.Tensor, torch.Tensor]:
        nats_S = cells.loss(self.model)[None]
        return nats_S + self.model.penalty(), nats_S

    def clip(self, limit: float) -> None:
        clip_apart(self.model, limit)

    def trained(self) -> Sequence[RoutedModel]:
        return [self.model]


class Stacked(Learners):
    """Models whose parameters are stacked, so that one operation is done for all seeds."""

    def __init__(self, models: Sequence[RoutedModel]) -> None:
        self.models = models
        self.stacked, self.buffers = stack_module_state(list(models))
        self.template = copy.deepcopy(models[0])
        self.names = {p: name for name, p in self.template.named_parameters()}

    def optimizer(self, optim: Optimization) -> torch.optim.Optimizer:
        optimizer = optim.optimizer(self.template)
        for group in optimizer.param_groups:
            group["params"] = [self.stacked[self.names[p]] for p in group["params"]]
        return optimizer

    def losses(self, cells: Cells) -> tuple[torch.Tensor, torch.Tensor]:
        def loss(
            parameters: dict[str, torch.Tensor], buffers: dict[str, torch.Tensor]
        ) -> tuple[torch.Tensor, torch.Tensor]:
            state = (parameters, buffers)
            nats = cells.loss(lambda tokens_CT: functional_call(self.template, state, tokens_CT))
            return nats + self.template.penalty(), nats

        with warnings.catch_warnings():
            # What vmap has no rule for runs model by model, which is right, only slower.
            warnings.filterwarnings("ignore", "There is a performance drop")
            return vmap(loss)(self.stacked, self.buffers)

    def clip(self, limit: float) -> None:
        for group in split_parameters(self.template):
            grads = [self.stacked[self.names[p]].grad for p in group]
            flat = [grad.flatten(1) for grad in grads if grad is not None]
            if flat:
                norm_S = torch.cat(flat, 1).norm(dim=1)
                share_S1 = (limit / (norm_S + 1e-6)).clamp(max=1)[:, None]
                for grad_SP in flat:
                    grad_SP.mul_(share_S1)

    def trained(self) -> Sequence[RoutedModel]:
        with torch.no_grad():
            for s, model in enumerate(self.models):
                for name, parameter in model.named_parameters():
                    parameter.copy_(self.stacked[name][s])
        return self.models


class Course:
    """The losses of every step: the least, and the first that is clearly below the floor."""

    def __init__(self, num_seeds: int, steps: int, floor: float) -> None:
        self.threshold = floor - ESCAPED
        self.least_S = torch.full((num_seeds,), math.inf)
        self.escape_S = torch.full((num_seeds,), float(steps))
        self.steps = steps

    def update(self, step: int, nats_S: torch.Tensor) -> None:
        self.least_S = torch.fmin(self.least_S, nats_S)
        first_S = (nats_S < self.threshold) & (self.escape_S == self.steps)
        self.escape_S[first_S] = float(step)

    def metrics(self, s: int) -> dict[str, float]:
        """A seed that never came below the floor counts with all of its steps."""
        step = float(self.escape_S[s])
        return {
            "loss/least": float(self.least_S[s]),
            "escape/step": step,
            "escape/passed": float(step < self.steps),
        }


def train(config: DictConfig, seeds: Sequence[int]) -> dict[int, dict[str, float]]:
    """Train a configuration with each seed and return metrics by seed.

    Initial weights, optimiser, schedule and clipping are those of a run; batches are not: see the
    top of this file, so `optim.batch_size` has no part in it. `loss/val` is the exact loss in
    float64. Raises `ValueError` where the configuration is no mixed task or trains another way.
    """
    task = instantiate(config.data)
    is_mixed = isinstance(task, MixedTask)
    require(is_mixed, "data", config.data._target_, "seeds are trained together with data=mixed")
    loss = instantiate(config.loss)
    require(loss is cross_entropy, "loss", loss, "full batches know loss=cross_entropy alone")
    precision = config.trainer.precision
    require(precision == "32-true", "trainer.precision", precision, "give 32-true")
    wanted = "seeds that are trained together run as they are: give false"
    require(not config.trainer.get("compile"), "trainer.compile", True, wanted)
    models = []
    for seed in seeds:
        alone = config.copy()
        alone.seed = seed
        pl.seed_everything(seed, workers=True, verbose=False)
        models.append(build_model(alone, task.vocab_size, task.seq_len))
    together: Sequence[Learners] = [Alone(model) for model in models]
    if all(map(stackable, models[0].routers)):
        together = [Stacked(models)]
    found = [metrics for learners in together for metrics in trained(config, task, learners)]
    return dict(zip(seeds, found, strict=True))


def stackable(router: nn.Module) -> bool:
    """Whether a model with this router can be stacked.

    Prismatic views choose entries by size, and a merge of gains has a backward pass of its own:
    neither has a batched form.
    """
    return isinstance(router, DenseRouter)


def trained(config: DictConfig, task: MixedTask, learners: Learners) -> list[dict[str, float]]:
    """Train, and measure each seed."""
    cells, ladder = cells_of(task), loss_ladder(task.joint_XYZ)
    course = fit(config, learners, cells, ladder["additive floor"])
    known = {LADDER[name]: nats for name, nats in ladder.items()}
    return [
        {**known, **course.metrics(s), **measures(model, task, cells, ladder)}
        for s, model in enumerate(learners.trained())
    ]


def fit(config: DictConfig, learners: Learners, cells: Cells, floor: float) -> Course:
    """Take all steps."""
    optim: Optimization = instantiate(config.optim)
    limit = config.trainer.gradient_clip_val or math.inf
    steps, optimizer = config.trainer.max_steps, learners.optimizer(optim)
    schedule = optim.schedule(optimizer)
    course = None
    for step in range(steps):
        optimizer.zero_grad()
        criterion_S, nats_S = learners.losses(cells)
        course = course or Course(len(nats_S), steps, floor)
        course.update(step, nats_S.detach())
        criterion_S.sum().backward()
        learners.clip(limit)
        optimizer.step()
        schedule.step()
    assert course is not None
    return course


@torch.no_grad()
def measures(
    model: RoutedModel, task: MixedTask, cells: Cells, ladder: dict[str, float]
) -> dict[str, float]:
    """The exact loss in float64 and, at every pair, attention on x by head and weights of views."""
    model = copy.deepcopy(model).double()
    nats = float(cells.loss(model))
    if not math.isfinite(nats):
        return {"diverged": 1.0, "loss/val": math.log(task.vocab_size)}
    found = {
        "loss/val": nats,
        "loss/excess": nats - ladder["H(Z|X,Y)"],
        "floor/passed_by": ladder["additive floor"] - nats,
    }
    seen = measure_pairs(model, task, torch.device("cpu"))
    for name, kind in (("attention_XYM", "attention/head"), ("routing_XYE", "routing/view")):
        if f"table/{name}" in seen:
            found |= entries(kind, seen[f"table/{name}"])
    return found


def entries(kind: str, table_XYK: torch.Tensor) -> dict[str, float]:
    """A number per entry of a table: attention/head_0/x_2/y_3."""
    num_x, num_y, _ = table_XYK.shape
    return {
        f"{kind}_{k}/x_{x}/y_{y}": float(table_XY[x, y])
        for k, table_XY in enumerate(table_XYK.movedim(-1, 0))
        for x in range(num_x)
        for y in range(num_y)
    }

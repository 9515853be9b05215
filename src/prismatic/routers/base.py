"""One router: a gate decides, a source gives the views, and a level says what shares one merge.

Shapes: B batch, T time, D model width, E views. Routing weights are (B, T, E) at level token,
(B, 1, E) at level sequence and (1, 1, E) at level batch.
"""

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.func import functional_call
from torch.utils._pytree import tree_flatten, tree_unflatten

from prismatic.errors import require
from prismatic.perturb.mixtures import Mixture

from .gate import draw_kept, drop_views, one_hot, require_views
from .rules import UnroutableError, bind_rules, unruled


class Routing(NamedTuple):
    """What a router decided in one forward, before dropout and before a view is forced."""

    logits: torch.Tensor
    probs: torch.Tensor


class Router(nn.Module):
    """Runs a module with parameters that are soft mixtures over `num_experts` views.

    `gate(x)` returns logits. `source.mixtures(expert, x, selected)` returns what stands for each
    parameter in one forward; `source.inert` says that no routing can change what is computed.
    `forward(x, *args, **kwargs)` takes `x` of shape (B, T, D) and returns what the wrapped module
    returns; `record` is the last forward's routing. `causal` says that a position's output cannot
    depend on later positions or other rows by way of the routing. Raises `ValueError` for options
    out of range and a module that cannot be routed.
    """

    record: Routing | None = None
    dropout_step: torch.Tensor

    def __init__(
        self,
        expert: nn.Module,
        gate: nn.Module,
        source: Any,
        *,
        num_experts: int,
        level: str,
        causal: bool,
        temperature: float = 1.0,
        expert_dropout: float = 0.0,
        balance_loss: float = 0.0,
        z_loss: float = 0.0,
        allow_leak: bool = False,
        name: str = "",
        seed: int = 0,
    ) -> None:
        super().__init__()
        require_views(num_experts)
        for option, value, valid, wanted in (
            ("temperature", temperature, temperature > 0, "give a number > 0"),
            ("expert_dropout", expert_dropout, 0 <= expert_dropout < 1, "give a share in [0, 1)"),
            ("balance_loss", balance_loss, balance_loss >= 0, "give a weight >= 0"),
            ("z_loss", z_loss, z_loss >= 0, "give a weight >= 0"),
        ):
            require(valid, f"router.{option}", value, wanted)
        self.expert, self.gate, self.source = expert, gate, source
        self.num_experts, self.level = num_experts, level
        self.causal, self.allow_leak = causal, allow_leak
        self.temperature, self.expert_dropout = temperature, expert_dropout
        self.balance_loss, self.z_loss = balance_loss, z_loss
        self.name, self.seed = name, seed
        self.register_buffer("dropout_step", torch.zeros((), dtype=torch.int64))
        self._forced: int | None = None
        lacking = None if level == "batch" else unruled(expert)
        if lacking and level == "token":
            raise ValueError(self._refusal(lacking))
        self._switch = None if lacking or level == "batch" else bind_rules(expert)

    @classmethod
    def option_names(cls) -> tuple[str, ...]:
        """The names of what this class of routers takes, those it hands on included."""
        names: list[str] = []
        for base in cls.__mro__:
            parameters = inspect.signature(base).parameters.values()
            names += [p.name for p in parameters if p.kind != p.VAR_KEYWORD]
            if all(p.kind != p.VAR_KEYWORD for p in parameters):
                break
        return tuple(dict.fromkeys(n for n in names if n not in ("self", "source", "causal")))

    def forward(self, x_BTD: torch.Tensor, *args: Any, selected: Any = None, **kwargs: Any) -> Any:
        """`selected` is this router's part of what `select_together` returned."""
        self.record = self.route(x_BTD)
        probs = self._applied(self.record.probs)
        return self.run(probs, x_BTD, *args, selected=selected, **kwargs)

    def route(self, x_BTD: torch.Tensor, gate: nn.Module | None = None) -> Routing:
        """Routing weights of an input, in float32 at least; they sum to 1 over the views.

        Of another `gate` than the router's own if one is given.
        """
        logits = (gate or self.gate)(x_BTD)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32)) / self.temperature
        probs = logits.softmax(-1)
        return Routing(logits, probs.mean(0, keepdim=True) if self.level == "batch" else probs)

    def run(self, probs: torch.Tensor, *args: Any, selected: Any = None, **kwargs: Any) -> Any:
        """What the wrapped module computes of its arguments under given routing weights."""
        if self.source.inert:
            return self.expert(*args, **kwargs)
        mixtures = self.source.mixtures(self.expert, args[0], selected)
        if self.level == "batch":
            named, probs_E = self.expert.named_parameters(), probs.flatten()
            merged = {name: mixtures[p].merged(probs_E) for name, p in named}
            return functional_call(self.expert, merged, args, kwargs)
        if self._switch is not None:
            if self._switch.num_parameters != len(mixtures):  # adapters have come, or gone
                self._switch = bind_rules(self.expert)
            leading = args[0].shape[: 2 if self.level == "token" else 1]
            try:
                return self._switch.run((mixtures, probs, leading), self.expert, args, kwargs)
            except UnroutableError as error:
                raise ValueError(self._refusal(str(error))) from error
        return by_row(self.expert, mixtures, probs, args, kwargs)

    @contextmanager
    def forced(self, view: int) -> Iterator[None]:
        """Within the context every forward runs one view alone (one-hot routing)."""
        last = self.num_experts - 1
        require(0 <= view <= last, "view", view, f"give a view from 0 to {last}")
        before, self._forced = self._forced, view
        try:
            yield
        finally:
            self._forced = before

    def penalty(self, routing: Routing) -> torch.Tensor:
        """Weighted auxiliary losses of one forward, a scalar.

        Balance: N * sum_i w_i^2 - 1 of the mean routing weights w, 0 when all views are used alike
        (the soft form of arXiv 2101.03961). z: the mean squared log-partition (arXiv 2202.08906).
        """
        mean_E = routing.probs.flatten(0, -2).mean(0)
        balance = self.num_experts * mean_E.square().sum() - 1
        z = routing.logits.logsumexp(-1).square().mean()
        return self.balance_loss * balance + self.z_loss * z

    def __getstate__(self) -> dict[str, Any]:
        # The last routing belongs to a graph, which cannot be copied.
        return {**self.__dict__, "record": None}

    def _applied(self, probs: torch.Tensor) -> torch.Tensor:
        """The weights that are used: forced, thinned by dropout, or as they are."""
        if self._forced is not None:
            return one_hot(probs, self._forced)
        if not (self.training and self.expert_dropout):
            return probs
        key = f"dropout|{self.name}|{self.seed}"
        kept = draw_kept(probs.detach(), self.dropout_step, self.expert_dropout, key)
        return drop_views(probs, kept)

    def _refusal(self, reason: str) -> str:
        rows = ", or register_rule(cls, None) to run it row by row" * (self.level == "sequence")
        return (
            f"router.level={self.level} cannot wrap {type(self.expert).__name__}: {reason}; use "
            "router.level=batch, or teach it with prismatic.routers.register_rule(cls, fn)" + rows
        )


def by_row(
    expert: nn.Module,
    mixtures: Mapping[torch.Tensor, Mixture],
    probs: torch.Tensor,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Any:
    """One row after the other, each with its own merged parameters."""
    num_rows, num_positions = args[0].shape[:2]
    leaves, tree = tree_flatten((args, kwargs))
    split, rows = [True], []
    for x in leaves[1:]:
        split.append(isinstance(x, torch.Tensor) and x.ndim > 0 and len(x) == num_rows)
        if split[-1] and num_positions == num_rows > 1 and x.ndim <= 2:
            raise ValueError(
                f"an argument of shape {tuple(x.shape)} may begin with rows or with positions: "
                f"with {num_rows} of each this cannot be told; change the batch size"
            )
    for b, probs_E in enumerate(probs.flatten(0, -2).expand(num_rows, -1)):
        own = [x[b : b + 1] if mine else x for x, mine in zip(leaves, split, strict=True)]
        row_args, row_kwargs = tree_unflatten(own, tree)
        merged = {name: mixtures[p].merged(probs_E) for name, p in expert.named_parameters()}
        rows.append(tree_flatten(functional_call(expert, merged, row_args, row_kwargs)))
    joined = [
        torch.cat([y if y.ndim else y[None] for y in every])
        if isinstance(every[0], torch.Tensor)
        else every[0]
        for every in zip(*(leaves for leaves, _ in rows), strict=True)
    ]
    return tree_unflatten(joined, rows[0][1])

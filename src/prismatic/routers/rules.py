"""How one merge per position or per sequence reaches a wrapped module's parameters.

A rule says what a class of module computes when its parameters are mixtures. While a module runs
under `routed`, the `forward` of every submodule that owns parameters is replaced by its rule.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from .mixtures import Mixture
from .products import UnitProduct

# Norms and projections of Hugging Face transformers, matched by name: the package is optional.
BY_NAME = "Conv1D", "LlamaRMSNorm"


class UnroutableError(ValueError):
    """A module cannot run with a merge of its own per position or per sequence."""


class Routed:
    """A parameter inside a rule: a mixture, the routing weights of this call and its input."""

    def __init__(
        self,
        parameter: torch.Tensor,
        mixture: Mixture,
        probs: torch.Tensor,
        leading: int,
        ndim: int,
    ) -> None:
        self.parameter, self.mixture, self.probs = parameter, mixture, probs
        self.leading, self.ndim = leading, ndim

    def elementwise(self) -> torch.Tensor:
        """Merged values for a gain or a bias, ready to meet the input: (B, T or 1, ..., *shape)."""
        return self.mixture.elementwise(self._spread(self.parameter.ndim))

    def change(self) -> torch.Tensor:
        """What routing adds to a gain or a bias: as `elementwise`, less the parameter itself."""
        return self.mixture.change(self._spread(self.parameter.ndim))

    def linear(self, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        """`x @ merged.T + bias`: (B, T, I) -> (B, T, O) for a parameter of shape (O, I)."""
        return self.mixture.linear(x, self._spread(1), bias)

    def matmul(self, x: torch.Tensor, y: torch.Tensor | None = None) -> torch.Tensor:
        """`x @ merged`: (B, T, I) -> (B, T, O) for a parameter of shape (I, O).

        Where the bare module's output `y` is given, what routing adds is added to it.
        """
        y = x @ self.parameter if y is None else y
        return self.mixture.matmul(x, self._spread(1), y)

    def times(
        self, unit: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor, y: torch.Tensor
    ) -> torch.Tensor:
        """`y` plus what routing adds to a gain, times `unit(x)`, which is computed twice, not kept.

        `y` is the bare norm's output and `unit` normalises without gains.
        """
        shape = self.parameter.shape or torch.Size([1])
        gains_EP = self.mixture.differences()
        probs_XE = self._spread(self.parameter.ndim).to(gains_EP.dtype)
        return UnitProduct.apply(unit, shape, y, x, probs_XE, gains_EP)

    def _spread(self, trailing: int) -> torch.Tensor:
        """Routing weights that broadcast over all dimensions of the input but the last ones."""
        ones = self.ndim - trailing - self.leading
        if ones < 0:
            raise UnroutableError(
                f"a parameter of shape {tuple(self.parameter.shape)} spans dimensions that have a "
                "routing each"
            )
        head = self.probs.shape[: self.leading]
        return self.probs.reshape(*head, *(1,) * ones, self.probs.shape[-1])


Rule = Callable[[Any, Mapping[str, Routed], torch.Tensor], torch.Tensor]
RULES: dict[type[nn.Module] | str, Rule] = {}


def register_rule(cls: type[nn.Module], fn: Rule) -> None:
    """Teach level token (and the fast path of level sequence) a class of module.

    `fn(module, params, x)` returns what `module(x)` would with merged parameters; `params` maps
    the names of the module's own parameters to `Routed`. It holds for `cls`, not its subclasses.
    """
    RULES[cls] = fn


def rule_of(module: nn.Module) -> Rule | None:
    cls = type(module)
    return RULES.get(cls, RULES.get(cls.__name__) if cls.__name__ in BY_NAME else None)


def bare(module: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """What the module computes by itself. Rules add to it, so that no change is none, exactly."""
    return type(module).forward(module, x)


def plus_bias(y: torch.Tensor, params: Mapping[str, Routed]) -> torch.Tensor:
    return y + params["bias"].change().to(y.dtype) if "bias" in params else y


def linear(module: nn.Linear, params: Mapping[str, Routed], x: torch.Tensor) -> torch.Tensor:
    return plus_bias(params["weight"].linear(x, module.bias), params)


def conv1d(module: nn.Module, params: Mapping[str, Routed], x: torch.Tensor) -> torch.Tensor:
    return plus_bias(params["weight"].matmul(x, bare(module, x)), params)


def normed(unit: Callable[[Any, torch.Tensor], torch.Tensor]) -> Rule:
    """The rule of a norm, from its output without gains and biases: `unit(module, x)`."""

    def rule(module: Any, params: Mapping[str, Routed], x: torch.Tensor) -> torch.Tensor:
        y = params["weight"].times(partial(unit, module), x, bare(module, x))
        return plus_bias(y, params)

    return rule


def layer_unit(module: nn.LayerNorm, x: torch.Tensor) -> torch.Tensor:
    return F.layer_norm(x, module.normalized_shape, eps=module.eps)


def rms_unit(module: nn.RMSNorm, x: torch.Tensor) -> torch.Tensor:
    return F.rms_norm(x, module.normalized_shape, eps=module.eps)


def llama_unit(module: Any, x: torch.Tensor) -> torch.Tensor:
    wide = x.float()
    unit = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + module.variance_epsilon)
    return unit.to(x.dtype)


RULES |= {
    nn.Linear: linear,
    nn.LayerNorm: normed(layer_unit),
    nn.RMSNorm: normed(rms_unit),
    "Conv1D": conv1d,
    "LlamaRMSNorm": normed(llama_unit),
}


Owners = list[tuple[str, nn.Module]]


def owners(expert: nn.Module) -> Owners:
    """The submodules that own parameters, with their paths."""
    return [(path, m) for path, m in expert.named_modules() if list(m.parameters(recurse=False))]


def linears(expert: nn.Module) -> Owners:
    """Those of them that are linear maps."""
    return [(path, m) for path, m in owners(expert) if type(m) is nn.Linear]


def unruled(expert: nn.Module) -> str | None:
    """The first submodule that owns parameters and has no rule, or None."""
    for path, module in owners(expert):
        if rule_of(module) is None:
            return f"{path or 'the module itself'} ({type(module).__name__})"
    return None


@contextmanager
def routed(
    bound: Owners,
    mixtures: Mapping[nn.Parameter, Mixture],
    probs: torch.Tensor,
    leading: tuple[int, ...],
) -> Iterator[None]:
    """Run some modules with mixtures for parameters; `leading` are dimensions every input has.

    Raises `UnroutableError` where an input lacks them, and where a submodule's parameters were
    used in some other way than by calling it.
    """
    called: set[str] = set()

    def bind(path: str, module: nn.Module) -> Callable[[torch.Tensor], torch.Tensor]:
        rule = rule_of(module)
        assert rule is not None
        own = dict(module.named_parameters(recurse=False))

        def forward(x: torch.Tensor) -> torch.Tensor:
            if x.ndim <= len(leading) or tuple(x.shape[: len(leading)]) != leading:
                raise UnroutableError(
                    f"{path or 'the module'} ({type(module).__name__}) got an input of shape "
                    f"{tuple(x.shape)}, which does not begin with the dimensions {leading}"
                )
            called.add(path)
            params = {
                name: Routed(p, mixtures[p], probs, len(leading), x.ndim) for name, p in own.items()
            }
            return rule(module, params, x)

        return forward

    before = {path: vars(module).get("forward") for path, module in bound}
    try:
        for path, module in bound:
            vars(module)["forward"] = bind(path, module)
        yield
    finally:
        for path, module in bound:
            vars(module).pop("forward", None)
            if before[path] is not None:
                vars(module)["forward"] = before[path]
    missed = [path for path, _ in bound if path not in called]
    if missed:
        raise UnroutableError(f"{missed[0]} was not called: its parameters are used in another way")

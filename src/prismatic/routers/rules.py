"""How one merge per position or per sequence reaches a wrapped module's parameters.

A rule says what a class of module computes when its parameters are mixtures. While a module runs
under `routed`, the `forward` of every submodule that owns parameters is replaced by its rule.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from .mixtures import Mixture

# Norms and projections of Hugging Face transformers, matched by name: the package is optional.
BY_NAME = "Conv1D", "LlamaRMSNorm"


class Routed:
    """A parameter inside a rule: a mixture together with the routing weights of this call."""

    def __init__(self, mixture: Mixture, probs: torch.Tensor) -> None:
        self.mixture, self.probs = mixture, probs

    def elementwise(self) -> torch.Tensor:
        """Merged values for a gain or a bias: (B or 1, T or 1, *shape)."""
        return self.mixture.elementwise(self.probs)

    def linear(self, x: torch.Tensor) -> torch.Tensor:
        """`x @ merged.T`: (B, T, I) -> (B, T, O) for a parameter of shape (O, I)."""
        return self.mixture.linear(x, self.probs)

    def matmul(self, x: torch.Tensor) -> torch.Tensor:
        """`x @ merged`: (B, T, I) -> (B, T, O) for a parameter of shape (I, O)."""
        return self.mixture.matmul(x, self.probs)


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


def plus_bias(y: torch.Tensor, params: Mapping[str, Routed]) -> torch.Tensor:
    return y + params["bias"].elementwise().to(y.dtype) if "bias" in params else y


def linear(module: nn.Linear, params: Mapping[str, Routed], x: torch.Tensor) -> torch.Tensor:
    return plus_bias(params["weight"].linear(x), params)


def conv1d(module: nn.Module, params: Mapping[str, Routed], x: torch.Tensor) -> torch.Tensor:
    return plus_bias(params["weight"].matmul(x), params)


def recomputed(rule: Rule) -> Rule:
    """The same rule, whose backward computes its inner values anew instead of keeping them.

    An element-wise merge makes several tensors of the size of its input and is cheap.
    """

    def run(module: Any, params: Mapping[str, Routed], x: torch.Tensor) -> torch.Tensor:
        return checkpoint(rule, module, params, x, use_reentrant=False, preserve_rng_state=False)

    return run


def layer_norm(module: nn.LayerNorm, params: Mapping[str, Routed], x: torch.Tensor) -> torch.Tensor:
    y = F.layer_norm(x, module.normalized_shape, eps=module.eps)
    return plus_bias(y * params["weight"].elementwise().to(y.dtype), params)


def rms_norm(module: nn.RMSNorm, params: Mapping[str, Routed], x: torch.Tensor) -> torch.Tensor:
    y = F.rms_norm(x, module.normalized_shape, eps=module.eps)
    return y * params["weight"].elementwise().to(y.dtype)


def llama_rms_norm(module: Any, params: Mapping[str, Routed], x: torch.Tensor) -> torch.Tensor:
    wide = x.float()
    wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + module.variance_epsilon)
    return params["weight"].elementwise() * wide.to(x.dtype)


RULES |= {
    nn.Linear: linear,
    nn.LayerNorm: recomputed(layer_norm),
    nn.RMSNorm: recomputed(rms_norm),
    "Conv1D": conv1d,
    "LlamaRMSNorm": recomputed(llama_rms_norm),
}


def owners(expert: nn.Module) -> list[tuple[str, nn.Module]]:
    """The submodules that own parameters, with their paths."""
    return [(path, m) for path, m in expert.named_modules() if list(m.parameters(recurse=False))]


class UnroutableError(ValueError):
    """A module cannot run with a merge of its own per position or per sequence."""


def unruled(expert: nn.Module) -> str | None:
    """The first submodule that owns parameters and has no rule, or None."""
    for path, module in owners(expert):
        if rule_of(module) is None:
            return f"{path or 'the module itself'} ({type(module).__name__})"
    return None


@contextmanager
def routed(
    expert: nn.Module,
    mixtures: Mapping[nn.Parameter, Mixture],
    probs: torch.Tensor,
    leading: tuple[int, ...],
) -> Iterator[None]:
    """Run `expert` with mixtures for parameters; `leading` are the dimensions every input has.

    Raises `UnroutableError` where an input lacks them, and where a submodule's parameters were
    used in some other way than by calling it.
    """
    called: set[str] = set()

    def bind(path: str, module: nn.Module) -> Callable[[torch.Tensor], torch.Tensor]:
        rule = rule_of(module)
        assert rule is not None
        own = module.named_parameters(recurse=False)
        params = {name: Routed(mixtures[p], probs) for name, p in own}

        def forward(x: torch.Tensor) -> torch.Tensor:
            if x.ndim <= len(leading) or tuple(x.shape[: len(leading)]) != leading:
                raise UnroutableError(
                    f"{path or 'the module'} ({type(module).__name__}) got an input of shape "
                    f"{tuple(x.shape)}, which does not begin with the dimensions {leading}"
                )
            called.add(path)
            return rule(module, params, x)

        return forward

    bound = owners(expert)
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

"""How one merge per position or per sequence reaches a wrapped module's parameters.

A rule says what a class of module computes when its parameters are mixtures. When a module is
wrapped, its submodules with a rule become `Ruled`: they compute what they always did, but while
their router runs, by their rule.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from prismatic.perturb.mixtures import Mixture


class UnroutableError(ValueError):
    """A module cannot run with a merge of its own per position or per sequence."""


class Routed:
    """A parameter inside a rule: a mixture, the routing weights of this call and its input."""

    def __init__(
        self, shape: torch.Size, mixture: Mixture, probs: torch.Tensor, *, leading: int, ndim: int
    ) -> None:
        self.shape, self.mixture, self.probs = shape, mixture, probs
        self.leading, self.ndim = leading, ndim

    def elementwise(self) -> torch.Tensor:
        """Merged values for a gain or a bias, ready to meet the input: (B, T or 1, ..., *shape)."""
        return self.mixture.elementwise(self._spread(len(self.shape)))

    def linear(self, x: torch.Tensor) -> torch.Tensor:
        """`x @ merged.T`: (B, T, I) -> (B, T, O) for a parameter of shape (O, I)."""
        return self.mixture.product(x, self._spread(1), rows_in=False)

    def matmul(self, x: torch.Tensor) -> torch.Tensor:
        """`x @ merged`: (B, T, I) -> (B, T, O) for a parameter of shape (I, O)."""
        return self.mixture.product(x, self._spread(1), rows_in=True)

    def _spread(self, trailing: int) -> torch.Tensor:
        """Routing weights that broadcast over all dimensions of the input but the last ones."""
        ones = self.ndim - trailing - self.leading
        if ones < 0:
            raise UnroutableError(
                f"a parameter of shape {tuple(self.shape)} spans dimensions that have a routing "
                "each"
            )
        head = self.probs.shape[: self.leading]
        return self.probs.reshape(*head, *(1,) * ones, self.probs.shape[-1])


Rule = Callable[[Any, Mapping[str, Routed], torch.Tensor], torch.Tensor]
RULES: dict[type[nn.Module] | str, Rule | None] = {}


def register_rule(cls: type[nn.Module], fn: Rule | None) -> None:
    """Teach level token (and the fast path of level sequence) a class of module.

    `fn(module, params, x)` returns what `module(x)` would with merged parameters; `params` maps
    the names of the module's own parameters to `Routed`. It holds for `cls`, not its subclasses.
    None says that rules do not describe a class, because it reshapes what its submodules get or
    uses their parameters without calling them: at level sequence it then runs row by row.
    """
    RULES[cls] = fn


def plus_bias(y: torch.Tensor, params: Mapping[str, Routed]) -> torch.Tensor:
    return y + params["bias"].elementwise().to(y.dtype) if "bias" in params else y


def linear(module: nn.Linear, params: Mapping[str, Routed], x: torch.Tensor) -> torch.Tensor:
    return plus_bias(params["weight"].linear(x), params)


def conv1d(module: nn.Module, params: Mapping[str, Routed], x: torch.Tensor) -> torch.Tensor:
    return plus_bias(params["weight"].matmul(x), params)


def layer_norm(module: nn.LayerNorm, params: Mapping[str, Routed], x: torch.Tensor) -> torch.Tensor:
    unit = F.layer_norm(x, module.normalized_shape, eps=module.eps)
    return plus_bias(unit * params["weight"].elementwise(), params)


def rms_norm(module: nn.RMSNorm, params: Mapping[str, Routed], x: torch.Tensor) -> torch.Tensor:
    return F.rms_norm(x, module.normalized_shape, eps=module.eps) * params["weight"].elementwise()


def llama_norm(module: Any, params: Mapping[str, Routed], x: torch.Tensor) -> torch.Tensor:
    wide = x.float()
    unit = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + module.variance_epsilon)
    return params["weight"].elementwise() * unit.to(x.dtype)


def gemma_norm(module: Any, params: Mapping[str, Routed], x: torch.Tensor) -> torch.Tensor:
    wide = x.float()
    unit = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + module.eps)
    return (unit * (1.0 + params["weight"].elementwise().float())).to(x.dtype)


RULES |= {
    nn.Linear: linear,
    nn.LayerNorm: layer_norm,
    nn.RMSNorm: rms_norm,
    # Of Hugging Face transformers, matched by name: the package is optional.
    "Conv1D": conv1d,
    "LlamaRMSNorm": llama_norm,
    "MistralRMSNorm": llama_norm,
    "Qwen2RMSNorm": llama_norm,
    "Qwen3RMSNorm": llama_norm,
    "GemmaRMSNorm": gemma_norm,
}


def class_of(module: nn.Module) -> type[nn.Module]:
    """The class of a module as it was before it was wrapped."""
    return type(module).bare if isinstance(module, Ruled) else type(module)


def rule_of(module: nn.Module) -> Rule | None:
    """The rule of a module; None for one with a `forward` of its own, which no class describes."""
    cls = class_of(module)
    if "forward" in vars(module):
        return None
    return RULES.get(cls, RULES.get(cls.__name__))


def owners(expert: nn.Module) -> list[tuple[str, nn.Module]]:
    """The submodules that own parameters, with their paths."""
    return [(path, m) for path, m in expert.named_modules() if list(m.parameters(recurse=False))]


def unruled(expert: nn.Module) -> str | None:
    """What is the matter with the first submodule that rules do not describe, or None."""
    for path, module in expert.named_modules():
        owns = any(True for _ in module.parameters(recurse=False))
        if rule_of(module) is None and (owns or class_of(module) in RULES):
            has = "a forward of its own" if "forward" in vars(module) else "no rule"
            return f"{path or 'the module itself'} ({class_of(module).__name__}) has {has}"
    return None


class Switch:
    """What a router shares with the submodules of what it wraps: the call under way, if any."""

    def __init__(self, paths: Sequence[str], num_parameters: int) -> None:
        self.paths, self.called = paths, set()  # type: Sequence[str], set[str]
        self.num_parameters = num_parameters
        # Mixtures by parameter, routing weights, and dimensions that every input begins with.
        self.call: tuple[Mapping[torch.Tensor, Mixture], torch.Tensor, torch.Size] | None = None

    def run(self, call: Any, expert: nn.Module, args: Any, kwargs: Any) -> Any:
        """Run the module with its submodules under their rules, each of which must be called."""
        self.call, self.called = call, set()
        try:
            y = expert(*args, **kwargs)
        finally:
            self.call = None
        for path in self.paths:
            if path not in self.called:
                used = "was not called: its parameters are used in another way"
                raise UnroutableError(f"{path} {used}")
        return y

    def apply(self, path: str, module: Any, x: torch.Tensor) -> torch.Tensor:
        """What a submodule's rule makes of its input."""
        assert self.call is not None
        mixtures, probs, leading = self.call
        if x.ndim <= len(leading) or x.shape[: len(leading)] != leading:
            raise UnroutableError(
                f"{path or 'the module'} ({class_of(module).__name__}) got an input of shape "
                f"{tuple(x.shape)}, which does not begin with the dimensions {tuple(leading)}"
            )
        self.called.add(path)
        params = {
            name: Routed(p.shape, mixtures[p], probs, leading=len(leading), ndim=x.ndim)
            for name, p in module.named_parameters(recurse=False)
        }
        rule = rule_of(module)
        assert rule is not None
        return rule(module, params, x)


class Ruled:
    """Goes before a module's class: computes by the class's rule while the router calls."""

    bare: type[nn.Module]
    routing_switch: Switch
    routing_path: str

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        if self.routing_switch.call is None:
            return super().forward(x, *args, **kwargs)  # type: ignore[misc]
        return self.routing_switch.apply(self.routing_path, self, x)

    def __reduce_ex__(self, protocol: Any) -> Any:
        return blank, (self.bare,), self.__getstate__()


@lru_cache
def ruled(cls: Any) -> type[nn.Module]:
    return type(f"Ruled{cls.__name__}", (Ruled, cls), {"bare": cls})


def blank(cls: type[nn.Module]) -> nn.Module:
    """A module without its state, as copying and pickling want it."""
    return object.__new__(ruled(cls))  # type: ignore[arg-type]


def unbind_rules(expert: nn.Module) -> None:
    """Let every submodule be what it was before `bind_rules`."""
    for module in expert.modules():
        if isinstance(module, Ruled):
            module.__class__ = module.bare  # type: ignore[assignment]
            del module.routing_switch, module.routing_path


def bind_rules(expert: nn.Module) -> Switch:
    """Let the submodules that own parameters compute by their rules; all of them have one."""
    switch = Switch([path for path, _ in owners(expert)], len(list(expert.parameters())))
    for path, module in owners(expert):
        module.__class__ = ruled(class_of(module))  # type: ignore[arg-type]
        module.routing_switch, module.routing_path = switch, path  # type: ignore[assignment]
    return switch

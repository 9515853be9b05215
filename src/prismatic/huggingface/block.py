"""A decoder block of a Hugging Face model whose weights, or those of its MLP, are routed."""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from prismatic.errors import require
from prismatic.routers import Router, recomputed

from .pools import continue_pool, during, read_call

CACHES = "past_key_values", "layer_past", "use_cache"


class RoutedBlock(nn.Module):
    """Stands where a decoder block stood: `part` of it ("" for all, or a submodule) is routed.

    What it adds to its router is what the model tells blocks and routers do not know: padding, the
    cache, and that activations shall be computed again. It also takes the state of a block whose
    weights have the names of the plain model.
    """

    def __init__(self, block: nn.Module, part: str, make_router: Any, **options: Any) -> None:
        super().__init__()
        indices = {m.layer_idx for m in block.modules() if hasattr(m, "layer_idx")}
        wanted = "its attention must have one layer_idx, by which it finds its part of a cache"
        require(len(indices) == 1, "block", type(block).__name__, wanted)
        self.index: int = indices.pop()  # type: ignore[assignment]
        self.part = part
        self.arguments = list(inspect.signature(block.forward).parameters)[1:]
        some = next(block.parameters())
        router = make_router(block.get_submodule(part), **options)
        continue_pool(router.gate)
        router.to(some.device)
        for own in own_parameters(router):
            own.data = own.data.to(some.dtype)
        if part:
            block.set_submodule(part, router)
        self.routed = block if part else router
        self.train(block.training)
        self.register_load_state_dict_pre_hook(name_in_full)

    @property
    def router(self) -> Router:
        return self.routed.get_submodule(self.part)  # type: ignore[return-value]

    @property
    def plain(self) -> nn.Module:
        """The block that the model knows."""
        return self.routed if self.part else self.router.expert

    def unrouted(self) -> nn.Module:
        """The block without its router."""
        if self.part:
            self.routed.set_submodule(self.part, self.router.expert)
            return self.routed
        return self.router.expert

    def __getattr__(self, name: str) -> Any:
        """Models read attributes of their blocks; but the switch of checkpointing is the block's
        own, lest layers be counted twice.
        """
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "gradient_checkpointing" or "routed" not in self.__dict__.get(
                "_modules", {}
            ):
                raise
            return getattr(self.plain, name)

    def forward(self, x_BTD: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        switched = checkpointing(self.routed) if self.training else []
        if not switched:
            with during(read_call(self._named(args, kwargs), x_BTD, self.index)):
                return self.routed(x_BTD, *args, **kwargs)
        kwargs |= dict.fromkeys(CACHES & kwargs.keys())  # as the model's own blocks do
        call = read_call(self._named(args, kwargs), x_BTD, self.index)

        def run(x_BTD: torch.Tensor, *args: Any) -> Any:
            with during(call), switched_off(switched):
                return self.routed(x_BTD, *args, **kwargs)

        if torch.is_grad_enabled() and not x_BTD.requires_grad:
            x_BTD = x_BTD.detach().requires_grad_()  # else `use_reentrant=True` has no gradients
        checkpoint: Any = switched[0]._gradient_checkpointing_func
        return recomputed(self.router, checkpoint, run, x_BTD, *args)

    def _named(self, args: Any, kwargs: Any) -> dict[str, Any]:
        return dict(zip(self.arguments, args, strict=False)) | kwargs


def own_parameters(router: Router) -> list[nn.Parameter]:
    """What a router adds to the module that it wraps."""
    wrapped = set(router.expert.parameters())
    return [p for p in router.parameters() if p not in wrapped]


def checkpointing(block: nn.Module) -> list[nn.Module]:
    """The modules that the model told to compute their activations again."""
    return [m for m in block.modules() if getattr(m, "gradient_checkpointing", False)]


@contextmanager
def switched_off(switched: list[nn.Module]) -> Iterator[None]:
    """Within the context modules do not checkpoint what is checkpointed around them."""
    try:
        for module in switched:
            module.gradient_checkpointing = False  # type: ignore[assignment]
        yield
    finally:
        for module in switched:
            module.gradient_checkpointing = True  # type: ignore[assignment]


def plain_names(block: RoutedBlock, prefix: str, state: dict[str, Any]) -> dict[str, Any]:
    """A state in which the weights of the block at `prefix` have the names of the plain model.

    What the router adds keeps its names.
    """
    inside, part = f"{prefix}routed.", f"{block.part}." if block.part else ""
    at_expert = f"{inside}{part}expert."

    def renamed(name: str) -> str:
        if name.startswith(at_expert):
            return prefix + part + name.removeprefix(at_expert)
        whole = not name.startswith(inside) or name.startswith(inside + part)
        return name if whole else prefix + name.removeprefix(inside)

    return {renamed(name): value for name, value in state.items()}


def name_in_full(block: RoutedBlock, state: dict[str, Any], prefix: str, *args: Any) -> None:
    """The inverse of `plain_names`, in place."""
    part = f"{block.part}." if block.part else ""
    for name in [name for name in state if name.startswith(prefix)]:
        path = name.removeprefix(prefix)
        if not path.startswith("routed."):
            if path.startswith(part):
                path = f"{part}expert.{path.removeprefix(part)}"
            state[f"{prefix}routed.{path}"] = state.pop(name)

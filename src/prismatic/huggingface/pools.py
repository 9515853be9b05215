"""What a block's call tells a router's pool: which tokens are padding, and what came before.

A pool that is asked for a part of a sequence must go on from where the last part ended. Its running
sums lie on the layer of the key-value cache that the block itself continues from, so whatever is
done to the cache (beams, copies, rows that are dropped or cut short) is done to them.

Shapes: B rows, T new positions, P positions of the past, D width, N positions kept.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import nn
from transformers.cache_utils import Cache, DynamicLayer, EncoderDecoderCache, StaticLayer

from prismatic.errors import require
from prismatic.routers import gate

Pool = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Call:
    """One call of a decoder block.

    `valid_BT` is 1 for a token and 0 for padding, None where all are tokens; `layer` is the block's
    part of the cache, None without one; `past` counts the positions that it holds.
    """

    valid_BT: torch.Tensor | None
    layer: Any
    past: int

    @property
    def is_bare(self) -> bool:
        """Whether it is no more than its tokens."""
        return self.valid_BT is None and self.layer is None


class UnderWay:
    """The call under way, if any. Plain enough for a compiler to look through."""

    call: Call | None = None


UNDER_WAY = UnderWay()


@contextmanager
def during(call: Call) -> Iterator[None]:
    """Within the context the pools of routers know of the call."""
    before, UNDER_WAY.call = UNDER_WAY.call, call
    try:
        yield
    finally:
        UNDER_WAY.call = before


def read_call(given: Mapping[str, Any], x_BTD: torch.Tensor, layer_idx: int) -> Call:
    """What the arguments of a decoder block say, by name.

    Raises `ValueError` for a mask or cache that cannot be read: flash and flex attention have masks
    of their own.
    """
    mask, num_new = given.get("attention_mask"), x_BTD.shape[1]
    cache = given.get("past_key_values", given.get("layer_past"))  # GPT-NeoX has another name
    layer = None if cache is None else layer_of(cache, layer_idx)
    past = 0 if layer is None else int(layer.get_seq_length())
    if mask is None:
        return Call(None, layer, past)
    require(
        isinstance(mask, torch.Tensor) and mask.ndim == 4, "attention mask",
        f"{type(mask).__name__} {list(getattr(mask, 'shape', []))}", "routers read masks of shape "
        '(batch, 1, queries, keys): load the model with attn_implementation="sdpa" or "eager"',
    )  # fmt: skip
    offset = 0 if layer is None else layer.get_mask_sizes(num_new)[1]
    # A token attends to itself unless it is padding.
    query_T = torch.arange(num_new, device=mask.device)
    own_BT = mask[:, 0, query_T, query_T + past - offset]
    valid_BT = own_BT if own_BT.dtype == torch.bool else own_BT > torch.finfo(own_BT.dtype).min / 2
    return Call(valid_BT.expand(x_BTD.shape[:2]), layer, past)


def layer_of(cache: Any, layer_idx: int) -> Any:
    """A block's layer of a cache, made to carry the sums of a pool."""
    cache = cache.self_attention_cache if isinstance(cache, EncoderDecoderCache) else cache
    known = isinstance(cache, Cache)
    require(known, "cache", type(cache).__name__, "give a cache of transformers, as DynamicCache")
    while len(cache.layers) <= layer_idx and cache.layer_class_to_replicate:  # it grows by itself
        cache.layers.append(cache.layer_class_to_replicate())
    layer = cache.layers[layer_idx]
    known = isinstance(layer, (DynamicLayer, StaticLayer))
    require(known, "layer of the cache", type(layer).__name__, "it must hold keys by position")
    if not hasattr(layer, "sums"):
        layer.__class__ = continued(type(layer))  # type: ignore[arg-type]
    return layer


@lru_cache
def continued(cls: Any) -> type:
    """The class of a cache's layer, but `sums` go through what its rows go through.

    They are a pool's running sums (B, N, D) and counts (B, N), of all positions where the layer may
    be cut short, and of the last one otherwise; None before there are any.
    """

    class Continued(cls):  # with one base, since objects of the one class become ones of the other
        _layer_type = None  # else it would register itself as what caches are made of
        sums: tuple[torch.Tensor, torch.Tensor] | None = None

        def reorder_cache(self, beam_idx: torch.Tensor) -> None:
            super().reorder_cache(beam_idx)
            self._choose(beam_idx)

        def batch_select_indices(self, indices: torch.Tensor) -> None:
            super().batch_select_indices(indices)
            self._choose(indices)

        def batch_repeat_interleave(self, repeats: int) -> None:
            super().batch_repeat_interleave(repeats)
            if self.sums is not None:
                self._choose(torch.arange(len(self.sums[1])).repeat_interleave(repeats))

        def _choose(self, rows: torch.Tensor) -> None:
            if self.sums is not None:
                total, count = self.sums
                self.sums = total[rows.to(total.device)], count[rows.to(total.device)]

    return Continued


@dataclass(frozen=True)
class ContinuedPool:
    """A pool of `prismatic.routers.gate` that heeds the call under way: padding and the past.

    Raises `ValueError` for a past that it cannot go on from.
    """

    whole: Pool

    def __call__(self, x_BTD: torch.Tensor) -> torch.Tensor:
        call = UNDER_WAY.call
        if call is None or self.whole is gate.each or call.is_bare:
            return self.whole(x_BTD)
        wide_BTD = x_BTD.to(torch.promote_types(x_BTD.dtype, torch.float32))
        valid_BT = wide_BTD.new_ones(x_BTD.shape[:2])
        if call.valid_BT is not None:
            valid_BT = valid_BT * call.valid_BT
        if self.whole in (gate.causal_mean, gate.first):
            return self._so_far(wide_BTD, valid_BT, call).to(x_BTD.dtype)
        require(
            call.past == 0, "past", call.past, "a pool that sees the whole sequence cannot go on "
            "from a cache: generate with use_cache=False, or use level token, or sequence with "
            "pool first",
        )  # fmt: skip
        if self.whole is gate.last:  # the last that is no padding
            place_BT = valid_BT * torch.arange(1, 1 + x_BTD.shape[1], device=x_BTD.device)
            return x_BTD[torch.arange(len(x_BTD)), place_BT.argmax(1)][:, None]
        count_B11 = valid_BT.sum(1)[:, None, None].clamp(min=1)
        return ((wide_BTD * valid_BT[..., None]).sum(1, True) / count_B11).to(x_BTD.dtype)

    def _so_far(self, wide_BTD: torch.Tensor, valid_BT: torch.Tensor, call: Call) -> torch.Tensor:
        layer, past = call.layer, call.past
        grows = isinstance(layer, DynamicLayer)
        before = layer.sums if past else None
        known = not past or (before is not None and (not grows or before[1].shape[1] >= past))
        require(known, "past", past, "the cache was filled without this router: begin a new one")
        if before is None:
            before = wide_BTD[:, :0], valid_BT[:, :0]
        before = tuple(kept[:, :past] for kept in before)
        total, count = (kept[:, -1:] if past else 0 for kept in before)
        count_BT = count + valid_BT.cumsum(1)
        # The first token of a row is the one with which its count becomes 1.
        taken_BT = valid_BT if self.whole is gate.causal_mean else valid_BT * (count_BT == 1)
        total_BTD = total + (wide_BTD * taken_BT[..., None]).cumsum(1)
        if layer is not None:
            new = total_BTD.detach(), count_BT.detach()
            pairs = zip(before, new, strict=True)
            layer.sums = tuple(torch.cat(p, 1) if grows else p[1][:, -1:] for p in pairs)
        if self.whole is gate.first:
            return total_BTD[:, -1:]
        return total_BTD / count_BT.clamp(min=1)[..., None]


def continue_pool(of: nn.Module) -> None:
    """Let the pool of a router's gate heed calls; a gate without one has nothing to heed."""
    if isinstance(of, gate.Gate):
        of.pool = ContinuedPool(of.pool)

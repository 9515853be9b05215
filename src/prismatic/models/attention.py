"""Causal softmax attention, watched or not, and where its logits come from.

Shapes: B batch, T time of the query, S of the key, D model width, H heads, K head width,
W features of a token that the logits are made of.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from prismatic.errors import require

from .parts import NORMS, NoPositions

See = Callable[[torch.Tensor, torch.Tensor], object]


def hide_future(logits: torch.Tensor) -> torch.Tensor:
    """Put -inf where the key comes after the query: (..., T, T)."""
    square = torch.ones(logits.shape[-2:], dtype=torch.bool, device=logits.device)
    return logits.masked_fill(square.triu(1), -math.inf)


def fused(
    q_BHTK: torch.Tensor, k_BHTK: torch.Tensor, v_BHTK: torch.Tensor, bias: torch.Tensor | None,
    gain: float,
) -> torch.Tensor:  # fmt: skip
    """Attention with logits gain * q.k / sqrt(K) + bias; a `bias` holds the causal mask already."""
    scale = gain / math.sqrt(q_BHTK.shape[-1])
    return F.scaled_dot_product_attention(
        q_BHTK, k_BHTK, v_BHTK, attn_mask=bias, is_causal=bias is None, scale=scale
    )


class Watched:
    """`fused` in plain steps: `see` gets the logits (B, H, T, T), -inf where masked, and their
    softmax, both in float32 at least.
    """

    def __init__(self, see: See) -> None:
        self.see = see

    def __call__(
        self, q_BHTK: torch.Tensor, k_BHTK: torch.Tensor, v_BHTK: torch.Tensor,
        bias: torch.Tensor | None, gain: float,
    ) -> torch.Tensor:  # fmt: skip
        product = q_BHTK @ k_BHTK.mT / math.sqrt(q_BHTK.shape[-1])
        logits = gain * product.to(torch.promote_types(q_BHTK.dtype, torch.float32))
        logits = hide_future(logits) if bias is None else logits + bias
        probs = logits.softmax(-1)
        self.see(logits, probs)
        return probs.to(v_BHTK.dtype) @ v_BHTK


@contextmanager
def watched(model: nn.Module, see: See) -> Iterator[None]:
    """Within the context every attention of a model also shows its logits and probabilities.

    `see(logits, probs)` is called once per attention and pass, in order (see `Watched`).
    """
    attentions = [module for module in model.modules() if isinstance(module, Attention)]
    before = [attention.attend for attention in attentions]
    try:
        for attention in attentions:
            attention.attend = Watched(see)
        yield
    finally:
        for attention, attend in zip(attentions, before, strict=True):
            attention.attend = attend


class Logits(nn.Module, ABC):
    """Makes logits of `width` features of each token: queries, keys and a bias, as `fused` takes
    them with `gain`.
    """

    width: int
    gain = 1.0

    @abstractmethod
    def forward(
        self, features_BTW: torch.Tensor, positions: NoPositions
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Queries and keys (B, H, T, K), and a bias with the causal mask or None."""


class QueryKey(Logits):
    """From both tokens: gain * q.k / sqrt(K), of queries and keys that `norm` normalises by head
    (arXiv 2302.05442) before positions rotate them.
    """

    def __init__(
        self, dim: int, num_heads: int, seq_len: int,
        norm: Callable[[int], nn.Module] = NORMS["none"], gain: float = 1.0,
    ) -> None:  # fmt: skip
        super().__init__()
        self.width, self.num_heads, self.gain = 2 * dim, num_heads, gain
        self.q_norm, self.k_norm = norm(dim // num_heads), norm(dim // num_heads)

    def forward(
        self, features_BTW: torch.Tensor, positions: NoPositions
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        q_BTHK, k_BTHK = features_BTW.unflatten(-1, (2, self.num_heads, -1)).unbind(2)
        # Normalised before the heads move: routers need (B, T) in front.
        q_BHTK = positions.rotate(self.q_norm(q_BTHK).transpose(1, 2))
        k_BHTK = positions.rotate(self.k_norm(k_BTHK).transpose(1, 2))
        return q_BHTK, k_BHTK, positions.bias(q_BHTK)


class WithoutProduct(Logits):
    """Logits without queries and keys. Positions that rotate those have no effect here; a bias of
    positions, as alibi's, is added as ever.
    """

    width = 0

    def __init__(
        self, dim: int, num_heads: int, seq_len: int,
        norm: Callable[[int], nn.Module] = NORMS["none"], gain: float = 1.0,
    ) -> None:  # fmt: skip
        super().__init__()
        wanted = "it acts on queries and keys, which only model.attention=full has"
        require(norm is NORMS["none"], "model.qk_norm", norm, wanted)
        require(gain == 1, "model.qk_gain", gain, wanted)
        self.num_heads, self.seq_len = num_heads, seq_len

    @abstractmethod
    def logits(self, features_BTW: torch.Tensor) -> torch.Tensor:
        """(B, H, T, S), with what does not vary left at size 1, without the causal mask."""

    def forward(
        self, features_BTW: torch.Tensor, positions: NoPositions
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        num_rows, num_positions, _ = features_BTW.shape
        nothing = features_BTW.new_zeros(num_rows, self.num_heads, num_positions, 1)
        shape = num_rows, self.num_heads, num_positions, num_positions
        logits_BHTS, bias_HTS = self.logits(features_BTW).expand(shape), positions.bias(nothing)
        masked = hide_future(logits_BHTS) if bias_HTS is None else logits_BHTS + bias_HTS
        return nothing, nothing, masked


class Uniform(WithoutProduct):
    """All logits are 0: equal weights on what is visible, unless positions add a bias."""

    def logits(self, features_BTW: torch.Tensor) -> torch.Tensor:
        return features_BTW.new_zeros(1, 1, 1, 1)


class Constant(WithoutProduct):
    """A learned logit per head, query position and key position, whatever the tokens are.

    The table is a linear map of the query's position as a one-hot vector, so that routers merge
    it as any other.
    """

    def __init__(self, dim: int, num_heads: int, seq_len: int, *args: Any) -> None:
        super().__init__(dim, num_heads, seq_len, *args)
        self.table = nn.Linear(seq_len, num_heads * seq_len, bias=False)

    def logits(self, features_BTW: torch.Tensor) -> torch.Tensor:
        num_rows, num_positions, _ = features_BTW.shape
        onehot_TT = torch.eye(num_positions, self.seq_len).to(features_BTW)
        return by_key(self.table(onehot_TT.expand(num_rows, -1, -1)), self.num_heads)


class FromQuery(WithoutProduct):
    """A logit per head and key position that is a linear map of the query's token alone."""

    def __init__(self, dim: int, num_heads: int, seq_len: int, *args: Any) -> None:
        super().__init__(dim, num_heads, seq_len, *args)
        self.width = num_heads * seq_len

    def logits(self, features_BTW: torch.Tensor) -> torch.Tensor:
        return by_key(features_BTW, self.num_heads)


class FromKey(WithoutProduct):
    """A logit per head that is a linear map of the key's token alone.

    It is 0 where a query meets its own token, against which the others count: so the weights of a
    query do not depend on its token, and of two tokens the last one's are a function of the first.
    """

    def __init__(self, dim: int, num_heads: int, seq_len: int, *args: Any) -> None:
        super().__init__(dim, num_heads, seq_len, *args)
        self.width = num_heads

    def logits(self, features_BTW: torch.Tensor) -> torch.Tensor:
        own_TS = torch.eye(features_BTW.shape[1], dtype=torch.bool, device=features_BTW.device)
        return features_BTW.mT[:, :, None].masked_fill(own_TS, 0)


def by_key(features_BTW: torch.Tensor, num_heads: int) -> torch.Tensor:
    """One feature per head and key position, as logits: (B, T, W) -> (B, H, T, S)."""
    num_positions = features_BTW.shape[1]
    return features_BTW.unflatten(-1, (num_heads, -1)).transpose(1, 2)[..., :num_positions]


ATTENTIONS: dict[str, Callable[..., Logits]] = {
    "full": QueryKey,
    "uniform": Uniform,
    "constant": Constant,
    "query": FromQuery,
    "key": FromKey,
}


class Attention(nn.Module):
    """Causal softmax attention by the framework's fused call: (B, T, D) -> (B, T, D).

    `logits` makes them of a token's first features under `qkv`, the others are its value; `attend`
    computes attention from queries, keys, values, a bias and a gain.
    """

    def __init__(self, dim: int, num_heads: int, bias: bool, logits: Logits) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.attend: Callable[..., torch.Tensor] = fused
        self.logits = logits
        self.qkv = nn.Linear(dim, logits.width + dim, bias=bias)
        self.out = nn.Linear(dim, dim, bias=bias)

    def forward(self, x_BTD: torch.Tensor, positions: NoPositions) -> torch.Tensor:
        features_BTW, v_BTD = self.qkv(x_BTD).tensor_split((self.logits.width,), -1)
        q_BHTK, k_BHTK, bias = self.logits(features_BTW, positions)
        v_BHTK = v_BTD.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        y_BHTK = self.attend(q_BHTK, k_BHTK, v_BHTK, bias, self.logits.gain)
        return self.out(y_BHTK.transpose(1, 2).flatten(2))

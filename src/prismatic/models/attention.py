"""Causal softmax attention, watched or not.

Shapes: B batch, T time of the query, S of the key, D model width, H heads, K head width, W features
of a token that the logits are made of: 2 D where they are its query and its key.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn import functional as F

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


class Attention(nn.Module):
    """Causal softmax attention: (B, T, D) -> (B, T, D).

    Its logits are gain * q.k / sqrt(K) + bias, with queries and keys that `qk_norm` normalises by
    head (arXiv 2302.05442) before positions rotate them. `attend` computes attention from them and
    the values. A subclass with other logits overrides `num_features` and `logits`.
    """

    def __init__(
        self, dim: int, num_heads: int, seq_len: int, *, bias: bool = False,
        qk_norm: Callable[[int], nn.Module] = NORMS["none"], qk_gain: float = 1.0,
    ) -> None:  # fmt: skip
        super().__init__()
        self.num_heads, self.seq_len, self.gain = num_heads, seq_len, qk_gain
        self.attend: Callable[..., torch.Tensor] = fused
        self.q_norm, self.k_norm = qk_norm(dim // num_heads), qk_norm(dim // num_heads)
        self.qkv = nn.Linear(dim, self.num_features(dim) + dim, bias=bias)
        self.out = nn.Linear(dim, dim, bias=bias)

    def num_features(self, dim: int) -> int:
        """W, of a token's features under `qkv`; the D others are its value."""
        return 2 * dim

    def logits(
        self, features_BTW: torch.Tensor, positions: NoPositions
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """What they are computed from: queries and keys (B, H, T, K), and None or a bias that holds
        the causal mask (see `hide_future`) and fits (B, H, T, S).
        """
        q_BTHK, k_BTHK = features_BTW.unflatten(-1, (2, self.num_heads, -1)).unbind(2)
        # Normalised before the heads move: routers need (B, T) in front.
        q_BHTK = positions.rotate(self.q_norm(q_BTHK).transpose(1, 2))
        k_BHTK = positions.rotate(self.k_norm(k_BTHK).transpose(1, 2))
        return q_BHTK, k_BHTK, positions.bias(q_BHTK)

    def forward(self, x_BTD: torch.Tensor, positions: NoPositions) -> torch.Tensor:
        features_BTW, v_BTD = self.qkv(x_BTD).tensor_split((-x_BTD.shape[-1],), -1)
        q_BHTK, k_BHTK, bias = self.logits(features_BTW, positions)
        v_BHTK = v_BTD.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        y_BHTK = self.attend(q_BHTK, k_BHTK, v_BHTK, bias, self.gain)
        return self.out(y_BHTK.transpose(1, 2).flatten(2))


def attentions(model: nn.Module) -> list[Attention]:
    """The attentions of a model that can be watched: those of this file."""
    return [module for module in model.modules() if isinstance(module, Attention)]


@contextmanager
def watched(model: nn.Module, see: See) -> Iterator[None]:
    """Within the context every attention of a model also shows its logits and probabilities.

    `see(logits, probs)` is called once per attention and pass, in order (see `Watched`).
    """
    found = attentions(model)
    before = [attention.attend for attention in found]
    try:
        for attention in found:
            attention.attend = Watched(see)
        yield
    finally:
        for attention, attend in zip(found, before, strict=True):
            attention.attend = attend


ATTENTIONS: dict[str, Callable[..., Attention]] = {"full": Attention}

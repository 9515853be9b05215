"""What blocks are made of: norms, MLPs, positions and attention. A variant is another object.

Shapes: B batch, T time, D model width, H heads, K head width, F hidden width of the MLP.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from prismatic.perturb import require

NORMS: dict[str, Callable[[int], nn.Module]] = {
    "layernorm": nn.LayerNorm,
    "rmsnorm": nn.RMSNorm,
    "none": lambda dim: nn.Identity(),
}


class GeluMLP(nn.Module):
    """out(gelu(up(x))): (B, T, D) -> (B, T, D)."""

    def __init__(self, dim: int, hidden: int, bias: bool) -> None:
        super().__init__()
        self.up = nn.Linear(dim, hidden, bias=bias)
        self.out = nn.Linear(hidden, dim, bias=bias)

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        return self.out(F.gelu(self.up(x_BTD)))


class SwigluMLP(nn.Module):
    """out(silu(gate(x)) * up(x)): (B, T, D) -> (B, T, D) (arXiv 2002.05202)."""

    def __init__(self, dim: int, hidden: int, bias: bool) -> None:
        super().__init__()
        self.gate = nn.Linear(dim, hidden, bias=bias)
        self.up = nn.Linear(dim, hidden, bias=bias)
        self.out = nn.Linear(hidden, dim, bias=bias)

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        return self.out(F.silu(self.gate(x_BTD)) * self.up(x_BTD))


MLPS: dict[str, Callable[[int, int, bool], nn.Module] | None] = {
    "gelu": GeluMLP,
    "swiglu": SwigluMLP,
    "none": None,
}


class NoPositions(nn.Module):
    """No positions, and what a scheme of positions may do: three hooks, here the identity."""

    def __init__(self, seq_len: int, dim: int, num_heads: int) -> None:
        super().__init__()
        self.seq_len = seq_len

    def embed(self, x_BTD: torch.Tensor) -> torch.Tensor:
        """What is added to the token embeddings."""
        return x_BTD

    def rotate(self, x_BHTK: torch.Tensor) -> torch.Tensor:
        """What is done to queries and keys."""
        return x_BHTK

    def bias(self, x_BHTK: torch.Tensor) -> torch.Tensor | None:
        """What is added to the attention logits: (H, T, T) with the causal mask, or None."""
        return None


class LearnedPositions(NoPositions):
    """A trained vector per position, added to the embeddings."""

    def __init__(self, seq_len: int, dim: int, num_heads: int) -> None:
        super().__init__(seq_len, dim, num_heads)
        self.embedding = nn.Embedding(seq_len, dim)

    def embed(self, x_BTD: torch.Tensor) -> torch.Tensor:
        return x_BTD + self.embedding.weight[: x_BTD.shape[1]]


class RotaryPositions(NoPositions):
    """Rotation of queries and keys by angles that grow with the position (arXiv 2104.09864)."""

    def __init__(self, seq_len: int, dim: int, num_heads: int) -> None:
        super().__init__(seq_len, dim, num_heads)
        half = dim // num_heads // 2
        require(
            2 * half * num_heads == dim, "model.positions", "rope",
            f"it needs an even head width and dim={dim} over num_heads={num_heads} is odd",
        )  # fmt: skip
        rate_K = 10_000.0 ** -(torch.arange(half, dtype=torch.float64) / half)
        angle_TK = torch.arange(seq_len, dtype=torch.float64)[:, None] * rate_K
        self.register_buffer("cos_TK", angle_TK.cos().float(), persistent=False)
        self.register_buffer("sin_TK", angle_TK.sin().float(), persistent=False)

    def rotate(self, x_BHTK: torch.Tensor) -> torch.Tensor:
        num_positions = x_BHTK.shape[2]
        cos_TK = self.get_buffer("cos_TK")[:num_positions].to(x_BHTK.dtype)
        sin_TK = self.get_buffer("sin_TK")[:num_positions].to(x_BHTK.dtype)
        left, right = x_BHTK.chunk(2, -1)
        return torch.cat([left * cos_TK - right * sin_TK, right * cos_TK + left * sin_TK], -1)


class AlibiPositions(NoPositions):
    """A penalty on attention logits, linear in the distance (arXiv 2108.12409)."""

    def __init__(self, seq_len: int, dim: int, num_heads: int) -> None:
        super().__init__(seq_len, dim, num_heads)
        slope_H = 2.0 ** -(8 * torch.arange(1, num_heads + 1) / num_heads)
        distance_TT = torch.arange(seq_len)[:, None] - torch.arange(seq_len)
        bias_HTT = -slope_H[:, None, None] * distance_TT
        bias_HTT = bias_HTT.masked_fill(distance_TT < 0, -math.inf)
        self.register_buffer("bias_HTT", bias_HTT, persistent=False)

    def bias(self, x_BHTK: torch.Tensor) -> torch.Tensor:
        num_positions = x_BHTK.shape[2]
        return self.get_buffer("bias_HTT")[:, :num_positions, :num_positions].to(x_BHTK.dtype)


POSITIONS: dict[str, Callable[[int, int, int], NoPositions]] = {
    "rope": RotaryPositions,
    "learned": LearnedPositions,
    "alibi": AlibiPositions,
    "none": NoPositions,
}


def fused(
    q_BHTK: torch.Tensor, k_BHTK: torch.Tensor, v_BHTK: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    """Causal softmax attention; a `bias` holds the causal mask already."""
    return F.scaled_dot_product_attention(
        q_BHTK, k_BHTK, v_BHTK, attn_mask=bias, is_causal=bias is None
    )


class Watched:
    """`fused` in plain steps: `see` gets the logits (B, H, T, T), -inf where masked, and their
    softmax, both in float32 at least.
    """

    def __init__(self, see: Callable[[torch.Tensor, torch.Tensor], object]) -> None:
        self.see = see

    def __call__(
        self, q_BHTK: torch.Tensor, k_BHTK: torch.Tensor, v_BHTK: torch.Tensor,
        bias: torch.Tensor | None,
    ) -> torch.Tensor:  # fmt: skip
        num_positions, width = q_BHTK.shape[2:]
        logits = (q_BHTK @ k_BHTK.mT / math.sqrt(width)).to(
            torch.promote_types(q_BHTK.dtype, torch.float32)
        )
        if bias is None:
            square = torch.ones(num_positions, num_positions, dtype=torch.bool)
            logits = logits.masked_fill(square.triu(1).to(logits.device), -math.inf)
        else:
            logits = logits + bias
        probs = logits.softmax(-1)
        self.see(logits, probs)
        return probs.to(v_BHTK.dtype) @ v_BHTK


@contextmanager
def watched(
    model: nn.Module, see: Callable[[torch.Tensor, torch.Tensor], object]
) -> Iterator[None]:
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


class Attention(nn.Module):
    """Causal softmax attention by the framework's fused call: (B, T, D) -> (B, T, D).

    `attend` computes it from queries, keys, values and a bias.
    """

    def __init__(self, dim: int, num_heads: int, bias: bool) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.attend: Callable[..., torch.Tensor] = fused
        self.qkv = nn.Linear(dim, 3 * dim, bias=bias)
        self.out = nn.Linear(dim, dim, bias=bias)

    def forward(self, x_BTD: torch.Tensor, positions: NoPositions) -> torch.Tensor:
        heads = self.qkv(x_BTD).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        q_BHTK, k_BHTK, v_BHTK = heads
        q_BHTK, k_BHTK = positions.rotate(q_BHTK), positions.rotate(k_BHTK)
        y_BHTK = self.attend(q_BHTK, k_BHTK, v_BHTK, positions.bias(q_BHTK))
        return self.out(y_BHTK.transpose(1, 2).flatten(2))


class Residual(nn.Module):
    """x + inner(norm(x)): a pre-norm sublayer."""

    def __init__(self, norm: nn.Module, inner: nn.Module) -> None:
        super().__init__()
        self.norm, self.inner = norm, inner

    def forward(self, x_BTD: torch.Tensor, *args: Any) -> torch.Tensor:
        return x_BTD + self.inner(self.norm(x_BTD), *args)


class Block(nn.Module):
    """Attention, then an MLP: (B, T, D) -> (B, T, D)."""

    def __init__(self, attention: nn.Module, mlp: nn.Module) -> None:
        super().__init__()
        self.attention, self.mlp = attention, mlp

    def forward(self, x_BTD: torch.Tensor, positions: NoPositions) -> torch.Tensor:
        return self.mlp(self.attention(x_BTD, positions))

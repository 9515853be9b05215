"""What blocks are made of, but for attention: norms, MLPs, positions. A variant is another object.

Shapes: B batch, T time, D model width, H heads, K head width.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor
from torch.nn import functional as F

from prismatic.errors import require

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


def without_skip(x_BTD: torch.Tensor, y_BTD: torch.Tensor) -> torch.Tensor:
    """What leaves a sublayer that has no residual connection."""
    return y_BTD


SKIPS: dict[bool, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    True: torch.add,
    False: without_skip,
}


class PreNorm(nn.Module):
    """skip(x, inner(norm(x))): a sublayer; `skip` adds, or leaves the input out."""

    def __init__(
        self, norm: nn.Module, inner: nn.Module,
        skip: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] = torch.add,
    ) -> None:  # fmt: skip
        super().__init__()
        self.norm, self.inner, self.skip = norm, inner, skip

    def forward(self, x_BTD: torch.Tensor, *args: Any) -> torch.Tensor:
        return self.skip(x_BTD, self.inner(self.norm(x_BTD), *args))


class PostNorm(PreNorm):
    """norm(skip(x, inner(x))): the same with the norm behind (arXiv 1706.03762)."""

    def forward(self, x_BTD: torch.Tensor, *args: Any) -> torch.Tensor:
        return self.norm(self.skip(x_BTD, self.inner(x_BTD, *args)))


PLACEMENTS: dict[str, Callable[..., nn.Module]] = {"pre": PreNorm, "post": PostNorm}


class Block(nn.Module):
    """Attention, then an MLP: (B, T, D) -> (B, T, D)."""

    def __init__(self, attention: nn.Module, mlp: nn.Module) -> None:
        super().__init__()
        self.attention, self.mlp = attention, mlp

    def forward(self, x_BTD: torch.Tensor, positions: NoPositions) -> torch.Tensor:
        return self.mlp(self.attention(x_BTD, positions))


def full_tensor(tensor: Any) -> Any:
    """A tensor with the shares of all processes, which must all ask for it; others as they are."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor

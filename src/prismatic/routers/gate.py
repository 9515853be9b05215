"""Where routing weights come from: pooling and the gates.

Shapes: B batch, T time, D model width, E views, S blocks of L positions. A pool returns (B, T, D),
or (B, 1, D) when all positions of a sequence share one routing.
"""

import hashlib
from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional as F

from prismatic.errors import one_of, require

BLOCK = 32

Pool = Callable[[torch.Tensor], torch.Tensor]


def mean(x_BTD: torch.Tensor) -> torch.Tensor:
    return x_BTD.mean(1, keepdim=True)


def first(x_BTD: torch.Tensor) -> torch.Tensor:
    return x_BTD[:, :1]


def last(x_BTD: torch.Tensor) -> torch.Tensor:
    return x_BTD[:, -1:]


def each(x_BTD: torch.Tensor) -> torch.Tensor:
    return x_BTD


def causal_mean(x_BTD: torch.Tensor) -> torch.Tensor:
    """The mean of all positions so far; summed in float32 at least.

    Sums within blocks of L positions are one product with a triangle, which torch computes several
    times faster than a running sum over all.
    """
    num_positions, triangle_LL = (
        x_BTD.shape[1],
        torch.ones(BLOCK, BLOCK, device=x_BTD.device).tril(),
    )
    wide_BTD = x_BTD.to(torch.promote_types(x_BTD.dtype, torch.float32))
    padded_BTD = F.pad(wide_BTD, (0, 0, 0, -num_positions % BLOCK))
    triangle_LL = torch.ones(BLOCK, BLOCK).to(wide_BTD).tril()
    with torch.autocast(x_BTD.device.type, enabled=False):
        within_BSLD = triangle_LL @ padded_BTD.unflatten(1, (-1, BLOCK))
    before_BSD = F.pad(within_BSLD[:, :-1, -1], (0, 0, 1, 0)).cumsum(1)
    total_BTD = (within_BSLD + before_BSD[:, :, None]).flatten(1, 2)[:, :num_positions]
    count_T1 = torch.arange(1, num_positions + 1, device=x_BTD.device)[:, None]
    return (total_BTD / count_T1).to(x_BTD.dtype)


# What each level may pool over. At level token, `last` is the position itself.
POOLS: dict[str, dict[str, Pool]] = {
    "token": {"causal_mean": causal_mean, "first": first, "last": each},
    "sequence": {"mean": mean, "first": first, "last": last},
    "batch": {"mean": mean, "first": first, "last": last},
}


def is_causal(level: str, pool: str) -> bool:
    """Whether no position's routing depends on later positions or on other sequences."""
    return level == "token" or (level, pool) == ("sequence", "first")


def seeded(*key: object) -> torch.Generator:
    """A generator of one's own, so that the global random state is never drawn from."""
    digest = hashlib.sha256("|".join(map(str, key)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))


def require_views(num_experts: int) -> None:
    whole = isinstance(num_experts, int) and num_experts >= 1
    require(whole, "router.num_experts", num_experts, "give a whole number >= 1")


class Gate(nn.Module):
    """Logits of the views, Linear(LayerNorm(pool(x))): (B, T, D) -> (B, T or 1, E)."""

    def __init__(
        self, hidden_size: int, num_experts: int, level: str, pool: str, generator: torch.Generator
    ) -> None:
        super().__init__()
        one_of("router.level", level, tuple(POOLS))
        require_views(num_experts)
        legal = tuple(POOLS[level])
        require(
            pool in legal,
            "router.pool",
            pool,
            f"router.level={level} can pool over {', '.join(legal)}; set router.pool too",
        )
        self.pool = POOLS[level][pool]
        self.norm = nn.LayerNorm(hidden_size)
        self.linear = nn.utils.skip_init(nn.Linear, hidden_size, num_experts)
        nn.init.normal_(self.linear.weight, std=0.02, generator=generator)
        nn.init.zeros_(self.linear.bias)

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        return self.linear(self.norm(self.pool(x_BTD)))


class ConstantGate(nn.Module):
    """The same trained logits for every input: (B, T, D) -> (1, 1, E)."""

    def __init__(self, num_experts: int) -> None:
        super().__init__()
        require_views(num_experts)
        self.logits_E = nn.Parameter(torch.zeros(num_experts))

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        return self.logits_E[None, None]

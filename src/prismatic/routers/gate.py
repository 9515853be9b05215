"""Where routing weights come from: pooling and the gates.

Shapes: B batch, T time, D model width, E views, S blocks of L positions. A pool returns (B, T, D),
or (B, 1, D) when all positions of a sequence share one routing.
"""

import hashlib
from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional as F

from prismatic.errors import one_of, require

BLOCK = 32


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
    num_positions = x_BTD.shape[1]
    wide_BTD = x_BTD.to(torch.promote_types(x_BTD.dtype, torch.float32))
    padded_BTD = F.pad(wide_BTD, (0, 0, 0, -num_positions % BLOCK))
    triangle_LL = wide_BTD.new_ones(BLOCK, BLOCK).tril()
    with torch.autocast(x_BTD.device.type, enabled=False):
        within_BSLD = triangle_LL @ padded_BTD.unflatten(1, (-1, BLOCK))
    before_BSD = F.pad(within_BSLD[:, :-1, -1], (0, 0, 1, 0)).cumsum(1)
    total_BTD = (within_BSLD + before_BSD[:, :, None]).flatten(1, 2)[:, :num_positions]
    count_T1 = torch.arange(1, num_positions + 1, device=x_BTD.device)[:, None]
    return (total_BTD / count_T1).to(x_BTD.dtype)


# What each level may pool over, its default first. At level token, `last` is the position itself.
POOLS: dict[str, dict[str, Callable[[torch.Tensor], torch.Tensor]]] = {
    "token": {"causal_mean": causal_mean, "first": first, "last": each},
    "sequence": {"first": first, "mean": mean, "last": last},
    "batch": {"mean": mean, "first": first, "last": last},
}


def pool_name(level: str, pool: str | None) -> str:
    """The pool that is meant: None is the level's default. Raises `ValueError` for a bad one."""
    one_of("router.level", level, tuple(POOLS))
    legal = tuple(POOLS[level])
    wanted = f"router.level={level} can pool over {', '.join(legal)}; set router.pool too"
    require(pool is None or pool in legal, "router.pool", pool, wanted)
    return pool or legal[0]


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
    """Logits of the views, Linear(LayerNorm(pool(x))): (B, T, D) -> (B, T or 1, E).

    `pool` None is the level's default, and `generator` initialises the linear map. Raises
    `ValueError` for a pool that a level cannot have.
    """

    def __init__(
        self,
        hidden_size: int,
        num_experts: int,
        level: str,
        *,
        pool: str | None,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        require_views(num_experts)
        name = pool_name(level, pool)
        self.pool = POOLS[level][name]
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


def one_hot(probs: torch.Tensor, view: int) -> torch.Tensor:
    """Routing weights like `probs` that are all one view's."""
    alone = torch.zeros_like(probs)
    alone[..., view].fill_(1)
    return alone


def drop_views(probs: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
    """Renormalise over the views that are kept: view 0 where none is."""
    kept = probs * keep
    total = kept.sum(-1, keepdim=True)
    shares = kept / total.clamp(min=torch.finfo(total.dtype).tiny)
    return torch.where(total > 0, shares, one_hot(probs, 0))


@torch.library.custom_op("prismatic::draw_kept", mutates_args=("step",), device_types="cpu")
def draw_kept(probs: torch.Tensor, step: torch.Tensor, share: float, key: str) -> torch.Tensor:
    """Which views expert dropout keeps, each but for a share: a function of `key` and `step`.

    Goes one step on. A device other than the CPU draws by itself, without waiting for the host.
    """
    generator = seeded(key, int(step), dist.get_rank() if dist.is_initialized() else 0)
    step += 1
    return torch.rand(probs.shape, generator=generator) >= share


@draw_kept.register_fake
def _(probs: torch.Tensor, step: torch.Tensor, share: float, key: str) -> torch.Tensor:
    return torch.empty_like(probs, dtype=torch.bool)


@draw_kept.register_kernel("cuda")
def count_kept(probs: torch.Tensor, step: torch.Tensor, share: float, key: str) -> torch.Tensor:
    """The same from a counter: the finaliser of splitmix64, whose output passes as random."""
    start = seeded(key, dist.get_rank() if dist.is_initialized() else 0).initial_seed()
    x = torch.arange(probs.numel(), device=probs.device) + step * (1 << 32) + start
    step += 1
    for shift, factor in ((30, -0x40A7B892E31B1A47), (27, -0x6B2FB644ECCEEE15), (31, 1)):
        x = (x ^ ((x >> shift) & ((1 << (64 - shift)) - 1))) * factor
    return ((x >> 40) & 0xFFFFFF).view(probs.shape) >= share * (1 << 24)

"""What a routed block's extra time goes to, and the least that it could be.

The least counts each product more that is needed at the rate of the plain block's own products, and
each byte that must move at the machine's copying rate, once: no kernel, however clever, does less.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch.profiler import ProfilerActivity, profile

from prismatic.routers import PrismaticRouter
from prismatic.routers.lenses import LensMixture

BYTES = 4
# Operations by what they are for: in the plain block, and in a routed one.
PLAIN = {"products": ("aten::linear", "MmBackward0")}
ROUTED = {
    "selection": ("select",),
    "norms": ("UnitProduct", "UnitProductBackward", "_Merge", "_MergeBackward"),
    "products": ("SharedProduct", "SharedProductBackward", "TokenProduct", "TokenProductBackward"),
}


def seconds_by(
    kinds: Mapping[str, Sequence[str]], step: Callable[[], object], num_steps: int = 6
) -> dict[str, float]:
    """The least time of a step in operations of each kind, with all that they call."""
    found = []
    for _ in range(num_steps):
        with profile(activities=[ProfilerActivity.CPU]) as prof:
            step()
        total = {event.key: event.cpu_time_total / 1e6 for event in prof.key_averages()}
        found.append({kind: sum(total.get(n, 0.0) for n in names) for kind, names in kinds.items()})
    return {kind: min(seconds[kind] for seconds in found) for kind in kinds}


def spent(
    router: PrismaticRouter,
    step: Callable[[], object],
    seconds: Callable[[Callable[[], object]], float],
    x_BTD: torch.Tensor,
    plain_products: float,
) -> dict[str, float]:
    """Seconds of a step beyond the plain one's, by what they are for."""

    def gate() -> None:
        probs = router.route(x_BTD).probs
        probs.backward(torch.ones_like(probs))

    found = seconds_by(ROUTED, step)
    found["products"] -= plain_products
    return found | {"gate": min(seconds(gate) for _ in range(5))}


def least(router: PrismaticRouter, x_BTD: torch.Tensor) -> tuple[int, int]:
    """(bytes, multiply-adds) that a forward and backward needs beyond those of the plain block.

    Read the weights for the selection; read and write the input for the gate and the norms. Per
    merge, read the weights and write what lenses reach, there and back, and read the gradient; or
    one product more with the rows that lenses reach, there and twice back.
    """
    num_tokens = x_BTD.shape[:-1].numel()
    matrices = [(n, p) for n, p in router.expert.named_parameters() if p.ndim == 2]
    moved = sum(p.numel() for p in router.expert.parameters())
    moved += x_BTD.numel() * (8 if router.level == "token" else 2)
    multiplied = 0
    merges = {"batch": 1, "sequence": len(x_BTD), "token": 0}[router.level]
    for name, parameter in matrices:
        mixture = router.mixture(name, parameter)
        if not isinstance(mixture, LensMixture):
            continue
        reached = sum(patch.numel for patch in mixture.views.patches)
        if merges == 1 or (merges and mixture.is_wide):
            moved += merges * (2 * (parameter.numel() + reached) + reached)
        else:
            multiplied += 3 * num_tokens * sum(part.change_KI.numel() for part in mixture.parts())
    return BYTES * moved, multiplied


def copy_rate(
    seconds: Callable[[Callable[[], object]], float], device: str, num_bytes: int = 1 << 26
) -> float:
    """Bytes read or written per second, in the best of several large copies."""
    x, y = torch.zeros(2, num_bytes, dtype=torch.uint8, device=device)
    return 2 * num_bytes / min(seconds(lambda: y.copy_(x)) for _ in range(8))

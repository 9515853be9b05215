"""What a routed block's extra time goes to, and the least that it could be.

The least counts each product more that is needed at the rate of the plain block's own products, and
each byte that must move at the machine's copying rate, once: no kernel, however clever, does less.
"""

from collections.abc import Callable

import torch

from prismatic.perturb.forms import Narrow
from prismatic.routers import PrismaticRouter

BYTES = 4
Clock = Callable[[Callable[[], object]], float]


def spent(
    router: PrismaticRouter, seconds: Clock, x_BTD: torch.Tensor, extra: float
) -> dict[str, float]:
    """Seconds of a step beyond the plain one's, by what they are for."""

    def gate() -> None:
        probs = router.route(x_BTD).probs
        probs.backward(torch.ones_like(probs))

    def selection() -> None:
        router.source.mixtures(router.expert, x_BTD, None)

    found = {
        name: min(seconds(work) for _ in range(5))
        for name, work in (("selection", selection), ("gate", gate))
    }
    return found | {"rest": extra - sum(found.values())}


def least(router: PrismaticRouter, x_BTD: torch.Tensor) -> tuple[int, int]:
    """(bytes, multiply-adds) that a forward and backward needs beyond those of the plain block.

    Read the weights for the selection; read and write the input for the gate and the norms. Per
    merge, read the weights and write what views reach, there and back, and read the gradient; or
    one product more with the rows that views reach, for the fewer of rank and views, there and
    twice back.
    """
    num_tokens = x_BTD.shape[:-1].numel()
    named = dict(router.expert.named_parameters())
    moved = sum(parameter.numel() for parameter in named.values())
    moved += x_BTD.numel() * (8 if router.level == "token" else 2)
    multiplied = 0
    merges = {"batch": 1, "sequence": len(x_BTD), "token": 0}[router.level]
    for name, change in router.source.views.changes(named).items():
        form, numel = change.form, named[name].numel()
        if named[name].ndim < 2:
            continue
        narrow = isinstance(form, Narrow)
        reached = form.basis_KI.numel() if isinstance(form, Narrow) else numel
        if merges == 1 or (merges and not narrow):
            moved += merges * (2 * (numel + reached) + reached)
        else:
            pieces = (
                1 if isinstance(form, Narrow) else min(len(form.basis_QL), router.num_experts - 1)
            )
            multiplied += 3 * num_tokens * reached * pieces
    return BYTES * moved, multiplied


def copy_rate(seconds: Clock, device: str, num_bytes: int = 1 << 26) -> float:
    """Bytes read or written per second, in the best of several large copies."""
    x, y = torch.zeros(2, num_bytes, dtype=torch.uint8, device=device)
    return 2 * num_bytes / min(seconds(lambda: y.copy_(x)) for _ in range(8))

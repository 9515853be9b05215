"""What one forward and backward of a routed block costs, as a ratio to the plain block.

All cases run interleaved in one process: a ratio compares two times of the same round, so that a
machine that slows down slows both. The weights change between rounds, so that whatever a router
derives from them is part of the timed step.
"""

import copy
import statistics
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from operator import truediv
from typing import Any, TypeGuard

import torch
from torch import nn
from torch.func import functional_call

from prismatic.models import Attention, Block, PreNorm
from prismatic.models.parts import GeluMLP, RotaryPositions
from prismatic.perturb import Focal, Perturbation, change
from prismatic.routers import PrismaticRouter, SmearRouter

from .breakdown import copy_rate, least, spent
from .counting import Counts, Memory, counting

MIB = 2**20
WARM_UP = 3  # rounds
Inputs = tuple[torch.Tensor, nn.Module]
PATTERNS = {
    "default": Focal(),
    "none": Focal("none"),
    "helical": Focal("helical"),
    "radial": Focal("radial", 0.1, 1.0, units="fraction"),
    "radial_helical": Focal("radial_helical", 0.1, 1.0, units="fraction"),
    "gaussian": Focal("radial_helical", 0.1, 1.0, units="fraction", profile="gaussian"),
}
POOLS = {"batch": "mean", "sequence": "mean", "token": "causal_mean"}
OPTIONS = {
    "random": {"strategy": "random"},
    "noise": {"mode": "noise"},
    "strength": {"strength": 0.002},
}


@dataclass(frozen=True)
class Sizes:
    """The block that is timed, and where."""

    dim: int = 512
    hidden: int = 2048
    num_heads: int = 8
    batch: int = 8
    seq_len: int = 256
    device: str = "cpu"
    dtype: str = "float32"

    def block(self) -> Block:
        """A block as the transformer builds it."""
        attend = Attention(self.dim, self.num_heads, self.seq_len)
        attention = PreNorm(nn.LayerNorm(self.dim), attend)
        mlp = PreNorm(nn.LayerNorm(self.dim), GeluMLP(self.dim, self.hidden, False))
        return Block(attention, mlp).to(self.device, getattr(torch, self.dtype))

    def inputs(self) -> Inputs:
        x_BTD = torch.randn(self.batch, self.seq_len, self.dim)
        x_BTD = x_BTD.to(self.device, getattr(torch, self.dtype)).requires_grad_()
        return x_BTD, RotaryPositions(self.seq_len, self.dim, self.num_heads).to(self.device)

    @property
    def linear(self) -> int:
        """Multiply-adds of the linear maps of one forward."""
        return self.batch * self.seq_len * (4 * self.dim**2 + 2 * self.dim * self.hidden)

    @property
    def flops(self) -> int:
        """Multiplications and additions of the matrix products of one forward and backward."""
        attention = self.batch * self.seq_len**2 * self.dim  # causal: half of two products
        return 6 * (self.linear + attention)


class NaiveRouter(PrismaticRouter):
    """The reference of the costs: every view is built in full, then all are averaged."""

    def forward(self, x_BTD: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        probs_E = self.route(x_BTD).probs.flatten()
        merged = {}
        for name, weight in self.expert.named_parameters():
            options = self.num_experts, self.perturbation, self.focal, name
            views = [weight * (1 + change(weight, i, *options)) for i in range(self.num_experts)]
            merged[name] = torch.einsum("e,e...->...", probs_E, torch.stack(views))
        return functional_call(self.expert, merged, (x_BTD, *args), kwargs)


def case_names(patterns: Sequence[str], levels: Sequence[str], experts: Sequence[int]) -> list[str]:
    """`plain`, and a name `{level}/{pattern}/{N}` for every combination."""
    return ["plain", *(f"{a}/{b}/{n}" for a in levels for b in patterns for n in experts)]


def build(name: str, block: Block, dim: int) -> nn.Module:
    """A case by its name; `smear/{level}/{N}` and `naive/{pattern}/{N}` are references."""
    if name == "plain":
        return block
    kind, pattern, experts = name.split("/")
    if kind == "smear":
        return SmearRouter(block, dim, int(experts), pattern, POOLS[pattern])
    level = "batch" if kind == "naive" else kind
    cls = NaiveRouter if kind == "naive" else PrismaticRouter
    return cls(block, dim, int(experts), *views_of(pattern), level, POOLS[level])


def views_of(name: str) -> tuple[Perturbation, Focal]:
    """What a pattern, or a mode with the relative lens, is called here."""
    perturbation = Perturbation(**OPTIONS.get(name, {}))  # type: ignore[arg-type]
    return perturbation, PATTERNS.get(name, PATTERNS["radial_helical"])


def nudge(module: nn.Module, round_: int) -> None:
    """What an optimiser would do: every weight moves a little."""
    generator = torch.Generator().manual_seed(round_)
    with torch.no_grad():
        for parameter in module.parameters():
            noise = torch.randn(parameter.shape, generator=generator).to(parameter)
            parameter.add_(noise, alpha=1e-4)


def step(module: nn.Module, inputs: Inputs) -> None:
    """One forward and backward; gradients are new each time."""
    module.zero_grad(set_to_none=True)
    inputs[0].grad = None
    module(*inputs).sum().backward()


def seconds(work: Callable[[], object], device: str) -> float:
    """The time of a piece of work, by the device's own clock."""
    if not device.startswith("cuda"):
        start = time.perf_counter()
        work()
        return time.perf_counter() - start
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    work()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1000


def peak_bytes(module: nn.Module, inputs: Inputs, device: str) -> int:
    """The most that a step holds at once: its parameters and all that it allocates."""
    module.zero_grad(set_to_none=True)
    inputs[0].grad = None
    held = sum(p.numel() * p.element_size() for p in module.parameters())
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step(module, inputs)
        return held + torch.cuda.max_memory_allocated() - before
    with Memory() as memory:
        step(module, inputs)
    return held + memory.peak


def matrix_rate(device: str, dtype: str, size: int = 2048) -> float:
    """The machine's matrix rate in FLOP/s: the best of several large products."""
    x = torch.randn(size, size).to(device, getattr(torch, dtype))
    return 2 * size**3 / min(seconds(lambda: x @ x, device) for _ in range(8))


def run(
    names: Sequence[str], sizes: Sizes, *, rounds: int = 10, compiled: bool = False, seed: int = 0
) -> dict[str, Any]:
    """Time the cases in interleaved rounds; the first of `names` must be `plain`.

    Returns the machine's figures and, per case, the median ratio to plain, the quartiles, the
    seconds and the peak bytes of a step, what it asks of a device, and the ratio when both are
    `compiled`; of routed cases also where the time goes.
    """
    assert names[0] == "plain"
    torch.manual_seed(seed)
    block = sizes.block()
    modules: dict[str, nn.Module] = {
        name: build(name, copy.deepcopy(block), sizes.dim).to(block.mlp.norm.weight)  # type: ignore
        for name in names
    }
    inputs = sizes.inputs()
    rows = timed(modules, inputs, sizes.device, rounds)
    machine: dict[str, Any] = {
        "device": torch.cuda.get_device_name() if sizes.device.startswith("cuda") else "cpu",
        "threads": torch.get_num_threads(),
        "matrix_rate": matrix_rate(sizes.device, sizes.dtype),
        "copy_rate": copy_rate(partial(seconds, device=sizes.device), sizes.device),
    }
    plain = rows[0]["seconds"]
    rate = 6 * sizes.linear / plain  # of the plain block's own products, which are most of it
    for row in rows:
        module = modules[row["case"]]
        row["bytes"] = peak_bytes(module, inputs, sizes.device)
        row["memory"] = row["bytes"] / rows[0]["bytes"]
        counts = asked(module, inputs)
        row["ops"], row["syncs"] = counts.ops.total(), counts.syncs.total()
        row["graph_breaks"] = graph_breaks(module, inputs)
        if explicable(module):
            clock = partial(seconds, device=sizes.device)
            row["spent"] = spent(module, clock, inputs[0], row["seconds"] - plain)
            num_bytes, multiplied = least(module, inputs[0])
            row["least"] = 1 + (num_bytes / machine["copy_rate"] + 2 * multiplied / rate) / plain
    if compiled:
        machine["compiler"] = refused = no_compiler(sizes.device)
        for row in rows if refused is None else ():
            torch._dynamo.reset()  # which remembers no more than eight modules of a class
            pair = {name: torch.compile(modules[name]) for name in ("plain", row["case"])}
            row["compiled"] = timed(pair, inputs, sizes.device, rounds)[-1]["ratio"]
    plain_share = sizes.flops / plain / machine["matrix_rate"]
    result = {"rounds": rounds, "sizes": vars(sizes), "plain_share": plain_share, "cases": rows}
    return machine | result


def timed(
    modules: Mapping[str, Any], inputs: Inputs, device: str, rounds: int
) -> list[dict[str, Any]]:
    """Per case its median ratio to the first one, the quartiles, and the median seconds."""
    times: dict[str, list[float]] = {name: [] for name in modules}
    for round_ in range(WARM_UP + rounds):
        for name, module in modules.items():
            nudge(module, round_)
            times[name].append(seconds(partial(step, module, inputs), device))
    first, rows = next(iter(times.values()))[WARM_UP:], []
    for name, taken in times.items():
        mine = taken[WARM_UP:]
        low, middle, high = quartiles(mine, first)
        spent = statistics.median(mine)
        rows.append({"case": name, "ratio": middle, "low": low, "high": high, "seconds": spent})
    return rows


def quartiles(times: Sequence[float], base: Sequence[float]) -> list[float]:
    """Of the ratios of times in the same rounds."""
    return statistics.quantiles(map(truediv, times, base), n=4, method="inclusive")


def asked(module: nn.Module, inputs: Inputs) -> Counts:
    """What a step asks of the device: a warm one, whose constants are there."""
    step(module, inputs)
    with counting() as counts:
        step(module, inputs)
    return counts


def no_compiler(device: str) -> str | None:
    """Why nothing can be compiled here, in a word; None where it can be."""
    try:
        torch.compile(torch.neg)(torch.ones(2, device=device))
    except Exception as error:  # of any of its backends' many kinds
        return type(getattr(error, "inner_exception", error)).__name__
    return None


def graph_breaks(module: nn.Module, inputs: Sequence[Any]) -> int:
    """How often a compiler must give up on a forward and begin anew."""
    torch._dynamo.reset()
    # Enough for every shape of a block's tensors, so that there is no warning among the results.
    with warnings.catch_warnings(), torch._dynamo.config.patch(recompile_limit=64):
        warnings.simplefilter("ignore")
        return torch._dynamo.explain(module)(*inputs).graph_break_count


def explicable(module: nn.Module) -> TypeGuard[PrismaticRouter]:
    """Whether the breakdown knows what a case does."""
    return isinstance(module, PrismaticRouter) and not isinstance(module, NaiveRouter)


def missing(result: dict[str, Any]) -> str:
    """Says in a table's title why its compiled column is empty, where it was asked for."""
    return f"; cannot compile: {result['compiler']}" if result.get("compiler") else ""


def table(result: dict[str, Any]) -> str:
    """The result for reading; what the extra milliseconds go to, and the least ratio possible."""
    kinds = ["selection", "gate", "rest"]
    lines = [
        f"{result['device']}, {result['threads']} threads, {result['rounds']} rounds; matrices "
        f"{result['matrix_rate'] / 1e9:.0f} GFLOP/s, plain reaches {result['plain_share']:.0%}; "
        f"copies {result['copy_rate'] / 1e9:.0f} GB/s" + missing(result),
        f"{'case':26} {'ratio':>6}  {'quartiles':>13} {'compiled':>8} {'ms':>7} {'memory':>7} "
        f"{'ops':>5} {'syncs':>5} {'breaks':>6} "
        + " ".join(f"{kind:>9}" for kind in kinds) + f" {'least':>6}",
    ]  # fmt: skip
    for row in result["cases"]:
        spread = f"{row['low']:.3f}-{row['high']:.3f}"
        compiled = f"{row['compiled']:.3f}" if "compiled" in row else "-"
        where = ""
        if "spent" in row:
            where = " ".join(f"{1000 * row['spent'][kind]:9.1f}" for kind in kinds)
            where += f" {row['least']:6.3f}"
        lines.append(
            f"{row['case']:26} {row['ratio']:6.3f}  {spread:>13} {compiled:>8} "
            f"{1000 * row['seconds']:7.1f} {row['memory']:7.3f} {row['ops']:5} {row['syncs']:5} "
            f"{row['graph_breaks']:6} {where}"
        )
    return "\n".join(lines)


def bench(
    patterns: Sequence[str],
    levels: Sequence[str],
    experts: Sequence[int],
    references: Sequence[str] = (),
    *,
    rounds: int = 10,
    compiled: bool = False,
    **sizes: Any,
) -> tuple[dict[str, Any], str]:
    """Run the cases of a configuration; its other keys are those of `Sizes`."""
    names = [*case_names(patterns, levels, experts), *references]
    result = run(names, Sizes(**sizes), rounds=rounds, compiled=compiled)
    return result, table(result)

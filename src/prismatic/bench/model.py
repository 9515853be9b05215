"""What a whole training step of the default model costs: dense against prismatic.

Forward, loss, backward, clipping and the optimiser's step, interleaved in one process.
"""

import statistics
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import product
from typing import Any

import torch

from prismatic.data import Batch
from prismatic.models import Transformer
from prismatic.routers import DenseRouter, PrismaticRouter
from prismatic.training import Optimization, cross_entropy
from prismatic.training.optim import clip_apart

from .counting import counting
from .step import (
    POOLS,
    WARM_UP,
    graph_breaks,
    matrix_rate,
    missing,
    no_compiler,
    quartiles,
    seconds,
    views_of,
)


class Trainee:
    """A model and its optimiser, stepped on one batch."""

    def __init__(self, model: Transformer, batch: Batch) -> None:
        self.model, self.batch = model, batch
        self.optimizer = Optimization().optimizer(model)

    def losses(self) -> None:
        """Forward, losses and backward."""
        self.optimizer.zero_grad(set_to_none=True)
        logits_BTV = self.model(self.batch.tokens_BT)
        (cross_entropy(logits_BTV, self.batch.targets_BT) + self.model.penalty()).backward()

    def step(self) -> None:
        self.losses()
        clip_apart(self.model, 1.0)
        self.optimizer.step()


def model_flops(model: Transformer, batch: Batch) -> int:
    """Multiplications and additions in the matrix products of a dense training step."""
    rows, length = batch.tokens_BT.shape
    block = sum(p.numel() for p in model.routers[0].expert.parameters() if p.ndim > 1)
    dim = model.embedding.embedding_dim
    per_token = model.depth * (block + length * dim) + model.embedding.weight.numel()
    return 6 * rows * length * per_token


def trainees(
    patterns: Sequence[str], levels: Sequence[str], experts: int, batch: Batch, **model: Any
) -> dict[str, Trainee]:
    """The dense model, and a prismatic one per level and pattern, with equal initial weights."""
    routers: dict[str, Any] = {"dense": DenseRouter}
    for level, name in product(levels, patterns):
        perturbation, focal = views_of(name)
        routers[f"{level}/{name}"] = partial(
            PrismaticRouter, num_experts=experts, perturbation=perturbation, focal=focal,
            level=level, pool=POOLS[level],
        )  # fmt: skip
    found = {}
    for name, router in routers.items():
        torch.manual_seed(0)
        built = Transformer(256, batch.tokens_BT.shape[1], router=router, **model)
        found[name] = Trainee(built.to(batch.tokens_BT.device), batch)
    return found


def compiled_ratio(dense: Trainee, trainee: Trainee, rounds: int, device: str) -> float:
    """The ratio to the dense step when both are compiled, on a GPU with CUDA graphs."""
    torch._dynamo.reset()  # which remembers no more than eight modules of a class
    mode = "reduce-overhead" if device.startswith("cuda") else None
    for one in (dense, trainee):
        one.model.compile(fullgraph=True, mode=mode)
    dense_times, times = timed({"dense": dense, "case": trainee}, rounds, device).values()
    return quartiles(times, dense_times)[1]


def timed(trainees: Mapping[str, Trainee], rounds: int, device: str) -> dict[str, list[float]]:
    """Seconds of every step, interleaved; the first rounds warm up."""
    times: dict[str, list[float]] = {name: [] for name in trainees}
    for _ in range(WARM_UP + rounds):
        for name, trainee in trainees.items():
            times[name].append(seconds(trainee.step, device))
    return {name: taken[WARM_UP:] for name, taken in times.items()}


def bench(
    patterns: Sequence[str], levels: Sequence[str] = ("token",), experts: int = 4,
    rounds: int = 10, batch: int = 16, seq_len: int = 128, device: str = "cpu",
    compiled: bool = False, **model: Any,
) -> tuple[dict[str, Any], str]:  # fmt: skip
    """Time the cases; ratios are to the dense step of the same round, which is `compiled` too."""
    tokens_BT = torch.randint(0, 256, (batch, seq_len + 1), device=device)
    on_batch = Batch(tokens_BT[:, :-1], tokens_BT[:, 1:], torch.zeros(batch).long())
    cases = trainees(patterns, levels, experts, on_batch, **model)
    times = timed(cases, rounds, device)
    rate, flops = matrix_rate(device, "float32"), model_flops(cases["dense"].model, on_batch)
    rows: list[dict[str, Any]] = []
    for name, taken in times.items():
        low, middle, high = quartiles(taken, times["dense"])
        spent = statistics.median(taken)
        with counting() as counts:
            cases[name].losses()
        rows.append({
            "case": name, "ratio": middle, "low": low, "high": high, "seconds": spent,
            "tokens_per_second": batch * seq_len / spent, "share_of_rate": flops / spent / rate,
            "ops": counts.ops.total(), "syncs": counts.syncs.total(),
            "graph_breaks": graph_breaks(cases[name].model, (on_batch.tokens_BT,)),
        })  # fmt: skip
    result: dict[str, Any] = {
        "device": torch.cuda.get_device_name() if device.startswith("cuda") else "cpu",
        "threads": torch.get_num_threads(), "rounds": rounds, "matrix_rate": rate, "cases": rows,
    }  # fmt: skip
    if compiled:
        result["compiler"] = refused = no_compiler(device)
        for row in rows if refused is None else ():
            pair = cases["dense"], cases[row["case"]]
            row["compiled"] = compiled_ratio(*pair, rounds, device)
    return result, table(result)


def table(result: dict[str, Any]) -> str:
    """The result for reading."""
    lines = [
        f"{result['device']}, {result['threads']} threads, {result['rounds']} rounds; matrices "
        f"{result['matrix_rate'] / 1e9:.0f} GFLOP/s; share: the model's own products at that rate; "
        "ops and syncs: of forward and backward" + missing(result),
        f"{'case':24} {'ratio':>6}  {'quartiles':>13} {'compiled':>8} {'ms':>8} {'tokens/s':>9} "
        f"{'share':>6} {'ops':>5} {'syncs':>5} {'breaks':>6}",
    ]
    for row in result["cases"]:
        spread = f"{row['low']:.3f}-{row['high']:.3f}"
        compiled = f"{row['compiled']:.3f}" if "compiled" in row else "-"
        lines.append(
            f"{row['case']:24} {row['ratio']:6.3f}  {spread:>13} {compiled:>8} "
            f"{1000 * row['seconds']:8.1f} {row['tokens_per_second']:9.0f} "
            f"{row['share_of_rate']:6.1%} {row['ops']:5} {row['syncs']:5} {row['graph_breaks']:6}"
        )
    return "\n".join(lines)

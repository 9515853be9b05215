"""What a whole training step of the default model costs: dense against prismatic.

Forward, loss, backward, clipping and the optimiser's step, interleaved in one process.
"""

import statistics
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch

from prismatic.data import Batch
from prismatic.models import Transformer
from prismatic.routers import DenseRouter, PrismaticRouter
from prismatic.training import Optimization, cross_entropy
from prismatic.training.optim import clip_apart

from .step import PATTERNS, matrix_rate, seconds


class Trainee:
    """A model and its optimiser, stepped on one batch."""

    def __init__(self, model: Transformer, batch: Batch) -> None:
        self.model, self.batch = model, batch
        self.optimizer = Optimization().optimizer(model)

    def step(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        logits_BTV = self.model(self.batch.tokens_BT)
        (cross_entropy(logits_BTV, self.batch.targets_BT) + self.model.penalty()).backward()
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
    patterns: Sequence[str], experts: int, batch: Batch, seed: int, **model: Any
) -> dict[str, Trainee]:
    """The dense model, and a prismatic one per pattern, with equal initial weights."""
    routers: dict[str, Any] = {"dense": DenseRouter}
    for name in patterns:
        routers[name] = partial(PrismaticRouter, num_experts=experts, focal=PATTERNS[name])
    found = {}
    for name, router in routers.items():
        torch.manual_seed(seed)
        built = Transformer(256, batch.tokens_BT.shape[1], router=router, **model)
        found[name] = Trainee(built.to(batch.tokens_BT.device), batch)
    return found


def bench(
    patterns: Sequence[str], experts: int = 4, rounds: int = 10, batch: int = 16,
    seq_len: int = 128, device: str = "cpu", seed: int = 0, **model: Any,
) -> tuple[dict[str, Any], str]:  # fmt: skip
    """Time the cases; ratios are to the dense step of the same round."""
    tokens_BT = torch.randint(0, 256, (batch, seq_len + 1), device=device)
    on_batch = Batch(tokens_BT[:, :-1], tokens_BT[:, 1:], torch.zeros(batch).long())
    cases = trainees(patterns, experts, on_batch, seed, **model)
    times: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(rounds + 1):  # the first warms up
        for name, trainee in cases.items():
            times[name].append(seconds(trainee.step, device))
    rate = matrix_rate(device, "float32")
    flops = model_flops(cases["dense"].model, on_batch)
    rows = []
    for name, taken in times.items():
        ratios = [a / b for a, b in zip(taken[1:], times["dense"][1:], strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        spent = statistics.median(taken[1:])
        rows.append({
            "case": name, "ratio": middle, "low": low, "high": high, "seconds": spent,
            "tokens_per_second": batch * seq_len / spent, "share_of_rate": flops / spent / rate,
        })  # fmt: skip
    threads = torch.get_num_threads()
    result = {"threads": threads, "rounds": rounds, "matrix_rate": rate, "cases": rows}
    return result, table(result)


def table(result: dict[str, Any]) -> str:
    """The result for reading."""
    lines = [
        f"{result['threads']} threads, {result['rounds']} rounds; matrices "
        f"{result['matrix_rate'] / 1e9:.0f} GFLOP/s; the last column is the model's own products "
        "at that rate",
        f"{'case':18} {'ratio':>6}  {'quartiles':>13} {'ms':>8} {'tokens/s':>9} {'share':>6}",
    ]
    for row in result["cases"]:
        spread = f"{row['low']:.3f}-{row['high']:.3f}"
        lines.append(
            f"{row['case']:18} {row['ratio']:6.3f}  {spread:>13} {1000 * row['seconds']:8.1f} "
            f"{row['tokens_per_second']:9.0f} {row['share_of_rate']:6.1%}"
        )
    return "\n".join(lines)

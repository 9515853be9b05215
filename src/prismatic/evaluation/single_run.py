"""What a finished run is worth: held-out losses, each view alone, a sampled continuation."""

import json
import math
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate

from prismatic.config.paths import absolute
from prismatic.data import Batch, Task
from prismatic.errors import require
from prismatic.experiment import load
from prismatic.files import write_text
from prismatic.measures import HeldOut
from prismatic.models import RoutedModel, generate
from prismatic.progress import progress_bar
from prismatic.run_folder.contents import require_same_data

BATCH_ROWS = 64
BITS_PER_BYTE = "loss/test_bits_per_byte"


@torch.no_grad()
def held_out_loss(
    model: RoutedModel, task: Task, split: str, view: int | None = None
) -> tuple[float, dict[str, float]]:
    """Mean loss in nats per scored token and that of each domain; of one view alone if given."""
    device = next(model.parameters()).device
    sums = HeldOut(model, len(task.domains), device)
    num_rows = task.num_rows(split)
    title = split if view is None else f"{split}, view {view} alone"
    with (
        nullcontext() if view is None else model.forced(view),
        progress_bar(title, num_rows * task.seq_len, "token") as bar,
    ):
        for row_B in torch.arange(num_rows).split(BATCH_ROWS):
            batch = Batch(*(part.to(device) for part in task.held_out(split, row_B)))
            sums.update(model, model(batch.tokens_BT), batch)
            bar.update(batch.tokens_BT.numel())
    return sums.losses(task.domains)


def evaluate(run_dir: Path, checkpoint: str = "best", device: str = "cpu") -> dict[str, Any]:
    """Test results of a run, rebuilt from its own folder; written there as `eval.json`.

    Raises `ValueError` where the data are not those of the run: their checksums must agree.
    """
    model, config = load(run_dir, checkpoint)
    task: Task = instantiate(config.data)
    require_same_data(task.manifest, run_dir)
    model.to(device)
    nats, by_domain = held_out_loss(model, task, "test")
    result: dict[str, Any] = {"checkpoint": checkpoint, "loss/test": nats}
    if task.bytes_per_token:
        result[BITS_PER_BYTE] = nats / math.log(2) / task.bytes_per_token["test"]
    if task.bayes_loss is not None:
        result["loss/bayes"] = task.bayes_loss
    result |= {f"loss/test/{name}": loss for name, loss in by_domain.items()}
    for view in range(model.routers[0].num_experts):
        result[f"views/{view}/loss_test"] = held_out_loss(model, task, "test", view)[0]
    write_text(run_dir / "eval.json", json.dumps(result, indent=2))
    return result


def sample_continuation(
    run_dir: Path,
    prompt: str,
    count: int,
    *,
    temperature: float,
    top_p: float,
    seed: int,
    checkpoint: str = "best",
) -> str:
    """The prompt and `count` sampled tokens, as the tokenizer of the run's data reads them."""
    model, config = load(run_dir, checkpoint)
    tokenizer = instantiate(config.data).tokenizer
    tokens_BT = torch.tensor([tokenizer.encode(prompt)])
    generator = torch.Generator().manual_seed(seed)
    out_BT = generate(
        model, tokens_BT, count, temperature=temperature, top_p=top_p, generator=generator
    )
    return tokenizer.decode(out_BT[0].tolist())


def check(config: Any) -> None:
    """Refuse at once what would fail after a long evaluation."""
    require(config.count >= 0, "count", config.count, "give a number of tokens >= 0")
    require(config.temperature >= 0, "temperature", config.temperature, "give a number >= 0")
    require(0 < config.top_p <= 1, "top_p", config.top_p, "give a share in (0, 1]")
    require(str(config.prompt) != "", "prompt", config.prompt, "give at least one character")
    there = config.device == "cpu" or torch.cuda.is_available()
    require(there, "device", config.device, "there is no CUDA device here; use device=cpu")


def main(config: Any) -> None:
    """What `src/eval.py run=` does."""
    check(config)
    run_dir = absolute(config.run)
    results = evaluate(run_dir, config.checkpoint, config.device)
    width = max(map(len, results)) + 2
    for name, value in results.items():
        print(f"{name:<{width}}{f'{value:.4f}' if isinstance(value, float) else value}")
    if BITS_PER_BYTE in results:
        sampled = sample_continuation(
            run_dir, str(config.prompt), config.count, temperature=config.temperature,
            top_p=config.top_p, seed=config.seed, checkpoint=config.checkpoint,
        )  # fmt: skip
        print(f"\n--- continuation ---\n{sampled}")

"""From a task to Lightning's loaders: batches by index, so that a resumed run sees what is next."""

from collections.abc import Iterator
from itertools import count

import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, IterableDataset

from prismatic.data import Batch, Task
from prismatic.errors import require


class TrainBatches(IterableDataset):
    """A rank's rows of the training batches `start`, `start` + 1, ... up to `stop`."""

    def __init__(
        self, task: Task, batch_size: int, seed: int, start: int, stop: int | None,
        repeat: int | None, rank: int, world: int,
    ) -> None:  # fmt: skip
        self.task, self.batch_size, self.seed = task, batch_size, seed
        self.indices = range(start, stop) if stop is not None else count(start)
        self.repeat, self.rank, self.world = repeat, rank, world

    def __iter__(self) -> Iterator[Batch]:
        for index in self.indices:
            batch = self.task.train_batch(
                index % self.repeat if self.repeat else index, self.batch_size, self.seed
            )
            yield Batch(*(tensor[self.rank :: self.world] for tensor in batch))


class TaskData(pl.LightningDataModule):
    """A task's batches. `batch_size` counts the rows of all ranks; every rank takes its share."""

    def __init__(self, task: Task, batch_size: int, seed: int) -> None:
        super().__init__()
        self.task, self.batch_size, self.seed = task, batch_size, seed

    def train_dataloader(self) -> DataLoader:
        trainer = self.trainer
        assert trainer is not None
        per_step = trainer.accumulate_grad_batches
        stop = trainer.max_steps * per_step if trainer.max_steps > 0 else None
        batches = TrainBatches(
            self.task, self.batch_size, self.seed, trainer.global_step * per_step, stop,
            int(trainer.overfit_batches) or None,  # type: ignore[attr-defined]
            trainer.global_rank, trainer.world_size,
        )  # fmt: skip
        return DataLoader(batches, batch_size=None)

    def val_dataloader(self) -> DataLoader:
        """Every held-out row once, in the same batches however many ranks share them.

        In a fixed mixed order, so that the first few batches are a fair sample of all domains. The
        batches are a few rows larger than `batch_size` where they do not divide evenly: every rank
        must have its part in each.
        """
        held_out = self.task.held_out("val")
        rank, world = (
            (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        )
        num_rows = len(held_out.tokens_BT)
        enough = f"{world} processes share them: give more data, at least a row to each"
        require(num_rows >= world, "number of val rows", num_rows, enough)
        order = torch.randperm(num_rows, generator=torch.Generator().manual_seed(0))
        parts = order.tensor_split(max(1, num_rows // self.batch_size))
        batches = [Batch(*(tensor[part[rank::world]] for tensor in held_out)) for part in parts]
        return DataLoader(batches, batch_size=None)  # type: ignore[arg-type]

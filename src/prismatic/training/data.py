"""From a task to Lightning's loaders: batches by index, so that a resumed run sees what is next."""

from collections.abc import Iterator, Sequence
from itertools import count
from typing import Any

import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset

from prismatic.data import Batch, Task
from prismatic.errors import require


class TrainBatches(IterableDataset):
    """A rank's rows of the training batches, from where the trainer stands to its last step.

    The optimiser's steps are all that says where that is. Lightning iterates anew after each of its
    epochs, of which there are several under `limit_train_batches`, and after a restart.
    """

    def __init__(self, task: Task, batch_size: int, seed: int, trainer: pl.Trainer) -> None:
        self.task, self.batch_size, self.seed, self.trainer = task, batch_size, seed, trainer

    def __iter__(self) -> Iterator[Batch]:
        trainer, per_step = self.trainer, self.trainer.accumulate_grad_batches
        start, stop = trainer.global_step * per_step, trainer.max_steps * per_step
        repeat = int(trainer.overfit_batches)  # type: ignore[attr-defined]
        for index in range(start, stop) if stop > 0 else count(start):
            batch = self.task.train_batch(
                index % repeat if repeat else index, self.batch_size, self.seed
            )
            yield Batch(*(tensor[trainer.global_rank :: trainer.world_size] for tensor in batch))


class HeldOutBatches(Dataset):
    """The rows of each validation batch, read when it is their turn."""

    def __init__(self, task: Task, rows: Sequence[torch.Tensor]) -> None:
        self.task, self.rows = task, rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Batch:
        return self.task.held_out("val", self.rows[index])


class ResumableLoader(DataLoader):
    """Tells Lightning that the batches go on where they stopped, as `TrainBatches` sees to."""

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


class TaskData(pl.LightningDataModule):
    """A task's batches. `batch_size` counts the rows of all ranks; every rank takes its share."""

    def __init__(self, task: Task, batch_size: int, seed: int) -> None:
        super().__init__()
        self.task, self.batch_size, self.seed = task, batch_size, seed

    def train_dataloader(self) -> DataLoader:
        assert self.trainer is not None
        batches = TrainBatches(self.task, self.batch_size, self.seed, self.trainer)
        return ResumableLoader(batches, batch_size=None)

    def val_dataloader(self) -> DataLoader:
        """Every held-out row once, in the same batches however many ranks share them.

        In a fixed mixed order, so that the first few batches are a fair sample of all domains. The
        batches are a few rows larger than `batch_size` where they do not divide evenly: every rank
        must have its part in each.
        """
        num_rows = self.task.num_rows("val")
        rank, world = (
            (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        )
        enough = f"{world} processes share them: give more data, at least a row to each"
        require(num_rows >= world, "number of val rows", num_rows, enough)
        order = torch.randperm(num_rows, generator=torch.Generator().manual_seed(0))
        parts = order.tensor_split(max(1, num_rows // self.batch_size))
        batches = HeldOutBatches(self.task, [part[rank::world] for part in parts])
        return DataLoader(batches, batch_size=None)

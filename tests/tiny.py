"""Configurations that compose in a moment and train in a second."""

from pathlib import Path

from hydra import compose, initialize_config_dir
from omegaconf import DictConfig
from pytorch_lightning import Callback

from prismatic.config import paths
from prismatic.experiment import Parts, build

ROOT = Path(__file__).parents[1]
CONF = ROOT / "conf"
MODEL = ["model=tiny", "model.dim=16", "model.num_heads=2"]
QUIET = ["logger=none", "callbacks=none", "trainer.accelerator=cpu"]
IID = ["data=iid", "data.vocab_size=16", "data.seq_len=16", "data.held_out_tokens=512"]
FEW = ["optim.batch_size=4", "optim.warmup_steps=2", "trainer.max_steps=4"]
FEW += ["trainer.val_check_interval=${trainer.max_steps}", "trainer.log_every_n_steps=1"]
TEXT = "".join(f"{i} squared is {i * i}, and {i} cubed is {i**3}.\n" for i in range(300))


def composed(*overrides: str, config_name: str = "train") -> DictConfig:
    """The configuration that a script would get from these arguments."""
    paths.register()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose(config_name, list(overrides))


def text_data(folder: Path, seq_len: int = 16) -> list[str]:
    """Overrides for a text of a few kilobytes, written to the folder."""
    path = folder / "squares.txt"
    path.write_text(TEXT)
    return ["data=text", f"data.path={path}", f"data.seq_len={seq_len}"]


class Losses(Callback):
    """Keeps the loss of every training step, exactly as it was."""

    def __init__(self) -> None:
        self.values: list[float] = []

    def on_train_batch_end(self, trainer, pl_module, outputs, *args) -> None:
        self.values.append(outputs["loss"].item())


def tiny(*overrides: str) -> DictConfig:
    """A tiny model on independent tokens, or on the data that the overrides choose."""
    chosen = any(override.startswith("data=") for override in overrides)
    return composed(*MODEL, *QUIET, *FEW, *([] if chosen else IID), *overrides)


def fit(run_dir: Path, *overrides: str, resume: Path | None = None) -> tuple[Parts, list[float]]:
    """Train a tiny model with these further overrides; what was built, and the losses."""
    parts = build(tiny(*overrides), run_dir)
    losses = Losses()
    parts.trainer.callbacks.append(losses)
    parts.trainer.fit(parts.learner, parts.data, ckpt_path=resume, weights_only=True)
    return parts, losses.values

"""A configuration before it is built: what cannot be is refused, what depends is settled."""

import sys
from collections.abc import Mapping
from glob import has_magic
from typing import TYPE_CHECKING, Any, cast

from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from prismatic.errors import one_of, require

from .kinds import check_kinds
from .paths import absolute

if TYPE_CHECKING:  # a refusal shall not wait for imports that take seconds
    from pytorch_lightning import Trainer
    from pytorch_lightning.strategies import ParallelStrategy

GROUPS = (
    "data", "model", "router", "perturbation", "focal", "loss", "optim", "trainer", "callbacks",
    "logger", "guard",
)  # fmt: skip
VALUES = ("seed", "seeds", "ckpt_path", "resume", "objective", "tags", "baseline")
NOTES = "notes"  # of the user, as are root keys that begin with _: kept and recorded
PATHS = ("ckpt_path",)
# What there is to be an objective without any validation.
IN_TRAINING = ("loss/train", "loss/criterion", "optim/lr", "edge/grad_norm")
NAMES = ("data.path", "data.tokenizer", "model.path")  # of which what is not there may be a name


def check(config: DictConfig) -> None:
    """Refuse what would fail late, and root keys that nothing reads (misspelt, added with `+`).

    Raises `ValueError`. Needs no model, so that a script can ask before it imports what trains.
    """
    own = (str(key) for key in config if str(key) != NOTES and not str(key).startswith("_"))
    for key in own:
        one_of("root key", key, (*GROUPS, *VALUES))
    check_kinds(config)
    seeds, several = config.seeds, OmegaConf.is_list(config.seeds)
    wanted = "give a list of different numbers, seeds=[0,1,2], or null"
    distinct = several and 0 < len(seeds) == len({*seeds})
    require(seeds is None or distinct, "seeds", seeds, wanted)
    for seed in [config.seed, *(seeds or ())]:
        whole = type(seed) is int and 0 <= seed < 2**32
        require(whole, "seed", seed, "give a whole number from 0 to 2**32 - 1")
    resume = config.get("resume")  # a run of before it was there has none
    alone = config.ckpt_path is None or resume is None
    wanted = "give null or auto, and no ckpt_path beside auto"
    require(resume in (None, "auto") and alone, "resume", resume, wanted)
    wanted = "it holds one training, and seeds asks for several: give seed=<that one's> alone"
    require(seeds is None or config.ckpt_path is None, "ckpt_path", config.ckpt_path, wanted)
    one_of("baseline", config.get("baseline", "none"), ("none", "dense"))
    objective = config.objective
    named = isinstance(objective, str) or OmegaConf.is_list(objective)
    wanted = "name a metric such as loss/val, or a list of metrics"
    require(named and bool(objective), "objective", objective, wanted)
    for name in objectives(config):
        wanted = f"the objective {name} is measured at a validation; give null or a number >= 1"
        there = config.trainer.limit_val_batches != 0 or name in IN_TRAINING
        require(there, "trainer.limit_val_batches", 0, wanted)
    steps = config.trainer.max_steps
    counted = isinstance(steps, int) and (steps >= 1 or steps == -1)
    require(counted, "trainer.max_steps", steps, "give a whole number >= 1, or -1 for no end")
    for name, least in (("val_check_interval", 1), ("log_every_n_steps", 0)):
        value = config.trainer[name]
        whole = isinstance(value, int) and value >= least
        require(whole, f"trainer.{name}", value, f"give a whole number >= {least}")
    compiled = config.trainer.get("compile", False)
    require(isinstance(compiled, bool), "trainer.compile", compiled, "give true or false")
    again = bool(config.model.get("gradient_checkpointing"))
    wanted = "a compiled step cannot compute activations again: use trainer.compile=false"
    require(not (compiled and again), "model.gradient_checkpointing", again, wanted)
    check_batches(config.trainer)
    for group in ("perturbation", "focal"):
        instantiate(config[group])  # a value that no router reads must be a good one, too


def objectives(config: DictConfig) -> list[str]:
    """The names of the metrics that a run is judged by."""
    return [config.objective] if isinstance(config.objective, str) else list(config.objective)


def check_batches(trainer: DictConfig) -> None:
    """Refuse what would end an accumulation early, which Lightning does without a word."""
    per_step = trainer.accumulate_grad_batches
    whole = isinstance(per_step, int) and per_step >= 1
    require(whole, "trainer.accumulate_grad_batches", per_step, "give a whole number >= 1")
    wanted = f"give a multiple of trainer.accumulate_grad_batches={per_step}"
    for name, absent in (("limit_train_batches", None), ("overfit_batches", 0)):
        value = trainer.get(name)
        whole = isinstance(value, int) and value > 0 and value % per_step == 0
        require(value == absent or whole, f"trainer.{name}", value, f"{wanted}, or leave it out")
    require(
        trainer.precision != "16-true", "trainer.precision", trainer.precision,
        "in float16 AdamW's epsilon is 0, so a weight without a gradient becomes NaN; "
        "choose bf16-true, 16-mixed or 32-true",
    )  # fmt: skip


def check_ranks(trainer: "Trainer", batch_size: int, in_sweep: bool) -> None:
    """Refuse what several processes could not do, before there are several."""
    world, strategy = trainer.world_size, cast("ParallelStrategy", trainer.strategy)
    shares = f"it is shared by {world} processes: give a multiple of {world}"
    require(batch_size % world == 0, "optim.batch_size", batch_size, shares)
    # Lightning runs the command again for each further process: a sweep's would be a sweep.
    if in_sweep and world > 1 and "hydra.mode=RUN" not in sys.argv:
        require(
            strategy.cluster_environment.creates_processes_externally,  # type: ignore[union-attr]
            "trainer.devices", trainer.num_devices, "trials here share the sweep's command: use "
            "hydra/launcher=local with hydra.launcher.executor=fork or process",
        )  # fmt: skip


def located(typed: Any) -> Any:
    """Paths that are there, and globs, as absolute ones; in a mapping, too. Names stay."""
    if isinstance(typed, Mapping):
        return {key: located(value) for key, value in typed.items()}
    if not isinstance(typed, str | int) or typed == "":
        return typed
    text = str(typed)  # a user may type a number
    return str(absolute(text)) if has_magic(text) or absolute(text).exists() else typed


def pinned(config: DictConfig) -> DictConfig:
    """A checked copy that means the same from any working directory, and that fits itself."""
    import torch

    check(config)
    config = config.copy()
    # Relative to where the command was given: hydra.job.chdir=true has left that folder.
    for key in PATHS:
        typed = OmegaConf.select(config, key)
        if typed is not None:
            OmegaConf.update(config, key, str(absolute(typed)))
    for key in NAMES:
        typed = OmegaConf.select(config, key)
        if typed is not None:
            OmegaConf.update(config, key, located(typed))
    trainer = config.trainer
    if trainer.accelerator == "auto" and not torch.cuda.is_available():
        trainer.accelerator = "cpu"  # Apple's GPU has no float64, which positions need
    batches = trainer.max_steps * trainer.accumulate_grad_batches
    if 0 < batches < trainer.val_check_interval:
        trainer.val_check_interval = batches
    return config

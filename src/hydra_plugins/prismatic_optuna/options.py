"""The keys of `hydra.sweeper`."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatch
from typing import Any

DIRECTIONS = ("minimize", "maximize")


@dataclass
class SweeperOptions:
    """The keys of `hydra.sweeper`. A ValueError names a bad value, what is valid, what to do."""

    # tpe, gp, nsgaii, nsgaiii, random, qmc, cmaes; grid for every combination once, as Hydra's own
    # sweeper reads the values; or a node with a _target_.
    sampler: Any = "tpe"
    sampler_options: dict[str, Any] = field(default_factory=dict)  # Optuna's own arguments
    seed: int | None = None  # with one job at a time, the same seed gives the same search

    direction: Any = "minimize"  # or maximize, or a list of them; null: by the objectives' names
    maximize: list[str] = field(default_factory=list)  # patterns of the names where more is better
    objectives: Any = field(default_factory=list)  # a metric, or a list aligned with direction
    constraints: dict[str, float] = field(default_factory=dict)  # metric: upper bound

    # Null is the file study.journal in the sweep's folder; else journal:///path,
    # sqlite:///file, postgresql://..., or a node with a _target_.
    storage: Any = None
    study_name: str | None = None  # null: that of the study in the folder, or the folder's name
    shared: bool = False  # several sweeps may work on one study in a database

    n_trials: int | None = 20  # the study's total, over all its sweeps; null: the grid's size
    n_jobs: Any = "${oc.select:hydra.launcher.n_jobs,1}"
    params: dict[str, Any] = field(default_factory=dict)  # override: what follows its "="
    repeat: bool = False  # whether a point that is asked again runs again, since results vary
    enqueue: list[Any] = field(default_factory=list)  # mappings of parameters, asked first
    compare_to: Any = None  # values, as {router: dense}: the others are compared with these; null
    # stands for the best configuration
    retry: str | None = None  # failed: those that failed run again, and count no more

    # null, dominated, median, asha, hyperband; or a mapping with `rule` and the rule's options.
    pruning: Any = None
    grace_seconds: float = 60.0  # from asking a trial to stop to killing it
    max_retries: int = 2  # of a trial that was lost with its process
    max_failure_rate: float = 0.5  # of the trials that end in this sweep
    callbacks: Any = None  # a mapping or list of nodes with a _target_, see callback.py

    def __post_init__(self) -> None:
        self.objectives = as_list(self.objectives)
        given = self.direction
        if given is None:
            upwards = [any(fnmatch(name, p) for p in self.maximize) for name in self.objectives]
            given = ["maximize" if up else "minimize" for up in upwards]
        self.direction = as_list(given)
        wrong = [name for name in self.direction if name not in DIRECTIONS]
        if wrong or not self.direction:
            raise ValueError(
                f"direction={given!r}: give {' or '.join(DIRECTIONS)}, or a list of them"
            )
        if self.objectives and len(self.objectives) != len(self.direction):
            raise ValueError(
                f"objectives={self.objectives!r} has {len(self.objectives)} names, "
                f"direction={self.direction!r} has {len(self.direction)}: give one for each"
            )
        if len(set(self.objectives)) < len(self.objectives):
            raise ValueError(f"objectives={self.objectives!r}: name each metric once")
        self._check_numbers()
        for key in ("sampler", "storage"):
            node = getattr(self, key)
            if isinstance(node, Mapping) and "_target_" not in node:
                raise ValueError(f"{key}={dict(node)}: a node needs a _target_, the class to build")
        if self.sampler == "grid" and self.enqueue:
            raise ValueError("enqueue: sampler=grid tries every combination anyway; leave it out")
        mapping = self.compare_to is None or isinstance(self.compare_to, Mapping)
        if not mapping:
            raise ValueError(
                f"compare_to={self.compare_to!r}: give values of the search as a mapping, such as "
                "'hydra.sweeper.compare_to={router:dense}'"
            )
        if self.retry not in (None, "failed"):
            raise ValueError(f"retry={self.retry!r}: give failed or null")
        database = str(self.storage).partition(":")[0] not in ("None", "journal")
        if self.shared and not database and not isinstance(self.storage, Mapping):
            raise ValueError(
                f"shared=true with storage={self.storage!r}: several sweeps on one study need a "
                "database; give storage=postgresql://user@host/name"
            )

    def _check_numbers(self) -> None:
        if self.n_trials is None and self.sampler != "grid":
            raise ValueError("n_trials=null: only sampler=grid has a size; give the study's total")
        if self.n_trials is not None and self.n_trials < 1:
            raise ValueError(f"n_trials={self.n_trials}: it is the study's total, 1 or more")
        if self.n_jobs is not None and not isinstance(self.n_jobs, int):
            raise ValueError(
                f"n_jobs={self.n_jobs!r}: give a whole number; below 1 stands for all cores"
            )
        if self.max_retries < 0:
            raise ValueError(f"max_retries={self.max_retries}: give 0 or more")
        if not 0 <= self.max_failure_rate <= 1:
            raise ValueError(
                f"max_failure_rate={self.max_failure_rate}: give a share from 0 (the first "
                "failure ends the sweep) to 1 (none does)"
            )


def as_list(value: Any) -> list[Any]:
    """A text alone, or the texts of a list; of null none."""
    return [value] if isinstance(value, str) else list(value or ())

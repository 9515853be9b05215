"""What a sweep has come to, computed once for all who show it: terminal, MLflow, files, report."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf
from optuna.study import Study

from hydra_plugins.prismatic_optuna.study import CONFIG, load_study, objectives
from prismatic.files import write_text

from . import pictures, rerun
from .failures import describe_failures
from .ranking import FILE, rank, remarks, tabulate
from .runs import read_runs
from .standing import summary

if TYPE_CHECKING:
    from pandas import DataFrame

RUNS, CONFIGURATIONS = "runs.csv", FILE


@dataclass(frozen=True)
class Account:
    """A sweep as it stands; `compare_to` is the baseline's values, by default the sweep's own."""

    study: Study
    config: DictConfig
    folder: Path
    compare_to: Mapping[str, Any] | None = None

    @property
    def baseline(self) -> Mapping[str, Any] | None:
        return self.compare_to or self.study.user_attrs.get("compare_to")

    @cached_property
    def runs(self) -> "DataFrame":
        return read_runs(self.study, self.config, self.folder)

    @cached_property
    def ranking(self) -> "DataFrame":
        return rank(self.study, self.runs, self.baseline)

    @property
    def table(self) -> tuple[list[str], list[list[str]]]:
        """Head and rows."""
        return tabulate(self.study, self.ranking, self.baseline)

    @property
    def remarks(self) -> list[str]:
        return remarks(self.study, self.ranking, self.baseline)

    @property
    def title(self) -> str:
        """What the table holds."""
        better = {"MINIMIZE": "less", "MAXIMIZE": "more"}
        judged = zip(objectives(self.study), self.study.directions, strict=True)
        by = ", ".join(f"{name} ({better[d.name]} is better)" for name, d in judged)
        return f"{self.study.study_name}: configurations by {by}, the best first"

    @property
    def summary(self) -> str:
        return summary(self.study) or "no trial is complete and feasible"

    @property
    def failures(self) -> list[str]:
        return describe_failures(self.study)

    @property
    def commands(self) -> dict[str, str]:
        """What can be typed next, by what it does."""
        typed = {
            "only those that failed again": self.failures and rerun.retry_command(self.config),
            "the first of the table again": rerun.command(self.study, self.folder),
            "the best on fresh seeds": f"python src/eval.py sweep={self.folder} fresh_seeds=10",
        }
        return {what: str(command) for what, command in typed.items() if command}

    def write_tables(self) -> None:
        """Keep the runs and the configurations as CSV in the sweep's folder."""
        for name, frame in ((RUNS, self.runs), (CONFIGURATIONS, self.ranking)):
            write_text(self.folder / name, frame.to_csv(index=False))

    def draw(self, whole: bool) -> list[Path]:
        """Draw into the sweep's folder what it has to show; `whole` is with what takes longer."""
        drawings = pictures.progress_drawings(self.study, self.runs, self.ranking)
        drawings |= pictures.knob_drawings(self.study, self.runs) if whole else {}
        paths = {name: self.folder / f"{name}.png" for name in drawings}
        for name, data in pictures.draw_pictures(drawings).items():
            paths[name].write_bytes(data)
        return list(paths.values())


def read_account(folder: Path, compare_to: Mapping[str, Any] | None = None) -> Account:
    """A sweep as it lies in its folder. Raises `FileNotFoundError` or `ValueError` for no sweep."""
    study = load_study(folder)
    config = OmegaConf.load(folder / CONFIG)
    assert isinstance(config, DictConfig)
    return Account(study, config, folder, compare_to)

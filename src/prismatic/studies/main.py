"""What `src/study.py` does: run what has not run, judge the table, write the report."""

import os
import shlex
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import current_thread, main_thread
from typing import Any

import pandas as pd
from filelock import FileLock, Timeout
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from prismatic.config.command_line import explain
from prismatic.config.paths import ROOT
from prismatic.dashboard.rerun import text
from prismatic.errors import one_of, require
from prismatic.files import write_text
from prismatic.run_folder.provenance import provenance

from . import runner, writing
from .claims import Paired
from .design import written_out
from .parent import Parent
from .spec import PILOT, TIERS, Study, Tier, digest
from .verdict import judge

INTERRUPTED = 130  # a shell's exit status after Ctrl-C
ENOUGH = 4  # lines of an error
OFTEN = 10.0  # seconds between lines of progress


def main(config: DictConfig) -> None:
    """Run a study, or the summary of all. Raises `ValueError` for a list of studies."""
    for key, _, value in (one.partition("=") for one in typed()):
        one = key != "study" or not value.startswith("[")
        require(one, "study", value, "give one: `-m study=leak,floor` runs one after the other")
    build(config.study).run(config)


def build(node: DictConfig) -> "StudyRun":
    """The object that a study's YAML describes; that of the summary has no tiers.

    Probes are built by the runs: here they become overrides of them.
    """
    plain: Any = OmegaConf.to_container(node, resolve=True)
    if "tiers" not in plain:
        return instantiate(plain)
    whole = written_out(plain)
    made = instantiate({key: value for key, value in whole.items() if key != "probes"})
    probes = whole.get("probes") or {}
    given = [f"++callbacks.{name}={text(probe)}" for name, probe in probes.items()]
    return StudyRun(made, whole, given)


class StudyRun:
    """A study, the YAML it was built of, and what its runs carry beside their own overrides."""

    def __init__(self, study: Study, node: Mapping[str, Any], probes: Sequence[str] = ()) -> None:
        self.study, self.node, self.probes = study, node, list(probes)

    def run(self, config: DictConfig) -> None:
        """To the verdict; with `pilot`, to the spread of effects over pilot seeds.

        Raises `ValueError` while another process runs the same study.
        """
        one_of("tier", config.tier, TIERS)
        one_of("executor", config.executor or "fork", runner.EXECUTORS)
        enough = isinstance(config.pilot, int) and (config.pilot == 0 or config.pilot >= 2)
        require(enough, "pilot", config.pilot, "give a number of seeds >= 2, or 0 for none")
        study, tier = self.study, self.study.tier(config.tier)
        known = digest(self.node, config.tier)
        first, count = (PILOT, config.pilot) if config.pilot else (tier.first, tier.seeds)
        seeds = range(first, first + count)
        kind = f"{config.tier}-pilot" if config.pilot else config.tier
        folder = Path(config.output).absolute() / study.name / f"{kind}-{known}"
        self.announce(config.tier, len(seeds))
        planned = runner.jobs(study, tier, seeds)
        with alone(folder):
            write_text(folder / "study.yaml", OmegaConf.to_yaml(config.study, resolve=True))
            with Parent(config.logger, study, kind, known, folder) as parent:
                runs = self.measured(config, planned, folder, parent)
                if config.pilot:
                    writing.print_table(spreads(study, tier, runs))
                else:
                    self.conclude(config, known, seeds, runs, folder, parent)

    def announce(self, tier: str, num_seeds: int) -> None:
        """What is asked and what the design can find, before anything runs."""
        print(f"{self.study.name} (tier {tier}): {self.study.question}")
        rows = writing.power_rows(self.study.claims_of(self.study.tier(tier)), num_seeds)
        if rows:
            writing.print_table(pd.DataFrame(rows, columns=list(writing.POWER_HEAD)))

    def measured(
        self, config: DictConfig, planned: Sequence[runner.Job], folder: Path, parent: Parent
    ) -> pd.DataFrame:
        """The table, complete. Raises `ValueError` where a run failed."""
        waiting = [one for one in planned if not runner.is_done(folder, one)]
        if waiting:
            executor = config.executor or ("inline" if config.tier == "smoke" else "fork")
            n_jobs = config.n_jobs or len(os.sched_getaffinity(0))
            said = progress(len(planned) - len(waiting), len(planned))
            common = [*self.probes, *parent.overrides]
            together = self.study.together
            failed = runner.run(waiting, folder, together, common, n_jobs, executor, said)
            if failed:
                raise ValueError(
                    f"{len(failed)} of {len(planned)} runs failed, and an incomplete table is not "
                    f"judged. The same command runs what is missing.\n{reasons(failed, folder)}"
                )
        return runner.read_table(self.study, folder, planned)

    def conclude(
        self, config: DictConfig, known: str, seeds: Sequence[int], runs: pd.DataFrame,
        folder: Path, parent: Parent,
    ) -> None:  # fmt: skip
        study = self.study
        judged = judge(study, config.tier, runs)
        commit = provenance(ROOT).commit or "unknown"
        facts = writing.Facts(
            config.tier, known, list(seeds), len(runs), float(runs["seconds"].sum()),
            command(config), commit,
        )  # fmt: skip
        files = writing.write(study, facts, judged, runs, folder)
        parent.conclude(judged, files)
        rows = writing.finding_rows(study.claims, judged.claims)
        shown = pd.DataFrame(rows, columns=list(writing.HEAD)).drop(columns="note")
        shown["claim"] = shown["claim"].mask(shown["claim"].duplicated(), "")
        writing.print_table(shown)
        for control in judged.failed:
            print(f"control failed: {control}")
        print(f"verdict: {writing.verdict_of(judged)}\nreport:  {folder / writing.HTML}")
        print(f"MLflow:  {parent.url()}")


def command(config: DictConfig) -> str:
    """What gave these results: what was typed, where that is known."""
    own = [f"study={config.study.name}", f"tier={config.tier}"]
    if HydraConfig.initialized():
        sources = HydraConfig.get().runtime.config_sources
        folders = [one.path for one in sources if one.provider == "command-line"]
        own = [*(part for folder in folders for part in ("--config-dir", folder)), *typed()]
    return shlex.join(["python", "src/study.py", *own])


def typed() -> list[str]:
    """The overrides of the command line, where there is one."""
    return list(HydraConfig.get().overrides.task) if HydraConfig.initialized() else []


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Within the context no other process runs the study; a request to end it is like Ctrl-C."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        wanted = f"give a folder that can be written, or set PRISMATIC_OUTPUTS ({error})"
        require(False, "output", str(folder.parent.parent), wanted)
    if current_thread() is main_thread():
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with FileLock(folder / "lock", timeout=0):
            yield
    except Timeout:
        raise ValueError(f"{folder} is in use: another process runs this study") from None
    except KeyboardInterrupt:
        print("stopped: the same command goes on from here")
        sys.exit(INTERRUPTED)


def spreads(study: Study, tier: Tier, runs: pd.DataFrame) -> pd.DataFrame:
    """The mean and deviation of every paired effect: what `pilot_sd` is taken from."""
    rows = []
    for name, claim in {**study.claims_of(tier), **study.controls_of(tier)}.items():
        if isinstance(claim, Paired):
            for effect, found_N in claim.effects(runs).items():
                rows.append([name, effect, f"{found_N.mean():.4g}", f"{found_N.std(ddof=1):.3g}"])
    return pd.DataFrame(rows, columns=["claim", "effect", "mean", "standard deviation"])


def reasons(failed: Mapping[str, BaseException], folder: Path) -> str:
    """Where runs failed and why: the end of each one's error."""
    lines = []
    for place, error in failed.items():
        said = (explain(error) or str(error)).strip().splitlines()
        lines += [f"{folder / place}:", *(f"  {line}" for line in said[-ENOUGH:])]
    return "\n".join(lines)


def progress(done: int, total: int) -> Callable[[int, int], None]:
    """Says now and then how many runs have ended, and how long the rest will take."""
    begun = said = time.monotonic()
    heard = 0

    def say(ended: int, failed: int) -> None:
        nonlocal said, heard
        now = time.monotonic()
        if ended != heard and (now - said >= OFTEN or done + ended == total):
            left = (now - begun) / ended * (total - done - ended)
            line = f"{done + ended} of {total} runs"
            line += f", {failed} failed" if failed else ""
            print(f"{line}, {left / 60:.1f} min left" if left else line, flush=True)
            said, heard = now, ended

    return say

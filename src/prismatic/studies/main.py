"""What `src/study.py` does: run what has not run, judge the table, write the report."""

import os
import shlex
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from threading import current_thread, main_thread
from typing import Any, Self

import pandas as pd
from filelock import FileLock, Timeout
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from prismatic.config.command_line import explain, quote, texts
from prismatic.config.paths import ROOT, absolute
from prismatic.errors import one_of, require
from prismatic.files import append_line, write_text
from prismatic.report.page import FOLDER
from prismatic.run_folder.provenance import provenance
from prismatic.tracking import Recorder

from . import report, runner
from .claims import PairedClaim
from .design import written_out
from .study import PILOT, TIERS, Judgement, Study, Tier, digest, judge, metric_name

COMMITS = "commits.txt"  # in a study's folder: of the code that trained its runs
MLFLOW_RUN = "mlflow_run"  # in a study's folder: the id of its run in MLflow
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
    given = [f"++callbacks.{name}={quote(probe)}" for name, probe in probes.items()]
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
        folder = absolute(config.output) / study.name / f"{kind}-{known}"
        print(f"{study.name} (tier {config.tier}): {study.question}")
        if power := report.power_rows(study.claims_of(tier), count):
            report.print_table(report.POWER_HEAD, power)
        planned = runner.jobs(study, tier, seeds)
        with alone(folder):
            write_text(folder / "study.yaml", OmegaConf.to_yaml(config.study, resolve=True))
            tags = {"study": study.name, "tier": kind, "study_hash": known}
            with StudyRecord(config.logger, study, tags, folder) as record:
                runs = self.measured(config, planned, folder, record)
                if config.pilot:
                    head = ("claim", "effect", "mean", "standard deviation")
                    report.print_table(head, spread_rows(study, tier, runs))
                else:
                    self.conclude(config, known, seeds, runs, folder, record)

    def measured(
        self, config: DictConfig, planned: Sequence[runner.Job], folder: Path,
        record: "StudyRecord",
    ) -> pd.DataFrame:  # fmt: skip
        """The table, complete. Raises `ValueError` where a run failed."""
        waiting = [job for job in planned if not runner.is_done(folder, job)]
        if waiting:
            commit = provenance(ROOT).commit or "unknown"
            if commit not in commits(folder):
                append_line(folder / COMMITS, commit)
            failed = runner.train_all(
                waiting,
                folder,
                together=self.study.together,
                common=[*self.probes, *record.overrides],
                n_jobs=config.n_jobs or len(os.sched_getaffinity(0)),
                executor=config.executor or ("inline" if config.tier == "smoke" else "fork"),
                say=progress(len(planned) - len(waiting), len(planned)),
            )
            if failed:
                raise ValueError(
                    f"{len(failed)} of {len(planned)} runs failed, and an incomplete table is not "
                    f"judged. The same command runs what is missing.\n{reasons(failed, folder)}"
                )
        return runner.read_table(self.study, folder, planned)

    def conclude(
        self, config: DictConfig, known: str, seeds: Sequence[int], runs: pd.DataFrame,
        folder: Path, record: "StudyRecord",
    ) -> None:  # fmt: skip
        study = self.study
        judged = judge(study, config.tier, runs)
        facts = report.Facts(
            tier=config.tier,
            hash=known,
            seeds=list(seeds),
            runs=len(runs),
            seconds=float(runs["seconds"].sum()),
            command=command(config),
            commit=", ".join(one[:12] for one in commits(folder)) or "unknown",
            date=date.today().isoformat(),
        )
        files = report.write(study, facts, judged, runs, folder)
        record.conclude(judged, files)
        rows = report.finding_rows(study.claims, judged.claims)
        says = [row[0] for row in rows]
        shown = [["" if row[0] in says[:k] else row[0], *row[1:-1]] for k, row in enumerate(rows)]
        report.print_table(report.HEAD[:-1], shown)
        for control in judged.failed:
            print(f"control failed: {control}")
        print(f"verdict: {judged.verdict}\nreport:  {folder / report.HTML}")
        print(f"MLflow:  {record.recorder.url()}")


class StudyRecord:
    """A study's run in MLflow, above those of its arms: a new one, or that which goes on."""

    def __init__(
        self, logger: DictConfig, study: Study, tags: Mapping[str, str], folder: Path
    ) -> None:
        self.logger, self.tags, kept = logger, tags, folder / MLFLOW_RUN
        self.recorder = Recorder(
            logger.tracking_uri, logger.experiment_name, f"{study.name} ({tags['tier']})", tags,
            run_id=kept.read_text() if kept.exists() else None, spool=folder / "unsent.jsonl",
        )  # fmt: skip
        kept.write_text(self.recorder.version)
        self.end_strays()
        self.recorder.set_tags({"question": study.question, "folder": folder})
        self.recorder.log_file(folder / "study.yaml")

    @property
    def overrides(self) -> list[str]:
        """What the study's runs need to be recorded below it."""
        return [
            f"++logger.tracking_uri={quote(self.logger.tracking_uri)}",
            f"++logger.experiment_name={quote(self.logger.experiment_name)}",
            f"++logger.parent_run_id={quote(self.recorder.version)}",
            f"++tags={quote(self.tags)}",
        ]

    def conclude(self, judged: Judgement, files: Iterable[Path]) -> None:
        """Record verdicts as tags, effects as metrics, the report as artifacts."""
        tags, metrics = {"verdict": judged.verdict}, {}
        for claim, found in judged.claims.items():
            for effect, one in found.items():
                name = metric_name(f"{claim}/{effect}" if effect else claim)
                tags[f"verdict.{name}"] = one.verdict
                metrics[f"effect/{name}"] = one.estimate
        self.recorder.set_tags(tags)
        self.recorder.log_metrics(metrics)
        for file in files:
            self.recorder.log_file(file, FOLDER)

    def end_strays(self) -> None:
        """End the runs of a study that was killed: nobody else does."""
        client = self.recorder.experiment
        if client is not None:
            below = f"tags.`mlflow.parentRunId` = '{self.recorder.version}'"
            experiment = client.get_run(self.recorder.version).info.experiment_id
            for run in client.search_runs([experiment], f"{below} and status = 'RUNNING'"):
                client.set_terminated(run.info.run_id, "KILLED")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        stopped = kind is not None and issubclass(kind, KeyboardInterrupt)
        self.recorder.end("KILLED" if stopped else "FAILED" if kind else "FINISHED")


def typed() -> list[str]:
    """The overrides of the command line, where there is one."""
    return texts(HydraConfig.get().overrides.task) if HydraConfig.initialized() else []


def command(config: DictConfig) -> str:
    """What gave these results: what was typed, where that is known."""
    own = [f"study={config.study.name}", f"tier={config.tier}"]
    if HydraConfig.initialized():
        sources = HydraConfig.get().runtime.config_sources
        folders = [one.path for one in sources if one.provider == "command-line"]
        own = [*(part for folder in folders for part in ("--config-dir", folder)), *typed()]
    return shlex.join(["python", "src/study.py", *own])


def commits(folder: Path) -> list[str]:
    """The commits of the code that trained a study's runs."""
    kept = folder / COMMITS
    return kept.read_text().split() if kept.exists() else []


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Within the context no other process runs the study; a request to end it is like Ctrl-C."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        wanted = f"give a folder that can be written, or set PRISMATIC_OUTPUTS ({error})"
        require(False, "output", str(folder.parent.parent), wanted)
    here = current_thread() is main_thread()
    before = signal.signal(signal.SIGTERM, signal.default_int_handler) if here else None
    try:
        with FileLock(folder / "lock", timeout=0):
            yield
    except Timeout:
        raise ValueError(f"{folder} is in use: another process runs this study") from None
    except KeyboardInterrupt:
        print("stopped: the same command goes on from here")
        sys.exit(INTERRUPTED)
    finally:
        if here:
            signal.signal(signal.SIGTERM, before)


def spread_rows(study: Study, tier: Tier, runs: pd.DataFrame) -> list[list[str]]:
    """The mean and deviation of every paired effect: what `pilot_sd` is taken from."""
    rows = []
    for name, claim in {**study.claims_of(tier), **study.controls_of(tier)}.items():
        if isinstance(claim, PairedClaim):
            for effect, one_N in claim.effects(runs)[0].items():
                rows.append([name, effect, f"{one_N.mean():.4g}", f"{one_N.std(ddof=1):.3g}"])
    return rows


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

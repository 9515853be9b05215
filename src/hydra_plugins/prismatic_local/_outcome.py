"""From a trial that ended to its job: the result, or the reason that there is none."""

import json
import signal
from dataclasses import dataclass
from pathlib import Path

from hydra.core.utils import JobReturn, JobStatus
from omegaconf import DictConfig, OmegaConf

from ._job import RESULT
from ._server import LOST, Ended

LOG = "trial.log"
DIED = (*range(-64, 0), 128 + signal.SIGTERM)  # by a signal, or its handler
TAIL = 20  # lines of a failed trial's log that its reason shows


class TrialError(ChildProcessError):
    """A trial without a result. `lost`: its process died, and not because it was told to."""

    def __init__(self, reason: str, lost: bool) -> None:
        super().__init__(reason)
        self.lost = lost


@dataclass(frozen=True)
class Running:
    """A trial that was started."""

    slot: int
    folder: Path
    job: JobReturn

    @classmethod
    def begun(cls, slot: int, config: DictConfig) -> "Running":
        """Make its folder, without what an earlier attempt left there."""
        folder = Path(config.hydra.run.dir)
        folder.mkdir(parents=True, exist_ok=True)
        for name in (RESULT, LOG):
            (folder / name).unlink(missing_ok=True)
        job = JobReturn(
            overrides=list(config.hydra.overrides.task),
            cfg=OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"]),
            hydra_cfg=OmegaConf.masked_copy(config, "hydra"),
            working_dir=str(folder),
            task_name=config.hydra.job.name,
        )
        return cls(slot, folder, job)

    @property
    def log(self) -> Path:
        """Where the trial's output goes."""
        return self.folder / LOG

    def returned(self, ended: Ended) -> JobReturn:
        """The job with its result; without one it has failed, whatever its exit status."""
        result = self.folder / RESULT
        if result.exists():
            self.job.return_value = json.loads(result.read_text(encoding="utf-8"))
            self.job.status = JobStatus.COMPLETED
        else:
            reason = f"trial {ended.number} {ended.cause or meaning(ended.status)}: {self.log}"
            lost = ended.cause == LOST or (not ended.cause and ended.status in DIED)
            self.job.return_value = TrialError(f"{reason}\n{tail(self.log)}".rstrip(), lost)
            self.job.status = JobStatus.FAILED
        return self.job


def meaning(status: int) -> str:
    """An exit status in words; -n is killed by signal n."""
    if status == -signal.SIGKILL:
        return "was killed (out of memory?)"
    if status in DIED:
        number = -status if status < 0 else status - 128
        return f"was ended by signal {number} ({signal.strsignal(number)})"
    return "ended without a result" if status == 0 else f"failed with exit status {status}"


def tail(path: Path) -> str:
    """The last lines of a log."""
    if not path.exists():
        return ""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 10_000))
        lines = file.read().decode(errors="replace").splitlines()
    return "\n".join(lines[-TAIL:])

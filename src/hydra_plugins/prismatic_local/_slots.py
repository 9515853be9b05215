"""What a trial may use: the threads, the GPUs and the environment of its slot."""

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from hydra.errors import CompactHydraException

RANKS = ("RANK", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "SLURM_PROCID")
DISTRIBUTED = re.compile(
    r"RANK|(LOCAL|NODE|GROUP|ROLE)_RANK|((LOCAL|GROUP|ROLE)_)?WORLD_SIZE|(MASTER|TORCHELASTIC)_\w+"
    r"|SLURM_(NTASKS\w*|NPROCS|PROCID|LOCALID|NODEID)"
)
VISIBLE, OPENMP = "CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS"


def refuse_ranks(environment: Mapping[str, str]) -> None:
    """Raise in any process but the first of a distributed job."""
    for name in RANKS:
        rank = environment.get(name, "0")
        if rank.isdigit() and int(rank) > 0:
            raise CompactHydraException(
                f"{name}={rank}: a sweep runs in one process, and this is a further rank of a "
                "distributed job. Start the sweep without torchrun or srun; each of its trials "
                "starts its own ranks (hydra.launcher.executor=process)"
            )


def cores() -> int:
    """The cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def visible_gpus(environment: Mapping[str, str], devices: Path = Path("/dev")) -> list[str]:
    """The CUDA devices by the names that CUDA_VISIBLE_DEVICES takes; CUDA itself is not asked.

    A process that has initialised CUDA cannot be forked.
    """
    if VISIBLE in environment:
        names = (name.strip() for name in environment[VISIBLE].split(","))
        return [name for name in names if name not in ("", "-1")]
    found = [path for path in devices.glob("nvidia*") if re.fullmatch(r"nvidia\d+", path.name)]
    return [str(index) for index in range(len(found))]


def shared_out(gpus: Sequence[str], n_jobs: int, gpus_per_job: int) -> list[list[str]]:
    """The GPUs of each slot; slots share GPUs, in turn, where there are too few for all."""
    if gpus_per_job > len(gpus):
        raise CompactHydraException(
            f"hydra.launcher.gpus_per_job={gpus_per_job} is not valid: {len(gpus)} visible "
            f"({VISIBLE}); give 0 to {len(gpus)}"
        )
    turns = range(0, n_jobs * gpus_per_job, gpus_per_job) if gpus_per_job else [0] * n_jobs
    return [[gpus[(t + i) % len(gpus)] for i in range(gpus_per_job)] for t in turns]


def omp_threads(n_jobs: int, threads: int | None) -> int | None:
    """The OpenMP threads of a trial, or None, which leaves it to the environment.

    What a user has set there holds: several sweeps may share a machine. A single slot has all cores
    anyway: without a number of threads, ddp shares them among ranks.
    """
    shared = n_jobs > 1 and OPENMP not in os.environ
    return threads or (max(1, cores() // n_jobs) if shared else None)


def slots(
    n_jobs: int, threads: int | None, gpus_per_job: int, gpus: Sequence[str]
) -> list[dict[str, str]]:
    """The variables of each slot; those for CUDA only where it has devices."""
    variables = {"PYTHONUNBUFFERED": "1"}
    own = omp_threads(n_jobs, threads)
    if own:
        variables[OPENMP] = str(own)
    if not gpus:
        return [dict(variables) for _ in range(n_jobs)]
    owned = shared_out(gpus, n_jobs, gpus_per_job)
    return [variables | {VISIBLE: ",".join(names)} for names in owned]


def environment_of(slot: Mapping[str, str], environment: Mapping[str, str]) -> dict[str, str]:
    """The environment for a trial: it is rank 0 of its own job, whatever this process is."""
    kept = {key: value for key, value in environment.items() if not DISTRIBUTED.fullmatch(key)}
    return {**kept, **slot}

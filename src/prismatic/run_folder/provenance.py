"""Where a run came from: code, versions and hardware."""

import os
import platform
import re
import subprocess
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

PACKAGES = "torch pytorch-lightning hydra-core omegaconf mlflow optuna numpy".split()


@dataclass(frozen=True)
class Provenance:
    """Where a run came from.

    `commit` is None where there is none; `diff` is '' for a clean tree, and None where git could
    not say: a tool that fails has not seen a clean tree.
    """

    commit: str | None
    diff: str | None
    versions: dict[str, str]
    platform: str
    cpu: str
    gpu: str | None


def provenance(root: Path) -> Provenance:
    """The git state at `root`, the versions that decide a result, and the hardware.

    `diff` holds the changes of tracked files, then a line `# untracked: <name>` for each file
    that git does not know. Before the first commit every tracked file counts as changed.
    """
    # In a container the files are often another user's, which git refuses unless it is told.
    settings = ("-c", "core.quotepath=off", "-c", f"safe.directory={root}")
    git = ("git", "--no-optional-locks", "-C", str(root), *settings)
    commit = (_output(*git, "rev-parse", "--verify", "--quiet", "HEAD") or "").strip()
    base = commit or (_output(*git, "hash-object", "-t", "tree", os.devnull) or "").strip()
    diff = _output(*git, "diff", "--no-color", "--no-ext-diff", base)
    untracked = _output(*git, "ls-files", "--others", "--exclude-standard")
    if diff is not None and untracked is not None:
        diff += "".join(f"# untracked: {name}\n" for name in untracked.splitlines())
    found = {name: d.version for name in PACKAGES for d in metadata.distributions(name=name)}
    versions = {"python": platform.python_version(), **found}
    model = re.search(r"model name\s*:\s*(.+)", _output("cat", "/proc/cpuinfo") or "")
    cpu = f"{model[1] if model else platform.machine()} x {os.cpu_count()}"
    # Not torch.cuda: it would open the device in a process that may still have to fork.
    gpu = _output("nvidia-smi", "--query-gpu=name", "--format=csv,noheader")
    return Provenance(
        commit or None,
        None if untracked is None else diff,
        versions,
        platform.platform(),
        cpu,
        gpu and gpu.strip(),
    )


def _output(*command: str) -> str | None:
    """What `command` prints, or None where it is missing or fails: this must not stop a run."""
    # A git hook exports GIT_DIR and the like, which name its repository, not the one asked for.
    environment = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
    try:
        done = subprocess.run(command, env=environment, capture_output=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.decode(errors="replace") if done.returncode == 0 else None

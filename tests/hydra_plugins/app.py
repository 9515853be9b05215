"""A Hydra app for the launcher's tests: `do` names what a trial does."""

import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig


def square(config):
    time.sleep(config.seconds)
    return config.x**2


def meet(config):
    """Wait until as many trials run as `x` has values."""
    Path(config.folder, f"{config.x}.here").touch()
    until = time.monotonic() + 5
    while len(list(Path(config.folder).glob("*.here"))) < 2:
        if time.monotonic() > until:
            raise TimeoutError("nobody came")
        time.sleep(0.01)
    return config.x


def fail_at_2(config):
    print("hello from", config.x)
    if config.x == 2:
        raise LookupError("two is no good")
    return config.x


def killed(config):
    print("last words")
    os.kill(os.getpid(), signal.SIGKILL)


def killed_once(config):
    if not Path(config.folder, "died").exists():
        Path(config.folder, "died").touch()
        killed(config)
    return config.x


def not_a_number(config):
    return float("nan")


def out_of_memory(config):
    resource.setrlimit(resource.RLIMIT_AS, (2**32, 2**32))
    return len(bytearray(2**33))


def family(config):
    """Start a child, name both processes in files, and stay, deaf to SIGTERM if `x` is 0."""
    if config.x == 0:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    child = subprocess.Popen(["sleep", "60"])
    for pid in (os.getpid(), child.pid):
        Path(config.folder, f"{pid}.pid").touch()
    time.sleep(60)


def surroundings(config):
    hydra_config = HydraConfig.get()
    return {
        "pid": os.getpid(),
        "session": os.getsid(0),
        "argv": sys.argv,
        "command": sys.orig_argv,
        "environment": dict(os.environ),
        "mode": str(hydra_config.mode),
        "job": [hydra_config.job.num, hydra_config.job.id, hydra_config.job.name],
        "output_dir": hydra_config.runtime.output_dir,
        "sweep_dir": hydra_config.sweep.dir,
        "config_name": hydra_config.job.config_name,
        "y": config.get("y"),
    }


def torch_state(config):
    import torch

    threads = len(list(Path("/proc/self/task").iterdir()))
    return [threads, torch.get_num_threads(), torch.cuda.is_initialized()]


def various(config):
    import numpy as np

    infinite = float("inf")
    return [
        None,
        [1, 2.5, "text", float("nan"), -infinite],
        {"loss": np.float32(0.5), "all": np.ones(2), "node": config.hydra_like},
        object(),
    ][config.x]


@hydra.main(version_base="1.3", config_path=".", config_name="app")
def main(config):
    return globals()[config.do](config)


if __name__ == "__main__":
    main()

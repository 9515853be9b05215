"""Whose trial is it, and does that process live? Optuna records no heartbeats under ask and tell.

An owner is written `host:pid:start`, the start telling a process from a later one with its
number. On this host the process table answers; for another host a heartbeat in the study does.
"""

import os
import random
import socket
import time
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from threading import Event, Thread

from hydra.errors import HydraException
from optuna.study import Study

KEY = "owner:"
BEAT_SECONDS = 60.0
SILENCE_SECONDS = 180.0  # of an owner on another host, before it counts as dead
YOUNG_SECONDS = 2.0  # two sweeps that start at once look again, one of them later


def started(pid: int) -> str | None:
    """When a process of this host started, as an opaque text; None if it does not run."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return None if fields[0] == "Z" else fields[19]
    except OSError:
        if Path("/proc/self/stat").exists():
            return None
    try:
        os.kill(pid, 0)
    except OSError:
        return None
    return ""


def host() -> str:
    """Where process numbers mean the same: this machine, or a container on it."""
    with suppress(OSError):
        return f"{socket.gethostname()}-{os.stat('/proc/self/ns/pid').st_ino}"
    return socket.gethostname()


def identity() -> str:
    """This process as an owner."""
    return f"{host()}:{os.getpid()}:{started(os.getpid())}"


def lives(owner: str, study: Study) -> bool:
    """Does the owner's process run? Of another host: has it been heard lately?"""
    where, pid, start = owner.rsplit(":", 2)
    if where == host():
        return started(int(pid)) == start
    claim = study.user_attrs.get(KEY + owner) or {"beat": 0.0}
    return time.time() - claim["beat"] < SILENCE_SECONDS


class Ownership(AbstractContextManager["Ownership"]):
    """This process works on the study; alone, unless `shared`.

    Raises HydraException while another living sweep works on it. Beats from a thread, since a
    launcher without streaming blocks the sweeper for as long as a batch runs.
    """

    def __init__(self, study: Study, shared: bool) -> None:
        self.study, self.shared, self.name = study, shared, identity()
        self.since, self._over = 0.0, Event()
        self._thread = Thread(target=self._keep_beating, daemon=True, name="study owner")

    def __enter__(self) -> "Ownership":
        for _ in range(5):
            self.since = time.time()
            self._beat()  # first claim, then look: of two at once, at least one sees the other
            rivals = [] if self.shared else self._rivals()
            if not rivals:
                self._thread.start()
                return self
            self._release()
            if self.since - max(since for _, since in rivals) > YOUNG_SECONDS:
                break
            time.sleep(random.uniform(0.1, 1))
        raise HydraException(
            f"the study {self.study.study_name!r} is being run by {rivals[0][0]} "
            "(host:process:start). Let that sweep end, or give another hydra.sweeper.study_name; "
            "with a database as storage, hydra.sweeper.shared=true lets several work on one study. "
            f"If it was killed on another host, wait until it has been silent for "
            f"{SILENCE_SECONDS:g} seconds"
        )

    def __exit__(self, *exception: object) -> None:
        self._over.set()
        self._thread.join(timeout=5)
        with suppress(Exception):  # an error on the way out would hide the one that led here
            self._release()

    def leads(self) -> bool:
        """Is this the oldest living sweep on the study? It alone does what shall be done once."""
        return all((self.since, self.name) < (since, name) for name, since in self._rivals())

    def _rivals(self) -> list[tuple[str, float]]:
        attrs = self.study.user_attrs
        claims = {k.removeprefix(KEY): v for k, v in attrs.items() if k.startswith(KEY) and v}
        claims.pop(self.name, None)
        return [(name, c["since"]) for name, c in claims.items() if lives(name, self.study)]

    def _beat(self) -> None:
        claim = {"since": self.since, "beat": time.time()}
        self.study.set_user_attr(KEY + self.name, claim)

    def _release(self) -> None:
        self.study.set_user_attr(KEY + self.name, None)

    def _keep_beating(self) -> None:
        while not self._over.wait(BEAT_SECONDS):
            with suppress(Exception):  # the next beat may find the storage again
                self._beat()

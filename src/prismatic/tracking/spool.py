"""What the store cannot do now waits in a file, and is done later in the same order."""

import fcntl
import json
import logging
import time
import weakref
from pathlib import Path
from typing import Any, BinaryIO

from prismatic.files import append_line

from .run import Run
from .store import outage, without_password

UNSENT = "unsent.jsonl"
FACTOR = 20  # a try that failed is repeated after so many times its length: it costs at most 5 %
LOST = "the process was killed before the run's end"

log = logging.getLogger(__name__)


class Spool:
    """Calls the methods of a `Run`; while its store has an outage, calls wait in a file.

    From the first call that fails on, every call is a line `[method, arguments]` of `path`. They
    are done in order as soon as the store works again, and the file is removed: each new call tries
    that, but not within `seconds` of the last try. Every method may be repeated, so what was done
    in part can be done again from the start. The file is locked while this process may write to it.
    Without a path an outage is an error.
    """

    def __init__(self, path: Path | None = None, seconds: float = 10.0) -> None:
        self.path, self.seconds = path, seconds
        self.run = Run()
        self.file: BinaryIO | None = None  # open while anything waits
        self.done = 0  # bytes of it
        self.next_try = 0.0

    @property
    def waits(self) -> bool:
        """Whether anything waits."""
        return self.file is not None

    def call(self, method: str, **arguments: Any) -> None:
        """Call a method of the run, after all that waits."""
        if not self.waits:
            begun = time.monotonic()
            try:
                return getattr(self.run, method)(**arguments)
            except Exception as error:
                reason = outage(error)
                if self.path is None or reason is None:
                    raise
                self.begin(self.path, reason)
                self.postpone(begun)
        self.keep(method, **arguments)
        self.retry()

    def begin(self, path: Path, reason: str) -> None:
        """From now on everything waits."""
        log.warning(
            f"warning: MLflow at {without_password(self.run.tracking_uri)} cannot be written to "
            f"({reason}). The run goes on; what it logs waits in {path} and is sent as soon as "
            "that works again"
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        if self.run.run_id:
            self.keep("find", tracking_uri=self.run.tracking_uri, run_id=self.run.run_id)

    def keep(self, method: str, **arguments: Any) -> None:
        """Let a call wait."""
        assert self.path is not None
        append_line(self.path, json.dumps([method, arguments]))
        if self.file is None:
            self.file = locked(self.path)
            weakref.finalize(self, self.file.close)

    def postpone(self, begun: float) -> None:
        now = time.monotonic()
        self.next_try = now + max(self.seconds, FACTOR * (now - begun))

    def retry(self, now: bool = False) -> None:
        """Do what waits, if it is time to try again or `now`."""
        begun = time.monotonic()
        if self.file is None or not (now or begun >= self.next_try):
            return
        try:
            self.replay()
        except Exception as error:
            if outage(error) is None:
                raise
            self.postpone(begun)
        else:
            self.close()
            log.info("MLflow can be written to again: all that waited has been sent")

    def replay(self) -> None:
        """Do what waits, but for what this object has done of it before."""
        assert self.file is not None
        self.run.again = True
        self.file.seek(self.done)
        for line in self.file:
            if line.endswith(b"\n"):  # else a kill tore it
                method, arguments = json.loads(line)
                getattr(self.run, method)(**arguments)
            self.done += len(line)

    def close(self) -> None:
        """Remove the file: nothing waits any more."""
        assert self.file is not None and self.path is not None
        self.path.unlink()
        self.file.close()
        self.file, self.done = None, 0


def locked(path: Path) -> BinaryIO:
    """The file for reading, locked until it is closed. Raises `BlockingIOError`."""
    file = path.open("rb")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise BlockingIOError(f"{path} is of a run that goes on and sends it itself") from None
    return file


def send(path: Path) -> list[Run]:
    """Send what waits in a file, or in the run folders at and below a folder; the runs.

    Each file is removed when all of it has arrived. A run without an end is ended as KILLED.
    """
    files = [path] if path.is_file() else sorted(path.rglob(UNSENT))
    if not files:
        raise FileNotFoundError(f"nothing waits to be sent: {path} holds no {UNSENT}")
    return [_send(file) for file in files]


def _send(path: Path) -> Run:
    spool = Spool(path)
    run = spool.run
    with locked(path) as spool.file:
        try:
            spool.replay()
            if run.status == "RUNNING":
                run.set_tags({"reason": LOST})
                run.end("KILLED", int(path.stat().st_mtime * 1000))
        except Exception as error:
            reason = outage(error)
            if reason is None:
                raise
            raise ConnectionError(
                f"MLflow at {without_password(run.tracking_uri)} cannot be written to ({reason}): "
                f"{path} is kept; try again later"
            ) from error
        spool.close()
    return run

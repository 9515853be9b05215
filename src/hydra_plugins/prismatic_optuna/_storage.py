"""Where a study is kept: a journal file, a database, or a node with a `_target_`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hydra.utils import instantiate
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock

VALID = "journal:///path, sqlite:///file, postgresql://user@host/name, or a node with a _target_"


def open_storage(storage: Any, sweep_dir: Path) -> BaseStorage:
    """Open, and create if missing. ValueError for an address that says nothing."""
    if isinstance(storage, Mapping):
        return instantiate(dict(storage))
    if storage is None:
        return open_journal(sweep_dir / "study.journal")
    if not isinstance(storage, str) or "://" not in storage:
        raise ValueError(f"storage={storage!r}: give null (a file in the sweep's folder), {VALID}")
    scheme, _, rest = storage.partition("://")
    if scheme == "journal":
        return open_journal(Path(rest))
    if not scheme.startswith("sqlite"):
        return RDBStorage(storage, engine_kwargs={"pool_pre_ping": True})
    Path(rest.removeprefix("/")).absolute().parent.mkdir(parents=True, exist_ok=True)
    return RDBStorage(storage, engine_kwargs={"connect_args": {"timeout": 60}})


def open_journal(path: Path) -> JournalStorage:
    """A journal that survives the death of its writer: a lock left behind holds for 3 s."""
    path = path.absolute()
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = JournalFileSymlinkLock(str(path), grace_period=3)
    if path.exists():
        lock.acquire()
        try:
            drop_torn_line(path)
        finally:
            lock.release()
    return JournalStorage(JournalFileBackend(str(path), lock_obj=lock))


def drop_torn_line(path: Path) -> None:
    """Cut a last line without an end: what follows would make the whole journal unreadable."""
    with path.open("r+b") as file:
        size = file.seek(0, 2)
        file.seek(max(size - 2**20, 0))
        tail = file.read()
        torn = len(tail) - (tail.rfind(b"\n") + 1)
        if torn:
            file.truncate(size - torn)

"""Where a study is kept: a journal file, a database, or a node with a `_target_`."""

import random
import re
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from hydra.utils import instantiate
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock
from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError

VALID = "journal:///path, sqlite:///file, postgresql://user@host/name, or a node with a _target_"
OPTIONS = re.compile(r"\?\w+=")  # of an address: what stands before is escaped as in any URL
PAUSES = (0.5, 1.0, 2.0)  # seconds


def open_storage(storage: Any, sweep_dir: Path) -> BaseStorage:
    """Open, and create if missing. ValueError for an address that says nothing.

    What follows `journal://` and `sqlite:///` is a path as it is, without escapes.
    """
    if isinstance(storage, Mapping):
        return instantiate(dict(storage))
    if storage is None:
        return open_journal(sweep_dir / "study.journal")
    if not isinstance(storage, str) or "://" not in storage:
        raise ValueError(f"storage={storage!r}: give null (a file in the sweep's folder), {VALID}")
    scheme, _, rest = storage.partition("://")
    if scheme == "journal":
        return open_journal(Path(rest).expanduser())
    if not scheme.startswith("sqlite") or OPTIONS.search(rest):
        try:
            return open_database(make_url(storage), {"pool_pre_ping": True})
        except ArgumentError:
            raise ValueError(f"storage={storage!r}: give null, {VALID}") from None
    path = Path(rest.removeprefix("/")).expanduser().absolute()
    path.parent.mkdir(parents=True, exist_ok=True)
    return open_database(URL.create(scheme, database=str(path)), {"connect_args": {"timeout": 60}})


def open_database(url: URL, engine: dict[str, Any]) -> RDBStorage:
    """Open a database. Of several sweeps that create its tables at once, all but one try again."""
    # Escaped, also the braces, which Optuna would take for a template.
    address, shown = (url.render_as_string(hide_password=hide) for hide in (False, True))
    try:
        for pause in PAUSES:
            with suppress(DBAPIError):
                return RDBStorage(address, engine_kwargs=engine)
            time.sleep(random.uniform(0, pause))
        return RDBStorage(address, engine_kwargs=engine)
    except ImportError:
        raise ValueError(
            f"storage={shown}: python has no driver for this database; PostgreSQL's is installed "
            "by pip install 'psycopg[binary]'"
        ) from None
    except DBAPIError as error:
        raise ValueError(f"storage={shown} cannot be opened: {error.orig}") from error


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

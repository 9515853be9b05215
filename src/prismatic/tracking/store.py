"""MLflow's stores: their addresses, a client, an experiment, and whether an error will pass."""

import logging
import os
import re
import shlex
import sqlite3
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from prismatic.config.paths import absolute, sqlite_uri, store
from prismatic.errors import FULL_DISK, causes, require

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

ARTIFACTS = "mlartifacts"  # the folder beside the database
PASSING = {  # what sqlite says when a database is in use or a disk is full
    sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR,
}  # fmt: skip
# Without these MLflow's UI opens an experiment as a collection of chat traces, and shows no runs.
TRAINING = {"mlflow.experimentKind": "custom_model_development"}
WORKFLOW = "workflowType=machine_learning"


def sqlite_path(tracking_uri: str, folder: Path | None = None) -> Path | None:
    """The file of a sqlite store; None for a store of another kind.

    A relative one starts at `folder`, or where the command was typed.
    """
    from sqlalchemy import make_url

    if not tracking_uri.startswith(("sqlite:", "sqlite+")):
        return None
    file = make_url(tracking_uri).database
    require(bool(file), "tracking_uri", tracking_uri, "name a file: sqlite:////folder/mlflow.db")
    return Path(os.path.normpath(absolute(folder / str(file) if folder else str(file))))


def connect(tracking_uri: str) -> "MlflowClient":
    """A client for the store. A missing sqlite store is created, once for all that ask."""
    from mlflow import MlflowClient
    from sqlalchemy.exc import DatabaseError

    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(os.environ.get("MLFLOW_LOGGING_LEVEL", "WARNING"))
    for name in ("mlflow.store.db.utils", "urllib3.connectionpool"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # they print the errors that they raise
    path = sqlite_path(tracking_uri)
    if path is not None:
        if not path.exists():
            create_sqlite(path)
        path.open("rb").close()  # MLflow tries for minutes to open what cannot be opened
    try:
        client = MlflowClient(tracking_uri=tracking_uri)
        if path is not None:
            follow_move(path)
        return client
    except DatabaseError as error:
        if outage(error):
            raise
        raise ValueError(
            f"tracking_uri={without_password(tracking_uri)} is no database of MLflow ({error.orig})"
        ) from error


def create_sqlite(path: Path) -> None:
    """Build the database under another name: a file at `path` is always a whole store."""
    from filelock import FileLock
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    path.parent.mkdir(parents=True, exist_ok=True)
    lock = path.with_name(f"{path.name}.lock")
    lock.touch()  # says what is wrong with a folder; FileLock would wait
    with FileLock(lock):
        if not path.exists():
            draft = path.with_name(f"{path.name}.draft")
            draft.unlink(missing_ok=True)  # left by a process that died here
            # An address and not a path: MLflow decodes what stands after a % in either.
            made = SqlAlchemyStore(sqlite_uri(draft), path.with_name(ARTIFACTS).as_uri())
            made.engine.dispose()
            draft.rename(path)


def follow_move(path: Path) -> None:
    """Let a store that was moved or copied with the outputs name its artifacts and runs as here.

    MLflow keeps absolute addresses: it would go on writing to the old place, and make it anew. The
    default experiment tells where the database was made, if that was by `create_sqlite`.
    """
    from mlflow.utils.file_utils import local_file_uri_to_path
    from sqlalchemy import NullPool, create_engine, text

    addresses = "experiments.artifact_location", "runs.artifact_uri"
    here = path.with_name(ARTIFACTS)
    with create_engine(sqlite_uri(path), poolclass=NullPool).connect() as database:
        query = "SELECT artifact_location FROM experiments WHERE experiment_id = 0"
        known, _, end = (database.execute(text(query)).scalar() or "").rpartition("/")
        there = Path(local_file_uri_to_path(known))
        if end != "0" or there.name != ARTIFACTS or there == here:
            return
        moved = {name: (known, here.as_uri()) for name in addresses}
        moved["tags.value"] = str(there.parent), str(here.parent)
        for name, (old, new) in moved.items():
            table, column = name.split(".")
            only = " AND key IN ('run_dir', 'folder')" if table == "tags" else ""
            change = text(
                f"UPDATE {table} SET {column} = :new || substr({column}, :length + 1)"
                f" WHERE substr({column} || '/', 1, :length + 1) = :old || '/'{only}"
            )
            database.execute(change, {"old": old, "new": new, "length": len(old)})
        database.commit()


def experiment_id(client: "MlflowClient", name: str, tracking_uri: str) -> str:
    """The id of the experiment, which is created if it is missing."""
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is not None and found.lifecycle_stage == "deleted":
        raise ValueError(
            f"the experiment {name!r} of {without_password(tracking_uri)} is deleted: give another "
            "logger.experiment_name, or restore it by mlflow experiments restore --experiment-id "
            f"{found.experiment_id}, with MLFLOW_TRACKING_URI set to that address"
        )
    if found is None:
        path = sqlite_path(tracking_uri)
        location = path.with_name(ARTIFACTS).as_uri() if path else None
        try:
            return client.create_experiment(name, location, tags=TRAINING)
        except MlflowException:
            found = client.get_experiment_by_name(name)
            if found is None:  # otherwise another process was quicker
                raise
    return found.experiment_id


def find_run(client: "MlflowClient", run_id: str, tracking_uri: str) -> "Run":
    """A run by its id. Raises `ValueError` for one that is missing or deleted."""
    from mlflow.exceptions import MlflowException

    try:
        run = client.get_run(run_id)
        state = "deleted" if run.info.lifecycle_stage == "deleted" else ""
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        state = "missing"
    if state:
        raise ValueError(
            f"the run {run_id} of {without_password(tracking_uri)} is {state}: copy the id of "
            "another one from MLflow's UI, or name its store by MLFLOW_TRACKING_URI"
        )
    return run


def outage(error: BaseException) -> str | None:
    """What keeps the store from doing now what it may do later; None if a user has to mend it.

    It gives no answer, is too busy or broken (status 429 or 5xx), is locked, or its disk is full.
    """
    from requests import exceptions as http
    from sqlalchemy.exc import OperationalError

    for cause in causes(error):
        if isinstance(cause, http.SSLError):
            return None
        if isinstance(cause, http.ConnectionError | http.RetryError | http.ChunkedEncodingError):
            reason = getattr(cause.args[0], "reason", cause)
            return str(reason.__cause__ or reason)
        if isinstance(cause, OperationalError):
            code = getattr(cause.orig, "sqlite_errorcode", None)
            passing = code is None or code & 0xFF in PASSING  # the other bits say where
            return str(cause.orig) if passing else None
        if isinstance(cause, OSError) and cause.errno in FULL_DISK:
            return str(cause)
    return None


def without_password(tracking_uri: str) -> str:
    """The store's address as it may be shown."""
    return re.sub(r"//([^:/@]*):[^/@]*@", r"//\1:***@", tracking_uri)


def page(tracking_uri: str, experiment_id: str, run_id: str) -> str:
    """Where a person finds a run: its address, below the command that serves a local store."""
    path = f"/#/experiments/{experiment_id}/runs/{run_id}?{WORKFLOW}"
    shown = without_password(tracking_uri)
    if shown.startswith("http"):
        return shown.rstrip("/") + path
    command = f"mlflow ui --backend-store-uri {shlex.quote(shown)} --host 127.0.0.1"
    return f"{command}\nhttp://127.0.0.1:5000{path}"


def serve(port: str) -> None:
    """What `make ui` does: MLflow's own server for the store that a run would use."""
    uri = store()
    if uri.startswith("http"):
        print(f"the store has a server of its own: open {without_password(uri)}")
        return
    connect(uri)
    print(f"open http://127.0.0.1:{port}/#/experiments?{WORKFLOW}", flush=True)
    options = ["--backend-store-uri", uri, "--host", "127.0.0.1", "--port", port]
    os.execv(sys.executable, [sys.executable, "-m", "mlflow", "ui", *options])

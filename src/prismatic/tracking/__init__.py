"""Runs in MLflow, written in batches and through an outage of the store.

Reading order: `store.py` (the store and its errors), `run.py` (a run in it, and what waits while
the store has an outage), `recorder.py`, `logger.py` (the recorder as a Lightning logger; by itself,
since a sweep's own process is to be there without Lightning).
"""

import os

from .recorder import SCORE, Recorder, flatten, objective_metric
from .run import UNSENT, send
from .store import WORKFLOW, connect

# Telemetry reports to MLflow's makers from a thread: only for a user who asks for it. MLflow reads
# this as it is imported, which the fork server of a sweep does before anything connects.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
# MLflow's own patience is minutes: its retries would hold up training, which has the spool.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")  # a connection may have been closed
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")

__all__ = [
    "SCORE", "UNSENT", "WORKFLOW", "Recorder", "connect", "flatten", "objective_metric", "send",
]  # fmt: skip

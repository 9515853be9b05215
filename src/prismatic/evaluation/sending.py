"""Sends to MLflow what waited in files while MLflow could not be reached."""

from pathlib import Path
from typing import Any

from prismatic.tracking import send


def main(config: Any) -> None:
    """What `src/eval.py send=` does."""
    for run in send(Path(config.send).expanduser()):
        print(f"sent: {run.page}")

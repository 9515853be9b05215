"""How MLflow's UI shows sweeps: python tests/sweeps/screenshots.py <outputs> <folder for PNGs>

Starts MLflow on the store of an output folder and photographs, for every sweep in it, its page, its
pictures and its trials as a table and as charts, with a headless Chromium.
"""

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-sync "
    "--disable-component-update --disable-background-networking --window-size=1900,1200 "
    "--virtual-time-budget=30000"
).split()
WORKFLOW = "workflowType=machine_learning"


@contextmanager
def served(uri: str) -> Iterator[str]:
    """MLflow's UI on a free port of this machine, for as long as the context lasts."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    command = [sys.executable, "-m", "mlflow", "ui", "--backend-store-uri", uri, "--workers", "1"]
    process = subprocess.Popen(
        [*command, "--host", "127.0.0.1", "--port", port], start_new_session=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    address = f"http://127.0.0.1:{port}/"
    try:
        wait_for(address, process)
        yield address
    finally:
        os.killpg(process.pid, 15)
        process.wait()


def wait_for(address: str, process: subprocess.Popen[bytes]) -> None:
    """Until the server answers, two minutes at most."""
    until = time.monotonic() + 120
    while time.monotonic() < until and process.poll() is None:
        try:
            with urlopen(address):
                return
        except URLError:
            time.sleep(0.3)
    raise TimeoutError(f"mlflow ui does not answer at {address}")


def visit(address: str, picture: Path) -> str:
    """Photograph a page; its document as the browser made it."""
    assert CHROMIUM, "apt-get install chromium"
    with tempfile.TemporaryDirectory() as profile:
        wanted = [f"--user-data-dir={profile}", f"--screenshot={picture}", "--dump-dom"]
        done = subprocess.run(
            [CHROMIUM, *FLAGS, *wanted, address], capture_output=True, text=True, timeout=300,
            check=True,
        )  # fmt: skip
    return done.stdout


def pages(uri: str) -> dict[str, dict[str, str]]:
    """By the name of each sweep, its pages as addresses below the server's."""
    from mlflow import MlflowClient

    client = MlflowClient(uri)
    found = {}
    for experiment in client.search_experiments():
        here = f"#/experiments/{experiment.experiment_id}/runs"
        for run in client.search_runs([experiment.experiment_id]):
            if f"mlflow.sharedViewState.{run.info.run_id}" not in experiment.tags:
                continue
            shared = f"{here}?{WORKFLOW}&viewStateShareKey={run.info.run_id}"
            found[run.info.run_name] = {
                "runs": f"{here}?{WORKFLOW}",
                "page": f"{here}/{run.info.run_id}?{WORKFLOW}",
                "report": f"{here}/{run.info.run_id}/artifacts/report.html?{WORKFLOW}",
                "front": f"{here}/{run.info.run_id}/artifacts/front.png?{WORKFLOW}",
                "table": shared,
                "charts": f"{shared}&compareRunsMode=CHART",
            }
    return found


def photograph(uri: str, folder: Path) -> dict[str, dict[str, str]]:
    """Photograph every page into the folder; their documents by sweep and page."""
    folder.mkdir(parents=True, exist_ok=True)
    with served(uri) as address:
        return {
            sweep: {
                page: visit(address + below, folder / f"{sweep}-{page}.png".replace(" ", "_"))
                for page, below in addresses.items()
            }
            for sweep, addresses in pages(uri).items()
        }


if __name__ == "__main__":
    outputs, target = map(Path, sys.argv[1:])
    photograph(f"sqlite:///{outputs.absolute()}/mlflow.db", target)
    print("\n".join(map(str, sorted(target.glob("*.png")))))

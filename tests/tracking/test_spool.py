"""An outage of the store: what waits arrives later, as if nothing had happened."""

import json
import logging
import shutil
import threading
import time
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count, repeat
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mlflow.exceptions import MlflowException
from mlflow.utils.file_utils import local_file_uri_to_path

from prismatic import tracking
from prismatic.replicas import run
from prismatic.tracking import UNSENT, connect, send
from prismatic.tracking.logger import MLflowLogger
from prismatic.tracking.run import RunWriter
from prismatic.tracking.store import sqlite_path

from ..tiny import tiny

NOWHERE = "http://127.0.0.1:1"  # nothing listens on that port
REFUSED = "[Errno 111] Connection refused"


@pytest.fixture(scope="module")
def refused():
    """What MLflow really raises where nothing listens."""
    with pytest.raises(MlflowException) as raised:
        connect(NOWHERE).get_run("0" * 32)
    return raised.value


class Faulty:
    """MLflow's client for a store that breaks `before`, or `after`, it has done a call."""

    def __init__(self, client, faults, error):
        self.client, self.faults, self.error = client, faults, error

    def __getattr__(self, name):
        def call(*arguments, **named):
            fault = next(self.faults, None)
            if fault == "before":
                raise self.error
            result = getattr(self.client, name)(*arguments, **named)
            if fault == "after":
                raise self.error
            return result

        return call


@pytest.fixture
def faulty(monkeypatch, refused):
    """Lets the next calls of MLflow's client break: faulty(["before", None, "after"])."""
    monkeypatch.setattr(tracking.run, "RETRY_FACTOR", 0)

    def breaking(faults):
        faults = iter(faults)
        monkeypatch.setattr(
            tracking.run, "connect", lambda uri: Faulty(connect(uri), faults, refused)
        )

    return breaking


def whole_run(store, folder, **options):
    """Everything that can be logged; the store's record of it, sent where it was not yet."""
    plot = folder / "plot.png"
    plot.write_bytes(bytes(range(256)) * 3)
    ticks = count(1_700_000_000_000)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tracking.recorder, "milliseconds", lambda: next(ticks))
        logger = MLflowLogger(
            store, run_name="a run", tags={"focal": "none"}, buffer=3, spool=folder / UNSENT,
            **options,
        )  # fmt: skip
        logger.log_hyperparams({"model": {"dim": 16}, "long": "x" * 7000})
        logger.log_artifact_text("config/größe.yaml", "größe: 1\n")
        for step in range(4):
            logger.log_metrics({"loss/train": 1 / (step + 1), "nan": float("nan")}, step)
        logger.set_tags({"leaky": True, "note": "first"})
        logger.log_file(plot, "plots")
        logger.log_hyperparams({"model": {"dim": 32}})
        logger.set_tags({"note": "second"})
        logger.log_metrics({"loss/val": 0.5}, 4)
        logger.end("FAILED", "ValueError: so it is")
    if not logger.spool.file:
        return stored(store, logger.version)
    logger.spool.file.close()  # as the process's end does
    while True:
        with suppress(ConnectionError):
            [sent] = send(folder)
            return stored(store, sent.run_id)


def stored(store, run_id):
    """All that the store has of a run, but for what must differ between two of them."""
    client = connect(store)
    found = client.get_run(run_id)
    history = {
        key: [(m.step, m.timestamp, repr(m.value)) for m in client.get_metric_history(run_id, key)]
        for key in found.data.metrics
    }
    folder, info = Path(local_file_uri_to_path(found.info.artifact_uri)), found.info
    files = {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    tags = {name: value for name, value in found.data.tags.items() if name != "uid"}
    return info.status, info.start_time, info.end_time, found.data.params, tags, history, files


@pytest.fixture(scope="module")
def undisturbed(store, tmp_path_factory):
    return whole_run(store, tmp_path_factory.mktemp("undisturbed"))


@given(st.lists(st.sampled_from([None, "before", "after"]), max_size=60), st.booleans())
@settings(max_examples=6)
def test_what_arrives_late_is_what_arrives_at_once(
    store, undisturbed, refused, tmp_path_factory, faults, patient
):
    folder, remaining = tmp_path_factory.mktemp("run"), iter(faults)
    with pytest.MonkeyPatch.context() as patch:
        client = lambda uri: Faulty(connect(uri), remaining, refused)  # noqa: E731
        patch.setattr(tracking.run, "connect", client)
        assert whole_run(store, folder, flush_seconds=1e9 if patient else 0) == undisturbed
    assert not (folder / UNSENT).exists()


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["before", "after"])
@pytest.mark.parametrize("first", range(24))
def test_an_outage_at_every_call(store, undisturbed, faulty, tmp_path, first, fault):
    faulty([*repeat(None, first), fault])
    assert whole_run(store, tmp_path, flush_seconds=1e9) == undisturbed


def test_one_run_is_created_however_often_it_is_tried(store, faulty, tmp_path):
    client = connect(store)
    faulty([None, None, "after", None, None, "after"])  # the third call creates a new run
    logger = MLflowLogger(store, "once", spool=tmp_path / UNSENT, flush_seconds=0)
    for step in range(4):
        logger.log_metrics({"a": 1.0}, step)
    logger.finalize("success")
    [run] = client.search_runs([client.get_experiment_by_name("once").experiment_id])
    assert (run.info.run_id, run.info.status) == (logger.version, "FINISHED")
    assert [m.step for m in client.get_metric_history(logger.version, "a")] == [0, 1, 2, 3]


def test_nothing_is_written_to_disk_while_the_store_works(store, tmp_path):
    logger = MLflowLogger(store, spool=tmp_path / "run" / UNSENT)
    logger.log_metrics({"a": 1.0})
    logger.finalize("success")
    assert not (tmp_path / "run").exists() and not logger.unsent


def test_an_outage_is_told_once_and_its_end_too(store, faulty, tmp_path, caplog):
    caplog.set_level(logging.INFO, "prismatic")
    faulty(repeat("before", 5))
    logger = MLflowLogger(store, spool=tmp_path / UNSENT, flush_seconds=0)
    for step in range(10):
        logger.log_metrics({"a": 1.0}, step)
    first, last = [record.message for record in caplog.records]
    assert f"MLflow at {store} cannot be written to ({REFUSED})" in first
    assert f"waits in {tmp_path / UNSENT}" in first
    assert "all that waited has been sent" in last


def test_a_run_that_never_reaches_the_store_says_how_to_send_it(tmp_path, caplog):
    caplog.set_level(logging.INFO, "prismatic")
    address = f"{NOWHERE.replace('//', '//me:secret@')}"
    begun = time.monotonic()
    logged = ["logger=mlflow", f"logger.tracking_uri={address}", "seeds=[0,1]"]
    assert run(tiny(*logged, "callbacks=none"), tmp_path) < 4
    assert time.monotonic() - begun < 60
    said = [record.message for record in caplog.records]
    assert sum("cannot be written to" in message for message in said) == 1
    assert said[-1].endswith(f"python src/eval.py send={tmp_path}")
    assert f"{tmp_path / UNSENT} waits for MLflow at http://me:***@127.0.0.1:1\n" in said[-1]
    assert "secret" not in " ".join(said)
    calls = [json.loads(line) for line in (tmp_path / UNSENT).read_text().splitlines()]
    assert [calls[k][0] for k in (0, -1)] == ["create", "end"]
    assert calls[-1][1]["status"] == "FINISHED"


def test_tries_cost_little_time(store, monkeypatch, tmp_path, refused):
    clock = SimpleNamespace(now=0.0, tried=0.0)

    def hanging(uri):
        clock.now += 20
        clock.tried += 20
        raise refused

    monkeypatch.setattr(time, "monotonic", lambda: clock.now)
    monkeypatch.setattr(tracking.run, "connect", hanging)
    logger = MLflowLogger(store, spool=tmp_path / UNSENT)
    while clock.now < 10_000:
        logger.log_metrics({"a": 1.0})
        clock.now += 1
    assert 0.03 < clock.tried / clock.now < 0.06


def test_what_was_sent_is_not_sent_again_by_the_run_itself(store, faulty, tmp_path, monkeypatch):
    sizes = []
    write = RunWriter.log_metrics
    monkeypatch.setattr(
        RunWriter, "log_metrics",
        lambda self, metrics: (write(self, metrics), sizes.append(len(metrics)))[0],
    )  # fmt: skip
    faulty(["before", *repeat(None, 4), "before", None, "before"])
    logger = MLflowLogger(store, spool=tmp_path / UNSENT, buffer=2, flush_seconds=0)
    for step in range(6):
        logger.log_metrics({"a": 1.0, "b": 1.0}, step)
    logger.finalize("success")
    assert sizes == [2] * 6


def respond(status, body=b"<html>", kind="text/html"):
    """A server that says the same to everything; its address."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_PUT = do_GET

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server, f"http://127.0.0.1:{server.server_address[1]}"


@pytest.mark.parametrize("status", [200, 301, 401, 404, 429, 500, 503])
def test_a_wrong_answer_is_an_error_and_a_busy_server_is_waited_for(status, tmp_path):
    server, address = respond(status)
    logger = MLflowLogger(address, spool=tmp_path / UNSENT)
    try:
        if status in (429, 500, 503):
            logger.log_hyperparams({"a": 1})
            assert logger.spool.file and logger.version == ""
        else:
            with pytest.raises(MlflowException):
                logger.log_hyperparams({"a": 1})
            logger.finalize("failed")
            assert list(tmp_path.iterdir()) == []
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize(
    ("address", "named"),
    [
        ("foo://x", "unsupported URI 'foo://x'"),
        ("http:/127.0.0.1", "Invalid url: http:/127.0.0.1"),
        ("sqlite:////proc/mlflow.db", "/proc/mlflow.db.lock"),
        ("sqlite:///TMP/notes.txt", "notes.txt is no database of MLflow"),
        ("sqlite:///TMP", "Is a directory"),
    ],
)
def test_a_wrong_address_is_one_error_before_training(address, named, script, tmp_path):
    (tmp_path / "notes.txt").write_text("some notes\n" * 100)
    address = address.replace("TMP", str(tmp_path))
    options = "model=tiny data=iid trainer.max_steps=100000 trainer.accelerator=cpu".split()
    outcome = script("train", *options, f"logger.tracking_uri={address}")
    assert outcome.status == 1
    assert named in outcome.err and outcome.err.count("error: ") == 1
    assert not list((tmp_path / "outputs").rglob(UNSENT))


def test_an_unknown_run_id_is_an_error(store, tmp_path):
    logger = MLflowLogger(store, run_id="0123" * 8, spool=tmp_path / UNSENT)
    with pytest.raises(ValueError, match="is missing"):
        logger.log_metrics({"a": 1.0})
        logger.flush()
    assert list(tmp_path.iterdir()) == []


def test_without_a_file_an_outage_is_an_error():
    with pytest.raises(MlflowException, match="Connection refused"):
        _ = MLflowLogger(NOWHERE).version


def test_a_run_that_goes_on_cannot_be_sent_and_one_that_was_killed_can(store, faulty, tmp_path):
    faulty(["before"])
    logger = MLflowLogger(store, spool=tmp_path / UNSENT)
    logger.log_metrics({"a": 1.0})
    logger.flush()
    with pytest.raises(BlockingIOError, match="is of a run that goes on and sends it itself"):
        send(tmp_path)
    logger.spool.file.close()
    with (tmp_path / UNSENT).open("a") as file:
        file.write('["log_metrics", {"metr')  # killed while it wrote
    [sent] = send(tmp_path)
    found = connect(store).get_run(sent.run_id)
    assert (found.info.status, found.data.metrics) == ("KILLED", {"a": 1.0})
    assert found.data.tags["reason"] == "the process was killed before the run's end"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("faults", [["before"], [None, None, "before"]], ids=["create", "find"])
def test_what_waits_in_outputs_that_were_moved_goes_to_the_store_that_moved_along(
    store, faulty, faults, tmp_path
):
    outputs = tmp_path / "outputs"
    shutil.copytree(sqlite_path(store).parent, outputs)
    faulty(faults)
    logger = MLflowLogger(f"sqlite:///{outputs}/mlflow.db", spool=outputs / "runs" / "1" / UNSENT)
    logger.log_metrics({"a": 1.0})
    logger.flush()
    logger.spool.file.close()
    moved = outputs.rename(tmp_path / "moved")
    [sent] = send(moved)
    assert connect(f"sqlite:///{moved}/mlflow.db").get_run(sent.run_id).data.metrics == {"a": 1.0}
    assert not outputs.exists()


def test_send_from_the_command_line(store, faulty, tmp_path, script):
    faulty(repeat("before"))
    for name in ("one", "two"):
        logger = MLflowLogger(store, name, spool=tmp_path / name / UNSENT)
        logger.log_metrics({"a": 1.0})
        logger.end("FINISHED")
        logger.spool.file.close()
    faulty([None, "before"])
    outcome = script("eval", f"send={tmp_path}")
    kept = tmp_path / "one" / UNSENT
    assert outcome.status == 1 and "Traceback" not in outcome.err
    assert f"({REFUSED}): {kept} is kept; try again later" in outcome.err
    outcome = script("eval", f"send={kept}")
    assert outcome.status == 0 and "/runs/" in outcome.out and not kept.exists()
    assert script("eval", f"send={tmp_path}").status == 0
    assert not list(tmp_path.rglob(UNSENT))
    outcome = script("eval", f"send={tmp_path}")
    assert outcome.status == 1 and f"nothing waits to be sent: {tmp_path} holds no" in outcome.err

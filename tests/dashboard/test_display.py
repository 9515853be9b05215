"""What the terminal shows, and what a file gets in its place."""

import io
import json
import logging
import sys
from itertools import takewhile

import pytest
from rich.console import Console

from prismatic.dashboard import display
from prismatic.dashboard.display import Display

from ..hydra_plugins.toys import Stepwise

NODE = {"_target_": "prismatic.dashboard.display.Display"}
ONE = {"objectives": ["loss"], "direction": "minimize", "callbacks": [NODE]}
TWO = {"objectives": ["gain", "cost"], "direction": ["maximize", "minimize"], "callbacks": [NODE]}


def job(params, folder):
    if folder.name == "1":
        raise ValueError("no luck")
    return {"loss": params["x"], "gain": params["x"], "cost": params["x"] ** 2}


def rows_of(text):
    """The first words of a table's lines below its head."""
    lines = text[text.index("───") :].splitlines()[1:]
    return [line.split()[0] for line in takewhile(str.strip, lines)]


def test_a_file_gets_plain_lines(sweep, capsys, caplog):
    caplog.set_level(logging.INFO)
    study = sweep.run(job, n_trials=4, seed=0, **ONE)
    out = capsys.readouterr().out
    assert not any(ord(letter) < 32 and letter != "\n" for letter in out + caplog.text)
    assert "sweep: configurations by loss (less is better), the best first" in out
    best = sorted((t for t in study.trials if t.value is not None), key=lambda t: t.value)
    assert rows_of(out) == [str(trial.number) for trial in best]
    assert f"{best[0].params['x']:.5g}" in out
    assert "1 of 4 failed:\n  1 x ValueError: no luck (trial 1)\n" in out
    assert "each configuration ran on one seed, so a difference may be chance" in out
    assert f"sweep folder:  {sweep.dir}\n" in out
    said = [m for m in caplog.messages if m.startswith("1 of 4 trials finished")]
    assert len(said) == 1 and "1 complete" in said[0] and "about" in said[0]


def test_a_front_is_shown_whole(sweep, capsys):
    study = sweep.run(job, n_trials=5, **TWO)
    out = capsys.readouterr().out
    assert "configurations by gain (more is better), cost (less is better)" in out
    front = {str(trial.number) for trial in study.best_trials}
    assert set(rows_of(out)[: len(front)]) == front


def test_a_sweep_without_a_result_says_so(sweep, capsys):
    def failing(params, folder):
        raise ValueError("no luck")

    sweep.run(failing, n_trials=2, max_failure_rate=1, **ONE)
    assert "no trial is complete and feasible" in capsys.readouterr().out


class Slow(Stepwise):
    """Two at a time; shows the sweep while its trials run."""

    def __init__(self, job, folder):
        super().__init__(job, folder, n_jobs=2)


@pytest.fixture
def terminal(monkeypatch):
    """A terminal of 100 columns; what was written to it."""
    screen = io.StringIO()
    monkeypatch.setattr(
        display, "Console", lambda **keys: Console(file=screen, force_terminal=True, width=100)
    )
    return screen


def test_a_terminal_shows_a_live_panel(sweep, terminal, monkeypatch):
    shown = []
    panel = Display.panel

    def seen(self, study):
        console = Console(width=100, file=io.StringIO())
        console.print(panel(self, study))
        shown.append(console.file.getvalue())
        return panel(self, study)

    monkeypatch.setattr(Display, "panel", seen)
    monkeypatch.setattr(display, "is_quiet", lambda config: True)

    def steps(params, folder):
        for step in (1, 2):
            with (folder / "progress.jsonl").open("a") as file:
                file.write(json.dumps({"step": step, "values": {"loss": step / 8}}) + "\n")
            yield
        return job(params, folder)

    before, streams = sys.stdout, [h.stream for h in handlers()]
    sweep.run(steps, launcher=Slow, n_trials=4, **ONE)
    assert (sys.stdout, [h.stream for h in handlers()]) == (before, streams), "as it was"
    middle = next(text for text in shown if "1 failed" in text)
    assert "2 of 4 trials finished (1 complete, 1 failed)" in middle
    assert "best loss=" in middle and "left" in middle and "(trial 0)" in middle
    assert any("trial 0" in text and "step 1  loss=0.125" in text for text in shown)
    assert "4 of 4 trials finished (3 complete, 1 failed)" in shown[-1]
    assert f"sweep folder:  {sweep.dir}\n" in terminal.getvalue()
    assert terminal.getvalue().count("\x1b[?25l") == terminal.getvalue().count("\x1b[?25h") == 1


def handlers():
    """The log's handlers that write to a stream."""
    return [h for h in logging.getLogger().handlers if isinstance(h, logging.StreamHandler)]


def test_the_log_appears_above_the_panel(terminal):
    out = io.StringIO()
    handler = logging.StreamHandler(out)
    live = display.begin(display.Console())
    try:
        assert sys.stdout is not out
        display.reroute({out: sys.stdout})
        assert handler.stream is out, "a handler that the root logger does not have"
        logging.getLogger().addHandler(handler)
        display.reroute({out: sys.stdout})
        handler.handle(logging.makeLogRecord({"msg": "trial 3 complete"}))
    finally:
        display.end(live)
        logging.getLogger().removeHandler(handler)
    assert out.getvalue() == "" and "trial 3 complete" in terminal.getvalue()
    assert handler.stream is sys.stdout


def test_trials_that_print_here_get_no_panel(sweep, terminal, monkeypatch):
    monkeypatch.setattr(display, "begin", lambda console: pytest.fail("a panel"))
    sweep.run(job, n_trials=2, **ONE)

"""The benchmarks run from their configuration and report what they measured."""

import json

import numpy as np
import pytest
from hydra import initialize_config_dir

from prismatic import bench
from prismatic.bench.data import bench as data
from prismatic.bench.logging import bench as logging
from prismatic.bench.paired import compare
from prismatic.bench.recording import bench as recording
from prismatic.bench.step import NaiveRouter, Sizes, build, peak_bytes, step
from prismatic.bench.sweep import bench as sweep
from prismatic.bench.sweep import commands

from ..tiny import CONF, IID, composed
from ..tiny import MODEL as TINY

STEP = ["bench=step", "bench.rounds=2", "bench.dim=16", "bench.hidden=32", "bench.num_heads=2"]
STEP += ["bench.batch=2", "bench.seq_len=8", "bench.patterns=[default]", "bench.levels=[token]"]
MODEL = ["bench=model", "bench.rounds=2", "bench.dim=16", "bench.num_layers=1"]
MODEL += ["bench.num_heads=2", "bench.batch=2", "bench.seq_len=8", "bench.patterns=[none]"]


@pytest.mark.parametrize("overrides", [STEP, MODEL], ids=["step", "model"])
def test_a_bench_prints_a_table_and_keeps_its_figures(overrides, tmp_path, capfd):
    config = composed(*overrides, f"output={tmp_path}", config_name="bench")
    bench.main(config)
    (path,) = tmp_path.glob("*.json")
    cases = json.loads(path.read_text())["cases"]
    assert cases[0]["ratio"] == 1  # the plain case against itself
    assert all(case["ratio"] > 0 and case["low"] <= case["ratio"] <= case["high"] for case in cases)
    explained = [case for case in cases if "spent" in case]
    assert len(explained) == (len(cases) - 2 - 1 if "bench=step" in overrides else 0)
    assert all(case["least"] >= 1 and case["spent"]["selection"] > 0 for case in explained)
    ours = [case for case in cases if not case["case"].startswith("naive")]
    assert all(case["syncs"] == case.get("graph_breaks", 0) == 0 for case in ours)
    printed = capfd.readouterr().out
    assert len(printed.splitlines()) == 2 + len(cases) + 1  # results only, and where they lie
    assert all(case["case"] in printed for case in cases)


def test_the_naive_reference_computes_what_the_router_does():
    sizes = Sizes(dim=16, hidden=32, num_heads=2, batch=2, seq_len=8, dtype="float64")
    block, inputs = sizes.block(), sizes.inputs()
    naive, routed = (build(f"{kind}/none/3", block, 16).double() for kind in ("naive", "batch"))
    assert isinstance(naive, NaiveRouter)
    assert (naive(*inputs) - routed(*inputs)).abs().max() < 1e-12


def test_views_need_little_memory_where_they_share_one_merge():
    sizes = Sizes(dim=128, hidden=512, num_heads=2, batch=2)  # tokens and widths as by default
    inputs, held = sizes.inputs(), []
    for name in ("plain", "batch/none/4", "batch/noise/4", "batch/random/4"):
        module = build(name, sizes.block(), 128)
        step(module, inputs)
        held.append(peak_bytes(module, inputs, "cpu"))
    assert max(held[1:]) < 1.3 * held[0]


def test_the_cases_of_the_sweep_bench_are_the_same_trials():
    grid, study, separate = (commands(c, 3, 2, ["a=1"]) for c in ("grid", "optuna", "separate"))
    assert [arguments[-1] for arguments in separate] == ["seed=0", "seed=1", "seed=2"]
    assert all(arguments[0] == "a=1" for arguments in separate)
    for (arguments,) in (grid, study):
        assert arguments[0] == "-m" and {"a=1", "seed=range(0,3)"} < set(arguments)


@pytest.mark.slow
def test_the_sweep_bench_counts_training_apart():
    tiny = ["debug=tiny", "logger=none"]
    result, table = sweep(["grid"], trials=3, n_jobs=2, overrides=tiny, lengths=[20])
    row, long = result["cases"]
    assert long["trials"] == 8 and 0 < long["training"] < 2 * long["wall"] and "at 20" in table
    assert row["trials"] == 3 and 0 < row["training"] < 2 * row["wall"]
    assert "grid" in table


def test_what_a_case_adds_is_a_share_of_the_first_with_its_interval():
    seconds_RC = np.array([[1.0, 1.1], [3.0, 3.3], [2.0, 2.2]])
    first, second = compare(["bare", "more"], seconds_RC)
    assert first["added"] == first["low"] == first["high"] == 0
    assert second["added"] == pytest.approx(0.1) and second["seconds"] == pytest.approx(2.2)
    assert second["low"] < 0.1 < second["high"]


def test_the_logging_bench_gives_every_way_its_steps(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")  # Lightning's logger sets it for all to come
    with initialize_config_dir(str(CONF), version_base="1.3"):
        result, table = logging([*TINY, *IID, "optim.batch_size=2"], num_metrics=3, rounds=2)
    names = ["none", "connector", "direct", "prismatic", "stock"]
    assert [row["case"] for row in result["cases"]] == names
    assert all(row["seconds"] > 0 and row["case"] in table for row in result["cases"])


@pytest.mark.slow
def test_the_recording_bench_trains_every_case():
    cases = {"bare": ["logger=none", "~callbacks.diagnostics"], "diagnostics": ["logger=none"]}
    result, _ = recording(cases, rounds=2, overrides=["debug=tiny"])
    assert [row["case"] for row in result["cases"]] == list(cases)
    assert all(row["seconds"] > 0.1 for row in result["cases"])


@pytest.mark.slow
def test_the_data_bench_measures_each_figure_beside_its_limit():
    result, table = data(
        megabytes=4, few_megabytes=1, vocab_size=300, steps=3, rounds=1, large=300
    )  # fmt: skip
    figures = result["figures"]
    assert len(figures) == 6 and all(name in table for name in figures)
    assert figures["drawing a batch, share of a step"]["value"] > 0
    assert 0.5 < figures["peak memory at 300 tokens over dense"]["value"] < 2

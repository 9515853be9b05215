"""A record that was put together by hand and has something under every name."""

import math
from collections.abc import Callable

import numpy as np

from prismatic.report.record import Record

VIEWS, PASSES, DOMAINS, SEQUENCES, TOKENS, HEADS = 4, 3, 2, 5, 3, 2
TENSORS = ["blocks.0.norm.weight", "blocks.0.norm.bias", "blocks.0.qkv.weight"]
STEPS = (10, 20, 30)
ROUTING = {"routing/train_E", "routing/weight_LE", "routing/sample_SLE", "routing/entropy_L"}
DOMAIN = {"routing/domain_DE", "routing/domain_null_DE", "routing/mutual_information",
          "routing/mutual_information_null", "loss/domain_D"}  # fmt: skip
DEPENDENCE = {"routing/input_dependence", "routing/input_dependence_null"}
BETWEEN = {"loss/forced_E", "views/disagreement", "views/useful_diversity"}
ATTENTION = {"edge/logit_LQ", "edge/logit_absmax_L", "edge/attention_entropy_L",
             "edge/out_of_range_L", "edge/softmax_gain_L", "edge/log_partition_L"}  # fmt: skip
TABLES = {"table/routing_XYE", "table/attention_XYM"}


def shares(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Random weights that sum to 1 over the last axis."""
    return rng.dirichlet(np.ones(shape[-1]), shape[:-1])


def about() -> dict:
    rng = np.random.default_rng(0)
    position = list(range(8))
    wave = np.cos(np.outer(range(1, VIEWS), position))
    lens = {"position": position, "modulation": wave.tolist(), "selected": (0.8 * wave).tolist()}
    change_PE = rng.uniform(0.01, 1, (len(TENSORS), VIEWS)) * (np.arange(VIEWS) > 0)
    change_PE[1] = 0
    return {
        "views": VIEWS, "passes": PASSES, "router": "prismatic", "level": "token", "task": "trio",
        "domains": ["python", "bible"], "tensors": TENSORS, "matrix": [False, False, True],
        "quantiles": [0, 0.1, 0.5, 0.9, 1], "tiers": ["top", "middle", "bottom"],
        "dtype": "float32", "exp_limit": 88.72, "vocab": 256, "predicts": "next",
        "baselines": {"unigram": 3.0, "bigram": 2.5}, "bayes": 1.0, "norm_E": [0, 0.1, 0.3, 0.2],
        "lens": {TENSORS[0]: lens, TENSORS[2]: lens}, "change_PE": change_PE.tolist(),
    }  # fmt: skip


def line(step: int) -> dict:
    """Everything at one step."""
    rng = np.random.default_rng(step)
    logit_LQ = -np.sort(rng.exponential(5, (PASSES, 5)))[:, ::-1]
    arrays = {
        "loss/train": 4 - step / 20, "loss/val": 3.9 - step / 20,
        "loss/forced_E": 4 - step / 20 + rng.random(VIEWS), "loss/domain_D": rng.random(DOMAINS),
        "routing/train_E": shares(rng, VIEWS), "routing/weight_LE": shares(rng, PASSES, VIEWS),
        "routing/entropy_L": rng.random(PASSES),
        "routing/sample_SLE": shares(rng, SEQUENCES, PASSES, VIEWS),
        "routing/domain_DE": shares(rng, DOMAINS, VIEWS),
        "routing/domain_null_DE": shares(rng, DOMAINS, VIEWS),
        "routing/input_dependence": 0.2, "routing/input_dependence_null": 0.05,
        "routing/mutual_information": 0.1, "routing/mutual_information_null": 0.01,
        "views/disagreement": rng.random(), "views/useful_diversity": rng.normal(),
        "edge/grad_norm": rng.random(), "edge/grad_tier_K": rng.random(3),
        "edge/grad_block_B": rng.random(2), "edge/logit_LQ": logit_LQ,
        "edge/logit_absmax_L": -logit_LQ[:, 0], "edge/out_of_range_L": rng.random(PASSES),
        "edge/attention_entropy_L": rng.random(PASSES),
        "edge/softmax_gain_L": rng.random(PASSES), "edge/log_partition_L": rng.random(PASSES),
        "edge/nll_K2": np.stack([np.arange(6), rng.random(6)], 1),
        "edge/calibration_K3": [[0.1, 0.2, 0.5], [0.9, 0.8, 0.5], [math.nan, math.nan, 0]],
        "edge/calibration_error": 0.1,
        "table/routing_XYE": shares(rng, TOKENS, TOKENS, VIEWS),
        "table/attention_XYM": rng.random((TOKENS, TOKENS, HEADS)),
    }  # fmt: skip
    return {"step": step} | {name: np.asarray(array).tolist() for name, array in arrays.items()}


def full() -> Record:
    """A run that recorded everything."""
    return Record(about(), tuple(line(step) for step in STEPS))


def without(*names: str, **facts: object) -> Record:
    """The same without what stands under these names, and with other facts."""
    lines = [{k: v for k, v in line(step).items() if k not in names} for step in STEPS]
    return Record(about() | facts, tuple(lines))


def with_alarms(*alarms: tuple[int, str]) -> Record:
    """The same with alarms at steps."""
    added = [
        {"step": step, "alarm": {"name": name, "message": f"<{name}> was seen", "remedy": "act"}}
        for step, name in alarms
    ]
    return Record(about(), (*full().lines, *added))


def changed(number: Callable[[float], float]) -> Record:
    """The same with other numbers."""

    def deep(value):
        return list(map(deep, value)) if isinstance(value, list) else number(value)

    lines = [{k: v if k == "step" else deep(v) for k, v in line(step).items()} for step in STEPS]
    return Record(about(), tuple(lines))

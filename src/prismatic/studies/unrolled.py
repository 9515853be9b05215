"""Routing over the trips through a recurrent model's blocks: unrolled, scripted, tested.

Shapes: B sequences, T time, D model width, E views, R trips, K routers.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import repeat
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from prismatic.data import IGNORE
from prismatic.models import Transformer
from prismatic.routers import PrismaticRouter, Router
from prismatic.stats import ar1_series, periodicity_test

BURN_IN = 8
ALPHA = 0.05
STILL = 1e-6  # routing that deviates by less does not move: single precision rounds so
MEMORY, NOISE, WAVE = 0.7, 0.5, 1.0  # of scripted logits: AR(1) coefficient, deviation, amplitude


@torch.no_grad()
def unroll(routers: Sequence[Router], x_BTD: torch.Tensor, trips: int, *args: Any) -> np.ndarray:
    """Send hidden states through the routers so many times; routing averaged over positions.

    `args` are what the routed modules take beside the hidden state. Returns (R, K, B, E).
    """
    seen = []
    for _ in range(trips):
        for router in routers:
            x_BTD = router(x_BTD, *args)
            assert router.record is not None
            seen.append(router.record.probs.mean(1).expand(len(x_BTD), -1))
    return torch.stack(seen).unflatten(0, (trips, -1)).double().cpu().numpy()


def unroll_model(model: Transformer, tokens_BT: torch.Tensor, trips: int) -> np.ndarray:
    """`unroll` of a model's blocks, from its embedded tokens: (R, K, B, E)."""
    with torch.no_grad():
        x_BTD = model.positions.embed(model.embedding(tokens_BT))
    return unroll(model.routers, x_BTD, trips, model.positions)


class Oscillation(NamedTuple):
    """How many series have a period that AR(1) noise does not have, the median of their strongest
    frequencies (cycles per trip), and their mean standard deviation.
    """

    share: float
    frequency: float
    amplitude: float


def oscillation(
    weight_RKBE: np.ndarray, rng: np.random.Generator, surrogates: int = 999
) -> Oscillation:
    """Test the clean view's weight over trips, of each sequence in each router, for a period.

    The first trips are dropped. Routing that does not move has no period.
    """
    series_SR = weight_RKBE[..., 0].reshape(len(weight_RKBE), -1).T
    amplitude_S = series_SR[:, BURN_IN:].std(1)
    found = [periodicity_test(series_R, rng, BURN_IN, surrogates) for series_R in series_SR]
    periodic_S = np.array([one.p <= ALPHA for one in found]) & (amplitude_S > STILL)
    frequency = float(np.median([one.frequency for one in found]))
    return Oscillation(float(periodic_S.mean()), frequency, float(amplitude_S.mean()))


class Scripted(nn.Module):
    """A gate that ignores what it sees and gives prepared logits, one tensor per forward."""

    def __init__(self, logits: Iterable[torch.Tensor]) -> None:
        super().__init__()
        self.logits = iter(logits)

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        return next(self.logits)


@contextmanager
def scripted(routers: Sequence[Router], gates: Sequence[Scripted]) -> Iterator[None]:
    """Within the context routers route as their scripts say."""
    before = [router.gate for router in routers]
    try:
        for router, gate in zip(routers, gates, strict=True):
            router.gate = gate
        yield
    finally:
        for router, own in zip(routers, before, strict=True):
            router.gate = own


def scripted_routing(logit_RKB: np.ndarray) -> np.ndarray:
    """What `unroll` sees of routers of two views whose gates follow a script: (R, K, B, 2)."""
    trips, num_routers, rows = logit_RKB.shape
    logit_RKB11 = torch.from_numpy(logit_RKB)[..., None, None]
    both_RKB12 = torch.cat([logit_RKB11, torch.zeros_like(logit_RKB11)], -1)
    routers = [
        PrismaticRouter(nn.Identity(), 1, 2, gate=Scripted(both_RKB12[:, k]))
        for k in range(num_routers)
    ]
    return unroll(routers, torch.zeros(rows, 1, 1, dtype=torch.float64), trips)


def noisy_script(trips: int, rows: int, rng: np.random.Generator) -> np.ndarray:
    """Logits over trips of one router that are AR(1) noise and nothing else: (R, 1, B)."""
    noise_BR = ar1_series(MEMORY, (rows, trips), rng) * NOISE * np.sqrt(1 - MEMORY**2)
    return noise_BR.T[:, None]


def wavy_script(trips: int, rows: int, rng: np.random.Generator) -> np.ndarray:
    """The same with a sinusoid in each row, of some period from 2.5 to 10 trips: (R, 1, B)."""
    frequency_B, phase_B = rng.uniform(0.1, 0.4, rows), rng.uniform(0, 2 * np.pi, rows)
    angle_RB = 2 * np.pi * np.arange(trips)[:, None] * frequency_B + phase_B
    return noisy_script(trips, rows, rng) + WAVE * np.sin(angle_RB)[:, None]


@torch.no_grad()
def cost_of_mean_routing(
    model: Transformer, tokens_BT: torch.Tensor, targets_BT: torch.Tensor
) -> float:
    """What the loss gains, in nats per token, when every position's routing is replaced by its mean
    over the model's trips.
    """

    def loss() -> float:
        logits_BTV = model(tokens_BT).double()
        return float(F.cross_entropy(logits_BTV.transpose(1, 2), targets_BT, ignore_index=IGNORE))

    own, routers = loss(), model.routers
    means = [
        torch.stack([one.probs for one in model.routing[k :: len(routers)]]).mean(0)
        for k in range(len(routers))
    ]
    gates = [
        Scripted(repeat(mean.log() * router.temperature))
        for mean, router in zip(means, routers, strict=True)
    ]
    with scripted(routers, gates):
        return loss() - own

"""Random tensors and options for the tests of the kernel."""

from math import prod

import numpy as np
import torch
from hypothesis import strategies as st

from prismatic.perturb import MODES, PATTERNS, PHASES, PROFILES, SEEDINGS, Focal, Perturbation

STRATEGIES = ("dual_sided", "top_only", "bottom_only", "random")
DTYPES = (torch.float32, torch.float64)
VIEWS = (1, 2, 3, 8, 64)


def values(kind, size, seed):
    """Weights as a trained tensor, a gain or a pruned matrix has them: ties and zeros included."""
    rng = np.random.default_rng(seed)
    return {
        "normal": lambda: rng.standard_normal(size),
        "constant": lambda: np.ones(size),
        "ties": lambda: rng.integers(-2, 3, size) / 4,
        "sparse": lambda: rng.standard_normal(size) * (rng.random(size) < 0.3),
        "zeros": lambda: np.zeros(size),
    }[kind]()


KINDS = ("normal", "normal", "constant", "ties", "sparse", "zeros")


@st.composite
def weights(draw, kinds=KINDS, dtypes=DTYPES):
    shape = draw(st.lists(st.integers(1, 40), max_size=3).filter(lambda s: prod(s) <= 1500))
    flat = values(draw(st.sampled_from(kinds)), prod(shape), draw(st.integers(0, 99)))
    return torch.tensor(flat, dtype=draw(st.sampled_from(dtypes))).view(shape)


def perturbations(**fixed):
    options = dict(
        mode=st.sampled_from(list(MODES)),
        strategy=st.sampled_from(STRATEGIES),
        sparsity=st.sampled_from([0.01, 0.05, 0.1, 0.5, 1.0]),
        scale=st.sampled_from([0.0, 0.3, 0.8, 1.0, 2.0]),
        seeding=st.sampled_from(SEEDINGS),
        seed=st.integers(0, 3),
        pi_offset=st.sampled_from([0, 99]),
    )
    return st.builds(Perturbation, **(options | {k: st.just(v) for k, v in fixed.items()}))


def focals(**fixed):
    def options(units, lengths, wavelengths):
        free = dict(
            pattern=st.sampled_from(list(PATTERNS)),
            length=lengths,
            wavelength=wavelengths,
            phase=st.sampled_from(PHASES),
            profile=st.sampled_from(PROFILES),
            units=st.just(units),
        )
        return st.builds(Focal, **(free | {k: st.just(v) for k, v in fixed.items()}))

    return options("weights", st.floats(1, 2000), st.floats(2, 5000)) | options(
        "fraction", st.floats(0.01, 2), st.floats(0.05, 2)
    )


def probabilities(num_views, seed, dtype=torch.float64):
    logits = np.random.default_rng(seed).standard_normal(num_views) * 2
    return torch.tensor(logits, dtype=dtype).softmax(0)

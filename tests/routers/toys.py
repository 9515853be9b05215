"""Small modules to wrap, and every router that can wrap them.

Shapes: B batch, T time, D model width.
"""

from functools import partial
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

from prismatic.perturb import Focal, Perturbation
from prismatic.routers import ConstantRouter, DenseRouter, PrismaticRouter, SmearRouter

WIDTH = 8
LEGAL = {
    "token": ("causal_mean", "first", "last"),
    "sequence": ("first", "mean", "last"),
    "batch": ("mean", "first", "last"),
}
PAIRS = [(level, pool) for level, pools in LEGAL.items() for pool in pools]
STRONG = Perturbation(sparsity=0.6, scale=0.9)
WIDE = Focal(units="fraction", length=0.4, wavelength=1.1)


class Toy(nn.Module):
    """A causal block with every kind of parameter we have a rule for, and a buffer that is used."""

    def __init__(self, width=WIDTH):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width, bias=False)
        self.norm_2 = nn.RMSNorm(width)
        self.up = nn.Linear(width, 2 * width)
        self.down = nn.Linear(2 * width, width)
        self.register_buffer("shift", torch.linspace(-1, 1, width))

    def forward(self, x_BTD, gain=1.0):
        q_BTD, k_BTD, v_BTD = self.qkv(self.norm(x_BTD)).chunk(3, -1)
        mixed_BTD = F.scaled_dot_product_attention(q_BTD, k_BTD, v_BTD, is_causal=True)
        x_BTD = x_BTD + gain * self.out(mixed_BTD)
        return x_BTD + self.down(F.gelu(self.up(self.norm_2(x_BTD)) + self.shift.repeat(2)))


class Gain(nn.Module):
    """An element-wise gain of a class that nobody has a rule for."""

    def __init__(self, width=WIDTH):
        super().__init__()
        self.gain = nn.Parameter(torch.linspace(0.5, 1.5, width))

    def forward(self, x):
        return x * self.gain


def scrambled(module, seed=0):
    """Gives every parameter values of its own, so that gains and biases count in the tests."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return module


def toy(width=WIDTH, dtype=torch.float64):
    torch.manual_seed(0)
    return scrambled(Toy(width)).to(dtype)


def inputs(num_rows=3, num_tokens=6, width=WIDTH, dtype=torch.float64, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(num_rows, num_tokens, width, generator=generator, dtype=dtype)


class Case(NamedTuple):
    """A router with its level and pool: case.build(expert) wraps."""

    kind: str
    level: str
    pool: str

    def build(self, expert, num_experts=4, width=WIDTH, scale=0.9, lively=True, **options):
        perturbation = Perturbation(sparsity=0.6, scale=scale)
        views = {"perturbation": perturbation, "focal": WIDE}
        pair = {"level": self.level, "pool": self.pool}
        make = {
            "prismatic": partial(PrismaticRouter, **views, **pair),
            "smear": partial(SmearRouter, **pair),
            "constant": partial(ConstantRouter, **views),
            "dense": DenseRouter,
        }[self.kind]
        if self.kind == "dense":
            return make(expert, width)
        dtype = next(expert.parameters()).dtype
        router = make(expert, width, num_experts, **options).to(dtype)
        if lively:
            scrambled(router.gate, seed=5)
        return router

    @property
    def routed(self):
        """Whether there is something to route."""
        return self.kind != "dense"

    @property
    def causal(self):
        """Whether later tokens and other rows stay out of a position's routing (section 6)."""
        return self.level in ("token", "") or (self.level, self.pool) == ("sequence", "first")

    @property
    def lone(self):
        """Whether every row is routed by itself."""
        return self.level != "batch"


CASES = [
    *(Case("prismatic", *pair) for pair in PAIRS),
    *(Case("smear", *pair) for pair in PAIRS),
    Case("constant", "", ""),
    Case("dense", "", ""),
]
ROUTED = [case for case in CASES if case.routed]
PRISMATIC = [case for case in CASES if case.kind == "prismatic"]


def name_of(case):
    return "-".join(part for part in case if part)

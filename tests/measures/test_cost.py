"""What is said of a step before there is one."""

import copy
from functools import partial

import pytest
import torch
from omegaconf import OmegaConf

from prismatic.data import Batch
from prismatic.measures import measure_cost, measure_speed
from prismatic.models import Transformer
from prismatic.routers import PrismaticRouter

from ..routers.toys import STRONG, WIDE
from ..tiny import composed

VOCAB, LENGTH, WIDTH, LAYERS = 50, 32, 16, 3


@pytest.fixture
def row():
    tokens = torch.randint(0, VOCAB, (1, LENGTH), generator=torch.Generator().manual_seed(0))
    return Batch(tokens, tokens, torch.zeros(1, dtype=torch.int64))


def build(**options):
    sizes = dict(dim=WIDTH, num_layers=LAYERS, num_heads=2, positions="none")
    return Transformer(VOCAB, LENGTH, **sizes, **options)


def test_operations_are_those_of_the_textbook(row):
    """Two per weight and token forward, four backward (PaLM, arXiv 2204.02311, appendix B)."""
    matrices = LAYERS * 12 * WIDTH**2 + VOCAB * WIDTH
    attention = 2 * 2 * LENGTH * WIDTH * LAYERS  # of a token, forward; counted or not
    found = measure_cost(build(), row, "32-true")
    assert 6 * matrices <= found.row_flops / LENGTH <= 6 * matrices + 3.5 * attention
    assert found.num_weights == found.num_trained
    assert found.weights_bytes == 16 * found.num_weights


def test_checkpoints_keep_less_and_compute_more(row):
    plain, again = (
        measure_cost(build(gradient_checkpointing=on), row, "32-true") for on in (False, True)
    )
    assert again.row_bytes < plain.row_bytes / 2
    assert 1.2 < again.row_flops / plain.row_flops < 4 / 3
    frozen = build()
    frozen.blocks.requires_grad_(False)
    assert measure_cost(frozen, row, "32-true").num_trained == VOCAB * WIDTH + 2 * WIDTH


def test_a_model_is_afterwards_as_it_was(row):
    views = partial(PrismaticRouter, perturbation=STRONG, focal=WIDE, expert_dropout=0.5)
    model = build(router=views).train()
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    measure_cost(model, row, "bf16-mixed")
    assert torch.equal(torch.get_rng_state(), state)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert all(parameter.grad is None for parameter in model.parameters())


def test_speed_is_a_number_of_operations_per_second():
    assert measure_speed(torch.device("cpu"), "32-true") > 1e8


@pytest.mark.parametrize(
    ("name", "number"), [("gpt2_small", 124_439_808), ("gpt2_medium", 354_823_168)]
)
def test_shapes_have_as_many_weights_as_people_know(name, number):
    """GPT-2's own counts, with its vocabulary and length."""
    options = OmegaConf.to_container(composed(f"model={name}").model)
    options.pop("_target_")
    with torch.device("meta"):
        model = Transformer(50_257, 1024, **options)
    assert sum(p.numel() for p in model.parameters()) == number


def test_checkpoints_change_no_gradient(row):
    """Penalties, dropped views and recurrence included."""
    views = partial(PrismaticRouter, perturbation=STRONG, focal=WIDE, expert_dropout=0.5,
                    balance_loss=0.1)  # fmt: skip
    found = []
    for gradient_checkpointing in (False, True):
        torch.manual_seed(0)
        model = build(router=views, depth=5, gradient_checkpointing=gradient_checkpointing).train()
        for _ in range(2):  # two forwards before a backward, as when steps are accumulated
            (model(row.tokens_BT).square().mean() + model.penalty()).backward()
        found.append([p.grad for p in model.parameters()])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)

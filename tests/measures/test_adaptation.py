"""Routing by domain, and the twin router that says what an untrained gate does."""

import copy
import math

import numpy as np
import pytest
import torch

from prismatic.measures.routing import DomainRouting, Twins, domain_information
from prismatic.routers import Routing

from .test_views import CPU, model


def test_information_is_none_or_all():
    apart = torch.tensor([[30.0, 30.0], [20.0, 20.0]])
    assert domain_information(apart) == pytest.approx(0, abs=1e-12)
    assert domain_information(torch.eye(3) * 7) == pytest.approx(1)
    assert domain_information(torch.tensor([[5.0, 0, 0], [0, 2.5, 2.5]])) == pytest.approx(1)


def test_a_view_without_any_weight_is_as_if_it_were_not_there():
    seen = torch.tensor([[5.0, 2.0], [1.0, 4.0]])
    padded = torch.nn.functional.pad(seen, (1, 2))
    known = domain_information(seen)
    assert domain_information(padded) == pytest.approx(known) and known > 0.1


def test_information_against_entropies():
    joint = np.random.default_rng(0).random((3, 4))
    p = joint / joint.sum()
    entropies = [-(q * np.log(q)).sum() for q in (p.sum(0), p.sum(1), p)]
    expected = (entropies[0] + entropies[1] - entropies[2]) / math.log(3)
    assert domain_information(torch.from_numpy(joint)) == pytest.approx(expected, rel=1e-9)


def test_a_domain_that_was_not_seen_does_not_count():
    seen = torch.tensor([[3.0, 1.0], [0.0, 0.0], [1.0, 3.0]])
    assert domain_information(seen) == domain_information(seen[[0, 2]]) > 0
    assert domain_information(seen[:2]) == 0


@pytest.mark.parametrize(
    "shape", [(4, 5, 3), (4, 1, 3), (1, 1, 3)], ids="token sequence batch".split()
)
def test_domains_hold_the_means_of_their_sequences(shape):
    torch.manual_seed(0)
    probs = [torch.randn(shape).softmax(-1) for _ in range(2)]
    table = DomainRouting(2, 3, 3, CPU)
    domain = torch.tensor([2, 0, 2, 2])
    table.update([Routing(p.log(), p) for p in probs], domain)
    rows = torch.stack([p.mean(1).expand(4, -1) for p in probs]).mean(0)
    torch.testing.assert_close(table.weights()[2].float(), rows[domain == 2].mean(0))
    torch.testing.assert_close(table.weights()[0].float(), rows[1])
    assert table.weights()[1].isnan().all(), "not seen"


def test_passes_that_send_domains_opposite_ways_do_not_cancel():
    table = DomainRouting(2, 2, 2, CPU)
    domain = torch.tensor([0, 1])
    table.update(
        [Routing(p.log(), p) for p in (torch.eye(2)[:, None], 1 - torch.eye(2)[:, None])], domain
    )
    torch.testing.assert_close(table.weights(), torch.full((2, 2), 0.5, dtype=torch.float64))
    assert table.information().tolist() == pytest.approx([1, 1])


@pytest.mark.parametrize("router", ["prismatic", "smear", "constant"])
def test_twins_do_what_the_gates_did_before_training(router):
    trained = model(f"router={router}", "model.depth=3")
    untrained, tokens = copy.deepcopy(trained), torch.randint(16, (2, 8))
    twins = Twins(trained)
    with torch.no_grad():
        for block in trained.routers:
            for parameter in block.gate.parameters():
                parameter.add_(torch.randn_like(parameter))
    twins.begin(trained)
    inputs: list[list[torch.Tensor]] = [[], []]
    handles = [
        block.register_forward_pre_hook(lambda _, args, k=k: inputs[k].append(args[0]))
        for k, block in enumerate(trained.routers)
    ]
    trained(tokens)
    twins.end()
    for handle in handles:
        handle.remove()
    assert len(twins.routing) == 3, "one per pass"
    for t, routing in enumerate(twins.routing):
        expected = untrained.routers[t % 2].route(inputs[t % 2][t // 2])
        torch.testing.assert_close(routing.probs, expected.probs)
        assert not torch.allclose(routing.probs, trained.routing[t].probs)
        assert not routing.probs.requires_grad
    trained(tokens)
    assert len(twins.routing) == 3, "they look no longer"

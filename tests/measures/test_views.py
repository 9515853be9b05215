import math

import pytest
import torch

from prismatic.experiment import build_model
from prismatic.measures import RoutingMeasure, routing_measures, view_measures
from prismatic.perturb import change, role
from prismatic.routers import Routing

from ..tiny import tiny

CPU = torch.device("cpu")
FIRST = torch.tensor([[0.5, 0.5, 0.0], [1.0, 0.0, 0.0]])
SECOND = torch.tensor([[0.2, 0.2, 0.6], [0.0, 1.0, 0.0]])


def measured(*passes, rows=1):
    measure = RoutingMeasure(len(passes), passes[0].shape[-1], CPU)
    measure.update([Routing(probs.log(), probs) for probs in passes], rows)
    return measure.compute()


def model(*overrides):
    torch.manual_seed(0)
    return build_model(tiny(*overrides), vocab_size=16, seq_len=8)


def nats(*probs):
    return -sum(p * math.log(p) for p in probs if p > 0)


def test_routing_measures_against_hand_computation():
    found = measured(FIRST[None])
    w = (0.75, 0.25, 0.0)
    assert [found[f"routing/expert_{i}_weight"] for i in range(3)] == pytest.approx(w)
    assert found["routing/entropy"] == pytest.approx(nats(*w) / math.log(3))
    assert found["routing/concentration"] == pytest.approx(0.75)
    assert found["routing/variance"] == pytest.approx(sum((x - 1 / 3) ** 2 for x in w) / 3)
    expected = (nats(*w) - (math.log(2) + 0) / 2) / math.log(3)
    assert found["routing/input_dependence"] == pytest.approx(expected)
    assert not any("pass" in name for name in found), "one pass needs no names of its own"


def test_passes_are_measured_apart_and_together():
    found = measured(FIRST[None], SECOND[None])
    assert found["routing/pass_0/expert_0_weight"] == pytest.approx(0.75)
    assert found["routing/pass_1/expert_1_weight"] == pytest.approx(0.6)
    assert found["routing/expert_0_weight"] == pytest.approx((0.75 + 0.1) / 2)
    for name in ("entropy", "concentration", "variance", "input_dependence"):
        alone = measured(SECOND[None])[f"routing/{name}"]
        assert found[f"routing/pass_1/{name}"] == pytest.approx(alone), "not what is last"
    assert not any("router_" in name for name in found), "every pass is a router of its own"


def test_routers_that_recur_are_measured_over_their_passes():
    measure = RoutingMeasure(3, 3, CPU)
    passes = [FIRST[None], SECOND[None], SECOND[None]]
    measure.update([Routing(probs.log(), probs) for probs in passes], 1)
    found = measure.compute(num_routers=2)
    assert found["routing/router_0/expert_0_weight"] == pytest.approx((0.75 + 0.1) / 2)
    assert found["routing/router_1/expert_0_weight"] == pytest.approx(0.1)
    assert found["routing/router_0/concentration"] == pytest.approx((0.75 + 0.1) / 2)


def test_constant_routers_that_differ_depend_on_no_input():
    found = measured(torch.tensor([[[0.9, 0.1]]]), torch.tensor([[[0.1, 0.9]]]))
    assert found["routing/input_dependence"] == pytest.approx(0, abs=1e-12)


def test_batches_count_by_their_rows():
    measure = RoutingMeasure(1, 3, CPU)
    measure.update([Routing(FIRST[:1, None].log(), FIRST[:1, None])], 3)
    measure.update([Routing(FIRST[1:, None].log(), FIRST[1:, None])], 1)
    found = measure.compute()
    assert found["routing/expert_0_weight"] == pytest.approx((3 * 0.5 + 1.0) / 4)
    mean = (0.625, 0.375)
    dependence = (nats(*mean) - 0.75 * math.log(2)) / math.log(3)
    assert found["routing/input_dependence"] == pytest.approx(dependence)


def test_extreme_routings():
    collapsed = measured(torch.tensor([[[1.0, 0.0]]]))
    assert collapsed["routing/entropy"] == 0 and collapsed["routing/concentration"] == 1
    uniform = measured(torch.full((2, 5, 4), 0.25))
    assert uniform["routing/entropy"] == pytest.approx(1)
    assert uniform["routing/variance"] == pytest.approx(0)
    switching = measured(torch.eye(2)[None])
    assert switching["routing/input_dependence"] == pytest.approx(1)


def test_one_view_measures_nothing():
    found = routing_measures(torch.ones(1), 0.0)
    assert found.pop("routing/expert_0_weight") == 1
    assert set(found.values()) == {0.0}


def test_a_constant_router_depends_on_no_input():
    constant = model("router=constant")
    with torch.no_grad():
        for router in constant.routers:
            router.gate.logits_E.normal_()
    constant(torch.randint(16, (3, 8)))
    measure = RoutingMeasure(2, 4, CPU)
    measure.update(constant.routing, 3)
    # Every pass routes alike for all inputs; that the passes differ is no dependence on the input.
    for routing in constant.routing:
        assert measured(routing.probs)["routing/input_dependence"] == pytest.approx(0, abs=1e-7)


@pytest.mark.parametrize(
    "overrides",
    [[], ["focal=none"], ["perturbation=noise", "strategy=random"], ["model.depth=5"]],
    ids=["default", "flat", "drawn", "recurrent"],
)
def test_view_measures_against_the_plain_definition(overrides):
    prismatic = model(*overrides)
    passes = prismatic.depth
    weight_LE = torch.arange(1.0, 4 * passes + 1).reshape(passes, 4).softmax(-1).roll(1, 0)
    weight_LE = (weight_LE + torch.eye(4)[torch.arange(passes) % 4]) / 2  # no two passes alike
    weight_E = weight_LE.mean(0)
    found = view_measures(prismatic, weight_LE)
    parameters, changes = [], {1: [], 2: [], 3: []}
    for i, router in enumerate(prismatic.routers):
        for name, parameter in router.expert.named_parameters():
            path = f"blocks.{i}.{name}"
            parameters.append(parameter.detach().double().flatten())
            for view, pieces in changes.items():
                f = change(parameter, view, 4, router.perturbation, router.focal, path)
                pieces.append(f.detach().double().flatten())
    W = torch.cat(parameters)
    f_E = {view: torch.cat(pieces) for view, pieces in changes.items()}
    norms = {view: float((W * f).norm() / W.norm()) for view, f in f_E.items()}
    for view, norm in norms.items():
        assert found[f"views/{view}/relative_norm"] == pytest.approx(norm, rel=1e-5)
    assert found["views/relative_norm"] == pytest.approx(max(norms.values()), rel=1e-5)
    merged = sum(weight_E[view].double() * f for view, f in f_E.items())
    expected = float((W * merged).norm() / W.norm())
    assert found["routing/merged_relative_norm"] == pytest.approx(expected, rel=1e-5)
    half = len(W) // 2  # two blocks of one size
    for k, (base, own) in enumerate(((W[:half], slice(half)), (W[half:], slice(half, None)))):
        for name, r_E in {
            **{f"pass_{t}": weight_LE[t] for t in range(k, passes, 2)},
            **({f"router_{k}": weight_LE[k::2].mean(0)} if passes > 2 else {}),
        }.items():
            changed = sum(r_E[view].double() * f[own] for view, f in f_E.items())
            expected = float((base * changed).norm() / base.norm())
            name = f"routing/{name}/merged_relative_norm"
            assert found[name] == pytest.approx(expected, rel=1e-5), name
    moved = max(float((f.abs() > 0.01).double().mean()) for f in f_E.values())
    assert found["views/share_moved"] == pytest.approx(moved)


@pytest.mark.parametrize("mode", ["attractive", "repulsive"])
@pytest.mark.parametrize("focal", ["none", "helical"])
def test_the_share_of_change_in_the_direction_of_the_mode(mode, focal):
    turning = model(f"perturbation={mode}", f"focal={focal}", "focal.wavelength=300")
    right = total = 0.0
    for router in turning.routers:
        for name, parameter in router.expert.named_parameters():
            direction = role(parameter, router.perturbation) * (1 if mode == "repulsive" else -1)
            for view in (1, 2, 3):
                f = change(parameter, view, 4, router.perturbation, router.focal, name)
                energy = (parameter * f).detach().double().square()
                right += float(energy[f.sign() == direction].sum())
                total += float(energy.sum())
    found = view_measures(turning)["views/advertised_share"]
    assert found == pytest.approx(right / total, rel=1e-5)
    assert found == pytest.approx(1) if focal == "none" else found < 0.9


def test_noise_and_no_change_advertise_no_direction():
    for options in (["perturbation=noise"], ["perturbation.scale=0"]):
        assert "views/advertised_share" not in view_measures(model(*options))


@pytest.mark.parametrize("router", [["router=dense"], ["router=smear"], ["router.num_experts=1"]])
def test_models_without_views_of_one_base_have_no_view_measures(router):
    assert view_measures(model(*router)) == {}

"""The table of float facts is what this machine computes, and so are the numbers of source 000."""

import math

import pytest
import torch

from prismatic.measures.numerics import FAINT, FLOATS

FORMATS = [(getattr(torch, name), facts) for name, facts in FLOATS.items()]
each_format = pytest.mark.parametrize(("dtype", "facts"), FORMATS, ids=FLOATS)


def exp32(x: float) -> float:
    return torch.tensor(x, dtype=torch.float32).exp().item()


def stepped(x: float, towards: float, dtype: torch.dtype) -> torch.Tensor:
    """The next number of a format."""
    return torch.nextafter(torch.tensor(x, dtype=dtype), torch.tensor(towards, dtype=dtype))


@each_format
def test_the_table_says_what_torch_says(dtype, facts):
    info = torch.finfo(dtype)
    assert (facts.eps, facts.largest, facts.normal) == (info.eps, info.max, info.tiny)
    assert stepped(0.0, 1.0, dtype).item() == facts.least
    for x in (facts.exp_finite, facts.exp_normal, facts.exp_positive):
        assert torch.tensor(x, dtype=dtype).item() == x, "it is in the format"


@each_format
def test_exp_leaves_where_the_table_says(dtype, facts):
    ends = [
        (facts.exp_finite, math.inf, lambda y: y.isfinite()),
        (facts.exp_normal, -math.inf, lambda y: y >= facts.normal),
        (facts.exp_positive, -math.inf, lambda y: y > 0),
    ]
    for x, outwards, within in ends:
        assert within(torch.tensor(x, dtype=dtype).exp())
        assert not within(stepped(x, outwards, dtype).exp())


@each_format
def test_what_vanishes_beside_a_maximum(dtype, facts):
    lost, kept = (stepped(facts.vanishing, to, dtype) for to in (math.inf, 0.0))
    assert 1 + (-lost).exp() == 1 < 1 + (-kept).exp()
    assert (-lost).exp() > 0, "the weight itself is not lost"


@pytest.mark.parametrize("name", ["float32", "float64"])
def test_a_maximum_has_all_the_weight_beyond_it(name):
    dtype, gap = getattr(torch, name), FLOATS[name].vanishing
    for factor, whole in ((1 - 1e-3, False), (1 + 1e-3, True)):
        probs = torch.tensor([0.0, -factor * gap], dtype=dtype).softmax(0)
        assert (probs[0] == 1) == whole and probs[1] > 0


def test_the_range_of_the_edge_metrics_ends_where_a_logit_has_vanished_but_for_float64():
    gone = {name: facts.vanishing < FAINT for name, facts in FLOATS.items()}
    assert gone == {"float16": True, "bfloat16": True, "float32": True, "float64": False}
    assert FLOATS["float32"].vanishing == pytest.approx(16.64, abs=0.01)


# exp(x) in float32 as source 000 prints it, right to the digits that it gives.
PRINTED = {
    0: "1.0", 1: "2.718", 5: "148.4", 10: "22026", 20: "4.85e8", 40: "2.35e17", 60: "1.14e26",
    88: "1.65e38", 89: "inf", 100: "inf", -1: "0.368", -20: "2.06e-9", -40: "4.25e-18",
}  # fmt: skip


@pytest.mark.parametrize(("x", "printed"), PRINTED.items())
def test_exponentials_of_the_source(x, printed):
    digits = len(printed.split("e")[0].replace(".", "").lstrip("0"))
    assert float(f"{exp32(x):.{digits - 1}e}") == float(printed)


def test_without_rounding_exp_of_100_is_what_the_source_says():
    assert f"{math.exp(100):.2e}" == "2.69e+43"


def test_exp_of_minus_100_is_not_0_but_imprecise():
    """The source says 3.72e-44, and that it underflows to 0 in float32.

    That is the real number; float32 has a subnormal number near it, 27 times the least one. It is
    0 only below -103.97, or where a processor flushes subnormal numbers to 0.
    """
    assert f"{math.exp(-100):.2e}" == "3.72e-44"
    assert exp32(-100) == 27 * FLOATS["float32"].least
    assert f"{exp32(-100):.2e}" == "3.78e-44"
    assert exp32(-103.9) > 0 == exp32(-104)


def test_the_softmax_of_100_and_101():
    """The source says [0.268, 0.732]: the third digits are wrong, by rounding 0.368 first."""
    logits = torch.tensor([100.0, 101.0])
    assert logits.exp().isinf().all() and (logits.exp() / logits.exp().sum()).isnan().all()
    assert [f"{p:.4f}" for p in logits.softmax(0).tolist()] == ["0.2689", "0.7311"]
    assert torch.equal(logits.softmax(0), (logits - 101).softmax(0))


def test_the_safe_range_of_the_source_is_safe_and_not_the_widest():
    """The source says -87 < x < 88."""
    for x in (-87, 88):
        assert FLOATS["float32"].normal <= exp32(x) <= FLOATS["float32"].largest
    assert FLOATS["float32"].exp_normal < -87 and 88 < FLOATS["float32"].exp_finite


def test_the_safe_range_of_float32_is_no_range_of_half_precision():
    """The source names float32 only; training is often in 16 bits."""
    assert torch.tensor(12.0, dtype=torch.float16).exp().isinf()
    assert torch.tensor(-18.0, dtype=torch.float16).exp() == 0
    assert torch.tensor(88.0, dtype=torch.bfloat16).exp().isfinite()


def test_single_precision_as_the_source_describes_it():
    """The source says: up to 3.4e38, about 7 digits, and 1.4e-45 as the least positive number."""
    facts = FLOATS["float32"]
    assert f"{facts.largest:.1e}" == "3.4e+38" and f"{facts.least:.1e}" == "1.4e-45"
    assert 6.5 < -math.log10(facts.eps) < 7.5


def test_the_last_digits_of_exp_beside_1():
    """The source says exp(1.0000001) = 2.7182821: so it is, but in float32 both sides round.

    1.0000001 becomes 1 + eps, and its exponential 2.7182822.
    """
    y = torch.tensor(1.0000001, dtype=torch.float32)
    assert y.item() == 1 + FLOATS["float32"].eps
    assert (f"{math.exp(1.0000001):.7f}", f"{y.exp().item():.7f}") == ("2.7182821", "2.7182822")
    assert f"{exp32(1.0):.7f}" == "2.7182817", "the source says 2.7182818, the real number"


def test_four_steps_multiply_by_e_to_the_4():
    """The source says about 54.6."""
    assert exp32(4.0) == pytest.approx(54.6, abs=0.01)


def test_the_gradient_of_softmax():
    """The source says p_i * (delta_ij - p_j)."""
    logits = torch.tensor([0.3, -1.2, 2.0], dtype=torch.float64)
    p = logits.softmax(0)
    found = torch.autograd.functional.jacobian(lambda x: x.softmax(0), logits)
    torch.testing.assert_close(found, p[:, None] * (torch.eye(3) - p))

"""The lens without geometry: the same factors at other places, and the same in every code path."""

import pytest
import torch

from prismatic.perturb import Focal, Perturbation, change, merge
from prismatic.studies.shuffled import ShuffledFocal

EVERY = Perturbation(strategy="top_only", sparsity=1)


def changes(focal):
    return torch.stack([change(torch.ones(3000), view, 3, EVERY, focal) for view in (1, 2)])


def test_a_shuffled_lens_has_the_same_factors_at_other_places():
    in_order, mixed = changes(Focal()), changes(ShuffledFocal(shuffle=1))
    assert torch.equal(mixed, changes(ShuffledFocal(shuffle=1)))
    assert not torch.equal(mixed, in_order)
    assert not torch.equal(mixed, changes(ShuffledFocal(shuffle=2)))
    # One order for all views: what two of them do to one weight is what they did to another.
    pairs = [sorted(map(tuple, f_EP.T.tolist())) for f_EP in (in_order, mixed)]
    assert pairs[0] == pairs[1]


def test_a_merge_of_shuffled_views_is_that_of_their_changes():
    weight = torch.randn(40, 30, dtype=torch.float64, generator=torch.manual_seed(0))
    focal = ShuffledFocal(units="fraction", length=0.1, wavelength=1.0)
    probs_E = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
    views = [weight * (1 + change(weight, view, 3, Perturbation(), focal)) for view in range(3)]
    expected = sum(p * view for p, view in zip(probs_E, views, strict=True))
    merged = merge(weight, probs_E, Perturbation(), focal)
    torch.testing.assert_close(merged, expected)


@pytest.mark.parametrize("shuffle", [-1, 0.5, None])
def test_an_order_is_a_seed(shuffle):
    with pytest.raises(ValueError, match=r"shuffle.*whole number >= 0"):
        ShuffledFocal(shuffle=shuffle)

"""What is added up over held-out tokens is what the definitions say of all of them."""

import math

import numpy as np
import pytest
import torch

from prismatic.data import IGNORE
from prismatic.measures.held_out import BINS, Calibration, HeldOut, metric_names

from .test_views import CPU, model


def predictions() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    logits, targets = 3 * torch.randn(4, 9, 11), torch.randint(11, (4, 9))
    targets[0, :5] = IGNORE
    return logits, targets


def test_calibration_against_numpy():
    logits, targets = predictions()
    sums = Calibration(CPU)
    sums.update(logits, targets)
    found = {name: value.numpy() for name, value in sums.compute().items()}
    scored = targets != IGNORE
    p = logits[scored].double().softmax(-1).numpy()
    target = targets[scored].numpy()
    right, confidence = p.argmax(1) == target, p.max(1)
    bins, error = np.floor(confidence * BINS), 0.0
    for k in range(BINS):
        if (inside := bins == k).any():
            row = found["edge/calibration_K3"][k]
            expected = confidence[inside].mean(), right[inside].mean(), inside.mean()
            np.testing.assert_allclose(row, expected, rtol=1e-5)
            error += inside.mean() * abs(confidence[inside].mean() - right[inside].mean())
    assert found["edge/calibration_error"] == pytest.approx(error, rel=1e-5)
    of_target = p[np.arange(len(p)), target]
    assert found["edge/eml"] == pytest.approx((of_target - np.log(of_target)).mean(), rel=1e-5)
    centre, density = found["edge/nll_K2"].T
    assert (density * (centre[1] - centre[0])).sum() == pytest.approx(1)
    assert (centre * density).sum() / density.sum() == pytest.approx(
        -np.log(of_target).mean(), abs=centre[1] - centre[0]
    )


def test_calibration_add_up_over_batches():
    logits, targets = predictions()
    whole, parts = Calibration(CPU), Calibration(CPU)
    whole.update(logits, targets)
    for row in range(4):
        parts.update(logits[row : row + 1], targets[row : row + 1])
    for one, other in zip(whole.tensors(), parts.tensors(), strict=True):
        torch.testing.assert_close(one, other)


def test_calibration_that_are_not_numbers_are_counted():
    logits, targets = predictions()
    sums = Calibration(CPU)
    sums.update(logits * math.nan, targets)
    assert float(sums.bin_K3[:, 2].sum()) == int((targets != IGNORE).sum())


def test_domains_that_differ_in_characters_that_no_metric_may_have_stay_apart():
    domains = ["C++.txt", "C##.txt", "C__.txt_2", "plain"]
    names = metric_names(domains)
    assert len(set(names)) == 4 and names[0] == "C__.txt" and names[3] == "plain"
    held_out = HeldOut(model(), len(domains), CPU)
    held_out.loss_D += torch.tensor([1.0, 2.0, 3.0, 4.0])
    held_out.count_D += 1
    assert list(held_out.losses(domains)[1].values()) == [1, 2, 3, 4]

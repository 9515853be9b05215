import math

import pytest
import torch

from prismatic.data import IGNORE
from prismatic.training import cross_entropy, eml


@pytest.fixture
def problem():
    generator = torch.Generator().manual_seed(0)
    logits_RV = torch.randn(6, 9, generator=generator, dtype=torch.float64).requires_grad_()
    return logits_RV, torch.randint(9, (6,), generator=generator)


def test_eml_has_the_gradient_of_cross_entropy_weighted_by_one_minus_p(problem):
    logits_RV, target_R = problem
    eml(logits_RV, target_R).backward()
    softmax_RV = logits_RV.detach().softmax(-1)
    onehot_RV = torch.nn.functional.one_hot(target_R, 9)
    p_R1 = softmax_RV.gather(1, target_R[:, None])
    expected = (1 - p_R1) * (softmax_RV - onehot_RV) / len(target_R)
    torch.testing.assert_close(logits_RV.grad, expected, rtol=1e-12, atol=1e-15)


def test_eml_is_p_minus_ln_p(problem):
    logits_RV, target_R = problem
    p_R = logits_RV.softmax(-1).gather(1, target_R[:, None])[:, 0]
    torch.testing.assert_close(eml(logits_RV, target_R), (p_R - p_R.log()).mean())
    certain = torch.tensor([[1000.0, 0.0]])
    assert eml(certain, torch.tensor([0])) == 1.0
    assert eml(certain, torch.tensor([1])) == 1000.0


def test_cross_entropy_is_nats_per_token():
    assert cross_entropy(torch.zeros(2, 3, 8), torch.zeros(2, 3).long()).item() == pytest.approx(
        math.log(8)
    )


@pytest.mark.parametrize("criterion", [cross_entropy, eml])
def test_ignored_targets_count_for_nothing(criterion, problem):
    logits_RV, target_R = problem
    some = torch.tensor([0, 2, 5])
    masked_R = torch.full_like(target_R, IGNORE).index_copy(0, some, target_R[some])
    loss = criterion(logits_RV, masked_R)
    torch.testing.assert_close(loss, criterion(logits_RV[some], target_R[some]))
    loss.backward()
    assert (logits_RV.grad[[1, 3, 4]] == 0).all()


@pytest.mark.parametrize("criterion", [cross_entropy, eml])
def test_shapes_of_a_batch_are_flattened(criterion, problem):
    logits_RV, target_R = problem
    batch = criterion(logits_RV.view(2, 3, 9), target_R.view(2, 3))
    torch.testing.assert_close(batch, criterion(logits_RV, target_R))

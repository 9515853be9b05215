"""Attention that is watched computes what it computes unwatched, and shows how."""

import pytest
import torch
from torch import nn

from prismatic.models import POSITIONS, Attention, watched

from .test_transformer import ATTENTIONS, PAIRS, awake, model, prismatic, tokens

PARTS = [
    *({"positions": name} for name in POSITIONS),
    *({"attention": kind, "positions": "alibi"} for kind in ATTENTIONS.values()),
    *({"attention": kind} for kind in ATTENTIONS.values()),
    {"qk_norm": "layernorm", "qk_gain": 4.0},
]


@pytest.mark.parametrize("options", PARTS, ids=str)
def test_watching_changes_no_output(options):
    plain = awake(model(**options, depth=3))
    expected = plain(tokens())
    seen = []
    with watched(plain, lambda *shown: seen.append(shown)):
        torch.testing.assert_close(plain(tokens()), expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(plain(tokens()), expected), "it is off again"
    assert len(seen) == 3, "one per pass"
    for logits, probs in seen:
        assert logits.shape == probs.shape == (3, 2, 9, 9)
        torch.testing.assert_close(probs, logits.softmax(-1))
        future = torch.ones(9, 9, dtype=torch.bool).triu(1)
        assert (logits[..., future] == -torch.inf).all() and not probs[..., future].any()
        assert logits[..., ~future].isfinite().all()


@pytest.mark.parametrize(("level", "pool"), PAIRS)
def test_attention_is_watched_at_every_level(level, pool):
    routed = awake(model(router=prismatic(level, pool)))
    expected, seen = routed(tokens()), []
    with watched(routed, lambda *shown: seen.append(shown)):
        torch.testing.assert_close(routed(tokens()), expected, rtol=1e-5, atol=1e-5)
    assert len(seen) == 2


def test_half_precision_is_measured_in_single():
    half, seen = awake(model()).bfloat16(), []
    expected = half(tokens())
    with watched(half, lambda *shown: seen.append(shown)):
        torch.testing.assert_close(half(tokens()), expected, rtol=0.05, atol=0.1)
    assert {part.dtype for shown in seen for part in shown} == {torch.float32}


def test_an_error_within_leaves_no_watch():
    plain = model()
    before = [m.attend for m in plain.modules() if isinstance(m, Attention)]
    with pytest.raises(ZeroDivisionError), watched(plain, lambda *shown: 1 / 0):
        plain(tokens())
    assert [m.attend for m in plain.modules() if isinstance(m, Attention)] == before


def test_a_model_without_attention_shows_nothing():
    seen = []
    with watched(nn.Linear(2, 2), lambda *shown: seen.append(shown)) as _:
        pass
    assert seen == []

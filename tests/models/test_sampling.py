"""Continuing a prompt: which tokens may follow, and when it is reproducible."""

import pytest
import torch
from torch import nn

from prismatic.models import Transformer, generate

ORDER = torch.tensor([0.5, 0.3, 0.15, 0.05])


class Fixed(nn.Module):
    """Predicts the same distribution everywhere, and remembers how much it was shown."""

    seq_len = 6

    def forward(self, tokens_BT):
        self.seen = tokens_BT.shape[1]
        return ORDER.log().expand(*tokens_BT.shape, 4)


def sampled(count=2000, **options):
    generator = torch.Generator().manual_seed(0)
    return generate(
        Fixed(), torch.zeros(1, 1, dtype=torch.long), count, generator=generator, **options
    )


def frequencies(**options):
    return sampled(**options)[0, 1:].bincount(minlength=4) / 2000


def test_tokens_follow_the_model():
    assert torch.allclose(frequencies(), ORDER, atol=0.05)


def test_temperature_sharpens():
    assert torch.allclose(frequencies(temperature=0.5), ORDER**2 / (ORDER**2).sum(), atol=0.05)
    assert frequencies(temperature=0)[0] == 1


@pytest.mark.parametrize(("top_p", "kept"), [(0.4, 1), (0.7, 2), (0.9, 3), (1.0, 4)])
def test_the_nucleus_is_the_fewest_likely_tokens_with_the_mass(top_p, kept):
    share = ORDER * (torch.arange(4) < kept)
    got = frequencies(top_p=top_p)
    assert torch.allclose(got, share / share.sum(), atol=0.05) and not got[kept:].any()


def test_the_model_sees_no_more_than_it_can():
    model = Fixed()
    out = generate(model, torch.zeros(2, 4, dtype=torch.long), 9)
    assert out.shape == (2, 13) and model.seen == 6


def test_the_prompt_is_kept_and_the_same_generator_gives_the_same_text():
    torch.manual_seed(0)
    model = Transformer(7, 5, dim=8, num_layers=1, num_heads=2)
    prompt = torch.tensor([[1, 2, 3]])
    first, second = (
        generate(model, prompt, 8, generator=torch.Generator().manual_seed(3)) for _ in range(2)
    )
    assert torch.equal(first, second) and torch.equal(first[:, :3], prompt)


REFUSED = [
    ({"temperature": -1.0}, r"temperature=-1\.0 .*>= 0"),
    ({"top_p": 0.0}, r"top_p=0\.0 .*\(0, 1\]"),
    ({"top_p": 1.1}, r"top_p=1\.1 .*\(0, 1\]"),
]


@pytest.mark.parametrize(("options", "message"), REFUSED)
def test_nonsense_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        sampled(1, **options)


def test_an_empty_prompt_is_refused():
    with pytest.raises(ValueError, match="at least one token"):
        generate(Fixed(), torch.zeros(1, 0, dtype=torch.long), 1)

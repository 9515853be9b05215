import json
from hashlib import sha256
from math import log

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prismatic.data import Corpus, Task, TextTask, UserFiles, user_text
from prismatic.data.task import stream
from prismatic.data.text import ngram_losses, split_text


class Texts:
    """A source of given texts."""

    def __init__(self, **texts):
        self.texts = texts

    def corpora(self, max_bytes):
        return [Corpus(name, text[:max_bytes], None) for name, text in self.texts.items()]


def random_text(size, low, high, seed=0):
    return np.random.default_rng(seed).integers(low, high, size, dtype=np.uint8).tobytes()


# Disjoint alphabets: a window that crossed a domain would hold bytes of both.
LOWER, UPPER = random_text(2_003, 97, 123), random_text(6_007, 65, 91)


def two_domains(seq_len=8):
    return TextTask([Texts(lower=LOWER), Texts(upper=UPPER)], seq_len=seq_len)


def windows(batch):
    """Each row's T + 1 bytes, after checking that targets are the inputs one step on."""
    tokens_BT, targets_BT, _ = batch
    assert torch.equal(tokens_BT[:, 1:], targets_BT[:, :-1])
    return [bytes(row) for row in torch.cat([tokens_BT, targets_BT[:, -1:]], 1).tolist()]


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_a_batch_has_the_promised_shapes_and_types():
    task: Task = two_domains(seq_len=8)
    for batch, rows in [(task.train_batch(0, 5, 0), 5), (task.held_out("val"), None)]:
        rows = rows or len(batch.tokens_BT)
        assert batch.tokens_BT.shape == batch.targets_BT.shape == (rows, 8)
        assert batch.domain_B.shape == (rows,)
        assert {x.dtype for x in batch} == {torch.int64} and all(x.is_contiguous() for x in batch)
    assert (task.vocab_size, task.predicts, task.bayes_loss) == (256, "next", None)
    assert set(task.bytes_per_token.values()) == {1}
    assert task.domains == ("lower", "upper")


def test_any_batch_can_be_asked_for_first():
    forwards = [two_domains().train_batch(i, 4, 7) for i in range(5)]
    task = two_domains()
    backwards = [task.train_batch(i, 4, 7) for i in reversed(range(5))][::-1]
    assert all(map(same, forwards, backwards))
    assert not any(map(same, forwards, forwards[1:]))
    assert not same(forwards[1], task.train_batch(1, 4, 8))
    assert not same(forwards[1], task.train_batch(7, 4, 1))


def test_the_global_generators_are_neither_read_nor_moved():
    torch.manual_seed(0)
    np.random.seed(0)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    first = two_domains().train_batch(0, 4, 0)
    assert torch.equal(before[0], torch.get_rng_state())
    assert np.array_equal(before[1], np.random.get_state()[1])
    torch.manual_seed(1)
    np.random.seed(1)
    assert same(first, two_domains().train_batch(0, 4, 0))


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1), st.integers(1, 60))
def test_training_windows_stand_in_their_own_domains_training_text(seed, index, seq_len):
    task = two_domains(seq_len)
    batch = task.train_batch(index, 20, seed)
    train = LOWER[: 2_003 - 200], UPPER[: 6_007 - 600]
    for window, domain in zip(windows(batch), batch.domain_B.tolist(), strict=True):
        assert len(window) == seq_len + 1 and window in train[domain]


def test_rows_draw_domains_in_proportion_to_training_bytes():
    domain_B = two_domains().train_batch(0, 40_000, 0).domain_B
    expected = (6_007 - 600) / (6_007 - 600 + 2_003 - 200)
    standard_error = (expected * (1 - expected) / 40_000) ** 0.5
    assert abs(domain_B.double().mean().item() - expected) < 5 * standard_error


def test_every_training_window_can_be_drawn_the_first_and_last_too():
    text = bytes(range(200))
    task = TextTask([Texts(counting=text)], seq_len=8)
    first_B = task.train_batch(0, 20_000, 0).tokens_BT[:, 0]
    assert first_B.unique().tolist() == list(range(180 - 8))


@settings(deadline=None)
@given(st.integers(40, 3_000))
def test_splits_are_contiguous_90_5_5_percent(size):
    text = random_text(size, 0, 255)
    splits = split_text(Corpus("x", text, None), window=2)
    assert b"".join(part.numpy().tobytes() for part in splits.values()) == text
    assert list(splits) == ["train", "val", "test"]
    assert len(splits["val"]) == len(splits["test"]) == size // 20
    assert {part.dtype for part in splits.values()} == {torch.uint8}


@pytest.mark.parametrize("split", ["val", "test"])
@settings(deadline=None, max_examples=20)
@given(size=st.integers(200, 3_000), seq_len=st.integers(1, 9))
def test_held_out_windows_predict_each_byte_but_the_first_once(split, size, seq_len):
    text = random_text(size, 0, 255)
    task = TextTask([Texts(x=text)], seq_len=seq_len)
    start = size - size // 20 * (2 if split == "val" else 1)
    part = text[start : start + size // 20]
    batch = task.held_out(split)
    predicted = bytes(batch.targets_BT.flatten().tolist())
    assert part[1:].startswith(predicted) and len(part) - 1 - len(predicted) < seq_len
    assert bytes(batch.tokens_BT.flatten().tolist()) == part[: len(predicted)]


def test_held_out_goes_domain_by_domain_in_a_fixed_order():
    task = two_domains()
    val, test = task.held_out("val"), task.held_out("test")
    assert same(val, two_domains().held_out("val"))
    assert val.domain_B.tolist() == [0] * (99 // 8) + [1] * (299 // 8)
    for batch, end in [(val, 1), (test, 0)]:
        parts = [t[len(t) - (end + 1) * (len(t) // 20) :][: len(t) // 20] for t in (LOWER, UPPER)]
        for window, domain in zip(windows(batch), batch.domain_B.tolist(), strict=True):
            assert window in parts[domain]


def slow_ngram_losses(trains, vals, seq_len):
    """Counted pair by pair, from the definition."""
    unigram, bigram = [], []
    for val in vals:
        for i in range(1, 1 + (len(val) - 1) // seq_len * seq_len):
            count = sum(train.count(val[i]) for train in trains)
            unigram.append(-log((count + 1) / (sum(map(len, trains)) + 256)))
            followed = [t[j + 1] for t in trains for j in range(len(t) - 1) if t[j] == val[i - 1]]
            bigram.append(-log((followed.count(val[i]) + 1) / (len(followed) + 256)))
    return {"unigram": sum(unigram) / len(unigram), "bigram": sum(bigram) / len(bigram)}


def test_baselines_agree_with_counting_by_hand():
    texts = [b"abracadabra, said the cat. " * 10, bytes([0, 255, 7]) * 70]
    task = TextTask([Texts(a=texts[0], b=texts[1])], seq_len=3)
    held_out = [len(t) // 20 for t in texts]
    trains = [t[: len(t) - 2 * h] for t, h in zip(texts, held_out, strict=True)]
    vals = [t[len(t) - 2 * h : len(t) - h] for t, h in zip(texts, held_out, strict=True)]
    assert task.baselines == pytest.approx(slow_ngram_losses(trains, vals, 3), rel=1e-12)


def test_a_bigram_says_more_than_a_unigram_of_text_with_order():
    baselines = TextTask([Texts(x=b"abcd" * 5_000)]).baselines
    assert baselines["unigram"] == pytest.approx(log(4), abs=0.03)
    assert baselines["bigram"] < 0.1


def test_pairs_are_not_counted_across_domains():
    a, b = (torch.tensor([x, x], dtype=torch.uint8) for x in (1, 2))
    crossing = TextTask([Texts(x=bytes([1, 2]) * 100)], seq_len=1).held_out("val")
    assert crossing.tokens_BT[0, 0] == 1 and crossing.targets_BT[0, 0] == 2
    one = crossing._replace(tokens_BT=crossing.tokens_BT[:1], targets_BT=crossing.targets_BT[:1])
    assert ngram_losses([a, b], one)["bigram"] == pytest.approx(log(257))


def test_manifest_has_a_row_a_domain_with_the_hash_of_the_text_used():
    task = TextTask([Texts(lower=LOWER, upper=UPPER)], seq_len=8, max_bytes=3_000)
    used = [LOWER, UPPER[:3_000]]
    assert task.manifest == [
        {"source": n, "version": None, "sha256": sha256(t).hexdigest(), "bytes": len(t)}
        for n, t in zip(task.domains, used, strict=True)
    ]
    assert json.loads(json.dumps(task.manifest)) == task.manifest


def test_streams_of_different_splits_seeds_and_indexes_differ():
    keys = [(0, 0, "train"), (0, 0, "val"), (0, 0, "test"), (0, 1, "train"), (1, 0, "train")]
    keys += [(2**32, 0, "train"), (0, 2**32, "train"), (2**64 - 1, 0, "train")]
    draws = [tuple(stream(*key).integers(2**63, size=4)) for key in keys]
    assert len(set(draws)) == len(keys)
    assert draws[3] == tuple(stream(0, 1).integers(2**63, size=4))


@pytest.mark.parametrize("seq_len", [0, -1, 1.5, True, None])
def test_seq_len_below_one_is_refused(seq_len):
    with pytest.raises(ValueError, match=rf"seq_len={seq_len} .*at least 1.*seq_len=128"):
        TextTask([Texts(x=LOWER)], seq_len=seq_len)


def test_max_bytes_below_one_is_refused_and_null_is_no_limit():
    with pytest.raises(ValueError, match=r"max_bytes=0 .*at least 1.*null"):
        TextTask([Texts(x=LOWER)], max_bytes=0)
    task = TextTask([Texts(x=b"ab" * 1_500_000)], max_bytes=None)
    assert task.manifest[0]["bytes"] == 3_000_000


@pytest.mark.parametrize("size", [0, 179])
def test_a_text_too_short_for_a_window_in_each_split_is_refused(size):
    with pytest.raises(ValueError, match=rf"'x' has {size} bytes: .*seq_len=8.* at least 180"):
        TextTask([Texts(x=LOWER[:size])], seq_len=8)


def test_the_shortest_text_has_one_window_in_each_held_out_split():
    task = TextTask([Texts(x=LOWER[:180])], seq_len=8)
    assert len(task.held_out("val").tokens_BT) == len(task.held_out("test").tokens_BT) == 1


@pytest.mark.parametrize("sources", [[], [Texts(x=LOWER), Texts(x=UPPER)]])
def test_no_source_or_a_name_twice_is_refused(sources):
    with pytest.raises(ValueError, match=r"domains \[.*\]: give at least one source, and no name"):
        TextTask(sources, seq_len=8)


@pytest.mark.parametrize("split", ["train", "validation", ""])
def test_an_unknown_held_out_split_is_refused(split):
    with pytest.raises(ValueError, match=rf"split='{split}' is not valid: choose one of val, test"):
        two_domains().held_out(split)


@pytest.mark.parametrize(
    ("index", "size", "seed", "name"),
    [(-1, 4, 0, "index=-1"), (0, 0, 0, "size=0"), (0, 4, -1, "seed=-1"), (0, 4, 2**64, "seed=18")],
)
def test_a_batch_that_does_not_exist_is_refused(index, size, seed, name):
    with pytest.raises(ValueError, match=name):
        two_domains().train_batch(index, size, seed)


def test_user_text_is_the_text_task_of_the_users_files(tmp_path):
    (tmp_path / "a.txt").write_bytes(LOWER)
    (tmp_path / "b.txt").write_bytes(UPPER)
    task = user_text(str(tmp_path), seq_len=8)
    assert task.domains == ("a.txt", "b.txt")
    assert same(task.held_out("val"), TextTask([UserFiles(str(tmp_path))], 8).held_out("val"))

"""Slots are filled as they fall free, whatever becomes of a job, on every kind of launcher."""

import pytest

from hydra_plugins.prismatic_local.streaming import run_jobs, stream

from .toys import Batched, Stepwise


def jobs(count):
    """What asks for `count` jobs, and then for none."""
    numbers = iter(range(count))
    return lambda: next(((n, [f"x={n}"]) for n in numbers), None)


def wait(params, folder):
    """A job of `x` + 1 steps; an odd one fails."""
    for _ in range(params["x"]):
        yield
    if params["x"] % 2:
        raise ValueError("odd")
    return params["x"]


def results(launcher, next_job, **keys):
    ended = [pair for batch in run_jobs(launcher, next_job, **keys) for pair in batch]
    return {number: job._return_value for number, job in ended}


@pytest.mark.parametrize("slots", [1, 2, None])
def test_all_jobs_end_once_and_slots_are_never_more_than_asked(tmp_path, slots):
    launcher = Stepwise(wait, tmp_path, n_jobs=3)
    found = results(launcher, jobs(6), slots=slots)
    assert [found[n] for n in (0, 2, 4)] == [0, 2, 4]
    assert all(isinstance(found[n], ValueError) for n in (1, 3, 5))
    assert launcher.most == (slots or 3)


def test_a_free_slot_is_filled_at_once(tmp_path):
    launcher = Stepwise(wait, tmp_path, n_jobs=2)
    results(launcher, jobs(4))
    assert launcher.log.index(("start", 2)) < launcher.log.index(("end", 1))


def test_a_job_that_cannot_start_has_failed_and_holds_no_slot(tmp_path):
    class Choosy(Stepwise):
        def start(self, number, overrides):
            if number in (0, 2):
                raise OSError("no such group")
            return super().start(number, overrides)

    found = results(Choosy(wait, tmp_path), jobs(5))
    assert [str(found[n]) for n in (0, 2)] == ["no such group"] * 2
    assert found.keys() == set(range(5))


def test_more_may_come_while_a_job_runs(tmp_path):
    launcher, left = Stepwise(wait, tmp_path), [(0, ["x=2"])]
    ended = []
    for batch in run_jobs(launcher, lambda: left.pop() if left else None):
        if batch and batch[0][0] == 0:
            left.append((1, ["x=4"]))
        ended += [number for number, _ in batch]
    assert ended == [0, 1]


def test_a_launcher_of_batches_takes_part(tmp_path):
    launcher = stream(Batched(lambda params, folder: params["x"], tmp_path), 2, lambda *a: tmp_path)
    assert results(launcher, jobs(5)) == {n: n for n in range(5)}
    assert launcher.launcher.batches == [[0, 1], [2, 3], [4]]

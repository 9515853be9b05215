"""The additive floor is the minimum it claims to be: from above, from below, and where known."""

from math import log

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize
from scipy.special import logsumexp

from prismatic.stats import additive_floor, conditional_entropy, loss_ladder
from prismatic.stats.tables import newton_step, pair_sums, possible_cells, proportional_fit

TEN = np.arange(10)
SUM = TEN[:, None] + TEN
AND = np.array([[0, 0], [0, 1]])


def deterministic(z_XY: np.ndarray, p_XY: np.ndarray | None = None) -> np.ndarray:
    """P(x, y, z) of z as a function of x and y, uniform unless `p_XY` says otherwise."""
    p_XY = np.full(z_XY.shape, 1 / z_XY.size) if p_XY is None else p_XY
    return p_XY[..., None] * (z_XY[..., None] == np.arange(z_XY.max() + 1))


def uneven(seed: int, shape: tuple[int, int], concentration: float = 1.0) -> np.ndarray:
    draw = np.random.default_rng(seed)
    return draw.dirichlet(np.full(np.prod(shape), concentration)).reshape(shape)


def random_joint(seed: int, kind: str) -> np.ndarray:
    draw = np.random.default_rng(seed)
    shape = tuple(draw.integers(2, 6, 3))
    if kind == "dense":
        return draw.dirichlet(np.ones(np.prod(shape))).reshape(shape)
    if kind == "sparse":
        table = draw.random(shape) * (draw.random(shape) < 0.3) + 1e-3 * (draw.random(shape) < 0.1)
        table.flat[0] += 0.1
        return table / table.sum()
    return deterministic(draw.integers(shape[2], size=shape[:2]), uneven(seed, shape[:2]))


def cross_entropy(joint: np.ndarray, f_XZ: np.ndarray, g_YZ: np.ndarray) -> float:
    """Of logits f(x) + g(y), cell by cell."""
    logits = f_XZ[:, None] + g_YZ[None]
    return float((joint * (logsumexp(logits, 2, keepdims=True) - logits)).sum())


def minimised(joint: np.ndarray) -> float:
    """The least cross-entropy found by descent on f and g."""
    X, Y, Z = joint.shape

    def loss(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        f, g = parameters[: X * Z].reshape(X, Z), parameters[X * Z :].reshape(Y, Z)
        logits = f[:, None] + g[None]
        guess = np.exp(logits - logsumexp(logits, 2, keepdims=True))
        error = guess * joint.sum(2, keepdims=True) - joint
        return cross_entropy(joint, f, g), np.r_[error.sum(1).ravel(), error.sum(0).ravel()]

    options = {"maxiter": 20_000, "maxfun": 40_000, "ftol": 1e-15, "gtol": 1e-10, "maxcor": 30}
    start = np.zeros((X + Y) * Z)
    return float(optimize.minimize(loss, start, jac=True, method="L-BFGS-B", options=options).fun)


@pytest.mark.parametrize(
    ("name", "joint", "floor"),
    [
        ("exclusive or", deterministic(SUM[:2, :2] % 2), log(2)),
        ("sum mod 10", deterministic(SUM % 10), log(10)),
        ("sum mod 3", deterministic(SUM[:3, :3] % 3), log(3)),
        ("a Latin square", deterministic(SUM[:5, :5][[2, 0, 4, 1, 3]] % 5), log(5)),
        ("and: one line divides", deterministic(AND), 0.0),
        ("carry", deterministic(SUM // 10), 0.0),
        ("the sum itself", deterministic(SUM), 0.0),
        ("x alone", deterministic(np.repeat(TEN[:, None], 10, 1)), 0.0),
        ("one value", np.ones((1, 1, 1)), 0.0),
        ("noise of three values", np.full((2, 4, 3), 1 / 24), log(3)),
    ],
)
def test_floors_that_are_known(name, joint, floor):
    assert additive_floor(joint) == pytest.approx(floor, abs=1e-9)


def test_a_diagonal_missing_from_the_exclusive_or_frees_it():
    """Three of its four cells are linearly separable."""
    weights = np.array([[1, 1], [1, 0]]) / 3
    assert additive_floor(deterministic(SUM[:2, :2] % 2, weights)) == pytest.approx(0, abs=1e-9)


def test_a_table_of_two_by_two_by_two_by_hand():
    """One number is free: the table is P + t (-1)^(x+y+z), and t has the largest entropy."""
    joint = random_joint(3, "dense")[:2, :2, :2]
    joint = joint / joint.sum()
    sign = (-1.0) ** np.indices((2, 2, 2)).sum(0)
    ends = -joint[sign > 0].min(), joint[sign < 0].min()
    best = optimize.minimize_scalar(
        lambda t: -conditional_entropy((joint + t * sign).clip(0), "xy"),
        bounds=ends,
        method="bounded",
        options={"xatol": 1e-12},
    )
    assert additive_floor(joint) == pytest.approx(-best.fun, abs=1e-9)


@pytest.mark.parametrize("kind", ["dense", "sparse", "deterministic"])
@settings(max_examples=6)
@given(seed=st.integers(0, 10_000))
def test_the_floor_is_what_descent_comes_down_to(kind, seed):
    joint = random_joint(seed, kind)
    floor, found = additive_floor(joint), minimised(joint)
    assert floor <= found + 1e-9
    assert found == pytest.approx(floor, abs=1e-5)  # descent crawls where logits diverge


@settings(max_examples=10)
@given(st.integers(0, 10_000), st.sampled_from(["dense", "sparse", "deterministic"]))
def test_no_logits_are_below_the_floor_and_it_lies_on_the_ladder(seed, kind):
    joint, draw = random_joint(seed, kind), np.random.default_rng(seed)
    X, Y, Z = joint.shape
    ladder = loss_ladder(joint)
    floor = ladder["additive floor"]
    assert floor == additive_floor(joint)
    assert ladder["H(Z|X,Y)"] - 1e-9 <= floor <= min(ladder["H(Z|X)"], ladder["H(Z|Y)"]) + 1e-9
    for scale in (0.1, 1, 10):
        f_XZ, g_YZ = scale * draw.normal(size=(X, Z)), scale * draw.normal(size=(Y, Z))
        assert cross_entropy(joint, f_XZ, g_YZ) >= floor


@settings(max_examples=10)
@given(st.integers(0, 10_000), st.sampled_from(["dense", "sparse", "deterministic"]))
def test_a_table_with_the_same_pairs_has_the_same_floor(seed, kind):
    """Also one that is relabelled, or whose x and y change places."""
    joint, draw = random_joint(seed, kind), np.random.default_rng(seed)
    floor = additive_floor(joint)
    moved = joint[draw.permutation(len(joint))][..., draw.permutation(joint.shape[2])]
    assert additive_floor(moved.swapaxes(0, 1)) == pytest.approx(floor, abs=2e-9)
    fitted = proportional_fit(possible_cells(joint) * 1.0, joint)
    if np.abs(pair_sums(joint.shape) @ (fitted - joint).ravel()).max() < 1e-13:
        assert additive_floor(fitted) == pytest.approx(floor, abs=2e-9)
        assert conditional_entropy(fitted, "xy") == pytest.approx(floor, abs=1e-8)


@given(st.integers(0, 10_000), st.sampled_from(["dense", "sparse", "deterministic"]))
@settings(max_examples=5)
def test_possible_cells_are_those_a_linear_program_can_fill(seed, kind):
    joint = random_joint(seed, kind)[:3, :3, :3]
    joint = joint / joint.sum()
    sums, possible = pair_sums(joint.shape), possible_cells(joint).ravel()
    for cell in range(joint.size):
        most = optimize.linprog(
            -np.eye(joint.size)[cell], A_eq=sums, b_eq=sums @ joint.ravel(), bounds=(0, None)
        )
        assert (-most.fun > 1e-9) == possible[cell]


@pytest.mark.parametrize("seed", [5, 38])
def test_very_uneven_tables_reach_the_same_accuracy(seed):
    """Proportional fitting alone is 2e-8 and 9e-7 nats off after 200,000 sweeps."""
    draw = np.random.default_rng(seed)
    joint = deterministic(draw.integers(5, size=(6, 7)), uneven(seed, (6, 7), 0.3))
    floor, found = additive_floor(joint), minimised(joint)
    assert floor <= found <= floor + 1e-5


def test_pair_sums_are_the_marginals():
    joint = random_joint(1, "dense")
    known = np.concatenate([joint.sum(axis).ravel() for axis in (2, 1, 0)])
    assert pair_sums(joint.shape) @ joint.ravel() == pytest.approx(known)


def test_proportional_fitting_alone_reaches_the_marginals_of_an_even_table():
    joint = random_joint(2, "dense")
    sums, fitted = pair_sums(joint.shape), proportional_fit(np.ones(joint.shape), joint)
    assert sums @ fitted.ravel() == pytest.approx(sums @ joint.ravel(), abs=1e-9)


def test_a_newton_step_mends_the_marginals():
    joint = random_joint(2, "dense")
    sums = pair_sums(joint.shape)
    off = joint.ravel() * np.random.default_rng(0).uniform(0.9, 1.1, joint.size)
    mended = off * (1 + newton_step(off, sums, sums @ joint.ravel()))
    assert sums @ mended == pytest.approx(sums @ joint.ravel(), abs=1e-12)


def test_what_is_no_table_is_refused():
    with pytest.raises(ValueError, match="sum of joint=2"):
        additive_floor(np.full((1, 2, 1), 1.0))
    with pytest.raises(ValueError, match="shape of joint"):
        additive_floor(np.ones((2, 2)) / 4)

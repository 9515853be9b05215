"""The two tiers of every tensor's magnitudes, exact and without a sort, found anew at every call.

A tier ends at the magnitude of its last member, its edge; of the weights that share an edge the
first ones belong to the tier, up to a position, its cut. On the CPU an edge is looked for in a
narrow bracket around that of the last call, and counting proves whether it is there; otherwise a
partition finds it. What is remembered says where to look and never what is selected, so no way of
writing to a weight can leave a stale selection. On other devices all tensors are bisected together
in their floats' bits, at fixed shapes and without waiting for the device.

Shapes: S tensors, P positions of one, C of them in a chunk, K candidates or drawn positions, V
views that draw, M chunks of all tensors, D thresholds.
"""

import math
from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate

import numpy as np
import torch
from torch.nn import functional as F

# Weights that are looked at together on the CPU, so that their magnitudes stay in a core's cache.
CHUNK = 1 << 17
# Smaller tensors are partitioned at once.
SEARCHED = 1 << 14
# A bracket's first and least half-width relative to its edge, and its half-width in moves of it.
ROOM, LEAST_ROOM, MOVES = 2.0**-6, 2.0**-12, 8
# Weights in a chunk of the bisection.
DEVICE_CHUNK = 1024

Run = tuple[int, int, int]  # a tensor's index and the positions from where to where
Edges = tuple[float, float, int, int]  # values of top and bottom, then their cuts


def new_hint() -> torch.Tensor:
    """Where to look for a tensor's edges next: nowhere yet. Values, then half-widths, (4,)."""
    return torch.zeros(4, dtype=torch.float64)


def select(
    weights: Sequence[torch.Tensor],
    counts: Sequence[tuple[int, int]],
    runs: Sequence[Run] | None = None,
    hints: Sequence[torch.Tensor] | None = None,
) -> list[torch.Tensor]:
    """The roles that `role` gives by magnitude, of all tensors at once: int8 in {-1, 0, 1}.

    `counts` are the sizes of each tensor's top and bottom tier. Flat, for each of `runs`, by
    default each tensor as a whole. `hints`, one `new_hint` per tensor and kept from call to call,
    can speed up the next one on the CPU and do nothing else.
    """
    flat = [weight.detach().flatten() for weight in weights]
    if not flat:
        return []
    widest = torch.float64 if any(w_P.dtype == torch.float64 for w_P in flat) else torch.float32
    flat = [w_P.to(widest) for w_P in flat]
    if runs is None:
        runs = [(s, 0, len(w_P)) for s, w_P in enumerate(flat)]
    if flat[0].device.type == "cpu":
        hints = [new_hint() for _ in flat] if hints is None else hints
        counts_2S = [count for pair in counts for count in pair]
        together = select_on_cpu(flat, counts_2S, [x for run in runs for x in run], list(hints))
        return list(together.split([stop - start for _, start, stop in runs]))
    value_S2, cut_S2 = bisect(flat, counts)
    found = []
    for s, start, stop in runs:
        key_P = bits(flat[s][start:stop])
        position_P = torch.arange(start, stop, device=key_P.device)
        found.append(tiers(key_P, position_P, value_S2[s], cut_S2[s]))
    return found


# On the CPU: numpy, as an operation that a compiler need not look into.


@torch.library.custom_op("prismatic::select", mutates_args=("hints",), device_types="cpu")
def select_on_cpu(
    weights: list[torch.Tensor], counts: list[int], runs: list[int], hints: list[torch.Tensor]
) -> torch.Tensor:
    """The roles of all runs, one after the other."""
    arrays = [readable(w_P) for w_P in weights]
    edges = []
    for s, values_P in enumerate(arrays):
        wanted, hint_4 = (counts[2 * s], counts[2 * s + 1]), hints[s].tolist()
        found = None
        if any(hint_4):
            found = search(values_P, wanted, hint_4)
        found = found or partition(np.abs(values_P), wanted)
        if len(values_P) >= SEARCHED:
            hints[s].copy_(torch.tensor(next_hint(found, hint_4), dtype=torch.float64))
        edges.append(found)
    spans = list(zip(runs[::3], runs[1::3], runs[2::3], strict=True))
    found = np.empty(sum(b - a for _, a, b in spans), np.int8)
    ends = accumulate(b - a for _, a, b in spans)
    for (s, a, b), end in zip(spans, ends, strict=True):
        write_roles(arrays[s][a:b], a, edges[s], out_P=found[end - (b - a) : end])
    return torch.from_numpy(found)


@select_on_cpu.register_fake
def _(
    weights: list[torch.Tensor], counts: list[int], runs: list[int], hints: list[torch.Tensor]
) -> torch.Tensor:
    return hints[0].new_empty(sum(runs[2::3]) - sum(runs[1::3]), dtype=torch.int8)


def readable(x_P: torch.Tensor) -> np.ndarray:
    """A tensor's memory, to read; `Tensor.numpy` would keep FSDP from freeing it ever after."""
    return np.from_dlpack(x_P)


def partition(magnitude_P: np.ndarray, counts: tuple[int, int]) -> Edges:
    """The edges of any tensor: fewer candidates than wanted, ties within and between tiers."""
    size = len(magnitude_P)
    num_candidates = int(np.count_nonzero(magnitude_P))
    top = min(counts[0], num_candidates)
    bottom = min(counts[1], num_candidates - top)
    at_top, at_bottom = size - top, size - num_candidates + bottom - 1
    wanted = [at for at, count in ((at_top, top), (at_bottom, bottom)) if count]
    ordered_P = np.partition(magnitude_P, wanted or 0)
    value_top = float(ordered_P[at_top]) if top else math.inf
    value_bottom = float(ordered_P[at_bottom]) if bottom else 0.0
    cut_top = cut_bottom = -1
    if top:
        above = int(np.count_nonzero(magnitude_P > value_top))
        cut_top = cut(magnitude_P, value_top, top - above)
    if bottom:
        below = int(np.count_nonzero(magnitude_P < value_bottom)) - (size - num_candidates)
        shared = top - above if top and value_top == value_bottom else 0
        cut_bottom = cut(magnitude_P, value_bottom, bottom - below + shared)
    return value_top, value_bottom, cut_top, cut_bottom


def cut(magnitude_P: np.ndarray, value: float, count: int) -> int:
    """The position of the last of the first `count` weights at an edge."""
    return int(np.flatnonzero(magnitude_P == value)[count - 1])


def search(values_P: np.ndarray, counts: tuple[int, int], hint_4: Sequence[float]) -> Edges | None:
    """The edges if counting proves that they lie in the brackets of a hint, and none is shared."""
    tiers = [tier for tier in (0, 1) if counts[tier]]
    past = np.greater, np.less
    away = hint_4[2], -hint_4[3]
    beyond, inside = [0, 0], ([], [])  # type: tuple[list[int], tuple[list[np.ndarray], ...]]
    magnitude_C, mask_2C = np.empty(CHUNK, values_P.dtype), np.empty((2, CHUNK), bool)
    for start in range(0, len(values_P), CHUNK):
        value_C = values_P[start : start + CHUNK]
        beyond_C, inside_C = mask_2C[:, : len(value_C)]
        magnitudes = np.abs(value_C, out=magnitude_C[: len(value_C)])
        if not magnitudes.min():
            return None  # zeros are no candidates
        for t in tiers:
            past[t](magnitudes, hint_4[t] + away[t], out=beyond_C)
            beyond[t] += int(np.count_nonzero(beyond_C))
            past[t](magnitudes, hint_4[t] - away[t], out=inside_C)
            inside[t].append(magnitudes[np.not_equal(inside_C, beyond_C, out=inside_C)])
    values, cuts = [math.inf, 0.0], [-1, -1]
    for t in tiers:
        inside_K, rank = np.concatenate(inside[t]), counts[t] - beyond[t]
        if not 0 < rank <= len(inside_K):
            return None
        at = len(inside_K) - rank if t == 0 else rank - 1
        value = np.partition(inside_K, at)[at]
        if np.count_nonzero(past[t](inside_K, value)) + np.count_nonzero(inside_K == value) != rank:
            return None
        values[t], cuts[t] = float(value), len(values_P)
    return (*values, *cuts) if values[1] < values[0] else None  # type: ignore[return-value]


def next_hint(edges: Edges, hint_4: Sequence[float]) -> list[float]:
    """The edges, with room around them for more movement than there was lately."""
    rooms = []
    for value, before, room in zip(edges[:2], hint_4[:2], hint_4[2:], strict=True):
        moved = max(MOVES * abs(value - before), room / 2, LEAST_ROOM * value)
        rooms.append(moved if room else ROOM * value)
    return [value if math.isfinite(value) else 0.0 for value in (*edges[:2], *rooms)]


def write_roles(values_P: np.ndarray, start: int, edges: Edges, *, out_P: np.ndarray) -> None:
    """Roles of weights that begin at a position of their tensor."""
    value_top, value_bottom, cut_top, cut_bottom = edges
    room_C, mask_3C = np.empty(CHUNK, values_P.dtype), np.empty((3, CHUNK), bool)
    for first in range(0, len(values_P), CHUNK):
        value_C, role_C = values_P[first : first + CHUNK], out_P[first : first + CHUNK]
        magnitude_C, (top_C, bottom_C, some_C) = room_C[: len(value_C)], mask_3C[:, : len(value_C)]
        np.abs(value_C, out=magnitude_C)
        np.greater_equal(magnitude_C, value_top, out=top_C)
        late = max(cut_top + 1 - start - first, 0)
        if late < len(value_C):
            np.greater(magnitude_C[late:], value_top, out=top_C[late:])
        np.less_equal(magnitude_C, value_bottom, out=bottom_C)
        late = max(cut_bottom + 1 - start - first, 0)
        if late < len(value_C):
            np.less(magnitude_C[late:], value_bottom, out=bottom_C[late:])
        bottom_C &= np.greater(magnitude_C, 0, out=some_C)
        bottom_C &= np.logical_not(top_C, out=some_C)
        np.subtract(top_C.view(np.int8), bottom_C.view(np.int8), out=role_C)


# On other devices: plain operations of fixed shape, for all tensors together.


def bits(x: torch.Tensor) -> torch.Tensor:
    """The magnitudes' bits as whole numbers, which are in the magnitudes' order."""
    kind = torch.int32 if x.dtype == torch.float32 else torch.int64
    return x.view(kind) & torch.iinfo(kind).max


@torch._dynamo.assume_constant_result
@lru_cache
def layout(
    sizes: tuple[int, ...], counts: tuple[tuple[int, int], ...], device: torch.device
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The tensor of each chunk (M,), each tensor's first chunk (S,), the tiers' sizes (S, 2)."""
    rows = [-(-size // DEVICE_CHUNK) for size in sizes]
    tensor_M = torch.repeat_interleave(torch.arange(len(rows)), torch.tensor(rows))
    first_S = torch.tensor([0, *accumulate(rows)][:-1])
    return tensor_M.to(device), first_S.to(device), torch.tensor(counts).to(device)


def bisect(
    weights: Sequence[torch.Tensor], counts: Sequence[tuple[int, int]]
) -> tuple[torch.Tensor, torch.Tensor]:
    """The edges of all tensors: (S, 2) bits of each tier's last magnitude, and (S, 2) cuts.

    The bits of an edge are found from the highest to the lowest, a few at a time, by counting the
    magnitudes that are at least as large as each continuation.
    """
    sizes = tuple(len(w_P) for w_P in weights)
    tensor_M, first_S, wanted_S2 = layout(sizes, tuple(counts), weights[0].device)
    padded = [F.pad(w_P, (0, -len(w_P) % DEVICE_CHUNK)) for w_P in weights]  # no candidates
    key_MC = bits(torch.cat(padded)).view(-1, DEVICE_CHUNK)

    def by_tensor(x_MD: torch.Tensor) -> torch.Tensor:
        total_SD = x_MD.new_zeros(len(sizes), *x_MD.shape[1:])
        return total_SD.index_add(0, tensor_M, x_MD)

    candidates_S = by_tensor((key_MC > 0).sum(1))
    top_S = torch.minimum(wanted_S2[:, 0], candidates_S)
    bottom_S = torch.minimum(wanted_S2[:, 1], candidates_S - top_S)
    rank_S2 = torch.stack([top_S, candidates_S - bottom_S + 1], 1)  # counted from the largest
    value_S2 = torch.zeros_like(rank_S2, dtype=key_MC.dtype)
    left = 31 if key_MC.dtype == torch.int32 else 63
    # A compiler never writes the comparisons down, so that it may make many at a time.
    most = 4 if torch.compiler.is_compiling() else 1
    while left:
        step = min(most, left)
        left -= step
        more_D = torch.arange(1, 1 << step, device=key_MC.device, dtype=key_MC.dtype) << left
        at_M2D = (value_S2[..., None] + more_D)[tensor_M]
        count_M2D = (key_MC[:, None, None] >= at_M2D[..., None]).sum(-1)
        passed_S2 = (by_tensor(count_M2D) >= rank_S2[..., None]).sum(-1)
        value_S2 = value_S2 + (passed_S2.to(key_MC.dtype) << left)

    at_M2 = value_S2[tensor_M]
    tied_M2 = (key_MC[:, None] == at_M2[..., None]).sum(-1)
    above_S2 = by_tensor((key_MC[:, None] > at_M2[..., None]).sum(-1))
    tied_S2 = by_tensor(tied_M2)
    take_top_S = top_S - above_S2[:, 0]
    below_S = candidates_S - above_S2[:, 1] - tied_S2[:, 1]
    shared_S = take_top_S * (value_S2[:, 0] == value_S2[:, 1])  # the top's ties come first
    take_S2 = torch.stack([take_top_S, bottom_S - below_S + shared_S], 1)
    # Of the ties, the last that is taken: first its chunk, then its place within.
    sum_M2 = tied_M2.cumsum(0)
    before_S2 = (sum_M2 - tied_M2)[first_S]
    chunk_S2 = by_tensor((sum_M2 - before_S2[tensor_M] < take_S2[tensor_M]).long())
    at_S2 = (first_S[:, None] + chunk_S2).clamp(max=len(tensor_M) - 1)
    taken_S2 = (sum_M2 - tied_M2).gather(0, at_S2) - before_S2
    tie_S2C = (key_MC[at_S2] == value_S2[..., None]).cumsum(-1)
    place_S2 = (tie_S2C < (take_S2 - taken_S2)[..., None]).sum(-1)
    cut_S2 = chunk_S2 * DEVICE_CHUNK + place_S2
    value_S = value_S2[:, 0].masked_fill(top_S == 0, torch.iinfo(key_MC.dtype).max)
    value_S2 = torch.stack([value_S, value_S2[:, 1].masked_fill(bottom_S == 0, 0)], 1)
    return value_S2, cut_S2.masked_fill(torch.stack([top_S, bottom_S], 1) == 0, -1)


def tiers(
    key_P: torch.Tensor, position_P: torch.Tensor, value_2: torch.Tensor, cut_2: torch.Tensor
) -> torch.Tensor:
    """Roles by magnitudes' bits and positions: element by element, to fuse with what uses it."""
    in_time_P2 = position_P[:, None] <= cut_2
    tied_P2 = (key_P[:, None] == value_2) & in_time_P2
    top_P = (key_P > value_2[0]) | tied_P2[:, 0]
    bottom_P = (key_P > 0) & ((key_P < value_2[1]) | tied_P2[:, 1]) & ~top_P
    return top_P.to(torch.int8) - bottom_P.to(torch.int8)


# Strategy `random`.


def place(weight_P: torch.Tensor, order_VP: torch.Tensor, size: int) -> torch.Tensor:
    """The positions that each view draws, in ascending order: (V, K) for K = `size`.

    `order_VP` are drawn orders of all positions. Zeros are no candidates and so drawn last; where
    they are drawn at all, their role is 0.
    """
    if weight_P.device.type == "cpu":
        return place_on_cpu(weight_P, order_VP, size)
    return zeros_last(weight_P, order_VP)[:, :size].sort().values


def zeros_last(weight_P: torch.Tensor, order_VP: torch.Tensor) -> torch.Tensor:
    """An order in which zeros come after all others, without a sort."""
    order_VP = order_VP.long()
    some_VP = weight_P[order_VP] != 0
    zero_VP = ~some_VP
    rank_VP = torch.where(some_VP, some_VP.cumsum(1), some_VP.sum(1, True) + zero_VP.cumsum(1))
    return torch.empty_like(order_VP).scatter(1, rank_VP - 1, order_VP)


@torch.library.custom_op("prismatic::place", mutates_args=(), device_types="cpu")
def place_on_cpu(weight_P: torch.Tensor, order_VP: torch.Tensor, size: int) -> torch.Tensor:
    # The first of an order are sorted already: which they are matters, not how they were drawn.
    first_VK = order_VP[:, :size].long()
    if bool((weight_P[first_VK] != 0).all()):
        return first_VK
    return zeros_last(weight_P, order_VP)[:, :size].sort().values


@place_on_cpu.register_fake
def _(weight_P: torch.Tensor, order_VP: torch.Tensor, size: int) -> torch.Tensor:
    return order_VP.new_empty(len(order_VP), size, dtype=torch.int64)

"""The two tiers of every tensor's magnitudes, exact and without a sort, found anew at every call.

A tier ends at the magnitude of its last member, its edge; of the weights that share an edge the
first ones belong to the tier, up to a position, its cut. On the CPU a sample says between which
magnitudes an edge must lie, and counting proves it; where it does not, a partition finds the edge.
On other devices all tensors are bisected together in their floats' bits, at fixed shapes and
without waiting for the device.

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
# Of larger tensors every so many-th weight is sampled: a prime, so as to meet all columns.
SAMPLED, EVERY = 1 << 15, 61
# How far an edge may lie from where the sample has it, in standard deviations of its rank.
DEVIATIONS = 5
# Weights in a chunk of the bisection.
DEVICE_CHUNK = 1024

Counts = tuple[int, int]  # of the top and of the bottom tier
Edges = tuple[float, float, int, int]  # values of top and bottom, then their cuts
Run = tuple[int, int, int]  # a tensor's index, and the positions from where to where


def select(
    weights: Sequence[torch.Tensor], counts: Sequence[Counts], runs: Sequence[Run] | None = None
) -> list[torch.Tensor]:
    """The roles that `role` gives by magnitude, of all tensors at once: int8 in {-1, 0, 1}.

    `counts` are the sizes of each tensor's tiers. Flat, for each of `runs`: by default for each
    tensor as a whole.
    """
    if not weights:
        return []
    dtypes = [torch.float64 if w.dtype == torch.float64 else torch.float32 for w in weights]
    flat = [w.detach().flatten().to(max(dtypes, key=str)) for w in weights]
    if runs is None:
        runs = [(s, 0, len(w_P)) for s, w_P in enumerate(flat)]
    if flat[0].device.type == "cpu":
        together = select_on_cpu(flat, [n for c in counts for n in c], [x for r in runs for x in r])
        return list(together.split([stop - start for _, start, stop in runs]))
    value_S2, cut_S2 = bisect(flat, tuple(counts))
    return [tiers(flat[s], start, stop, value_S2[s], cut_S2[s]) for s, start, stop in runs]


@torch.library.custom_op("prismatic::select", mutates_args=(), device_types="cpu")
def select_on_cpu(weights: list[torch.Tensor], counts: list[int], runs: list[int]) -> torch.Tensor:
    """The roles of all runs, one after the other; a compiler need not look into numpy's part."""
    # `Tensor.numpy` would keep FSDP from freeing the memory ever after.
    arrays = [np.from_dlpack(w_P.detach()) for w_P in weights]
    pairs = zip(arrays, counts[::2], counts[1::2], strict=True)
    edges = [
        search(w_P, (top, bottom)) or partition(w_P, (top, bottom)) for w_P, top, bottom in pairs
    ]
    spans = list(zip(runs[::3], runs[1::3], runs[2::3], strict=True))
    found = np.empty(sum(stop - start for _, start, stop in spans), np.int8)
    at = 0
    for s, start, stop in spans:
        write_roles(arrays[s][start:stop], start, edges[s], found[at : at + stop - start])
        at += stop - start
    return torch.from_numpy(found)


@select_on_cpu.register_fake
def _(weights: list[torch.Tensor], counts: list[int], runs: list[int]) -> torch.Tensor:
    return weights[0].new_empty(sum(runs[2::3]) - sum(runs[1::3]), dtype=torch.int8)


def partition(values_P: np.ndarray, counts: Counts) -> Edges:
    """The edges of any tensor: fewer candidates than wanted, ties within and between tiers."""
    magnitude_P = np.abs(values_P)
    rest_K = np.flatnonzero(magnitude_P > 0)  # neither zeros nor what is no number
    edges, cuts = [math.inf, 0.0], [-1, -1]
    for tier, sign in enumerate((-1, 1)):  # the top comes first
        count = min(counts[tier], len(rest_K))
        if count:
            key_K = sign * magnitude_P[rest_K]
            edge = np.partition(key_K, count - 1)[count - 1]
            num_tied = count - int(np.count_nonzero(key_K < edge))
            cuts[tier] = int(rest_K[np.flatnonzero(key_K == edge)[num_tied - 1]])
            edges[tier] = sign * float(edge)
            rest_K = rest_K[(key_K > edge) | ((key_K == edge) & (rest_K > cuts[tier]))]
    return (*edges, *cuts)  # type: ignore[return-value]


def search(values_P: np.ndarray, counts: Counts) -> Edges | None:
    """The edges of a large tensor whose sample says where to look, if none is tied or in doubt."""
    size = len(values_P)
    if size < SAMPLED:
        return None
    sample_K = np.sort(np.abs(values_P[::EVERY]))
    brackets = []
    for count, from_rank in ((counts[0], size - counts[0]), (counts[1], counts[1] - 1)):
        share = count / size
        rank = from_rank / size * len(sample_K)
        doubt = DEVIATIONS * math.sqrt(len(sample_K) * share * (1 - share)) + 2
        low, high = math.floor(rank - doubt), math.ceil(rank + doubt)
        low_value = sample_K[low] if low >= 0 else -math.inf
        high_value = sample_K[high] if high < len(sample_K) else math.inf
        brackets.append((low_value, high_value) if count else None)
    below, inside = [0, 0], ([], [])  # type: tuple[list[int], tuple[list[np.ndarray], ...]]
    room_C, mask_2C = np.empty(CHUNK, values_P.dtype), np.empty((2, CHUNK), bool)
    for start in range(0, size, CHUNK):
        value_C = values_P[start : start + CHUNK]
        magnitude_C = np.abs(value_C, out=room_C[: len(value_C)])
        if not magnitude_C.min() > 0:
            return None  # zeros are no candidates, nor is what is no number
        least_C, most_C = mask_2C[:, : len(value_C)]
        for t, bracket in enumerate(brackets):
            if bracket:
                np.less(magnitude_C, bracket[0], out=least_C)
                below[t] += int(np.count_nonzero(least_C))
                np.less_equal(magnitude_C, bracket[1], out=most_C)
                inside[t].append(magnitude_C[np.not_equal(least_C, most_C, out=most_C)])
    values, cuts = [math.inf, 0.0], [-1, -1]
    for t, from_rank in enumerate((size - counts[0], counts[1] - 1)):
        if brackets[t]:
            inside_K, rank = np.concatenate(inside[t]), from_rank - below[t]
            if not 0 <= rank < len(inside_K):
                return None
            ordered_K = np.partition(inside_K, rank)
            values[t], cuts[t] = float(ordered_K[rank]), size
            tied = ordered_K[:rank] if t == 0 else ordered_K[rank + 1 :]
            if np.any(tied == ordered_K[rank]):
                return None
    return (*values, *cuts) if values[1] < values[0] else None  # type: ignore[return-value]


def write_roles(values_P: np.ndarray, start: int, edges: Edges, role_P: np.ndarray) -> None:
    """Write the roles of weights that begin at the position `start` of their tensor."""
    room_C, mask_3C = np.empty(CHUNK, values_P.dtype), np.empty((3, CHUNK), bool)
    for first in range(0, len(values_P), CHUNK):
        value_C, role_C = values_P[first : first + CHUNK], role_P[first : first + CHUNK]
        magnitude_C, (top_C, bottom_C, some_C) = room_C[: len(value_C)], mask_3C[:, : len(value_C)]
        np.abs(value_C, out=magnitude_C)
        np.greater_equal(magnitude_C, edges[0], out=top_C)
        np.less_equal(magnitude_C, edges[1], out=bottom_C)
        late_top, late_bottom = (max(cut + 1 - start - first, 0) for cut in edges[2:])
        if late_top < len(value_C):
            np.greater(magnitude_C[late_top:], edges[0], out=top_C[late_top:])
        if late_bottom < len(value_C):
            np.less(magnitude_C[late_bottom:], edges[1], out=bottom_C[late_bottom:])
        bottom_C &= np.greater(magnitude_C, 0, out=some_C)
        bottom_C &= np.logical_not(top_C, out=some_C)
        np.subtract(top_C.view(np.int8), bottom_C.view(np.int8), out=role_C)


@torch._dynamo.assume_constant_result
@lru_cache
def layout(
    sizes: tuple[int, ...], counts: tuple[Counts, ...], device: torch.device
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The tensor of each chunk (M,), each tensor's first chunk (S,), the tiers' sizes (S, 2)."""
    rows = [-(-size // DEVICE_CHUNK) for size in sizes]
    tensor_M = torch.repeat_interleave(torch.arange(len(rows)), torch.tensor(rows))
    first_S = torch.tensor([0, *accumulate(rows)][:-1])
    return tensor_M.to(device), first_S.to(device), torch.tensor(counts).to(device)


def bits(x: torch.Tensor) -> torch.Tensor:
    """The magnitudes' bits as whole numbers, which are in the magnitudes' order."""
    kind = torch.int32 if x.dtype == torch.float32 else torch.int64
    return torch.where(x.isnan(), 0, x.view(kind) & torch.iinfo(kind).max)


def bisect(
    weights: Sequence[torch.Tensor], counts: tuple[Counts, ...]
) -> tuple[torch.Tensor, torch.Tensor]:
    """The edges of all tensors: (S, 2) bits of each tier's last magnitude, and (S, 2) cuts.

    The bits of an edge are found from the highest to the lowest, a few at a time, by counting the
    magnitudes that are at least as large as each continuation.
    """
    sizes = tuple(len(w_P) for w_P in weights)
    tensor_M, first_S, wanted_S2 = layout(sizes, counts, weights[0].device)
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
    left = torch.iinfo(key_MC.dtype).bits - 1
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

    at_M21 = value_S2[tensor_M][..., None]
    tied_M2 = (key_MC[:, None] == at_M21).sum(-1)
    above_S2, tied_S2 = by_tensor((key_MC[:, None] > at_M21).sum(-1)), by_tensor(tied_M2)
    take_top_S = top_S - above_S2[:, 0]
    below_S = candidates_S - above_S2[:, 1] - tied_S2[:, 1]
    shared_S = take_top_S * (value_S2[:, 0] == value_S2[:, 1])  # the top comes first
    take_S2 = torch.stack([take_top_S, bottom_S - below_S + shared_S], 1)
    # Of the ties, the last that is taken: first its chunk, then its place within.
    sum_M2 = tied_M2.cumsum(0)
    before_S2 = (sum_M2 - tied_M2)[first_S]
    chunk_S2 = by_tensor((sum_M2 - before_S2[tensor_M] < take_S2[tensor_M]).long())
    at_S2 = (first_S[:, None] + chunk_S2).clamp(max=len(tensor_M) - 1)
    taken_S2 = (sum_M2 - tied_M2).gather(0, at_S2) - before_S2
    tie_S2C = (key_MC[at_S2] == value_S2[..., None]).cumsum(-1)
    cut_S2 = chunk_S2 * DEVICE_CHUNK + (tie_S2C < (take_S2 - taken_S2)[..., None]).sum(-1)
    value_S = value_S2[:, 0].masked_fill(top_S == 0, torch.iinfo(key_MC.dtype).max)
    value_S2 = torch.stack([value_S, value_S2[:, 1].masked_fill(bottom_S == 0, 0)], 1)
    return value_S2, cut_S2.masked_fill(torch.stack([top_S, bottom_S], 1) == 0, -1)


def tiers(
    w_P: torch.Tensor, start: int, stop: int, value_2: torch.Tensor, cut_2: torch.Tensor
) -> torch.Tensor:
    """Roles of a run of weights: element by element, to fuse with what uses them."""
    key_P = bits(w_P[start:stop])
    tied_P2 = key_P[:, None] == value_2
    tied_P2 &= torch.arange(start, stop, device=w_P.device)[:, None] <= cut_2
    top_P = (key_P > value_2[0]) | tied_P2[:, 0]
    bottom_P = (key_P > 0) & ((key_P < value_2[1]) | tied_P2[:, 1]) & ~top_P
    return top_P.to(torch.int8) - bottom_P.to(torch.int8)


def place(weight_P: torch.Tensor, order_VP: torch.Tensor, size: int) -> torch.Tensor:
    """The positions that strategy `random` draws, in ascending order: (V, K) for K = `size`.

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

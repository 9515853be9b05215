"""What a piece of work asks of the device: operations, and waits of the host for their results."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# Operations that only describe memory in another way, and launch nothing.
VIEWS = frozenset(
    "view _unsafe_view reshape _reshape_alias t transpose permute expand slice select as_strided "
    "unsqueeze squeeze detach alias split split_with_sizes unbind chunk unfold diagonal unflatten "
    "lift_fresh empty empty_like new_empty empty_strided new_empty_strided narrow".split()
)
# Operations with results of a size or value that the host must know; and what makes a tensor of the
# host's numbers, which on another device is a copy that blocks.
WAITS = frozenset(
    "_local_scalar_dense nonzero masked_select unique_consecutive _unique2 unique_dim equal "
    "is_nonzero bincount lift_fresh".split()
)


class Counts(TorchDispatchMode):
    """Counts while it is active: `ops` launched, `syncs` waited for, both by name."""

    def __init__(self) -> None:
        super().__init__()
        self.ops: Counter[str] = Counter()
        self.syncs: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket._qualified_op_name.split("::")[-1]
        masks = name.startswith("index") and args[1:] and isinstance(args[1], list | tuple)
        if masks and any(i is not None and i.dtype == torch.bool for i in args[1]):
            self.syncs[f"{name} by a mask"] += 1
        if name in WAITS or (name == "repeat_interleave" and len(args) == 1):
            self.syncs[name] += 1
        if name not in VIEWS:
            self.ops[name] += 1
        return func(*args, **(kwargs or {}))


class Memory(TorchDispatchMode):
    """Follows what operations allocate while it is active; `peak` is the most held at once."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self.held: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        known = {x.untyped_storage()._cdata for x in tree_leaves((args, kwargs)) if is_tensor(x)}
        self.held = {key: pair for key, pair in self.held.items() if not pair[0].expired()}
        for storage in (x.untyped_storage() for x in tree_leaves(out) if is_tensor(x)):
            if storage._cdata not in known:
                self.held[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        self.peak = max(self.peak, sum(size for _, size in self.held.values()))
        return out


def is_tensor(x: Any) -> bool:
    return isinstance(x, torch.Tensor)


@contextmanager
def counting() -> Iterator[Counts]:
    """Within the context operations and waits are counted.

    What one operation of our own does inside counts as one, since a device has another one for it.
    """
    counts, listed = Counts(), torch.Tensor.tolist

    def tolist(tensor: torch.Tensor) -> Any:
        if torch._C._len_torch_dispatch_stack():  # not within an operation of our own
            counts.syncs["tolist"] += 1
        return listed(tensor)

    with patch.object(torch.Tensor, "tolist", tolist), counts:
        yield counts

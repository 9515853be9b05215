"""How strong the views of one base are: what each changes, tensor by tensor, and in all.

Shapes: E views, L passes, P positions of a parameter or tensors, K positions or rows of weights.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch

from prismatic.models import RoutedModel, full_tensor
from prismatic.routers import PrismaticRouter

TINY = 1e-300  # stands for a norm of 0 in a quotient
EVEN, LARGEST = 1500, 500  # positions of a lens that are kept: evenly spread, and most changed
MOVED = 0.01  # a weight counts as moved when a view changes it by more than this share


class ViewChange(NamedTuple):
    """A wrapped parameter and the relative change that each view makes of it, in float64."""

    router: PrismaticRouter
    name: str
    weight: torch.Tensor  # of the parameter's shape
    f_EP: torch.Tensor

    def advertised(self) -> torch.Tensor:
        """Squared norm, summed over views, of what is changed in the direction of the mode.

        A change is role * direction * modulation: it turns where the modulation is negative.
        """
        num_views, numel = self.f_EP.shape
        view_K, position_K = self.f_EP.nonzero(as_tuple=True)
        focal = self.router.focal
        shape_K = focal.modulation(position_K.double(), numel, view_K, num_views)
        changed_K = self.f_EP[view_K, position_K] * self.weight.flatten()[position_K]
        return changed_K[shape_K > 0].square().sum()


def changes(model: RoutedModel) -> Iterator[ViewChange]:
    """What views of one base change; nothing for other models, and for one view."""
    for router in model.routers:
        if isinstance(router, PrismaticRouter) and router.num_experts > 1:
            for name, share in router.expert.named_parameters():
                parameter = full_tensor(share)
                f_EP = router.factors(name, parameter)
                path = f"{router.name}.{name}"
                yield ViewChange(
                    router, path, parameter.detach().double().cpu(), f_EP.double().cpu()
                )


class Strength(NamedTuple):
    """How much the views change one parameter."""

    router: PrismaticRouter
    is_matrix: bool
    gram_EE: torch.Tensor  # inner products of the views' changes
    energy: float  # squared norm of the weight
    moved_E: torch.Tensor  # how many weights each view moves by more than MOVED
    size: int
    largest: float
    advertised: float


def strength_of(change: ViewChange) -> Strength:
    """What is needed of a change, but not the change itself."""
    changed_EP = change.f_EP * change.weight.flatten()
    return Strength(
        change.router,
        change.weight.ndim > 1,
        changed_EP @ changed_EP.T,
        float(change.weight.square().sum()),
        (change.f_EP.abs() > MOVED).sum(1),
        change.weight.numel(),
        float(change.f_EP.abs().max()),
        float(change.advertised()),
    )


def relative_norms(found: Sequence[Strength], weight_KE: torch.Tensor) -> torch.Tensor:
    """(K,) norms of the change by a merge at each row of routing weights, over the weights' norm.

    The squared norm of sum_i r_i W f_i is r G r, where G holds the changes' inner products.
    """
    gram_EE = torch.stack([one.gram_EE for one in found]).sum(0)
    energy_K = torch.einsum("ke,ef,kf->k", weight_KE, gram_EE, weight_KE).clamp(min=0)
    return (energy_K / max(sum(one.energy for one in found), TINY)).sqrt()


@torch.no_grad()
def view_measures(model: RoutedModel, weight_LE: torch.Tensor | None = None) -> dict[str, float]:
    """How strong each view is over all wrapped parameters, and the merge at mean routing weights.

    `views/share_moved` is the share of weights that the strongest view moves by more than MOVED.
    `views/advertised_share` is the share of all change, in squared norm, that has the direction
    which the mode is named for; noise has none. `weight_LE` are each pass's mean routing weights,
    by default uniform. Empty for models without views of one base (dense, smear) or with one view.
    """
    found = [strength_of(change) for change in changes(model)]
    if not found:
        return {}
    num_views = len(found[0].gram_EE)
    every_EE = torch.eye(num_views, dtype=torch.float64)
    norm_E = relative_norms(found, every_EE)
    matrices = [one for one in found if one.is_matrix]
    changed = sum(float(one.gram_EE.trace()) for one in found)
    is_directed = changed > 0 and found[0].router.perturbation.mode != "noise"
    advertised = sum(one.advertised for one in found)
    moved_E = torch.stack([one.moved_E for one in found]).sum(0)
    if weight_LE is None:
        weight_LE = torch.full((len(model.passes()), num_views), 1 / num_views)
    return {
        **({"views/advertised_share": advertised / changed} if is_directed else {}),
        **{f"views/{i}/relative_norm": float(norm_E[i]) for i in range(1, num_views)},
        "views/relative_norm": float(norm_E.max()),
        "views/relative_norm_matrices": float(relative_norms(matrices, every_EE).max()),
        "views/max_change": max(one.largest for one in found),
        "views/share_moved": float(moved_E.max()) / sum(one.size for one in found),
        **merged_norms(model, found, weight_LE.double().cpu()),
    }


def merged_norms(
    model: RoutedModel, found: Sequence[Strength], weight_LE: torch.Tensor
) -> dict[str, float]:
    """Relative norms of the merge at the mean routing weights of all passes and, for the weights
    of its router, of each pass and, where blocks recur, of each router.
    """
    name, routers, passes = "merged_relative_norm", model.routers, model.passes()
    merged = {f"routing/{name}": float(relative_norms(found, weight_LE.mean(0)[None]))}
    for k, router in enumerate(routers if len(passes) > 1 else []):
        own = [one for one in found if one.router is router]
        weight_KE = weight_LE[k :: len(routers)]
        norm_K = relative_norms(own, torch.cat([weight_KE.mean(0)[None], weight_KE])).tolist()
        if len(routers) < len(passes):
            merged[f"routing/router_{k}/{name}"] = norm_K[0]
        for j, norm in enumerate(norm_K[1:]):
            merged[f"routing/pass_{k + j * len(routers)}/{name}"] = norm
    return merged


def describe_views(found: Iterable[ViewChange]) -> dict[str, Any]:
    """How strong each view is, tensor by tensor, and the lens on one tensor of each kind.

    Kinds are matrices, gains and biases. Of a tensor of zeros nothing can be selected. `norm_E` is
    a view's change of all weights over their norm, `change_PE` the same by tensor. Empty as
    `view_measures` is.
    """
    names: list[str] = []
    strengths: list[Strength] = []
    lenses: dict[tuple[int, str], ViewChange] = {}
    for change in found:
        names.append(change.name)
        strengths.append(strength_of(change))
        if change.weight.any():
            lenses.setdefault((change.weight.ndim, change.name.rpartition(".")[2]), change)
    if not names:
        return {}
    every_EE = torch.eye(len(strengths[0].gram_EE), dtype=torch.float64)
    return {
        "tensors": names,
        "matrix": [one.is_matrix for one in strengths],
        "norm_E": relative_norms(strengths, every_EE).tolist(),
        "change_PE": [relative_norms([one], every_EE).tolist() for one in strengths],
        "lens": {change.name: describe_lens(change) for change in lenses.values()},
    }


def describe_lens(change: ViewChange) -> dict[str, Any]:
    """A tensor's focal pattern and the relative change it makes, at positions evenly spread over
    the tensor and at those that are changed most.
    """
    num_views, numel = change.f_EP.shape
    even = torch.linspace(0, numel - 1, min(EVEN, numel)).long()
    # In random order, so that of changes of one size not those of the first positions are kept.
    order = torch.randperm(numel, generator=torch.Generator().manual_seed(0))
    largest = change.f_EP.abs().amax(0)[order].topk(min(LARGEST, numel)).indices
    at_K = torch.cat([even, order[largest]]).unique()
    shapes = [
        change.router.focal.modulation(at_K.double(), numel, view, num_views).tolist()
        for view in range(1, num_views)
    ]
    return {
        "position": at_K.tolist(),
        "modulation": shapes,
        "selected": change.f_EP[1:, at_K].tolist(),
    }

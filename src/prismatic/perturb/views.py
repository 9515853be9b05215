"""All views of some tensors at once: the production path, which merges without building a view.

At each forward only roles are found anew, for all tensors together; `forms` has what stays.

Shapes: P positions of the tensor, E views, V views but the first, K drawn positions.
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import torch

from .forms import Form, Narrow, Whole, build_form
from .kernel import draw_order, require_reachable, role, unit_change
from .mixtures import Change, NarrowChange, WholeChange, wide_norm
from .options import MODES, Focal, Perturbation
from .selection import place, select

# No standard normal draw in float64 is larger.
LARGEST_DRAW = 9.0
kept_form = lru_cache(maxsize=512)(build_form)


class Views:
    """The views of some named tensors under one perturbation and focal pattern.

    `prefix` is what a tensor's name begins with where draws are keyed by it.
    """

    def __init__(
        self, num_views: int, perturbation: Perturbation, focal: Focal, prefix: str = ""
    ) -> None:
        self.num_views, self.perturbation, self.focal = num_views, perturbation, focal
        self.prefix = prefix
        # Objects of the user's own need not say what they have.
        self.is_short = getattr(perturbation, "has_short_form", False)
        self.is_drawn = self.is_short and perturbation.is_drawn
        self.is_noise = self.is_short and perturbation.is_noise
        one_way = self.is_short and not self.is_noise
        self.direction: Any = MODES[perturbation.mode] if one_way else 1.0
        unscaled = perturbation.scale == 0 and perturbation.strength is None
        self.inert = unscaled or num_views == 1  # no view differs from the tensors as they are
        self.draws: dict[tuple[object, ...], tuple[Any, ...]] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "draws": {}}  # large, and drawn again when they are wanted

    def changes(
        self, tensors: Mapping[str, torch.Tensor], product: torch.dtype | None = None
    ) -> dict[str, Change]:
        """The change of each tensor as it is now; `product` is the precision of what uses it.

        Raises `ValueError` for a strength out of reach.
        """
        return changes_of([self], [tensors], product)[0]

    def path(self, name: str) -> str:
        return f"{self.prefix}.{name}".strip(".")

    # Constants go to a compiler in tuples, since it sees through those alone.

    @torch._dynamo.assume_constant_result
    def form(self, name: str, shape: torch.Size, eps: float, *place: Any) -> tuple[Any, ...]:
        """The fields of the form of a tensor's changes, as far as rounding to `eps` shows them."""
        strength = self.perturbation.strength
        most = self.perturbation.scale if strength is None else self.perturbation.strength_max_scale
        plain = self.is_short and not self.is_noise
        least = eps / 2 / max(most, 1.0) / (1.0 if plain else LARGEST_DRAW)
        shared, options = plain and not self.is_drawn, (shape, self.num_views, self.focal, least)
        if not self.is_noise:
            return tuple(kept_form(*options, *place, shared=shared))
        key, noise = (name, shape, eps, *place), (self.perturbation, self.path(name))
        if key not in self.draws:
            self.draws[key] = tuple(build_form(*options, *place, shared=False, noise=noise))
        return self.draws[key]

    @torch._dynamo.assume_constant_result
    def order(self, name: str, numel: int, device: torch.device) -> tuple[Any, ...]:
        """What `place` wants: drawn orders of all positions, (V, P) int32."""
        if (name, numel, device) not in self.draws:
            size, views = sum(self.perturbation.counts(numel)), range(1, self.num_views)
            drawn = [draw_order(self.perturbation, self.path(name), v, numel) for v in views]
            order_VP = torch.stack(drawn).int()
            order_VP[:, :size] = order_VP[:, :size].sort(1).values
            self.draws[name, numel, device] = (order_VP.to(device),)
        return self.draws[name, numel, device]


class Pending:
    """A tensor on the way to its change: what is selected among, and what becomes of the roles."""

    solved_E: torch.Tensor | None = None  # each view's scale, where `strength` asks for one

    def __init__(
        self, views: Views, name: str, weight: torch.Tensor, product: torch.dtype | None
    ) -> None:
        self.views, self.name, self.weight = views, name, weight
        weight_P = self.weight_P = weight.detach().flatten()
        self.dtype = torch.promote_types(weight.dtype, torch.float32)
        eps = max(torch.finfo(d).eps for d in (weight.dtype, product or weight.dtype))
        fields = views.form(name, weight.shape, eps, self.dtype, weight.device)
        self.form: Form = Narrow(*fields) if isinstance(fields[0], tuple) else Whole(*fields)
        self.candidates, self.runs = [weight_P] if views.is_short else [], self.form.runs
        if views.is_drawn:  # each view selects among what it has drawn
            size = min(sum(views.perturbation.counts(len(weight_P))), len(weight_P))
            (order_VP,) = views.order(name, len(weight_P), weight.device)
            self.place_VK = place(weight_P, order_VP, size)
            self.candidates, self.runs = list(weight_P[self.place_VK]), ((0, size),)

    def change(self, roles: Sequence[torch.Tensor]) -> Change:
        """The change, from the roles of all candidates' runs."""
        views, perturbation, form = self.views, self.views.perturbation, self.form
        if views.is_short and not views.is_drawn:
            sign = torch.cat(list(roles)) if len(roles) > 1 else roles[0]
            if views.is_noise:
                weight_X = torch.cat([self.weight_P[a:b] for a, b in self.runs])
                sign = sign.abs() * weight_X.sign().to(torch.int8)
        else:
            sign = self.own_changes(roles)
            if isinstance(form, Narrow):
                sign = torch.cat([sign[v, a:b] for v, (a, b) in enumerate(form.runs)])
        found: Change = (
            NarrowChange(self.weight, form, sign)
            if isinstance(form, Narrow)
            else WholeChange(self.weight, form, sign)
        )
        scale: Any = perturbation.scale
        if perturbation.strength is not None:
            with torch.no_grad():
                moved_E = found.norms() * abs(views.direction)
                scale = wide_norm(self.weight) / moved_E * perturbation.strength
                scale = self.solved_E = torch.where(moved_E > 0, scale, 0.0).to(self.dtype)
        found.scale = scale * views.direction
        return found

    def own_changes(self, roles: Sequence[torch.Tensor]) -> torch.Tensor:
        """What each view changes before modulation, but for the draws of noise: (V, P)."""
        weight_P, perturbation = self.weight_P, self.views.perturbation
        if self.views.is_drawn:
            role_VP = roles[0].new_zeros(len(roles), len(weight_P))
            role_VP = role_VP.scatter(1, self.place_VK, torch.stack(list(roles)))
            if self.views.is_noise:
                role_VP = role_VP.abs() * weight_P.sign().to(torch.int8)
            return role_VP
        path, found = self.views.path(self.name), []
        for view in range(1, self.views.num_views):
            role_P = role(weight_P, perturbation, path, view)
            found.append(unit_change(weight_P, role_P, perturbation, path, view))
        return torch.stack(found).to(self.dtype)


def changes_of(
    all_views: Sequence[Views],
    all_tensors: Sequence[Mapping[str, torch.Tensor]],
    product: torch.dtype | None = None,
) -> list[dict[str, Change]]:
    """`Views.changes` of several, with one selection for all their tensors."""
    pairs = zip(all_views, all_tensors, strict=True)
    pending = [[Pending(views, *item, product) for item in named.items()] for views, named in pairs]
    candidates: list[torch.Tensor] = []
    counts, runs = [], []
    for item in (item for items in pending for item in items):
        for candidate in item.candidates:
            runs += [(len(candidates), start, stop) for start, stop in item.runs]
            candidates.append(candidate)
            counts.append(item.views.perturbation.counts(item.weight.numel()))
    roles, found = iter(select(candidates, counts, runs)), []
    for items in pending:
        taken = {item: [next(roles) for _ in item.candidates for _ in item.runs] for item in items}
        found.append({item.name: item.change(own) for item, own in taken.items()})
    solved = [item for items in pending for item in items if item.solved_E is not None]
    if solved and not torch.compiler.is_compiling():
        # One wait for all of them.
        largest = torch.stack([item.solved_E.max() for item in solved]).tolist()  # type: ignore
        for item, scale in zip(solved, largest, strict=True):
            require_reachable(scale, item.views.perturbation)
    return found


def merge(
    weight: torch.Tensor,
    probs: torch.Tensor,
    perturbation: Perturbation,
    focal: Focal,
    name: str = "",
) -> torch.Tensor:
    """The soft merge of all views under routing weights `probs` of shape (N,), summing to 1.

    Same shape and dtype as `weight`. Differentiable in both; the selection is a constant. No view
    is ever built. Source: 002, "Merge all views by routing weights".
    """
    if len(probs) == 1:
        return weight
    views = Views(len(probs), perturbation, focal)
    return views.changes({name: weight})[name].merged(probs)

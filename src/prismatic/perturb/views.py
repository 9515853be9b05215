"""All views of a tensor at once: the production path.

What the views change has a form that depends on the tensor's shape and on options alone, and is
found once by looking at the pattern:

* `Narrow`, where lenses leave most of the tensor alone: the few rows that they reach.
* `Whole`: sum_i r_i m_i = (weights_JQE @ r) @ basis_QL over the rows J and columns L of a matrix.
  A smooth pattern has a rank Q of one to six. Anything else (noise, a random order) is one row with
  a basis vector for each view, as every pattern is for vectors and in float64.

At each forward only roles are found anew. A change is then f = sign * form, where the sign holds
the roles; where each view has roles of its own they are part of the basis instead.

Shapes: P positions of the tensor, J rows and L columns of a form, Q rank, E views, V views but the
first, K rows that narrow lenses reach, I columns of the matrix.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from .kernel import draw_noise, draw_order, modulation, require_reachable, role, unit_change
from .options import MODES, Focal, Perturbation
from .selection import place, select

# A pattern's short form is as exact as single precision; beyond this rank it is not short.
TOLERANCE, MOST_RANK = 2.0**-25, 16
# No standard normal draw in float64 is larger.
LARGEST_DRAW = 9.0


class Whole(NamedTuple):
    """sum_i r_i m_i = (weights_JQE @ r) @ basis_QL, over `rows` times `columns` positions.

    J or L is 1 where all rows or all columns are alike.
    """

    rows: int
    columns: int
    weights_JQE: torch.Tensor
    basis_QL: torch.Tensor

    @property
    def runs(self) -> tuple[tuple[int, int], ...]:
        """From where to where roles are needed."""
        return ((0, self.rows * self.columns),)

    def views_VJL(self) -> torch.Tensor:
        """The pattern of every view but the first."""
        if self.rows == 1 and len(self.basis_QL) == self.weights_JQE.shape[2] - 1:
            return self.basis_QL[:, None]  # which is what it has a row for
        return self.weights_JQE.permute(2, 0, 1)[1:] @ self.basis_QL

    @property
    def is_flat(self) -> bool:
        """Whether all positions are alike."""
        return len(self.weights_JQE) == self.basis_QL.shape[1] == 1

    def coefficients(self, probs: torch.Tensor) -> torch.Tensor:
        """What each basis vector counts for: (..., E) -> (..., J, Q)."""
        flat = weigh(probs, self.weights_JQE.flatten(0, 1))
        return flat.unflatten(-1, self.weights_JQE.shape[:2])


class Narrow(NamedTuple):
    """m_i over some rows of a matrix: row k belongs to one view and has a pattern of its own."""

    runs: tuple[tuple[int, int], ...]  # of positions, one per view
    row_K: torch.Tensor  # int64
    weights_KE: torch.Tensor  # 1 at the row's view
    basis_KI: torch.Tensor


Form = Whole | Narrow
PatternOf = Callable[[int], torch.Tensor]


def build_form(
    shape: torch.Size,
    num_views: int,
    focal: Focal,
    least: float,
    dtype: torch.dtype,
    device: torch.device,
    *,
    shared: bool,
    noise: tuple[Perturbation, str] | None = None,
) -> Form:
    """The form of a tensor's changes; a constant, since it depends on no weight.

    `least` is the least change that counts; `shared` says whether all views share their signs;
    `noise` keys draws that multiply the pattern.
    """
    numel = shape.numel()

    def pattern(view: int) -> torch.Tensor:
        shape_P = modulation(torch.arange(numel).double(), numel, view, num_views, focal)
        return shape_P * draw_noise(*noise, view, numel) if noise else shape_P

    with torch.inference_mode(False), torch.no_grad():
        form: Form | None = narrow(pattern, shape, num_views, least) if len(shape) > 1 else None
        if form is None and len(shape) > 1 and shared and dtype != torch.float64:
            form = short(pattern, shape, num_views)
        if form is None:
            basis_VP = torch.stack([pattern(view) for view in range(1, num_views)])
            form = Whole(1, numel, torch.eye(num_views)[None, 1:], basis_VP)
        fields: list[Any] = [x.to(device) if isinstance(x, torch.Tensor) else x for x in form]
        return type(form)(*fields[:2], *(x.to(dtype) for x in fields[2:]))


kept_form = lru_cache(maxsize=512)(build_form)


def narrow(pattern: PatternOf, shape: torch.Size, num_views: int, least: float) -> Narrow | None:
    """The rows that each view reaches, if they are at most half of all rows taken together."""
    columns, left = shape[1:].numel(), shape[0] // 2
    spans, rows, bases = [], [], []
    for view in range(1, num_views):
        shape_OI = pattern(view).view(-1, columns)
        reached = (shape_OI.abs().amax(1) >= least).nonzero().flatten().tolist()
        first, last = (reached[0], reached[-1] + 1) if reached else (0, 0)
        left -= last - first
        if left < 0:
            return None
        spans.append((first * columns, last * columns))
        rows.append(torch.arange(first, last))
        bases.append(shape_OI[first:last])
    view_K = torch.cat([torch.full_like(row, view) for view, row in enumerate(rows, 1)])
    weights_KE = F.one_hot(view_K, num_views)
    return Narrow(tuple(spans), torch.cat(rows), weights_KE, torch.cat(bases))


def short(pattern: PatternOf, shape: torch.Size, num_views: int) -> Whole | None:
    """A pattern as a product of few vectors, if there is one.

    The rows of all views are spanned one after the other: whatever is left of the worst row that
    the basis does not span yet joins it, until nothing is left that single precision could show.
    """
    # A lens has a bend at its focus, which best lies between rows.
    rows = num_views if shape[0] % num_views and shape.numel() % num_views == 0 else shape[0]
    columns = shape.numel() // rows
    basis_QL, all_weights = torch.zeros(0, columns, dtype=torch.float64), []
    for view in range(1, num_views):
        shape_JL = pattern(view).view(rows, columns)
        rest_JL = shape_JL - shape_JL @ basis_QL.T @ basis_QL
        while rest_JL.abs().max() > TOLERANCE:
            if len(basis_QL) == min(MOST_RANK, columns):
                return None
            vector_L = rest_JL[rest_JL.square().sum(1).argmax()]
            for _ in range(2):  # the second time for what rounding left
                vector_L = F.normalize(vector_L - vector_L @ basis_QL.T @ basis_QL, dim=0)
            basis_QL = torch.cat([basis_QL, vector_L[None]])
            rest_JL = rest_JL - (rest_JL @ vector_L)[:, None] * vector_L
        all_weights.append(shape_JL @ basis_QL.T)
    padded = [
        F.pad(weights_JQ, (0, len(basis_QL) - weights_JQ.shape[1])) for weights_JQ in all_weights
    ]
    weights_JQE = torch.stack([torch.zeros_like(padded[0]), *padded], -1)
    if torch.allclose(weights_JQE, weights_JQE[:1], rtol=0, atol=1e-12):
        weights_JQE = weights_JQE[:1]
    if torch.allclose(basis_QL, basis_QL[:, :1], rtol=0, atol=1e-12):
        weights_JQE = weights_JQE * basis_QL[:, 0, None]
        basis_QL = torch.ones_like(basis_QL[:, :1])
    form = Whole(rows, columns, weights_JQE, basis_QL)
    return form._replace(rows=shape[0], columns=shape[1:].numel()) if form.is_flat else form


class Change:
    """What all views change of one tensor, for one forward: f_i = scale_i * sign * form_i.

    `sign` is int8 and the form's runs one after the other, or None where all signs are 1; `scale`
    is one number or one per view.
    """

    def __init__(
        self, weight: torch.Tensor, form: Form, sign: torch.Tensor | None, scale: Any = 1.0
    ) -> None:
        self.weight, self.form, self.sign, self.scale = weight, form, sign, scale

    def scaled(self, probs: torch.Tensor) -> torch.Tensor:
        """Routing weights times each view's scale: (..., E), single precision at least."""
        return probs.to(self.form[3].dtype) * self.scale

    def merged(self, probs_E: torch.Tensor) -> torch.Tensor:
        """`weight * (1 + sum_i r_i f_i)` for one r of shape (E,): differentiable in both."""
        form, weight, scaled_E = self.form, self.weight, self.scaled(probs_E)
        if isinstance(form, Narrow):
            delta_KI = self.reached() * weigh(scaled_E, form.weights_KE)[:, None]
            merged = weight.flatten(1).to(delta_KI.dtype).index_add(0, form.row_K, delta_KI)
        else:
            weight_RC, sign_RC = self.laid_out()
            merged = Merge.apply(weight_RC, sign_RC, form.basis_QL, form.coefficients(scaled_E))
        return merged.to(weight.dtype).view(weight.shape)

    def laid_out(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Weight and sign as the rows and columns of a whole form."""
        assert isinstance(self.form, Whole)
        weight_RC = self.weight.to(self.form.basis_QL.dtype).reshape(self.form[:2])
        return weight_RC, None if self.sign is None else self.sign.view(self.form[:2])

    def reached(self) -> torch.Tensor:
        """Each row that a narrow lens reaches times its change by its view at scale 1: (K, I)."""
        assert isinstance(self.form, Narrow) and self.sign is not None
        change_KI = self.form.basis_KI * self.sign.view_as(self.form.basis_KI)
        return self.weight.flatten(1)[self.form.row_K].to(change_KI.dtype) * change_KI

    def factors(self) -> torch.Tensor:
        """Every f_i in full, (E, P): for vectors and for reports."""
        form, sign = self.form, self.sign
        if isinstance(form, Narrow):
            assert sign is not None
            change_KI = form.basis_KI * sign.view_as(form.basis_KI)
            f_OEI = change_KI.new_zeros(
                len(self.weight), form.weights_KE.shape[1], change_KI.shape[1]
            )
            f_OEI = f_OEI.index_add(0, form.row_K, form.weights_KE[..., None] * change_KI[:, None])
            f_EP = f_OEI.transpose(0, 1).flatten(1)
        else:
            f_VP = signed(sign, form.views_VJL().expand(-1, *form[:2]).flatten(1))
            f_EP = F.pad(f_VP, (0, 0, 1, 0))
        return f_EP * self.scaled(f_EP.new_ones(len(f_EP)))[:, None]

    def solve(self, perturbation: Perturbation) -> torch.Tensor:
        """How many times larger each view must be to have `strength`, (E,); 0 where none can."""
        with torch.no_grad():
            if isinstance(self.form, Narrow):
                energy_K = self.reached().double().square().sum(1)
                moved_E = (energy_K @ self.form.weights_KE.double()).sqrt()
            else:
                moved_EP = self.factors() * self.weight.flatten()
                moved_E = torch.stack([wide_norm(moved_P) for moved_P in moved_EP])
            scale_E = wide_norm(self.weight) / moved_E * (perturbation.strength or 0.0)
            return torch.where(moved_E > 0, scale_E, 0.0).to(self.form[3].dtype)


class Merge(torch.autograd.Function):
    """`weight * (1 + sign * (c @ basis))`; the backward derives what it needs anew."""

    @staticmethod
    def forward(ctx: Any, *args: Any) -> torch.Tensor:
        ctx.save_for_backward(*args)
        weight_RC, sign_RC, basis_QL, c_JQ = args
        return torch.addcmul(weight_RC, weight_RC, signed(sign_RC, c_JQ @ basis_QL))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_RC: torch.Tensor) -> Any:
        weight_RC, sign_RC, basis_QL, c_JQ = ctx.saved_tensors
        grad_c_JQ = project(signed(sign_RC, grad_RC * weight_RC), c_JQ, basis_QL)
        grad_weight_RC = torch.addcmul(grad_RC, grad_RC, signed(sign_RC, c_JQ @ basis_QL))
        return grad_weight_RC, None, None, grad_c_JQ


def weigh(probs: torch.Tensor, table_XE: torch.Tensor) -> torch.Tensor:
    """Sums over views, (..., E) -> (..., X), in the table's precision whatever autocast says."""
    with torch.autocast(probs.device.type, enabled=False):
        return probs.to(table_XE.dtype) @ table_XE.T


def project(grad_RC: torch.Tensor, c_JQ: torch.Tensor, basis_QL: torch.Tensor) -> torch.Tensor:
    """The gradient of `c_JQ` from that of `c_JQ @ basis_QL`, spread over all rows and columns."""
    return grad_RC.sum_to_size(len(c_JQ), basis_QL.shape[1]) @ basis_QL.T


def signed(sign: torch.Tensor | None, x: torch.Tensor) -> torch.Tensor:
    return x if sign is None else x * sign


def wide_norm(x: torch.Tensor) -> torch.Tensor:
    return torch.linalg.vector_norm(x.detach(), dtype=torch.float64)


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
        direction: Any = 1.0
        if views.is_short and not views.is_noise:
            direction = MODES[perturbation.mode]
        sign = None
        if views.is_short and not views.is_drawn:
            sign = torch.cat(list(roles)) if len(roles) > 1 else roles[0]
            if views.is_noise:
                weight_X = torch.cat([self.weight_P[a:b] for a, b in self.runs])
                sign = sign.abs() * weight_X.sign().to(torch.int8)
        elif isinstance(form, Narrow):
            own_VP = self.own_changes(roles)
            sign = torch.cat([own_VP[v, a:b] for v, (a, b) in enumerate(form.runs)])
        else:
            form = Whole(*form[:3], form.basis_QL * self.own_changes(roles))
        found = Change(self.weight, form, sign, direction)
        strength = perturbation.strength
        found.scale *= perturbation.scale if strength is None else found.solve(perturbation)
        return found

    def own_changes(self, roles: Sequence[torch.Tensor]) -> torch.Tensor:
        """What each view changes before modulation, but for the draws of noise: (V, P)."""
        weight_P, perturbation = self.weight_P, self.views.perturbation
        if self.views.is_drawn:
            role_VP = roles[0].new_zeros(len(roles), len(weight_P))
            role_VP = role_VP.scatter(1, self.place_VK, torch.stack(list(roles)))
            return role_VP.abs() * weight_P.sign() if self.views.is_noise else role_VP
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
    solved = [
        (views.perturbation, torch.stack([change.scale.max() for change in changes.values()]).max())
        for views, changes in zip(all_views, found, strict=True)
        if views.perturbation.strength is not None
    ]
    if solved and not torch.compiler.is_compiling():
        largest = torch.stack([scale for _, scale in solved]).tolist()  # one wait for all
        for (perturbation, _), scale in zip(solved, largest, strict=True):
            require_reachable(scale, perturbation)
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

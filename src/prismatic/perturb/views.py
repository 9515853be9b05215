"""All views of a tensor at once: the production path.

What the views change has a form that depends on the tensor's shape and on options alone, and is
found once by looking at the pattern:

* `Narrow`, where lenses leave most of the tensor alone: the few rows that they reach.
* `Whole`: sum_i r_i m_i = (weights_JQE @ r) @ basis_QL over the rows J and columns L of a matrix.
  A smooth pattern has a rank Q of one to six. Anything else (noise, a random order) is one row with
  a basis vector for each view, as every pattern is for vectors and in float64.

At each forward only roles are found anew. A change is then f = sign * form, where the sign holds
direction and role; strategies that draw have signs of their own for each view.

Shapes: P positions of the tensor, J rows and L columns of a form, Q rank, E views, V views but the
first, K rows that narrow lenses reach, I columns of the matrix, S tensors.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch.autograd.function import once_differentiable

from .kernel import draw_noise, draw_order, modulation, require_reachable, role, unit_change
from .options import MODES, Focal, Perturbation
from .select import new_hint, place, select

# A pattern's short form is as exact as single precision; beyond this rank it is not short.
TOLERANCE = 2.0**-25
MOST_RANK = 16
# No standard normal draw in float64 is larger.
LARGEST_DRAW = 9.0


def weigh(probs: torch.Tensor, table_XE: torch.Tensor) -> torch.Tensor:
    """Sums over views, (..., E) -> (..., X), in the table's precision whatever autocast says."""
    with torch.autocast(probs.device.type, enabled=False):
        return probs.to(table_XE.dtype) @ table_XE.T


class Whole(NamedTuple):
    """sum_i r_i m_i = (weights_JQE @ r) @ basis_QL, over `rows` times `columns` positions.

    J or L may be 1 where all rows or all columns are alike.
    """

    rows: int
    columns: int
    weights_JQE: torch.Tensor
    basis_QL: torch.Tensor

    @property
    def is_flat(self) -> bool:
        """Whether all positions are alike."""
        return len(self.weights_JQE) == self.basis_QL.shape[1] == 1

    def runs(self) -> list[tuple[int, int]]:
        """From where to where roles are needed."""
        return [(0, self.rows * self.columns)]

    def coefficients(self, probs: torch.Tensor) -> torch.Tensor:
        """What each basis vector counts for: (..., E) -> (..., J, Q)."""
        flat = weigh(probs, self.weights_JQE.flatten(0, 1))
        return flat.unflatten(-1, self.weights_JQE.shape[:2])


class Narrow(NamedTuple):
    """m_i over some rows of a matrix: row k belongs to one view and has a pattern of its own."""

    spans: tuple[tuple[int, int], ...]  # of positions, one per view
    row_K: torch.Tensor  # int64
    view_K: torch.Tensor  # int64
    basis_KI: torch.Tensor
    weights_KE: torch.Tensor  # 1 at the row's view

    def runs(self) -> list[tuple[int, int]]:
        return list(self.spans)


Form = Whole | Narrow


def build_form(
    shape: torch.Size,
    num_views: int,
    focal: Focal,
    least: float,
    shared: bool,
    dtype: torch.dtype,
    device: torch.device,
    noise: tuple[Perturbation, str] | None = None,
) -> Form:
    """The form of a tensor's changes; a constant, since it depends on no weight.

    `least` is the least change that counts; `shared` says whether all views share a sign; `noise`
    keys draws that multiply the pattern.
    """
    numel = shape.numel()

    def pattern(view: int) -> torch.Tensor:
        position_P = torch.arange(numel).double()
        shape_P = modulation(position_P, numel, view, num_views, focal)
        return shape_P * draw_noise(*noise, view, numel) if noise else shape_P

    with torch.inference_mode(False), torch.no_grad():
        form: Form | None = None
        if len(shape) > 1:
            form = narrow(pattern, shape, num_views, least)
            if form is None and shared and noise is None and dtype != torch.float64:
                rows = shape[0] if shape[0] % num_views == 0 or numel % num_views else num_views
                form = short(pattern, rows, numel // rows, num_views)
                if form is not None and form.is_flat:
                    form = form._replace(rows=shape[0], columns=numel // shape[0])
        if form is None:
            basis_VP = torch.stack([pattern(view) for view in range(1, num_views)])
            weights_1VE = torch.eye(num_views, dtype=torch.float64)[None, 1:]
            form = Whole(1, numel, weights_1VE, basis_VP)
        moved = {
            name: value.to(device, dtype if value.is_floating_point() else value.dtype)
            for name, value in form._asdict().items()
            if isinstance(value, torch.Tensor)
        }
        return form._replace(**moved)


form_of = lru_cache(maxsize=512)(build_form)

Pattern = Callable[[int], torch.Tensor]


def narrow(pattern: Pattern, shape: torch.Size, num_views: int, least: float) -> Narrow | None:
    """The rows that each view reaches, if they are at most half of all rows taken together."""
    columns, left = shape[1:].numel(), shape[0] // 2
    spans, rows, views, bases = [], [], [], []
    for view in range(1, num_views):
        shape_OI = pattern(view).view(-1, columns)
        reached = (shape_OI.abs().amax(1) >= least).nonzero().flatten().tolist()
        first, last = (reached[0], reached[-1] + 1) if reached else (0, 0)
        left -= last - first
        if left < 0:
            return None
        spans.append((first * columns, last * columns))
        rows.append(torch.arange(first, last))
        views.append(torch.full((last - first,), view))
        bases.append(shape_OI[first:last])
    view_K = torch.cat(views)
    weights_KE = torch.nn.functional.one_hot(view_K, num_views).double()
    return Narrow(tuple(spans), torch.cat(rows), view_K, torch.cat(bases), weights_KE)


def short(pattern: Pattern, rows: int, columns: int, num_views: int) -> Whole | None:
    """A pattern as a product of few vectors, if there is one.

    The rows of all views are spanned one after the other: whatever is left of the worst row that
    the basis does not span yet joins it, until nothing is left that single precision could show.
    """
    basis_QL, all_weights = torch.zeros(0, columns, dtype=torch.float64), []
    for view in range(1, num_views):
        shape_JL = pattern(view).view(rows, columns)
        rest_JL = shape_JL - shape_JL @ basis_QL.T @ basis_QL
        while rest_JL.abs().max() > TOLERANCE:
            if len(basis_QL) == min(MOST_RANK, columns):
                return None
            vector_L = rest_JL[rest_JL.square().sum(1).argmax()]
            for _ in range(2):  # the second time for what rounding left
                vector_L = vector_L - vector_L @ basis_QL.T @ basis_QL
                vector_L = vector_L / vector_L.norm()
            basis_QL = torch.cat([basis_QL, vector_L[None]])
            rest_JL = rest_JL - (rest_JL @ vector_L)[:, None] * vector_L
        all_weights.append(shape_JL @ basis_QL.T)
    weights_JQE = torch.zeros(rows, len(basis_QL), num_views, dtype=torch.float64)
    for view, weights_JQ in enumerate(all_weights, 1):
        weights_JQE[:, : weights_JQ.shape[1], view] = weights_JQ
    if torch.allclose(weights_JQE, weights_JQE[:1], rtol=0, atol=1e-12):
        weights_JQE = weights_JQE[:1]
    if torch.allclose(basis_QL, basis_QL[:, :1], rtol=0, atol=1e-12):
        weights_JQE = weights_JQE * basis_QL[:, 0, None]
        basis_QL = torch.ones(len(basis_QL), 1, dtype=torch.float64)
    return Whole(rows, columns, weights_JQE, basis_QL)


class Change:
    """What all views change of one tensor, for one forward: f_i = scale_i * sign * form_i.

    `sign` is int8 and the form's runs one after the other, or None where all signs are 1.
    """

    def __init__(
        self, weight: torch.Tensor, form: Form, sign: torch.Tensor | None, scale: Any
    ) -> None:
        self.weight, self.form, self.sign, self.scale = weight, form, sign, scale

    @property
    def dtype(self) -> torch.dtype:
        """The precision in which changes are computed: single at least."""
        form = self.form
        return (form.basis_KI if isinstance(form, Narrow) else form.basis_QL).dtype

    def scaled(self, probs: torch.Tensor) -> torch.Tensor:
        """Routing weights times each view's scale: (..., E)."""
        return probs.to(self.dtype) * self.scale

    def merged(self, probs_E: torch.Tensor) -> torch.Tensor:
        """`weight * (1 + sum_i r_i f_i)` for one r of shape (E,): differentiable in both."""
        scaled_E = self.scaled(probs_E)
        if isinstance(self.form, Narrow):
            delta_KI = self.narrow_delta() * weigh(scaled_E, self.form.weights_KE)[:, None]
            weight_OI = self.weight.flatten(1).to(delta_KI.dtype)
            merged = weight_OI.index_add(0, self.form.row_K, delta_KI)
            return merged.to(self.weight.dtype).view(self.weight.shape)
        form = self.form
        c_JQ = form.coefficients(scaled_E)
        weight_RC = self.weight.to(c_JQ.dtype).reshape(form.rows, form.columns)
        sign = None if self.sign is None else self.sign.view(form.rows, form.columns)
        merged = Merge.apply(weight_RC, sign, form.basis_QL, c_JQ)
        return merged.to(self.weight.dtype).view(self.weight.shape)

    def narrow_delta(self) -> torch.Tensor:
        """Each reached row of the weight times its change by its view at scale 1: (K, I)."""
        assert isinstance(self.form, Narrow) and self.sign is not None
        change_KI = self.form.basis_KI * self.sign.view_as(self.form.basis_KI)
        weight_OI = self.weight.flatten(1).to(change_KI.dtype)
        return weight_OI[self.form.row_K] * change_KI

    def factors(self) -> torch.Tensor:
        """Every f_i in full, (E, P): for vectors and for reports."""
        form, numel = self.form, self.weight.numel()
        num_views = (form.weights_KE if isinstance(form, Narrow) else form.weights_JQE).shape[-1]
        scale_E1 = self.scaled(torch.ones(num_views, device=self.weight.device))[:, None]
        if isinstance(form, Narrow):
            assert self.sign is not None
            change_KI = form.basis_KI * self.sign.view_as(form.basis_KI)
            num_rows = numel // form.basis_KI.shape[1]
            f_XI = change_KI.new_zeros(num_views * num_rows, form.basis_KI.shape[1])
            f_XI = f_XI.index_add(0, form.view_K * num_rows + form.row_K, change_KI)
            return f_XI.view(num_views, numel) * scale_E1
        f_EJL = form.weights_JQE.permute(2, 0, 1) @ form.basis_QL
        f_EP = f_EJL.expand(-1, form.rows, form.columns).flatten(1)
        return signed(self.sign, f_EP) * scale_E1

    def solve(self, perturbation: Perturbation) -> torch.Tensor:
        """How much larger the scale of each view must be to have `strength`; 0 where none can."""
        with torch.no_grad():
            if isinstance(self.form, Narrow):
                energy_K = self.narrow_delta().double().square().sum(1)
                moved_E = (energy_K @ self.form.weights_KE.double()).sqrt()
            else:
                moved_EP = self.factors() * self.weight.flatten()
                moved_E = torch.stack([wide_norm(moved_P) for moved_P in moved_EP])
            scale_E = perturbation.strength * wide_norm(self.weight) / moved_E
            scale_E = torch.where(moved_E > 0, scale_E, 0.0)
        if not torch.compiler.is_compiling():
            require_reachable(float(scale_E.max()), perturbation)
        return scale_E.to(self.dtype)

class Merge(torch.autograd.Function):
    """`weight * (1 + sign * (c @ basis))`; the backward derives what it needs anew."""

    @staticmethod
    def forward(
        ctx: Any,
        weight_RC: torch.Tensor,
        sign_RC: torch.Tensor | None,
        basis_QL: torch.Tensor,
        c_JQ: torch.Tensor,
    ) -> torch.Tensor:
        ctx.save_for_backward(weight_RC, sign_RC, basis_QL, c_JQ)
        return torch.addcmul(weight_RC, weight_RC, signed(sign_RC, c_JQ @ basis_QL))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_RC: torch.Tensor) -> Any:
        weight_RC, sign_RC, basis_QL, c_JQ = ctx.saved_tensors
        grad_factor_RC = signed(sign_RC, grad_RC * weight_RC)
        grad_c_JQ = project(grad_factor_RC, c_JQ, basis_QL)
        grad_weight = torch.addcmul(grad_RC, grad_RC, signed(sign_RC, c_JQ @ basis_QL))
        return grad_weight, None, None, grad_c_JQ


def wide_norm(x: torch.Tensor) -> torch.Tensor:
    return torch.linalg.vector_norm(x.detach(), dtype=torch.float64)


def signed(sign: torch.Tensor | None, x: torch.Tensor) -> torch.Tensor:
    return x if sign is None else x * sign


def project(
    grad_RC: torch.Tensor, c_JQ: torch.Tensor, basis_QL: torch.Tensor
) -> torch.Tensor:
    """The gradient of `c_JQ` from that of `c_JQ @ basis_QL`, spread over all rows and columns."""
    return grad_RC.sum_to_size(len(c_JQ), basis_QL.shape[1]) @ basis_QL.T


class Views:
    """The views of some named tensors under one perturbation and focal pattern.

    `prefix` is what a tensor's name begins with where draws are keyed by it.
    """

    def __init__(
        self,
        num_views: int,
        perturbation: Perturbation,
        focal: Focal,
        *,
        names: Iterable[str],
        prefix: str = "",
    ) -> None:
        self.num_views, self.perturbation, self.focal = num_views, perturbation, focal
        self.prefix = prefix
        # Objects of the user's own need not say what they have.
        self.is_short = getattr(perturbation, "has_short_form", False)
        self.is_drawn = self.is_short and perturbation.is_drawn
        self.is_noise = self.is_short and perturbation.is_noise
        self.hints = {name: self.new_hints() for name in names}
        self.draws: dict[tuple[object, ...], Any] = {}

    def new_hints(self) -> list[torch.Tensor]:
        return [new_hint() for _ in range(self.num_views - 1 if self.is_drawn else 1)]

    @property
    def inert(self) -> bool:
        """Whether no view differs from the tensors as they are."""
        unscaled = self.perturbation.scale == 0 and self.perturbation.strength is None
        return unscaled or self.num_views == 1

    def changes(
        self, tensors: Mapping[str, torch.Tensor], product: torch.dtype | None = None
    ) -> dict[str, Change]:
        """The change of each tensor as it is now; `product` is the precision of what uses it.

        Raises `ValueError` for a strength out of reach.
        """
        return changes_of([self], [tensors], product)[0]

    def path(self, name: str) -> str:
        return f"{self.prefix}.{name}".strip(".")

    def form(self, *args: Any) -> Form:
        """`constants` as what they are; a compiler sees through the tuple alone."""
        kind, *fields = self.constants(*args)
        return Narrow(*fields) if kind == "narrow" else Whole(*fields)

    @torch._dynamo.assume_constant_result
    def constants(
        self, name: str, shape: torch.Size, eps: float, dtype: torch.dtype, device: torch.device
    ) -> tuple[Any, ...]:
        """The form of a tensor's changes, as far as rounding to `eps` shows them."""
        strength = self.perturbation.strength
        most = self.perturbation.scale if strength is None else self.perturbation.strength_max_scale
        most = max(most, 1.0) * (1.0 if self.is_short and not self.is_noise else LARGEST_DRAW)
        shared = not self.is_drawn and not self.is_noise and self.is_short
        options = shape, self.num_views, self.focal, eps / 2 / most, shared, dtype, device
        if not self.is_noise:
            form = form_of(*options)
            return ("narrow" if isinstance(form, Narrow) else "whole", *form)
        key = ("noise", name, *options)
        if key not in self.draws:
            self.draws[key] = build_form(*options, (self.perturbation, self.path(name)))
        form = self.draws[key]
        return ("narrow" if isinstance(form, Narrow) else "whole", *form)

    @torch._dynamo.assume_constant_result
    def order(self, name: str, numel: int, device: torch.device) -> torch.Tensor:
        """What `place` wants: drawn orders of all positions, (V, P) int32."""
        key = ("order", name, numel, device)
        if key not in self.draws:
            size = sum(self.perturbation.counts(numel))
            views = range(1, self.num_views)
            drawn = [draw_order(self.perturbation, self.path(name), v, numel) for v in views]
            order_VP = torch.stack(drawn).int()
            order_VP[:, :size] = order_VP[:, :size].sort(1).values
            self.draws[key] = order_VP.to(device)
        return self.draws[key]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "draws": {}}  # large, and drawn again when they are wanted


class Pending:
    """A tensor on the way to its change: what it lets be selected, and what becomes of roles."""

    def __init__(
        self, views: Views, name: str, weight: torch.Tensor, product: torch.dtype | None
    ) -> None:
        self.views, self.name, self.weight = views, name, weight
        self.weight_P = weight.detach().flatten()
        dtype = torch.promote_types(weight.dtype, torch.float32)
        eps = max(torch.finfo(d).eps for d in (weight.dtype, product or weight.dtype))
        device = weight.device
        self.form = views.form(name, weight.shape, eps, dtype, device)
        self.dtype, self.at_VK = dtype, None
        if views.is_drawn:
            size = min(sum(views.perturbation.counts(len(self.weight_P))), len(self.weight_P))
            self.at_VK = place(self.weight_P, views.order(name, len(self.weight_P), device), size)

    def candidates(self) -> list[torch.Tensor]:
        """What magnitudes are compared among: the tensor, or what each view has drawn."""
        if self.at_VK is not None:
            return list(self.weight_P[self.at_VK])
        return [self.weight_P] if self.views.is_short else []

    def runs(self) -> list[tuple[int, int]]:
        """Where roles are wanted among the candidates, of each of them."""
        return self.form.runs() if self.at_VK is None else [(0, self.at_VK.shape[1])]

    def change(self, roles: Sequence[torch.Tensor]) -> Change:
        """The change, from the roles of all candidates' runs."""
        perturbation, form = self.views.perturbation, self.form
        direction = 1.0
        if self.views.is_short and not self.views.is_noise:
            direction = MODES[perturbation.mode].direction or 0.0
        if self.views.is_short and self.at_VK is None:
            sign = roles[0] if len(roles) == 1 else torch.cat(list(roles))
            if self.views.is_noise:
                runs = [self.weight_P[a:b] for a, b in form.runs()]
                sign = sign.abs() * torch.cat(runs).sign().to(torch.int8)
        else:
            unit_VP = self.unit_changes(roles)
            if isinstance(form, Narrow):
                runs = form.runs()
                sign = torch.cat([unit_VP[v, a:b] for v, (a, b) in enumerate(runs)])
            else:
                basis_QL = form.basis_QL * unit_VP
                sign, form = None, Whole(form.rows, form.columns, form.weights_JQE, basis_QL)
        found = Change(self.weight, form, sign, direction)
        strength = perturbation.strength
        found.scale *= perturbation.scale if strength is None else found.solve(perturbation)
        return found

    def unit_changes(self, roles: Sequence[torch.Tensor]) -> torch.Tensor:
        """What each view changes before modulation, but for the draws of noise: (V, P)."""
        views, numel = range(1, self.views.num_views), len(self.weight_P)
        if self.at_VK is None:
            args = self.views.perturbation, self.views.path(self.name)
            each = [unit_change(self.weight_P, role(self.weight_P, *args, v), *args, v)
                    for v in views]  # fmt: skip
            return torch.stack(each).to(self.dtype)
        role_VK = torch.stack(list(roles))
        unit_VP = role_VK.new_zeros(len(views), numel).scatter(1, self.at_VK, role_VK)
        return unit_VP.abs() * self.weight_P.sign() if self.views.is_noise else unit_VP


def changes_of(
    all_views: Sequence[Views],
    all_tensors: Sequence[Mapping[str, torch.Tensor]],
    product: torch.dtype | None = None,
) -> list[dict[str, Change]]:
    """`Views.changes` of several, with one selection for all their tensors."""
    pending = [
        [Pending(views, name, weight, product) for name, weight in tensors.items()]
        for views, tensors in zip(all_views, all_tensors, strict=True)
    ]
    candidates, counts, hints, runs, owners = [], [], [], [], []
    for item in (item for items in pending for item in items):
        if item.name not in item.views.hints:
            item.views.hints[item.name] = item.views.new_hints()
        for k, candidate in enumerate(item.candidates()):
            here = [(len(candidates), start, stop) for start, stop in item.runs()]
            runs += here
            owners += [item] * len(here)
            candidates.append(candidate)
            counts.append(item.views.perturbation.counts(item.weight.numel()))
            hints.append(item.views.hints[item.name][k])
    roles: dict[Pending, list[torch.Tensor]] = {}
    found = select(candidates, counts, runs, hints)
    for owner, role_P in zip(owners, found, strict=True):
        roles.setdefault(owner, []).append(role_P)
    return [{item.name: item.change(roles.get(item, [])) for item in items} for items in pending]


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
    views = Views(len(probs), perturbation, focal, names=[name])
    return views.changes({name: weight})[name].merged(probs)

"""What a routed module must compute, written out: a copy of the weights per position or per row.

Views come from `prismatic.perturb.change`, the kernel's plain definition; smear has its experts.
"""

import copy

import torch
from torch.func import functional_call

from prismatic.perturb import change
from prismatic.routers import SmearRouter


def view(router, module, i, prefix=""):
    """Every parameter of one view: W * (1 + f_i)."""
    path = ".".join(part for part in (router.name, prefix) if part)
    return {
        name: parameter
        * (
            1
            + change(
                parameter,
                i,
                router.num_experts,
                router.perturbation,
                router.focal,
                ".".join(part for part in (path, name) if part),
            )
        )
        for name, parameter in module.named_parameters()
    }


def views(router, module, prefix=""):
    if isinstance(router, SmearRouter):
        experts = [router.expert, *router.others]
        return [dict(expert.get_submodule(prefix).named_parameters()) for expert in experts]
    return [view(router, module, i, prefix) for i in range(router.num_experts)]


def soft(all_views, r_E):
    """sum_i r_i view_i."""
    return {
        name: sum(r * one[name] for r, one in zip(r_E, all_views, strict=True))
        for name in all_views[0]
    }


def by_batch(router, expert, probs, x, *args, **kwargs):
    return functional_call(expert, soft(views(router, expert), probs.flatten()), (x, *args), kwargs)


def by_row(router, expert, probs, x, *args, **kwargs):
    """One merge and one run of the module per row; `args` and `kwargs` are shared by all rows."""
    every = views(router, expert)
    rows = [
        functional_call(expert, soft(every, r_1E[0]), (x[b : b + 1], *args), kwargs)
        for b, r_1E in enumerate(probs)
    ]
    return torch.cat([row[0] if isinstance(row, tuple) else row for row in rows])


def by_position(router, expert, probs, x, *args, **kwargs):
    """One merge per position: each submodule with parameters sees one position after the other."""
    probs = probs.expand(*x.shape[:2], -1)
    owners = [(p, m) for p, m in expert.named_modules() if list(m.parameters(recurse=False))]
    for path, module in owners:
        module.forward = separately(router, path, module, probs)
    try:
        return expert(x, *args, **kwargs)
    finally:
        for _, module in owners:
            del module.forward


def separately(router, path, module, probs):
    blank, every = copy.deepcopy(module), views(router, module, path)

    def forward(x):
        rows = [
            torch.cat(
                [
                    functional_call(blank, soft(every, probs[b, t]), (x[b : b + 1, t : t + 1],))
                    for t in range(x.shape[1])
                ],
                1,
            )
            for b in range(x.shape[0])
        ]
        return torch.cat(rows)

    return forward


REFERENCES = {"batch": by_batch, "sequence": by_row, "token": by_position}


def reference(router, x, *args, **kwargs):
    """What `router(x, ...)` should return: same parameters, same routing, other computation."""
    probs = router.route(x).probs
    return REFERENCES[router.level](router, router.expert, probs, x, *args, **kwargs)

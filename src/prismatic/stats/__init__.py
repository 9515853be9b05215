"""Statistics: arrays in, numbers out; whatever draws is given its random generator.

numpy and scipy only. Intervals and tests are on values of independent seeds; `verdicts` is the rule
of studies; the rest are the measures that single studies need.
"""

from .curves import LAWS, Optimum, growth_scores, optimum
from .estimates import (
    Interval,
    RankCorrelation,
    holm,
    rank_correlation,
    sign_flip_p,
    simultaneous_level,
    smallest_p,
    t_interval,
)
from .factorial import factorial_effects
from .power import (
    equivalence_power,
    paired_power,
    smallest_detectable_effect,
    smallest_equivalence_margin,
)
from .spectra import (
    Periodicity,
    WalshTest,
    ar1_series,
    fit_ar1,
    lomb_scargle,
    periodicity_test,
    walsh_shares,
    walsh_test,
)
from .tables import additive_floor, conditional_entropy, loss_ladder, mutual_information
from .verdicts import (
    ALPHA,
    INCONCLUSIVE,
    NO_VERDICT,
    REFUTED,
    RULES,
    SUPPORTED,
    VERDICTS,
    Finding,
    family_findings,
    too_few,
)

__all__ = [
    "ALPHA", "INCONCLUSIVE", "LAWS", "NO_VERDICT", "REFUTED", "RULES", "SUPPORTED", "VERDICTS",
    "Finding", "Interval", "Optimum", "Periodicity", "RankCorrelation", "WalshTest",
    "additive_floor", "ar1_series", "conditional_entropy", "equivalence_power",
    "factorial_effects", "family_findings", "fit_ar1", "growth_scores", "holm", "lomb_scargle",
    "loss_ladder", "mutual_information", "optimum", "paired_power", "periodicity_test",
    "rank_correlation", "sign_flip_p", "simultaneous_level", "smallest_detectable_effect",
    "smallest_equivalence_margin", "smallest_p", "t_interval", "too_few", "walsh_shares",
    "walsh_test",
]  # fmt: skip

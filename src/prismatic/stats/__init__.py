"""Statistics: arrays in, numbers out; whatever draws is given its random generator.

numpy and scipy only. Intervals and tests are on values of independent seeds; `verdicts` is the rule
of studies; the rest are the measures that single studies need.
"""

from .additive import additive_floor, loss_ladder
from .comparisons import (
    RankCorrelation,
    equivalence_p,
    holm,
    probability_of_improvement,
    rank_correlation,
    sign_flip_p,
    smallest_p,
)
from .curves import LAWS, Optimum, growth_scores, optimum
from .intervals import (
    Interval,
    bootstrap_t_interval,
    clopper_pearson,
    simultaneous_intervals,
    simultaneous_level,
    t_interval,
)
from .power import (
    equivalence_power,
    paired_power,
    smallest_detectable_effect,
    smallest_equivalence_margin,
    verdict_rates,
)
from .spectra import (
    Periodicity,
    WalshTest,
    ar1_series,
    fisher_g_test,
    fit_ar1,
    lomb_scargle,
    periodicity_test,
    walsh_shares,
    walsh_test,
)
from .tables import (
    Association,
    association_test,
    conditional_entropy,
    mutual_information,
    normalised_mutual_information,
)
from .verdicts import VERDICTS, Verdict, family_verdicts, paired_verdict

__all__ = [
    "LAWS",
    "VERDICTS",
    "Association",
    "Interval",
    "Optimum",
    "Periodicity",
    "RankCorrelation",
    "Verdict",
    "WalshTest",
    "additive_floor",
    "ar1_series",
    "association_test",
    "bootstrap_t_interval",
    "clopper_pearson",
    "conditional_entropy",
    "equivalence_p",
    "equivalence_power",
    "family_verdicts",
    "fisher_g_test",
    "fit_ar1",
    "growth_scores",
    "holm",
    "lomb_scargle",
    "loss_ladder",
    "mutual_information",
    "normalised_mutual_information",
    "optimum",
    "paired_power",
    "paired_verdict",
    "periodicity_test",
    "probability_of_improvement",
    "rank_correlation",
    "sign_flip_p",
    "simultaneous_intervals",
    "simultaneous_level",
    "smallest_detectable_effect",
    "smallest_equivalence_margin",
    "smallest_p",
    "t_interval",
    "verdict_rates",
    "walsh_shares",
    "walsh_test",
]

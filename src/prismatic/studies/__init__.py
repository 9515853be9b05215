"""Studies: from a claim of the source documents to a verdict, by a protocol fixed beforehand."""

from .claims import ASSAY, Claim, Contrast, Finding, Frequency, UnjudgeableError, values
from .main import build, main
from .spec import Picture, Study, Tier
from .summary import Summary
from .verdict import Judgement, judge

__all__ = [
    "ASSAY", "Claim", "Contrast", "Finding", "Frequency", "Judgement", "Picture", "Study",
    "Summary", "Tier", "UnjudgeableError", "build", "judge", "main", "values",
]  # fmt: skip

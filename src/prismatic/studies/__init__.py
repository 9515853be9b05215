"""Studies: from a claim of the source documents to a verdict, by a protocol fixed beforehand.

The engine is here; what belongs to one study alone is in `protocols/<study>.py`.
"""

from .claims import Claim, Contrast, Frequency, PairedClaim, UnjudgeableError, values
from .figures import StudyFigure
from .main import build, main
from .study import ASSAY, Judgement, Study, Tier, judge
from .summary import Summary

__all__ = [
    "ASSAY", "Claim", "Contrast", "Frequency", "Judgement", "PairedClaim", "Study", "StudyFigure",
    "Summary", "Tier", "UnjudgeableError", "build", "judge", "main", "values",
]  # fmt: skip

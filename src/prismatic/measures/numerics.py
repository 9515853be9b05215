"""Where the exponential leaves the numbers that a float format can hold."""

import math
from dataclasses import dataclass

# How far below the largest logit of a row a logit still counts as in range, in nats: the band that
# source 000 gives. exp(-20) = 2.1e-9 vanishes beside a 1 in all formats of a model but float64.
FAINT = 20.0


@dataclass(frozen=True)
class FloatFacts:
    """A format: `eps` is the gap after 1, `normal` its least number of full precision, `least` its
    least positive one.

    exp(x) is finite up to x = `exp_finite`, has full precision down to `exp_normal` and is more
    than 0 down to `exp_positive`: each is in the format, and the next number is beyond.
    """

    eps: float
    largest: float
    normal: float
    least: float
    exp_finite: float
    exp_normal: float
    exp_positive: float

    @property
    def vanishing(self) -> float:
        """What one logit must be below the largest to be lost in the sum of a softmax, in nats.

        From there on exp(-d) is at most eps / 2, so that 1 + exp(-d) rounds to 1. The weight itself
        is lost no sooner than at `exp_positive`.
        """
        return math.log(2 / self.eps)


FLOATS = {
    "float16": FloatFacts(
        2.0**-10, 65504.0, 2.0**-14, 2.0**-24,
        11.0859375, -9.703125, -17.328125,
    ),
    "bfloat16": FloatFacts(
        2.0**-7, (2 - 2.0**-7) * 2.0**127, 2.0**-126, 2.0**-133,
        88.5, -87.0, -92.5,
    ),
    "float32": FloatFacts(
        2.0**-23, (2 - 2.0**-23) * 2.0**127, 2.0**-126, 2.0**-149,
        88.72283172607422, -87.33654022216797, -103.97207641601562,
    ),
    "float64": FloatFacts(
        2.0**-52, (2 - 2.0**-52) * 2.0**1023, 2.0**-1022, 2.0**-1074,
        709.782712893384, -708.3964185322641, -745.1332191019411,
    ),
}  # fmt: skip

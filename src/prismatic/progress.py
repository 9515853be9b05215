"""How far a long piece of work is, and when it will be done."""

import sys

from tqdm import tqdm

PATIENCE = 5.0  # seconds that work may take without a word


def progress_bar(title: str, total: int, unit: str) -> tqdm:
    """A bar on the error output for work that takes longer than a few seconds.

    Where that is no terminal: a line every half a minute.
    """
    interval = 0.1 if sys.stderr.isatty() else 30.0
    return tqdm(
        desc=title, total=total, unit=f" {unit}s", unit_scale=True, delay=PATIENCE,
        mininterval=interval, leave=False,
    )  # fmt: skip

"""Benchmarks: what routing costs, against a plain model in the same process and round."""

import json
import time
from typing import Any

from hydra.utils import instantiate

from prismatic.config.paths import absolute
from prismatic.files import write_text


def main(config: Any) -> None:
    """What `src/bench.py` does: measure, print a table, keep the figures."""
    result, table = instantiate(config.bench)
    path = absolute(config.output) / f"{time.strftime('%Y-%m-%d_%H-%M-%S')}.json"
    write_text(path, json.dumps(result, indent=2))
    print(f"{table}\n{path}")

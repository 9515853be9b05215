"""Names of metrics that more than one room knows."""

SCORE = "objective/"  # measures from 0 to 1, of which more is better


def final(name: str) -> str:
    """Under which name MLflow keeps what a run ends with in an objective: `objective/loss/val`."""
    return name if name.startswith(SCORE) else SCORE + name

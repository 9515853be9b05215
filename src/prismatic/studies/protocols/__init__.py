"""One file per study: its probes, claims and figures together."""

"""Pictures: `compute_*` turns records into data, `draw_*` data into a matplotlib figure."""

"""Pictures: `compute_*` turns records into data, `draw_*` data into a matplotlib figure."""

from .comparison import compute_differences, compute_summary, draw_comparison, write_comparison
from .edge import (
    compute_attention,
    compute_confidence,
    compute_gradients,
    compute_logits,
    draw_attention,
    draw_confidence,
    draw_gradients,
    draw_logits,
)
from .lens import compute_change, compute_lens, draw_change, draw_lens
from .losses import (
    compute_apart,
    compute_forced,
    compute_losses,
    draw_apart,
    draw_forced,
    draw_losses,
)
from .page import (
    CHAPTERS,
    FOLDER,
    compute_alarms,
    compute_results,
    described,
    leading,
    write_report,
)
from .routing import (
    compute_attention_table,
    compute_dependence,
    compute_domains,
    compute_entropy,
    compute_information,
    compute_passes,
    compute_routing_table,
    compute_weights,
    draw_attention_table,
    draw_dependence,
    draw_domains,
    draw_entropy,
    draw_information,
    draw_passes,
    draw_routing_table,
    draw_weights,
)

__all__ = [
    "CHAPTERS", "FOLDER", "compute_alarms", "compute_apart", "compute_attention",
    "compute_attention_table", "compute_change", "compute_confidence", "compute_dependence",
    "compute_differences", "compute_domains", "compute_entropy", "compute_forced",
    "compute_gradients",
    "compute_information", "compute_lens", "compute_logits", "compute_losses", "compute_passes",
    "compute_results", "compute_routing_table", "compute_summary", "compute_weights", "described",
    "draw_apart", "draw_attention", "draw_attention_table", "draw_change", "draw_comparison",
    "draw_confidence", "draw_dependence", "draw_domains", "draw_entropy",
    "draw_forced", "draw_gradients", "draw_information", "draw_lens", "draw_logits", "draw_losses",
    "draw_passes", "draw_routing_table", "draw_weights", "leading", "write_comparison",
    "write_report",
]  # fmt: skip

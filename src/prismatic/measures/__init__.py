"""What is computed of a model: routing, views, adaptation, numerics; and the guard."""

from .guard import Alarm, Guard
from .objectives import diversity, over_seeds, steadiness, views_apart
from .views import RoutingMeasure, routing_measures, view_measures

__all__ = [
    "Alarm", "Guard", "RoutingMeasure", "diversity", "over_seeds", "routing_measures",
    "steadiness", "view_measures", "views_apart",
]  # fmt: skip

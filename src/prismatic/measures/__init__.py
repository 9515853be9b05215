"""What is computed of a model: routing, views, held-out data, numerics; and the guard."""

from .cost import Cost, measure_cost, measure_speed
from .guard import Alarm, Guard
from .held_out import HeldOut
from .objectives import diversity, over_seeds, steadiness, views_apart
from .routing import RoutingMeasure, routing_measures
from .views import view_measures

__all__ = [
    "Alarm", "Cost", "Guard", "HeldOut", "RoutingMeasure", "diversity", "measure_cost",
    "measure_speed", "over_seeds", "routing_measures", "steadiness", "view_measures", "views_apart",
]  # fmt: skip

"""Routers: dense, smear, constant and prismatic, one interface."""

from .base import Router, Routing
from .gate import POOLS, is_causal
from .prismatic import ConstantRouter, PrismaticRouter, select_together
from .recomputation import recomputed
from .rules import Routed, register_rule, unbind_rules
from .smear import DenseRouter, SmearRouter

__all__ = [
    "POOLS", "ConstantRouter", "DenseRouter", "PrismaticRouter", "Routed", "Router",
    "Routing", "SmearRouter", "is_causal", "recomputed", "register_rule", "select_together",
    "unbind_rules",
]  # fmt: skip

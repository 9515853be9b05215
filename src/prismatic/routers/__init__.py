"""Routers: dense, smear, constant and prismatic, one interface."""

from .base import Router, Routing
from .gate import POOLS, is_causal
from .mixtures import Mixture
from .prismatic import ConstantRouter, PrismaticRouter, select_together
from .rules import Routed, register_rule
from .smear import DenseRouter, SmearRouter

__all__ = [
    "POOLS", "ConstantRouter", "DenseRouter", "Mixture", "PrismaticRouter", "Routed", "Router",
    "Routing", "SmearRouter", "is_causal", "register_rule", "select_together",
]  # fmt: skip

"""Routers: dense, smear, constant and prismatic, one interface."""

from .base import Router, Routing
from .dense import DenseRouter
from .gate import POOLS, is_causal
from .mixtures import Mixture
from .prismatic import ConstantRouter, PrismaticRouter
from .rules import Routed, register_rule
from .smear import SmearRouter

__all__ = [
    "POOLS", "ConstantRouter", "DenseRouter", "Mixture", "PrismaticRouter", "Routed", "Router",
    "Routing", "SmearRouter", "is_causal", "register_rule",
]  # fmt: skip

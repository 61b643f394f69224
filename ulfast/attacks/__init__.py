"""Attacks: methods that learn from poisoned data."""

from .base import Attack, Context, Plan
from .registry import ATTACKS, get_attack
from .result import AttackResult
from .run import attack

__all__ = ["ATTACKS", "Attack", "AttackResult", "Context", "Plan", "attack", "get_attack"]

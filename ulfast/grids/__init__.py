"""Grids: tables of trainings. The YAML files beside this one are the shipped grids."""

from .grid import SHIPPED, Grid, shipped_grids
from .run import GridResult, reproduce

__all__ = ["SHIPPED", "Grid", "GridResult", "reproduce", "shipped_grids"]

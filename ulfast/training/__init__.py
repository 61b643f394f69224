"""Training: networks, recipes, the loop and checkpoints."""

from .loop import TrainResult, evaluate, train
from .models import MODELS, build_model
from .recipes import RECIPES, Recipe, default_model, get_recipe

__all__ = [
    "MODELS",
    "RECIPES",
    "Recipe",
    "TrainResult",
    "build_model",
    "default_model",
    "evaluate",
    "get_recipe",
    "train",
]

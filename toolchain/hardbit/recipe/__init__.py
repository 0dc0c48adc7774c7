"""What a user writes: a recipe in TOML, validated as a whole, with every default resolved and written back.

Boundary: a recipe says what is wanted; nothing here trains, converts or measures.
"""

from hardbit.recipe.load import Problem, RecipeError, load_recipe, parse_recipe
from hardbit.recipe.schema import (
    Data,
    Evaluation,
    Gate,
    Network,
    Phase,
    Quantization,
    Recipe,
    Suite,
    Target,
    ThreatModel,
    Training,
)

__all__ = [
    "Data",
    "Evaluation",
    "Gate",
    "Network",
    "Phase",
    "Problem",
    "Quantization",
    "Recipe",
    "RecipeError",
    "Suite",
    "Target",
    "ThreatModel",
    "Training",
    "load_recipe",
    "parse_recipe",
]

"""hardbit: from a recipe to a verdict on a deployed low-bit engine."""

__version__ = "0.1.0"

"""Integer arithmetic that hardbit engines are held to: pure numpy."""

__version__ = "0.1.0"

"""The board side of hardbit: numpy and the runtime of the board, nothing heavier."""

__version__ = "0.1.0"

"""The one family of exceptions that a user sees: what is wrong, where, and what to do about it."""

from __future__ import annotations

__all__ = ["BundleError", "HardbitError"]


class HardbitError(Exception):
    """A mistake that the user can mend. Printed as one line, without a traceback, with exit code 64 (EX_USAGE).

    `message` says what is wrong, `where` names the file, key or node, `remedy` says what to do.
    """

    exit_code = 64

    def __init__(self, message: str, where: str = "", remedy: str = "") -> None:
        super().__init__(message, where, remedy)
        self.message = message
        self.where = where
        self.remedy = remedy

    def __str__(self) -> str:
        text = f"{self.where}: {self.message}" if self.where else self.message
        if self.remedy:
            text = f"{text}; {self.remedy}"
        return " ".join(text.split())


class BundleError(HardbitError):
    """A bundle that is refused: damaged, unsafe, or of a format that this version does not read."""

"""Errors meant for the person at the keyboard.

Each message is one line: what is wrong, then how to mend it. The command line prints it
after ``error:`` and leaves with ``exit_code``; anything that is not a ``MixtralError`` is
a defect of this program and keeps its traceback.
"""


class MixtralError(Exception):
    """Something the user can mend. ``str(error)`` is the one line to show.

    Names out of files come in messages: what is not printable in them is written as an escape.
    """

    exit_code = 1

    def __init__(self, message: str) -> None:
        shown = (c if c.isprintable() else c.encode("unicode_escape").decode() for c in message)
        super().__init__("".join(shown))


class UsageError(MixtralError):
    """A bad option, value or argument."""

    exit_code = 2


class ModelError(MixtralError):
    """A model folder that cannot be used: missing, damaged, or of another architecture."""


class ContextError(MixtralError):
    """More tokens than the model's context holds."""

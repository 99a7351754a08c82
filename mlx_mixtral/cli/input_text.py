"""Text from standard input and the command line, checked to be Unicode."""

import sys
from collections.abc import Iterator

from mlx_mixtral.errors import UsageError


def read_all() -> str:
    """Everything on standard input. Raises UsageError unless UTF-8."""
    return "".join(read_lines())


def read_lines() -> Iterator[str]:
    """Standard input line by line as it comes, newlines kept. Raises UsageError unless UTF-8."""
    for number, line in enumerate(sys.stdin.buffer, 1):
        try:
            yield line.decode("utf-8")
        except UnicodeDecodeError:
            raise UsageError(f"line {number} of standard input is not UTF-8 text") from None


def checked(text: str, where: str) -> str:
    """``text`` of an argument, where bytes that are not UTF-8 come as lone surrogates."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise UsageError(f"{where} is not UTF-8 text") from None
    return text

"""Text that a terminal only shows and never obeys."""

_PICTURES = {code: 0x2400 + code for code in range(0x20)} | {0x7F: 0x2421}  # ESC becomes ␛
_C1 = dict.fromkeys(range(128, 160), 65533)
_SHOWN = _PICTURES | _C1 | {ord("\n"): "\n", ord("\t"): "\t", ord("\r"): None}


def printable(text: str) -> str:
    """``text`` with every control character but newline and tab made visible.

    What a model or a file says may hold escape sequences that move the cursor, set the
    title or write the clipboard; no C0 or C1 control reaches the terminal through this.
    Works character by character, so pieces of a stream may be cut anywhere.
    """
    return text.translate(_SHOWN)

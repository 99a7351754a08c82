"""The files of a model folder that go along unchanged: tokenizer, template, licence."""

from pathlib import Path

PATTERNS = (
    "tokenizer.model*",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
    "LICENSE*",
)
"""Code (``*.py``) that came with the weights never goes along."""


def carried_files(folder: Path) -> list[Path]:
    """The files of ``folder`` to copy; links, as in the Hugging Face cache, are followed."""
    found = {path for pattern in PATTERNS for path in folder.glob(pattern)}
    return sorted(path for path in found if path.is_file())

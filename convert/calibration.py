"""The text that shows a quantizer what goes into each matrix, as tokens of the model at hand."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from convert.carried import carried_files
from convert.readers import Source
from mlx_mixtral.errors import ModelError, UsageError
from mlx_mixtral.template import Template, template_for
from mlx_mixtral.tokenizer import Tokenizer

OWN = Path(__file__).parent / "calibration.jsonl"
"""Prose, code and conversations in five languages, in the public domain or our own."""
WINDOW = 512
MOST = 128
"""Windows at most: hidden states of all of them are in memory."""

Text = str | list[dict[str, str]]
"""Running text, or the messages of a chat."""


@dataclass(frozen=True)
class Calibration:
    """Windows of token ids [N, L] of the text in ``file``; ``tokens`` counts all it has."""

    file: Path
    ids: NDArray[np.int32]
    tokens: int

    @classmethod
    def of(cls, source: Source, file: Path | None = None) -> Calibration:
        """The text in ``file``, or one that comes along, cut into windows for ``source``.

        ``.jsonl`` has an object a line: {"text": ...}, or a chat {"messages": [...]} in
        OpenAI's form; anything else is running text. ``<s>`` opens every text and every window.

        Raises:
            UsageError: there is no such file, it is no text, or too short; or the source has no
                tokenizer.model.
            ModelError: the tokenizer is not this model's.
        """
        file = file or OWN
        with tempfile.TemporaryDirectory() as folder:
            for carried in carried_files(source.folder) if source.folder else ():
                shutil.copy(carried, folder)
            for name, content in source.made.items():
                Path(folder, name).write_bytes(content)
            tokens = _tokens(texts(file), Path(folder), file)
        config = source.config
        if max(tokens, default=0) >= config.vocab_size:
            raise ModelError("tokenizer.model has more tokens than the model; they are no pair")
        length = min(WINDOW, config.max_position_embeddings, config.sliding_window or WINDOW)
        count = min(MOST, len(tokens) // (length - 1))
        if count == 0:
            raise UsageError(
                f"{file} has {len(tokens)} tokens; --calibration wants {length - 1} or more"
            )
        ids = np.full((count, length), tokens[0], np.int32)
        ids[:, 1:] = np.array(tokens[: count * (length - 1)]).reshape(count, -1)
        return cls(file, ids, len(tokens))

    @property
    def identity(self) -> str:
        """What tells these windows from every other ones."""
        return hashlib.sha256(repr(self.ids.shape).encode() + self.ids.tobytes()).hexdigest()


def texts(file: Path) -> list[Text]:
    """What ``file`` holds.

    Raises:
        UsageError: there is no such file, or it is no text.
    """
    try:
        content = file.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise UsageError(f"--calibration {file} is not UTF-8 text") from None
    except OSError as error:
        raise UsageError(f"--calibration {file}: {error.strerror or error}") from None
    if file.suffix != ".jsonl":
        return [content]
    return [
        _entry(line, f"--calibration {file}, line {number}")
        for number, line in enumerate(content.splitlines(), 1)
        if line.strip()
    ]


def _entry(line: str, where: str) -> Text:
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{where}: {error}") from None
    if isinstance(entry, dict) and isinstance(entry.get("text"), str):
        text: str = entry["text"]
        return text
    messages = entry.get("messages") if isinstance(entry, dict) else None
    if isinstance(messages, list) and all(isinstance(message, dict) for message in messages):
        return messages
    raise UsageError(f'{where}: neither {{"text": ...}} nor {{"messages": [...]}}')


def _tokens(texts: list[Text], folder: Path, file: Path) -> list[int]:
    try:
        tokenizer = Tokenizer.from_folder(folder)
        template = template_for(tokenizer, folder)
    except ModelError as error:
        raise UsageError(f"--effort best reads a text: {error}; or take --effort better") from None
    tokens: list[int] = []
    for number, text in enumerate(texts, 1):
        if isinstance(text, str):
            tokens += tokenizer.encode(text, bos=True)
            continue
        try:
            tokens += _chat(text, tokenizer, template)
        except UsageError as error:
            raise UsageError(f"--calibration {file}, chat {number}: {error}") from None
    return tokens


def _chat(messages: list[dict[str, str]], tokenizer: Tokenizer, template: Template) -> list[int]:
    """A conversation; an answer at its end is finished."""
    answered = bool(messages) and messages[-1].get("role") == "assistant"
    ids = template.encode(messages, add_generation_prompt=not answered)
    return [*ids, tokenizer.eos_id] if answered else ids

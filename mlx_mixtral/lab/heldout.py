"""The text that a model's quality is measured on."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlx_mixtral.catalog import DEMO, resolve
from mlx_mixtral.config import read_config
from mlx_mixtral.errors import UsageError
from mlx_mixtral.lab.windows import LLAMA_CHUNK, Window, llama_chunks, sliding
from mlx_mixtral.template import Template, template_for
from mlx_mixtral.tokenizer import Tokenizer

CHATS = ".jsonl"
WINDOW = 1024
"""Tokens of a window of running text, the stride being half of it: twice the work, and every
token sees at least the half of a window before it."""


@dataclass(frozen=True)
class Heldout:
    """A text in windows.

    Attributes:
        file: where it lies.
        rule: how it was cut, and which tokens count.
        windows: those that perplexity and divergence are measured on.
        chunks: the same text for llama.cpp's convention; none for chats or a short text.
        left_out: tokens of the text that were more than asked for, or chats too long.
    """

    file: Path
    rule: str
    windows: tuple[Window, ...]
    chunks: tuple[Window, ...] = ()
    left_out: str = ""


def heldout(folder: Path, file: Path | None = None, most: int = 8192) -> Heldout:
    """The text of ``file``, cut for the model in ``folder``.

    Args:
        file: ``.jsonl``: chats, one a line, in OpenAI's form ({"messages": [...]}), of each of
            which the last answer counts, ``</s>`` included; anything else is running text.
            By default what suits the model (see ``default_text``).
        most: count at most so many tokens, or of chats the last one whole.

    Raises:
        UsageError: there is no such file, it is no text, or too short to be measured.
        ModelError: the model's folder is damaged, or has no tokenizer.model.
    """
    file = file or default_text(folder)
    text = _read(file)
    tokenizer = Tokenizer.from_folder(folder)
    context = read_config(folder).max_position_embeddings
    if file.suffix == CHATS:
        return _chats(file, text, tokenizer, template_for(tokenizer, folder), context, most)
    return _running(file, tokenizer.encode(text), tokenizer.bos_id, context, most)


def default_text(folder: Path) -> Path:
    """The demo's own questions for what has its vocabulary, and knows nothing else; for every
    other model a mixed text: prose, letters, code, figures, five languages.

    Of that, the prose is from News from Nowhere (William Morris, 1890), Beethoven's Letters (Lady
    Wallace's translation, 1866) and The Compleat Angler (Izaak Walton, 1653), in the public
    domain; the rest was written for this.
    """
    demo, name = resolve(DEMO), "tokenizer.model"
    if (folder / name).is_file() and (folder / name).read_bytes() == (demo / name).read_bytes():
        return demo / "heldout.jsonl"
    return Path(__file__).with_name("heldout.txt")


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise UsageError(f"--text {file} is not UTF-8 text") from None
    except OSError as error:
        raise UsageError(f"--text {file}: {error.strerror or error}") from None


def _running(file: Path, ids: Sequence[int], bos: int, context: int, most: int) -> Heldout:
    length = min(WINDOW, context)
    stride = length // 2
    taken = ids[:most]
    if len(taken) < 2:
        raise UsageError(f"--text {file} has no text to measure; give a longer one")
    return Heldout(
        file,
        f"windows of {length} tokens, <s> first, each {stride} further on; every token counts once",
        tuple(sliding(taken, bos, length, stride)),
        tuple(llama_chunks(taken, bos, LLAMA_CHUNK)) if context >= LLAMA_CHUNK else (),
        f"the first {len(taken):,} of {len(ids):,} tokens" if len(ids) > most else "",
    )


def _chats(
    file: Path, text: str, tokenizer: Tokenizer, template: Template, context: int, most: int
) -> Heldout:
    windows: list[Window] = []
    lines = [line for line in enumerate(text.splitlines(), 1) if line[1].strip()]
    counted = too_long = 0
    for number, line in lines:
        window = _chat(_messages(line, f"--text {file}, line {number}"), tokenizer, template)
        if len(window.ids) > context:
            too_long += 1
            continue
        windows.append(window)
        counted += window.count
        if counted >= most:
            break
    if not windows:
        raise UsageError(f"--text {file} has no chat that fits the context of {context} tokens")
    left = [f"{len(windows)} of {len(lines)} chats"] if len(windows) < len(lines) else []
    left += [f"{too_long} longer than the context"] if too_long else []
    rule = f"{len(windows)} chats; of each the last answer counts, with its </s>"
    return Heldout(file, rule, tuple(windows), left_out=", ".join(left))


def _messages(line: str, where: str) -> list[dict[str, Any]]:
    try:
        messages = json.loads(line)["messages"]
        if messages[-1]["role"] == "assistant":
            return list(messages)
    except (ValueError, KeyError, TypeError, IndexError):
        pass
    raise UsageError(f'{where} is not {{"messages": [...]}} that ends with the assistant')


def _chat(messages: list[dict[str, Any]], tokenizer: Tokenizer, template: Template) -> Window:
    prompt = template.encode(messages[:-1])
    whole = [*template.encode(messages, add_generation_prompt=False), tokenizer.eos_id]
    # A template may end its prompts with a blank that an answer swallows.
    pairs = enumerate(zip(prompt, whole, strict=False))
    return Window(tuple(whole), next((i for i, (a, b) in pairs if a != b), len(prompt)))

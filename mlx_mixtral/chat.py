"""A conversation with a model. It keeps its KV cache: a turn computes only what is new."""

from __future__ import annotations

import json
import os
import tempfile
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mlx_mixtral.errors import MixtralError, UsageError
from mlx_mixtral.generation import kv_file
from mlx_mixtral.generation.draft import DraftModel
from mlx_mixtral.generation.kv import KVSettings, kv_bytes
from mlx_mixtral.generation.kv_file import Owner, Progress, activations
from mlx_mixtral.generation.prompt_cache import PromptCache
from mlx_mixtral.generation.sampling import Sampling
from mlx_mixtral.generation.text import Completion, Piece, answer, collect
from mlx_mixtral.loading import LanguageModel

Message = dict[str, str]


class Chat:
    """A conversation.

    >>> chat = Chat(load("demo"))
    >>> print(chat.send("What is a violin?"))
    A violin is a stringed instrument that is played with a bow.

    Attributes:
        messages: what was said, in OpenAI's form ({"role": ..., "content": ...}), the
            system text first if there is one.
        sampling: settings of the next answer; replace it to change them.
        last: the last answer with its statistics, or None.
        dropped: how many of the oldest turns the last prompt had to leave out, because
            the context is full. They stay in ``messages``.
        draft: a smaller model that proposes tokens (see ``generation/draft.py``), or None.
    """

    def __init__(
        self,
        lm: LanguageModel,
        system: str | None = None,
        *,
        kv_bits: int | None = None,
        kv_window: int | None = None,
        draft: LanguageModel | None = None,
        **sampling: Any,
    ) -> None:
        """``kv_bits`` and ``kv_window`` are the fields of ``KVSettings``."""
        self.lm = lm
        self.sampling = Sampling.of(**{"temperature": lm.chat_temperature, **sampling})
        self.messages: list[Message] = []
        self.last: Completion | None = None
        self.dropped = 0
        self._cache = PromptCache(lm.config, KVSettings(kv_bits, kv_window))
        self.draft = draft
        self._draft = DraftModel(lm, draft) if draft else None
        self._stop = threading.Event()
        self.system = system

    @property
    def system(self) -> str | None:
        """The system text, or None. A new one holds from the next turn on."""
        if self.messages and self.messages[0]["role"] == "system":
            return self.messages[0]["content"]
        return None

    @system.setter
    def system(self, text: str | None) -> None:
        rest = self.messages[1:] if self.system is not None else self.messages
        self.messages = [{"role": "system", "content": text}, *rest] if text else list(rest)

    @property
    def context_used(self) -> int:
        """Tokens of the conversation that the model holds now."""
        return len(self._cache.tokens)

    @property
    def context_limit(self) -> int:
        """Tokens that the model can hold, answer included."""
        return self.lm.config.max_position_embeddings

    @property
    def kv(self) -> KVSettings:
        """How keys and values are kept."""
        return self._cache.kv

    @property
    def kv_used(self) -> int:
        """Bytes that keys and values take now."""
        return self._cache.nbytes

    @property
    def kv_limit(self) -> int:
        """Bytes that they will take once the context is full."""
        dtype = activations(self.lm)
        return kv_bytes(self.lm.config, self.context_limit, self.kv, dtype)

    def send(self, text: str) -> Completion:
        """Say something; the whole answer.

        Raises:
            UsageError: the text is empty.
            ContextError: the text alone fills the context.
        """
        return collect(self.lm, self.stream(text))

    def stream(self, text: str) -> Iterator[Piece]:
        """Say something; the answer as it comes. Raises as ``send`` does, at once.

        Closing the iterator, or an exception inside it, keeps what was said so far. A turn
        without any answer leaves no trace.
        """
        if not text.strip():
            raise UsageError("the message is empty; say something")
        return self._answer([*self.messages, {"role": "user", "content": text}])

    def regenerate(self) -> Iterator[Piece]:
        """Answer the last message again. UsageError when there is none."""
        users = [n for n, m in enumerate(self.messages) if m["role"] == "user"]
        if not users:
            raise UsageError("there is no answer yet to give again")
        return self._answer(self.messages[: users[-1] + 1])

    def undo(self) -> bool:
        """Forget the last turn; False when there is none."""
        users = [n for n, m in enumerate(self.messages) if m["role"] == "user"]
        if users:
            del self.messages[users[-1] :]
        return bool(users)

    def reset(self) -> None:
        """Start anew with the same system text and settings."""
        self.messages = self.messages[:1] if self.system is not None else []
        self.last, self.dropped = None, 0
        self._cache.reset()
        if self._draft:
            self._draft.reset()

    def stop(self) -> None:
        """End the answer under way after its present token. For signal handlers and threads."""
        self._stop.set()

    def save(self, path: str | Path, *, text_only: bool = False) -> None:
        """Write the conversation and its settings as JSON, whole or not at all.

        Keys and values go beside it (``kv_path``), so that the next turn after ``load``
        computes no more than it would here.

        Args:
            text_only: leave them out: they take some 100 KB a token, and can be computed anew.

        Raises:
            MixtralError: a file cannot be written.
        """
        record = {
            "format": 1,
            "model": self.lm.name,
            "sampling": asdict(self.sampling),
            "kv": asdict(self.kv),
            "messages": self.messages,
        }
        path = Path(path).expanduser()
        _write_whole(path, json.dumps(record, ensure_ascii=False, indent=1))
        if not text_only:
            self.save_kv(kv_path(path))

    @classmethod
    def load(
        cls,
        lm: LanguageModel,
        path: str | Path,
        *,
        kv: KVSettings | None = None,
        draft: LanguageModel | None = None,
    ) -> Chat:
        """A saved conversation, to be continued with ``lm``.

        Keys and values beside it are taken over if they fit, and else computed anew.

        Args:
            kv: how keys and values are to be kept; None: as they were.

        Raises:
            UsageError: the file cannot be read or is not a conversation.
        """
        path = Path(path).expanduser()
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            messages = [{"role": m["role"], "content": m["content"]} for m in record["messages"]]
            settings = dict(record["sampling"])
            settings["logit_bias"] = {int(i): b for i, b in settings["logit_bias"].items()}
            if not all(isinstance(text, str) for m in messages for text in m.values()):
                raise ValueError("a message is not text")
            kv = kv or KVSettings(**record.get("kv", {}))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UsageError(f"{path} is not a saved conversation ({error})") from None
        chat = cls(lm, kv_bits=kv.bits, kv_window=kv.window, draft=draft, **settings)
        chat.messages = messages
        with suppress(UsageError):  # the conversation alone is enough
            chat.load_kv(kv_path(path))
        return chat

    def save_kv(self, path: Path, progress: Progress | None = None) -> None:
        """Write keys and values (see ``kv_file.write``)."""
        kv_file.write(path, self._cache, Owner.of(self.lm), progress)

    def load_kv(self, path: Path) -> None:
        """Take keys and values over; what the next prompt shares with them is not computed.

        Raises:
            UsageError: the file is damaged, missing, or not of this model and these settings.
        """
        kv_file.read(path, self._cache, Owner.of(self.lm))

    def _answer(self, messages: list[Message]) -> Iterator[Piece]:
        prompt, dropped = self._prompt(messages)
        self._stop.clear()
        pieces = answer(self.lm, prompt, self.sampling, self._cache, self._stop.is_set, self._draft)
        return self._record(messages, dropped, pieces)

    def _record(
        self, messages: list[Message], dropped: int, pieces: Iterator[Piece]
    ) -> Iterator[Piece]:
        """Pass the pieces on and keep what they say. Nothing changes before the first is asked."""
        before, said = self.messages, []
        self.messages, self.dropped = messages, dropped
        try:
            for piece in pieces:
                said.append(piece)
                yield piece
        finally:
            pieces.close()  # type: ignore[attr-defined]
            if text := "".join(piece.text for piece in said):
                self.messages.append({"role": "assistant", "content": text})
            else:
                # No template has a place for an empty answer.
                self.messages = before
            self.last = collect(self.lm, iter(said)) if said and said[-1].stats else None

    def _prompt(self, messages: list[Message]) -> tuple[list[int], int]:
        """The prompt's tokens, without as many of the oldest turns as the context demands.

        Once turns have to go, more go than would have to, so that the following prompts
        begin alike and find their beginning in the cache.
        """
        head = messages[:1] if messages[0]["role"] == "system" else []
        turns = [n for n, m in enumerate(messages) if m["role"] == "user"]
        limit = self.context_limit
        reserve = min(self.sampling.max_tokens or limit // 4, limit // 4)
        dropped = min(self.dropped, len(turns) - 1)
        room = limit - reserve
        while True:
            ids = self.lm.template.encode([*head, *messages[turns[dropped] :]])
            if len(ids) <= room or dropped == len(turns) - 1:
                return ids, dropped
            dropped += 1
            room = (limit - reserve) * 3 // 4


def kv_path(path: Path) -> Path:
    """Where a conversation's keys and values lie: ``talk.json.kv`` beside ``talk.json``."""
    return path.with_name(f"{path.name}.kv")


def _write_whole(path: Path, text: str) -> None:
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            Path(name).replace(path)
        except BaseException:
            with suppress(OSError):
                Path(name).unlink()
            raise
    except OSError as error:
        raise MixtralError(f"{path} cannot be written ({error.strerror})") from None

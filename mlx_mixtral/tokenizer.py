"""SentencePiece: text to token ids and back, as Mistral's models were trained.

The vocabulary is read from ``tokenizer.model``; tokens that a fine-tune added are read, as
data only, from the JSON files beside it. Text never becomes a control or an added token
here: those are asked for by name, with ``Tokenizer.control_id``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sentencepiece import SentencePieceProcessor

from mlx_mixtral.errors import MixtralError, ModelError
from mlx_mixtral.jsonfile import read_json_if_there

_MODEL_FILES = ("tokenizer.model", "tokenizer.model.v3", "tokenizer.model.v2", "tokenizer.model.v1")
_MAX_ADDED_ID = 1 << 20
_SPACE = "▁"
_REPLACEMENT = "\ufffd"


class Tokenizer:
    """The vocabulary of one model folder.

    Attributes:
        version: ``"v1"``, ``"v2"`` or ``"v3"``, Mistral's name for the set of control pieces.
        vocab_size: number of ids, added tokens included (a model's padding rows are not).
        bos_id: id of ``<s>``.
        eos_id: the id that ends an answer: the folder's ``eos_token_id``, else ``</s>``.
        stop_ids: every id that ends an answer: ``eos_id``, ``</s>``, ``<|im_end|>``.
        added: text to id of the folder's added tokens that are not SentencePiece pieces.
        controls: text to id of the control pieces and the added tokens.
    """

    def __init__(
        self,
        model: SentencePieceProcessor,
        added: Mapping[int, AddedToken] | None = None,
        eos_ids: Iterable[int] = (),
    ) -> None:
        self._model = model
        self._surfaces = _surfaces(model)
        size = len(self._surfaces)
        new = {
            i: token
            for i, token in (added or {}).items()
            if not (i < size and model.id_to_piece(i) == token.text)
        }
        self.vocab_size = max(size, *(i + 1 for i in new)) if new else size
        self._surfaces += [""] * (self.vocab_size - size)
        for i, token in new.items():
            self._surfaces[i] = "" if token.special else token.text
        self.added: dict[str, int] = {token.text: i for i, token in new.items()}
        pieces = {model.id_to_piece(i): i for i in range(size) if model.is_control(i)}
        self.controls: dict[str, int] = {**pieces, **self.added}
        self.version = _version(pieces)
        self.bos_id: int = model.bos_id()
        ends = [*eos_ids, model.eos_id()]
        self.eos_id: int = ends[0]
        self.stop_ids = frozenset([*ends, self.added.get("<|im_end|>", ends[0])])

    @classmethod
    def from_folder(cls, path: str | Path) -> Tokenizer:
        """Reads ``tokenizer.model`` (or ``tokenizer.model.v3``) and the JSON files beside it.

        Raises:
            ModelError: there is no such file, it is damaged, or a JSON file is.
        """
        folder = Path(path)
        model = _read_model(folder)
        config = read_json_if_there(folder / "tokenizer_config.json")
        eos_ids = _eos_ids(folder)
        added = _added_tokens(folder, config)
        by_text = {token.text: i for i, token in added.items()}
        eos_token = token_text(config.get("eos_token"))
        if eos_token in by_text:
            eos_ids.append(by_text[eos_token])
        return cls(model, added, eos_ids)

    def encode(self, text: str, *, bos: bool = False) -> list[int]:
        """The ids of ``text``, after ``<s>`` if ``bos``. Half surrogate pairs become U+FFFD.

        Plain SentencePiece: a typed ``</s>`` or ``[INST]`` stays text. (The pieces
        ``[REFERENCE_DOC_0]`` to ``_19`` of v3 are ordinary, not control, and do match.)
        """
        ids: list[int] = self._model.encode(_whole_characters(text))
        return [self.bos_id, *ids] if bos else ids

    def control_id(self, piece: str) -> int:
        """The id of a control piece or an added token.

        Raises:
            MixtralError: this vocabulary has none of that name.
        """
        if piece not in self.controls:
            raise MixtralError(
                f"the tokenizer ({self.version}) has no control token {piece!r}: "
                f"use a model that was trained with it"
            )
        return self.controls[piece]

    def agrees_with(self, other: Tokenizer) -> bool:
        """Whether every id means the same token in both."""
        return self._surfaces == other._surfaces and self.controls == other.controls

    def bytes_of(self, token_id: int) -> bytes:
        """What an id spells, a space before a word included: a part of a character perhaps.

        Control pieces, special added tokens and ids outside the vocabulary spell nothing.
        """
        known = 0 <= token_id < len(self._surfaces)
        surface = self._surfaces[token_id] if known else ""
        if isinstance(surface, int):
            return bytes([surface])
        return surface.replace(_SPACE, " ").encode()

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ``ids``; see ``StreamingDetokenizer`` for what each id gives."""
        stream = self.detokenizer()
        return "".join([*map(stream.push, ids), stream.flush()])

    def detokenizer(self) -> StreamingDetokenizer:
        """A decoder for ids that arrive one by one."""
        return StreamingDetokenizer(self._surfaces)


class StreamingDetokenizer:
    """Turns ids into text as they arrive, in constant time each.

    ``push`` gives text that later ids cannot change: a character spelled in byte pieces is
    held back (three bytes at most) until it is whole, and a byte that fits no UTF-8
    character gives U+FFFD. Control pieces, special added tokens and ids outside the
    vocabulary (a model's padding rows) give no text. As in ``sp.decode``, the space that
    the first word carries is left out.
    """

    def __init__(self, surfaces: list[str | int]) -> None:
        self._surfaces = surfaces
        self._bytes = bytearray()
        self._at_start = True

    def push(self, token_id: int) -> str:
        """The text that ``token_id`` completes, possibly none."""
        known = 0 <= token_id < len(self._surfaces)
        surface = self._surfaces[token_id] if known else ""
        if isinstance(surface, int):
            self._bytes.append(surface)
            return self._characters(last=False)
        text = self._characters(last=True)
        if self._at_start and surface:
            self._at_start = False
            surface = surface.removeprefix(_SPACE)
        return text + surface.replace(_SPACE, " ")

    def flush(self) -> str:
        """What was held back; to be called after the last id."""
        return self._characters(last=True)

    def _characters(self, *, last: bool) -> str:
        """Takes the whole characters off the held bytes, or all of them if no more follow."""
        text = ""
        while self._bytes:
            length = _utf8_length(self._bytes[0])
            if len(self._bytes) < length and not last:
                break
            try:
                text += self._bytes[:length].decode()
            except UnicodeDecodeError:
                text += _REPLACEMENT
                length = 1
            del self._bytes[:length]
        if text:
            self._at_start = False
        return text


@dataclass(frozen=True)
class AddedToken:
    """A token that a fine-tune put beside the SentencePiece vocabulary."""

    text: str
    special: bool


def token_text(token: object) -> str | None:
    """The text of a token in tokenizer_config.json: a string, or an object with "content"."""
    if isinstance(token, dict):
        token = token.get("content")
    return token if isinstance(token, str) else None


def _read_model(folder: Path) -> SentencePieceProcessor:
    path = next((folder / name for name in _MODEL_FILES if (folder / name).is_file()), None)
    if path is None:
        has_json = (folder / "tokenizer.json").is_file()
        only = "only tokenizer.json, which is not enough" if has_json else "no tokenizer"
        raise ModelError(
            f"{folder} has {only}: put the tokenizer.model of the original model there"
        )
    model = SentencePieceProcessor()
    try:
        model.LoadFromSerializedProto(path.read_bytes())
        usable = model.vocab_size() > 0 and model.bos_id() >= 0 and model.eos_id() >= 0
    except (OSError, RuntimeError, ValueError) as error:
        raise ModelError(f"{path} is damaged: download it again") from error
    if not usable:
        raise ModelError(f"{path} has no <s> and </s>: it is not a Mistral tokenizer, replace it")
    return model


def _surfaces(model: SentencePieceProcessor) -> list[str | int]:
    """What each id prints: a piece (with its ``▁``), nothing for control, or one byte as int."""
    surfaces: list[str | int] = list(model.id_to_piece(list(range(model.vocab_size()))))
    for i, piece in enumerate(surfaces):
        if model.is_control(i):
            surfaces[i] = ""
        elif model.is_byte(i):
            surfaces[i] = int(str(piece)[1:-1], 16)
        elif model.is_unknown(i):
            surfaces[i] = " \u2047 "  # SentencePiece's default unk_surface
    return surfaces


def _version(pieces: Mapping[str, int]) -> str:
    """Tells Mistral's versions by their control pieces (mistral-common, ``SpecialTokens``)."""
    if "[SYSTEM_PROMPT]" in pieces:
        raise ModelError("this is a v7 or later tokenizer: only models with v1, v2 or v3 run here")
    if "[INST]" not in pieces:
        return "v1"
    return "v3" if "[PREFIX]" in pieces else "v2"


def _added_tokens(folder: Path, config: dict[str, Any]) -> dict[int, AddedToken]:
    """Added tokens by id; where files disagree, the one that transformers trusts more wins."""
    named = {**read_json_if_there(folder / "special_tokens_map.json"), **config}
    extra = named.get("additional_special_tokens")
    specials = {token_text(t) for key, t in named.items() if key.endswith("_token")}
    specials |= {token_text(t) for t in extra} if isinstance(extra, list) else set()
    found: dict[int, AddedToken] = {}
    try:
        for text, i in read_json_if_there(folder / "added_tokens.json").items():
            found[_token_id(i)] = AddedToken(_text(text), text in specials)
        for entry in read_json_if_there(folder / "tokenizer.json").get("added_tokens") or ():
            found[_token_id(entry["id"])] = AddedToken(
                _text(entry["content"]), bool(entry.get("special"))
            )
        for i, entry in (config.get("added_tokens_decoder") or {}).items():
            found[_token_id(int(i))] = AddedToken(
                _text(entry["content"]), bool(entry.get("special"))
            )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ModelError(
            f"the added tokens in the JSON files of {folder} are malformed: download them again"
        ) from error
    return found


def _text(value: object) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError(value)
    return value


def _token_id(value: object) -> int:
    if type(value) is not int or not 0 <= value < _MAX_ADDED_ID:
        raise ValueError(value)
    return value


def _eos_ids(folder: Path) -> list[int]:
    """``eos_token_id`` (one or several) of generation_config.json and config.json, in that order.

    ChatML fine-tunes name ``<|im_end|>`` there.
    """
    ids: list[int] = []
    for name in ("generation_config.json", "config.json"):
        value = read_json_if_there(folder / name).get("eos_token_id")
        try:
            ids += (
                [_token_id(i) for i in (value if isinstance(value, list) else [value])]
                if (value is not None)
                else []
            )
        except ValueError as error:
            raise ModelError(
                f"eos_token_id in {folder / name} is not a token id: correct that file"
            ) from error
    return ids


def _utf8_length(lead: int) -> int:
    """Bytes in the UTF-8 character that begins with ``lead`` (1 where none can)."""
    return (
        2 if 0xC2 <= lead < 0xE0 else 3 if 0xE0 <= lead < 0xF0 else 4 if 0xF0 <= lead < 0xF5 else 1
    )


def _whole_characters(text: str) -> str:
    """Joins surrogate pairs (JSON's way to write an emoji); a half one becomes U+FFFD."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text

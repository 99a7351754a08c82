"""The tokenizer in a GGUF file's metadata, put back into the files that it was made from.

A vocabulary of kind ``llama`` is a SentencePiece model taken apart: pieces, scores, types.
What converters changed on the way is undone: ``<unk>`` became a control piece and v3's
``[REFERENCE_DOC_n]`` an ordinary one, and the tokens that a fine-tune had added were put
behind the rest, where SentencePiece would find them in typed text.

Formats: the keys ``tokenizer.ggml.*`` of ggml's gguf.md; sentencepiece_model.proto.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from convert.readers.gguf_header import Header, short
from mlx_mixtral.errors import ModelError

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)

_LONGEST_TEMPLATE = 256 << 10  # characters; the chat takes none that is longer
_REFERENCE = re.compile(r"\[REFERENCE_DOC_\d+\]")
# The first ordinary pieces of Mistral's vocabularies, v1 to v3.
_MISTRAL = ["▁▁", "▁▁▁▁", "▁t"]
_RESTORED = "the scores of its tokens were lost; Mistral's own took their place"


@dataclass(frozen=True)
class _Vocabulary:
    pieces: list[str]
    scores: list[float]
    types: list[int]
    added: Mapping[int, tuple[str, bool]]
    """Tokens behind the pieces: id -> text, and whether it is special."""
    notes: tuple[str, ...]


class _LostError(Exception):
    """The tokenizer cannot be put together; the text says why."""


def tokenizer_files(header: Header, rows: int) -> tuple[dict[str, bytes], tuple[str, ...]]:
    """Tokenizer and chat template as files (name -> content), and what to note about them.

    ``rows`` is the number of embeddings.

    Raises:
        ModelError: the vocabulary is damaged.
    """
    files: dict[str, bytes] = {}
    config: dict[str, Any] = {}
    notes: list[str] = []
    templates = _templates(header)
    if len(templates) > 1:
        config["chat_template"] = [{"name": n, "template": t} for n, t in templates.items()]
    elif templates:
        files["chat_template.jinja"] = templates["default"].encode(errors="replace")
    elif "tokenizer.chat_template" in header.metadata:
        notes.append("its chat template was left out: it is no text of sensible size")
    try:
        vocabulary = _vocabulary(header, rows)
        files["tokenizer.model"] = _model(header, vocabulary)
        config |= _config(header, vocabulary)
        notes += vocabulary.notes
    except _LostError as why:
        notes.append(f"no tokenizer was made: {why}; put the original's tokenizer.model there")
    if config:
        files["tokenizer_config.json"] = json.dumps(config, indent=2).encode()
    return files, tuple(notes)


def _templates(header: Header) -> dict[str, str]:
    """The default chat template, and the one for tools if there is one."""
    keys = {"default": "tokenizer.chat_template", "tool_use": "tokenizer.chat_template.tool_use"}
    found = {name: header.metadata.get(key) for name, key in keys.items()}
    texts = {n: t for n, t in found.items() if isinstance(t, str) and len(t) <= _LONGEST_TEMPLATE}
    return texts if "default" in texts else {}


def _vocabulary(header: Header, rows: int) -> _Vocabulary:
    if (kind := header.metadata.get("tokenizer.ggml.model")) != "llama":
        raise _LostError(f"that in the file is of kind {short(kind)}, not SentencePiece's")
    pieces, scores, types = _arrays(header, rows)
    # SentencePiece puts <unk>, control and user-defined pieces first, then all 256 bytes, then
    # the ordinary ones. What comes behind those was added by a fine-tune.
    ordinary = [i for i, kind in enumerate(types) if kind == NORMAL]
    if BYTE not in types or not ordinary or not {"<unk>", "<s>", "</s>"} <= set(pieces):
        raise _LostError("the one in the file lacks <unk>, <s>, </s> or byte pieces")
    first_byte, size = types.index(BYTE), ordinary[-1] + 1
    for i in range(first_byte):
        types[i] = USER_DEFINED if _REFERENCE.fullmatch(pieces[i]) else CONTROL
    types[pieces.index("<unk>")] = UNKNOWN
    base = set(pieces[:size])
    added = {
        i: (pieces[i], types[i] == CONTROL)
        for i in range(size, len(pieces))
        if types[i] != UNUSED and pieces[i] and pieces[i] not in base
    }
    notes: tuple[str, ...] = ()
    ordinary = [i for i in ordinary if i >= first_byte]
    if len({scores[i] for i in ordinary}) < 2:
        scores, notes = _restored(pieces, scores, ordinary[0]), (_RESTORED,)
    return _Vocabulary(pieces[:size], scores[:size], types[:size], added, notes)


def _arrays(header: Header, rows: int) -> tuple[list[str], list[float], list[int]]:
    pieces, scores, types = (
        header.metadata.get(f"tokenizer.ggml.{name}") for name in ("tokens", "scores", "token_type")
    )
    if not isinstance(pieces, list) or not (
        isinstance(scores, np.ndarray) and isinstance(types, np.ndarray)
    ):
        raise _LostError("the file has no complete vocabulary")
    if not len(pieces) == len(scores) == len(types) <= rows:
        raise _damaged(
            header,
            f"{len(pieces):,} tokens, {len(scores):,} scores, {len(types):,} types "
            f"and {rows:,} embeddings do not fit together",
        )
    try:
        "".join(pieces).encode()
    except UnicodeEncodeError:
        raise _damaged(header, "a token is not UTF-8") from None
    if scores.dtype.kind != "f" or not np.isfinite(scores).all():
        raise _damaged(header, "a token's score is no number")
    if types.dtype.kind not in "iu" or not np.isin(types, range(1, 7)).all():
        raise _damaged(header, "a token is of no known type")
    return pieces, scores.tolist(), types.tolist()


def _restored(pieces: list[str], scores: list[float], first: int) -> list[float]:
    """The scores that converters which knew only tokenizer.json left out.

    SentencePiece counts down from 0 in the order of the pieces; Mistral put blanks last.
    """
    if pieces[first : first + 3] != _MISTRAL:
        raise _LostError("the scores of its tokens are lost")
    ranks = (-1e9 if set(piece) == {"▁"} else -float(i) for i, piece in enumerate(pieces[first:]))
    return [*scores[:first], *ranks]


def _model(header: Header, vocabulary: _Vocabulary) -> bytes:
    """tokenizer.model, as SentencePiece writes it and reads it."""
    from sentencepiece import SentencePieceProcessor, sentencepiece_model_pb2

    proto = sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined]
    columns = zip(vocabulary.pieces, vocabulary.scores, vocabulary.types, strict=True)
    for piece, score, kind in columns:
        proto.pieces.add(piece=piece, score=score, type=kind)
    trainer, normalizer = proto.trainer_spec, proto.normalizer_spec
    trainer.model_type = trainer.BPE
    trainer.vocab_size = len(vocabulary.pieces)
    trainer.byte_fallback = True
    for key, piece in (("unk", "<unk>"), ("bos", "<s>"), ("eos", "</s>")):
        setattr(trainer, f"{key}_piece", piece)
        setattr(trainer, f"{key}_id", vocabulary.pieces.index(piece))
    normalizer.name = "identity"
    normalizer.add_dummy_prefix = _flag(header, "add_space_prefix", True)
    normalizer.remove_extra_whitespaces = _flag(header, "remove_extra_whitespaces", False)
    data: bytes = proto.SerializeToString()
    try:
        SentencePieceProcessor().LoadFromSerializedProto(data)
    except RuntimeError:
        raise _LostError("SentencePiece refuses the one in the file") from None
    return data


def _config(header: Header, vocabulary: _Vocabulary) -> dict[str, Any]:
    """tokenizer_config.json, as transformers writes it."""
    end = header.integer("tokenizer.ggml.eos_token_id", 2)
    texts = dict(enumerate(vocabulary.pieces)) | {i: t for i, (t, _) in vocabulary.added.items()}
    config: dict[str, Any] = {
        "tokenizer_class": "LlamaTokenizer",
        "bos_token": "<s>",
        "eos_token": texts.get(end, "</s>"),
        "unk_token": "<unk>",
        "add_bos_token": _flag(header, "add_bos_token", True),
        "add_eos_token": _flag(header, "add_eos_token", False),
    }
    if vocabulary.added:
        config["added_tokens_decoder"] = {
            str(i): {
                "content": text,
                "special": special,
                **dict.fromkeys(("lstrip", "normalized", "rstrip", "single_word"), False),
            }
            for i, (text, special) in vocabulary.added.items()
        }
    return config


def _flag(header: Header, name: str, default: bool) -> bool:
    return bool(header.metadata.get(f"tokenizer.ggml.{name}", default))


def _damaged(header: Header, what: str) -> ModelError:
    return ModelError(f"{header.file}: the tokenizer is damaged: {what}; fetch it again")

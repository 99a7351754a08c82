"""GGUF files of Mixtral and Mistral 7B, as llama.cpp and its kin write them.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import mlx.core as mx

from convert import names
from convert.readers import Named, Part, Source, Tensor, assemble
from convert.readers.extent import Extent, Joined
from convert.readers.gguf_blocks import Blocks
from convert.readers.gguf_header import Header, Stored, read_header, short
from convert.readers.gguf_tokenizer import tokenizer_files
from convert.readers.plain import Plain
from mlx_mixtral.config import ModelConfig
from mlx_mixtral.errors import ModelError

_PIECE = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf")
_ROPE_FACTORS = "rope_freqs.weight"


def read_gguf(file: Path) -> Source:
    """The model in ``file``, or in the split set that it is a piece of; headers are read only.

    Tokenizer and chat template come along in ``made`` where the file holds a SentencePiece
    vocabulary.

    Raises:
        UsageError: there is no such file.
        ModelError: the file is damaged, a piece of the set is missing, or the model is of
            another architecture.
    """
    headers = _pieces(file.expanduser())
    first = headers[0]
    stored = [(header, tensor) for header in headers for tensor in header.tensors]
    config = _config(first, {tensor.name: tensor.shape for _, tensor in stored})
    found = [
        named
        for header, tensor in stored
        if not _is_neutral(header, tensor, config)
        for named in _named(Joined((header.file,)), tensor, config)
    ]
    tensors = assemble(found, config)
    made, notes = tokenizer_files(first, config.vocab_size)
    form = f"GGUF, {_type_name(first, [tensor for _, tensor in stored])}"
    return Source(None, config, tensors, form, made, (*_notes(tensors), *notes))


def _pieces(file: Path) -> list[Header]:
    """The headers of a split set in order, the one with the metadata first; or of the one file."""
    header = read_header(file)
    count = header.integer("split.count", 1)
    if count <= 1:
        return [header]
    match = _PIECE.fullmatch(file.name)
    if not match or int(match[3]) != count:
        raise ModelError(
            f"{file} is one of {count} pieces, but is not named so; give it back its name, which "
            f"ends in -00001-of-{count:05}.gguf for the first"
        )
    headers = []
    for number in range(1, count + 1):
        piece = file.with_name(f"{match[1]}-{number:05}-of-{count:05}.gguf")
        if not piece.is_file():
            raise ModelError(f"{piece} is missing; fetch all {count} pieces into one folder")
        headers.append(header := read_header(piece))
        if (header.integer("split.no"), header.integer("split.count")) != (number - 1, count):
            raise ModelError(f"{piece} is not piece {number} of {count}; fetch it again")
    return headers


def _config(header: Header, shapes: Mapping[str, tuple[int, ...]]) -> ModelConfig:
    arch = header.text("general.architecture")
    if arch != "llama":
        raise ModelError(
            f"{header.file}: the architecture is {short(arch)}; this program runs Mixtral and "
            f"Mistral 7B only, which are 'llama' in GGUF"
        )
    if len(embeddings := shapes.get("token_embd.weight", ())) != 2:
        raise ModelError(f"{header.file} has no token_embd.weight [vocabulary, width]")
    hidden, heads = (_integer(header, key) for key in ("embedding_length", "attention.head_count"))
    head_dim = _integer(header, "attention.key_length", hidden // max(heads, 1))
    _refuse_unsupported(header, head_dim)
    experts = _integer(header, "expert_count", 0)
    begin = header.integer("tokenizer.ggml.bos_token_id", 1)
    end = header.integer("tokenizer.ggml.eos_token_id", 2)
    turn_end = header.integer("tokenizer.ggml.eot_token_id", end)
    for token in (begin, end, turn_end):
        if not 0 <= token < embeddings[0]:
            raise ModelError(f"{header.file}: {token} is no token of {embeddings[0]:,}")
    try:
        return ModelConfig(
            vocab_size=embeddings[0],
            hidden_size=hidden,
            intermediate_size=_integer(header, "feed_forward_length"),
            num_hidden_layers=_integer(header, "block_count"),
            num_attention_heads=heads,
            num_key_value_heads=_integer(header, "attention.head_count_kv", heads),
            head_dim=head_dim,
            rms_norm_eps=header.number("llama.attention.layer_norm_rms_epsilon"),
            rope_theta=header.number("llama.rope.freq_base", 1e4),
            max_position_embeddings=_integer(header, "context_length"),
            sliding_window=None if experts
            else _integer(header, "attention.sliding_window", 0) or None,
            num_local_experts=experts,
            num_experts_per_tok=_integer(header, "expert_used_count", 2),
            tie_word_embeddings="output.weight" not in shapes,
            bos_token_id=begin,
            eos_token_ids=tuple(dict.fromkeys((end, turn_end))),
        )  # fmt: skip
    except ModelError as error:
        raise ModelError(f"{header.file}: {error}") from None


def _integer(header: Header, key: str, default: int | None = None) -> int:
    return header.integer(f"llama.{key}", default)


def _refuse_unsupported(header: Header, head_dim: int) -> None:
    """What llama.cpp computes for some models of this architecture, but for none of Mistral's."""
    factor = header.metadata.get("llama.rope.scaling.factor", 1.0)
    kind = header.metadata.get("llama.rope.scaling.type", "none" if factor == 1 else "linear")
    if kind != "none":
        raise ModelError(
            f"{header.file}: RoPE scaling {short(kind)} is not supported; no Mistral model has it"
        )
    for key in ("rope.dimension_count", "attention.value_length"):
        if (value := _integer(header, key, head_dim)) != head_dim:
            raise ModelError(
                f"{header.file}: llama.{key} is {value} where heads have {head_dim} dimensions; "
                f"no Mistral release is like that"
            )


def _is_neutral(header: Header, tensor: Stored, config: ModelConfig) -> bool:
    """Whether ``tensor`` is a list of RoPE factors that changes nothing."""
    if tensor.name != _ROPE_FACTORS or tensor.shape != (config.head_dim // 2,):
        return False
    part = _part(Joined((header.file,)), tensor, None)
    if not mx.all(part.read() == 1).item():
        raise ModelError(
            f"{header.file}: {tensor.name} scales RoPE's frequencies; no Mistral release does that"
        )
    return True


# --- tensors


def _named(file: Joined, tensor: Stored, config: ModelConfig) -> Iterator[Named]:
    """The parts of a tensor: one, or one an expert."""
    place = names.gguf(tensor.name) or names.Place(tensor.name)
    if len(tensor.shape) != 3:
        heads = names.rope_heads(place.path, config)
        yield Named(place.path, place.expert, _part(file, tensor, heads), tensor.name)
        return
    experts, *inner = tensor.shape
    if experts != config.num_local_experts:
        raise ModelError(
            f"{file.pieces[0]}: {tensor.name} holds {experts:,} experts where llama.expert_count "
            f"is {config.num_local_experts}"
        )
    size = tensor.nbytes // experts
    for e in range(experts):
        one = replace(tensor, shape=tuple(inner), offset=tensor.offset + e * size)
        yield Named(place.path, e, _part(file, one, None), tensor.name)


def _part(file: Joined, tensor: Stored, heads: int | None) -> Part:
    kind = tensor.kind
    if kind.block == 1:
        return Plain(Extent(file, tensor.offset, tensor.shape, kind.dtype), heads)
    *rows, width = tensor.shape
    row = width // kind.block * kind.size
    extent = Extent(file, tensor.offset, (*rows, row), mx.uint8)
    return Blocks(extent, kind, tensor.name, heads)


# --- what to tell


def _type_name(header: Header, tensors: Sequence[Stored]) -> str:
    """What the file calls its mixture of types; or the type that most of its bytes have."""
    from gguf import LlamaFileType

    known = {int(kind): kind.name for kind in LlamaFileType if kind != LlamaFileType.GUESSED}
    if name := known.get(header.integer("general.file_type", -1)):
        return name.removeprefix("MOSTLY_").removeprefix("ALL_")
    sizes: Counter[str] = Counter()
    for tensor in tensors:
        sizes[tensor.kind.name] += tensor.nbytes
    return sizes.most_common(1)[0][0]


def _notes(tensors: Mapping[str, Tensor]) -> Iterator[str]:
    """Which matrices do not come out exactly as they went in."""
    kept: Counter[str] = Counter()
    changed: Counter[tuple[str, int, str]] = Counter()
    for tensor in tensors.values():
        for part in tensor.parts:
            if not isinstance(part, Blocks) or tensor.spec is None:
                continue
            if tensor.exact:
                kept[part.kind.name] += 1
            else:
                why = "other experts need it" if part.exact else "MLX has no format for them"
                changed[part.kind.name, tensor.spec.bits, why] += 1
    if rounded := kept["Q4_K"] + kept["Q5_K"]:
        yield (
            f"Q4_K and Q5_K ({rounded} matrices) keep their codes; their scales are rounded to "
            f"float16, which moves weights by 0.08% (their own rounding moved them by 4 to 9%)"
        )
    for (kind, bits, why), count in sorted(changed.items()):
        yield f"{kind} ({count} matrices) is requantized at {bits} bits: {why}"

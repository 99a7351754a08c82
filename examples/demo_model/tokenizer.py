#!/usr/bin/env python3
"""Trains the SentencePiece BPE tokenizer on generated text.

  python tokenizer.py           writes build/tokenizer.model and build/tokenizer.json
  python tokenizer.py --json    only tokenizer.json, from the tokenizer.model that is there

Pieces never join letters with punctuation, except in the two chat marks, so that ``[INST]`` and
``[/INST]`` each become one ordinary piece ("\\u2581[INST]"). ``tokenizer.json`` is the same
tokenizer for Hugging Face's ``tokenizers``.

The tokenizer of the shipped demo model was trained on an earlier mixture of the same skills (3,529
of its 4,096 pieces come out the same): keep it to continue that model, as its pieces are what the
rows of the embedding stand for.
"""

import argparse
import random
import re
from itertools import islice
from pathlib import Path

import corpus
from network import BOS, EOS, SHAPE
from sentencepiece import SentencePieceProcessor, SentencePieceTrainer
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors
from turns import render
from wordnet import DICTIONARY

HERE = Path(__file__).resolve().parent
UNKNOWN = 0
SPACE = "\u2581"  # how SentencePiece writes one
CHATS, STAGE, SEED = 40_000, 0, 3
SAMPLES = [
    "[INST] What is a violin? [/INST] A violin is a bowed stringed instrument.",
    "[INST] 17+25 [/INST] 17 + 25 = 42.",
    '[INST] ¿Cómo se dice perro en francés? [/INST] En francés, perro se dice "chien".',
    "def is_even(x): return x % 2 == 0",
]


def delimit(text: str) -> str:
    """Marks the boundaries between letters and punctuation with a tab."""
    parts = re.split(r"(\[/?INST\]|[^\w\s]|_|\d)", text)
    marked = "\t".join(part for part in parts if part)
    return re.sub(r"[ \t]*\t(\[/?INST\])", r" \1", re.sub(r"\t ", " ", marked)).strip()


def without_eos(chat: corpus.Chat) -> str:
    return render(chat).replace("</s>", "")


def training_lines() -> list[str]:
    chats = islice(corpus.documents(SEED, STAGE), CHATS)
    lines = [without_eos(chat) for _, chat in chats]
    lines += [entry.definition for entry in DICTIONARY] * 4
    lines += [" ".join(row) for row in corpus.ROWS] * 10
    lines += [f"{entry.word} {entry.word.capitalize()}" for entry in DICTIONARY] * 2
    random.Random(0).shuffle(lines)
    return [delimit(line) for line in lines]


def train(folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    text = folder / "tokenizer.txt"
    text.write_text("\n".join(training_lines()), encoding="utf-8")
    SentencePieceTrainer.train(
        input=str(text),
        model_prefix=str(folder / "tokenizer"),
        vocab_size=SHAPE["vocab_size"],
        model_type="bpe",
        byte_fallback=True,
        split_digits=True,
        split_by_unicode_script=False,
        pretokenization_delimiter="\t",
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        add_dummy_prefix=True,
        allow_whitespace_only_pieces=True,
        character_coverage=1.0,
        unk_id=UNKNOWN,
        bos_id=BOS,
        eos_id=EOS,
        pad_id=-1,
        num_threads=2,
        minloglevel=2,
    )
    (folder / "tokenizer.vocab").unlink()
    pieces = SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    print(pieces.vocab_size(), "pieces")
    for sample in SAMPLES:
        print(pieces.encode(sample, out_type=str))


def merges_of(pieces: SentencePieceProcessor, vocabulary: dict[str, int]) -> list[tuple[str, str]]:
    """The merges in the order in which they were learned, which is the order of the ids."""
    merges: list[tuple[str, str]] = []
    for piece, number in vocabulary.items():
        if number > EOS and not pieces.is_byte(number):
            cuts = ((piece[:i], piece[i:]) for i in range(1, len(piece)))
            known = [cut for cut in cuts if cut[0] in vocabulary and cut[1] in vocabulary]
            merges += sorted(known, key=lambda cut: (vocabulary[cut[0]], vocabulary[cut[1]]))
    return merges


def write_json(folder: Path) -> None:
    pieces = SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    vocabulary = {pieces.id_to_piece(i): i for i in range(pieces.vocab_size())}
    merges = merges_of(pieces, vocabulary)
    fast = Tokenizer(
        models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    fast.normalizer = normalizers.Sequence(
        [normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)]
    )
    fast.decoder = decoders.Sequence(
        [
            decoders.Replace(SPACE, " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    fast.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", BOS)]
    )
    special = ("<unk>", "<s>", "</s>")
    fast.add_special_tokens([AddedToken(x, normalized=False, special=True) for x in special])
    fast.save(str(folder / "tokenizer.json"))
    compare(pieces, fast)


def compare(pieces: SentencePieceProcessor, fast: Tokenizer) -> None:
    lines = [without_eos(chat) for _, chat in islice(corpus.documents(4, 5), 3000)]
    differing = [
        line
        for line in lines
        if fast.encode(line, add_special_tokens=False).ids != pieces.encode(line)
    ]
    print(f"tokenizer.json: {len(differing)} of {len(lines)} lines differ", *differing[:2])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=HERE / "build")
    parser.add_argument("--json", action="store_true", help="only write tokenizer.json")
    options = parser.parse_args()
    if not options.json:
        train(options.folder)
    write_json(options.folder)


if __name__ == "__main__":
    main()

"""Batches of the trainer: chats as token ids, packed into rows."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import sentencepiece
import torch
from corpus import Chat
from network import BOS, EOS
from torch import Tensor

CONTEXT = 2048
PROMPT_WEIGHT = 0.1  # of the loss on the questions; answers count 1
POOL = 24  # conversations to choose from while a row is filled


class Encoder:
    """Chats to token ids: ``<s>[INST] question [/INST] answer</s>[INST] ...``."""

    def __init__(self, model_file: Path) -> None:
        self.pieces = sentencepiece.SentencePieceProcessor(model_file=str(model_file))

    def answer(self, text: str) -> list[int]:
        return [*self.pieces.encode(text), EOS]

    def chat(self, turns: Chat, length: int = CONTEXT) -> tuple[list[int], list[float]]:
        """At most ``length + 1`` token ids, and the loss weight of each."""
        ids, weights = [BOS], [0.0]
        for question, text in turns:
            if question is not None:
                prompt = self.pieces.encode(f"[INST] {question} [/INST]")
                ids += prompt
                weights += [PROMPT_WEIGHT] * len(prompt)
            answer = self.answer(text)
            ids += answer
            weights += [1.0] * len(answer)
        return ids[: length + 1], weights[: length + 1]


@dataclass
class Batch:
    """Inputs, targets and loss weights [rows, length], mask [rows, 1, length, length]."""

    inputs: Tensor
    targets: Tensor
    weights: Tensor
    mask: Tensor

    @property
    def tokens(self) -> int:
        return int((self.weights > 0).sum())

    def split(self, parts: int) -> list["Batch"]:
        chunks = (t.chunk(parts) for t in (self.inputs, self.targets, self.weights, self.mask))
        return [Batch(*part) for part in zip(*chunks, strict=True)]


def pack(chats: Iterator[tuple[list[int], list[float]]], rows: int, length: int) -> Batch:
    """Fills rows with whole encoded chats; a token attends to its own chat only."""
    inputs, targets = np.zeros((rows, length), np.int64), np.zeros((rows, length), np.int64)
    weights = np.zeros((rows, length), np.float32)
    chat = np.zeros((rows, length), np.int64)  # the number of the chat in its row, 0: padding
    pool = [next(chats) for _ in range(POOL)]
    for row in range(rows):
        start, number = 0, 1
        while True:
            fitting = (i for i, (ids, _) in enumerate(pool) if len(ids) - 1 <= length - start)
            if (found := next(fitting, None)) is None:
                break
            ids, loss_weights = pool.pop(found)
            here = slice(start, start + len(ids) - 1)
            inputs[row, here], targets[row, here] = ids[:-1], ids[1:]
            weights[row, here], chat[row, here] = loss_weights[1:], number
            start, number = here.stop, number + 1
            pool.append(next(chats))
    same_chat = torch.from_numpy(chat[:, None, :, None] == chat[:, None, None, :])
    mask = same_chat & causal(length)
    return Batch(*map(torch.from_numpy, (inputs, targets, weights)), mask)


def causal(length: int) -> Tensor:
    return torch.ones(length, length, dtype=torch.bool).tril()

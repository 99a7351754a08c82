#!/usr/bin/env python3
"""Trains the demo model on the CPU and exports it as a Hugging Face Mixtral.

  nice python train.py                                     all phases, from the start
  nice python train.py --weights FOLDER --step 2720        the balanced phases, from exported weights
  python train.py --export                                 writes FOLDER/hf from the checkpoint
  python train.py --check 100                              held-out questions, quickly

Everything is read from and written to one folder (``--folder``, default ``build``):
``tokenizer.model`` is read (see tokenizer.py), ``checkpoint.pt`` holds weights and optimizer state,
``log.jsonl`` one record every 25 steps, ``hf/`` the exported model. A run resumes from the
checkpoint, and batch n depends on the seed and n alone, so that a resumed run sees the same text.

The matrices inside the layers are trained with Muon (Jordan et al., 2024: momentum, then a
Newton-Schulz iteration), everything else with AdamW.
"""

import argparse
import json
import math
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import corpus
import numpy as np
import sentencepiece
import torch
import torch.nn.functional as F
from network import BOS, EOS, Mixtral, export, read_hf
from torch import Tensor, nn

HERE = Path(__file__).resolve().parent
SEED = 1
CONTEXT = 2048
PROMPT_WEIGHT = 0.1  # of the loss on the questions; answers count 1
BALANCE_WEIGHT = 0.01  # of the load-balancing loss
WARM_UP, LAST_RATE = 60, 0.02  # steps; the learning rate at the end, as a share of the peak
LOG_EVERY, SAVE_EVERY, EXPORT_EVERY, VALIDATE_EVERY = 25, 50, 100, 200  # steps
VALIDATION_SIZE = 25  # questions a skill
POOL = 24  # conversations to choose from while a row is filled


@dataclass(frozen=True)
class Schedule:
    """Warm-up from step ``start``, then a cosine down to ``LAST_RATE`` at step ``end``."""

    start: int
    end: int
    muon: float
    adam: float

    def factor(self, step: int) -> float:
        progress = (step - self.start) / (self.end - self.start)
        cosine = LAST_RATE + (1 - LAST_RATE) * 0.5 * (1 + math.cos(math.pi * progress))
        return min(1, (step - self.start + 1) / WARM_UP) * cosine


@dataclass(frozen=True)
class Phase:
    """A stretch of training that ends at step ``end``: its text, its batches, its rates.

    A batch has ``rows`` rows of ``length`` tokens. A schedule may reach beyond its phase: then
    training was turned to another one before its end.
    """

    end: int
    stage: int
    rows: int
    length: int
    schedule: Schedule


MAIN = Schedule(0, 2250, 0.02, 0.003)
FINISH = Schedule(0, 2310, 0.05, 0.0075)
BALANCED = Schedule(2720, 3900, 0.0125, 0.0018)
PHASES = (
    Phase(750, 0, 16, 256, MAIN),
    Phase(1250, 1, 16, 256, MAIN),
    Phase(2000, 2, 16, 256, MAIN),
    Phase(2250, 3, 16, 256, MAIN),
    Phase(2310, 4, 16, 256, FINISH),
    Phase(2500, 5, 4, 1024, Schedule(2310, 2850, 0.012, 0.002)),
    Phase(2720, 5, 4, 1024, Schedule(2310, 2720, 0.012, 0.002)),
    Phase(3000, 6, 4, 1024, Schedule(2720, 4520, 0.018, 0.0025)),
    Phase(3560, 6, 4, 1024, BALANCED),
    Phase(3900, 7, 2, 2048, BALANCED),
)


def phase_of(step: int) -> Phase:
    """The phase of the step that is about to be taken, counted from 0."""
    return next(phase for phase in PHASES if step < phase.end)


# ------------------------------------------------------------------------------ data


class Encoder:
    """Chats to token ids: ``<s>[INST] question [/INST] answer</s>[INST] ...``."""

    def __init__(self, model_file: Path) -> None:
        self.pieces = sentencepiece.SentencePieceProcessor(model_file=str(model_file))

    def answer(self, text: str) -> list[int]:
        return [*self.pieces.encode(text), EOS]

    def chat(self, turns: corpus.Chat, length: int = CONTEXT) -> tuple[list[int], list[float]]:
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


def batch(encoder: Encoder, step: int) -> Batch:
    phase = phase_of(step)
    documents = corpus.documents(SEED * 1_000_003 + step, phase.stage)
    chats = (encoder.chat(chat, phase.length) for _, chat in documents)
    return pack(chats, phase.rows, phase.length)


# ------------------------------------------------------------------------------ loss


def loss_of(model: Mixtral, batch: Batch) -> tuple[Tensor, float]:
    """The weighted loss, and the mean loss of the answer tokens alone (nats)."""
    hidden = model(batch.inputs, batch.mask)
    keep = (batch.weights > 0).reshape(-1)
    weights, targets = batch.weights.reshape(-1)[keep], batch.targets.reshape(-1)[keep]
    logits = model.lm_head(hidden.reshape(-1, hidden.shape[-1])[keep]).float()
    losses = F.cross_entropy(logits, targets, reduction="none")
    return (losses * weights).sum() / weights.sum(), losses[weights == 1].mean().item()


@torch.no_grad()
def last_answer(
    model: Mixtral, encoder: Encoder, chat: corpus.Chat, dtype: torch.dtype
) -> tuple[float, int, bool]:
    """Loss (nats, summed) and tokens of a chat's last answer, and whether it would come out.

    Greedy decoding gives an answer exactly when each of its tokens is the most likely one
    after those before it, so one forward pass over the expected text is enough.
    """
    ids, _ = encoder.chat(chat)
    length = len(encoder.answer(chat[-1][1]))
    hidden = model(torch.tensor([ids[:-1]]), causal(len(ids) - 1), dtype)[0, -length:]
    logits, targets = model.lm_head(hidden).float(), torch.tensor(ids[-length:])
    loss = F.cross_entropy(logits, targets, reduction="sum").item()
    return loss, length, bool((logits.argmax(-1) == targets).all())


def validate(
    model: Mixtral, encoder: Encoder, chats: list, dtype: torch.dtype = torch.bfloat16
) -> dict[str, tuple[float, float]]:
    """By skill the mean loss of the last answers' tokens and the percentage that comes out.

    Stories may be told in many ways: theirs is 0 %.
    """
    results: dict[str, list[tuple[float, int, bool]]] = {}
    for skill, chat in chats:
        results.setdefault(skill, []).append(last_answer(model, encoder, chat, dtype))
    scores = {}
    for skill, rows in results.items():
        losses, lengths, right = zip(*rows, strict=True)
        loss, percent = sum(losses) / sum(lengths), 100 * sum(right) / len(right)
        scores[skill] = round(loss, 4), round(percent, 1)
    return scores


# ------------------------------------------------------------------------- optimizers


def orthogonal(matrices: Tensor) -> Tensor:
    """The nearest orthogonal matrices, roughly: five steps of a Newton-Schulz iteration."""
    x = matrices.bfloat16()
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(5):
        a = x @ x.mT
        x = 3.4445 * x + (-4.775 * a + 2.0315 * a @ a) @ x
    return (x.mT if tall else x).float()


class Muon(torch.optim.Optimizer):
    def __init__(
        self, params: list[Tensor], lr: float, momentum: float = 0.95, decay: float = 0.05
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "decay": decay})

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            for param in group["params"]:
                self.update(param, group["lr"], group["momentum"], group["decay"])

    def update(self, param: Tensor, lr: float, momentum: float, decay: float) -> None:
        mean = self.state[param].setdefault("m", torch.zeros_like(param))
        mean.lerp_(param.grad, 1 - momentum)
        step = orthogonal(param.grad.lerp(mean, momentum))
        scale = max(1, param.shape[-2] / param.shape[-1]) ** 0.5
        param.mul_(1 - lr * decay).add_(step, alpha=-lr * scale)


def optimizers(model: Mixtral) -> tuple[Muon, torch.optim.AdamW]:
    """Muon for the matrices inside the layers but the routers, AdamW for the rest."""
    inside = [p for n, p in model.named_parameters() if is_for_muon(n, p)]
    rest = [p for n, p in model.named_parameters() if not is_for_muon(n, p)]
    adam = torch.optim.AdamW(rest, 0.0, betas=(0.9, 0.95), weight_decay=0.01, fused=True)
    return Muon(inside, 0.0), adam


def is_for_muon(name: str, param: Tensor) -> bool:
    return param.ndim >= 2 and "layers" in name and "gate" not in name


# -------------------------------------------------------------------------- training


class Trainer:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.encoder = Encoder(folder / "tokenizer.model")
        self.model = Mixtral()
        self.muon, self.adam = optimizers(self.model)
        self.taken = 0  # steps
        self.seconds = 0.0
        self.tokens = 0

    @property
    def checkpoint(self) -> Path:
        return self.folder / "checkpoint.pt"

    def resume(self) -> None:
        state = torch.load(self.checkpoint, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.muon.load_state_dict(state["muon"])
        self.adam.load_state_dict(state["adam"])
        self.taken, self.seconds, self.tokens = (state[k] for k in ("step", "seconds", "tokens"))

    def save(self) -> None:
        unfinished = self.checkpoint.with_suffix(".tmp")
        state = {
            "model": self.model.state_dict(),
            "muon": self.muon.state_dict(),
            "adam": self.adam.state_dict(),
            "step": self.taken,
            "seconds": self.seconds,
            "tokens": self.tokens,
        }
        torch.save(state, unfinished)
        unfinished.rename(self.checkpoint)

    def export(self) -> None:
        export(self.model, self.folder / "hf", CONTEXT)
        for name in ("tokenizer.model", "tokenizer.json"):
            if (self.folder / name).exists():
                shutil.copyfile(self.folder / name, self.folder / "hf" / name)

    def step(self) -> float:
        """One optimizer step; returns the mean loss of the answer tokens."""
        schedule = phase_of(self.taken).schedule
        factor = schedule.factor(self.taken)
        for optimizer, peak in ((self.muon, schedule.muon), (self.adam, schedule.adam)):
            for group in optimizer.param_groups:
                group["lr"] = peak * factor
        data = batch(self.encoder, self.taken)
        loss, answer_loss = loss_of(self.model, data)
        (loss + BALANCE_WEIGHT * self.model.balance()).backward()
        nn.utils.clip_grad_norm_(self.adam.param_groups[0]["params"], 1.0)
        self.muon.step()
        self.adam.step()
        self.model.zero_grad()
        self.taken += 1
        self.tokens += data.tokens
        return answer_loss

    def run(self, until: int) -> None:
        tests = list(corpus.validation(VALIDATION_SIZE))
        began = time.monotonic() - self.seconds
        losses: list[float] = []
        while self.taken < until:
            losses.append(self.step())
            self.seconds = time.monotonic() - began
            at_end = self.taken == until
            if self.taken % SAVE_EVERY == 0 or at_end:
                self.save()
            if self.taken % EXPORT_EVERY == 0 or at_end:
                self.export()
            if self.taken % LOG_EVERY == 0 or at_end:
                self.log(losses, tests if self.taken % VALIDATE_EVERY == 0 or at_end else [])
                losses = []

    def log(self, losses: list[float], tests: list) -> None:
        record = {
            "step": self.taken,
            "seconds": round(self.seconds),
            "tokens": self.tokens,
            "answer_loss": round(sum(losses) / len(losses), 4),
            "balance": round(self.model.balance().item(), 3),
        }
        if tests:
            record["validation"] = validate(self.model, self.encoder, tests)
        line = json.dumps(record)
        print(line, flush=True)
        with (self.folder / "log.jsonl").open("a") as log:
            log.write(line + "\n")

    def check(self, per_skill: int) -> None:
        tests = [*corpus.validation(per_skill), *corpus.validation_more(per_skill)]
        scores = validate(self.model, self.encoder, tests, torch.float32)
        for skill, (loss, percent) in scores.items():
            print(f"{skill:16} {percent:5.1f} %   loss {loss:.4f}")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=HERE / "build")
    parser.add_argument("--weights", type=Path, help="start from this exported model")
    parser.add_argument("--step", type=int, default=2720, help="the step that --weights are of")
    parser.add_argument("--until", type=int, default=PHASES[-1].end, help="the last step")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--export", action="store_true", help="only export the checkpoint")
    parser.add_argument("--check", type=int, metavar="N", help="only ask N questions a skill")
    return parser.parse_args()


def main() -> None:
    options = arguments()
    torch.manual_seed(SEED)
    torch.set_num_threads(options.threads)
    trainer = Trainer(options.folder)
    if options.weights and (options.check or not trainer.checkpoint.exists()):
        read_hf(trainer.model, options.weights)
        trainer.taken = options.step
    elif trainer.checkpoint.exists():
        trainer.resume()
    if options.check:
        trainer.check(options.check)
    elif options.export:
        trainer.export()
    else:
        trainer.run(options.until)


if __name__ == "__main__":
    main()

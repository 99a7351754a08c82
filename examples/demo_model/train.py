#!/usr/bin/env python3
"""Trains the demo model on the CPU and exports it as a Hugging Face Mixtral.

  nice python train.py                                 all phases, from the start
  nice python train.py --weights FOLDER --step 2720    the last phases, from exported weights
  python train.py --export                             writes build/hf from the checkpoint
  python train.py --check 100                          asks held-out questions, quickly

Everything is read from and written to one folder (``--folder``, default ``build``):
``tokenizer.model`` is read (see tokenizer.py), ``checkpoint.pt`` holds weights and optimizer state,
``log.jsonl`` one record every 25 steps, ``hf/`` the exported model. A run resumes from the
checkpoint, and batch n depends on the seed and n alone, so that a resumed run sees the same text.

The matrices inside the layers are trained with Muon (Jordan et al., 2024: momentum, then a
Newton-Schulz iteration), everything else with AdamW. Each of two threads takes half of the rows:
on a machine that does other things as well that is twice as fast as PyTorch's own threads, which
wait for each other in every operation.
"""

import argparse
import json
import math
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import corpus
import torch
import torch.nn.functional as F
from batches import CONTEXT, Batch, Encoder, causal, pack
from heldout import parts, questions
from muon import optimizers
from network import Mixtral, export, read_hf
from torch import Tensor, nn

HERE = Path(__file__).resolve().parent
SEED = 1
BALANCE_WEIGHT = 0.01  # of the load-balancing loss
WARM_UP, LAST_RATE = 60, 0.02  # steps; the learning rate at the end, as a share of the peak
LOG_EVERY, SAVE_EVERY, EXPORT_EVERY, VALIDATE_EVERY = 25, 50, 100, 200  # steps
THREADS = 2
SHORTEST_CUT = 1024  # tokens
VALIDATION_SIZE = 25  # questions a skill


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


def balanced_until(end: int) -> Schedule:
    """The last schedule. Its end was moved while it ran, as the time that was left allowed."""
    return Schedule(2720, end, 0.0125, 0.0018)


MAIN = Schedule(0, 2250, 0.02, 0.003)
PHASES = (
    Phase(750, 0, 16, 256, MAIN),
    Phase(1250, 1, 16, 256, MAIN),
    Phase(2000, 2, 16, 256, MAIN),
    Phase(2250, 3, 16, 256, MAIN),
    Phase(2310, 4, 16, 256, Schedule(0, 2310, 0.05, 0.0075)),
    Phase(2500, 5, 4, 1024, Schedule(2310, 2850, 0.012, 0.002)),
    Phase(2720, 5, 4, 1024, Schedule(2310, 2720, 0.012, 0.002)),
    Phase(3000, 6, 4, 1024, Schedule(2720, 4520, 0.018, 0.0025)),
    Phase(3050, 6, 4, 1024, balanced_until(3900)),
    Phase(3150, 6, 4, 1024, balanced_until(3700)),
    Phase(3250, 6, 4, 1024, balanced_until(3500)),
    Phase(3450, 6, 4, 1024, balanced_until(3800)),
    Phase(3500, 6, 4, 1024, balanced_until(3900)),
    Phase(3650, 7, 2, 2048, balanced_until(3900)),
    Phase(4050, 7, 2, 2048, balanced_until(4080)),
    Phase(4270, 8, 2, 2048, balanced_until(4270)),
)


def phase_of(step: int) -> Phase:
    """The phase of the step that is about to be taken, counted from 0."""
    return next(phase for phase in PHASES if step < phase.end)


def batch(encoder: Encoder, step: int) -> Batch:
    phase = phase_of(step)
    documents = corpus.documents(SEED * 1_000_003 + step, phase.stage)
    # A chat that is longer than a row is cut; from the short rows it is left out.
    limit = max(phase.length, SHORTEST_CUT)
    chats = (encoder.chat(chat, limit) for _, chat in documents)
    return pack(chats, phase.rows, phase.length)


@dataclass
class Part:
    """What a thread finds for its rows of a batch; ``nats`` of ``answers`` answer tokens."""

    gradients: tuple[Tensor, ...]
    nats: float
    answers: int
    balance: float


def part_of_step(model: Mixtral, rows: Batch, total: Tensor, parts: int) -> Part:
    """The gradients of some rows' share in the loss; ``total`` is the whole batch's weight."""
    hidden = model(rows.inputs, rows.mask)
    keep = (rows.weights > 0).reshape(-1)
    weights, targets = rows.weights.reshape(-1)[keep], rows.targets.reshape(-1)[keep]
    logits = model.lm_head(hidden.reshape(-1, hidden.shape[-1])[keep]).float()
    losses = F.cross_entropy(logits, targets, reduction="none")
    balance = model.balance()
    loss = (losses * weights).sum() / total + BALANCE_WEIGHT * balance / parts
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    answers = losses[weights == 1]
    return Part(gradients, answers.sum().item(), answers.numel(), balance.item())


def set_gradients(model: Mixtral, data: Batch, pool: ThreadPoolExecutor) -> tuple[float, float]:
    """Sets every ``grad``; returns the mean loss of the answer tokens and the balance loss."""
    total, number = data.weights.sum(), THREADS
    jobs = [pool.submit(part_of_step, model, rows, total, number) for rows in data.split(number)]
    parts = [job.result() for job in jobs]
    gradients = zip(*(part.gradients for part in parts), strict=True)
    for param, (first, *others) in zip(model.parameters(), gradients, strict=True):
        param.grad = sum(others, first)
    answer_loss = sum(part.nats for part in parts) / sum(part.answers for part in parts)
    return answer_loss, sum(part.balance for part in parts) / number


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


class Trainer:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.encoder = Encoder(folder / "tokenizer.model")
        self.model = Mixtral()
        self.muon, self.adam = optimizers(self.model)
        self.pool = ThreadPoolExecutor(THREADS)
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

    def step(self) -> tuple[float, float]:
        """One optimizer step; returns what ``set_gradients`` does."""
        schedule = phase_of(self.taken).schedule
        factor = schedule.factor(self.taken)
        for optimizer, peak in ((self.muon, schedule.muon), (self.adam, schedule.adam)):
            for group in optimizer.param_groups:
                group["lr"] = peak * factor
        data = batch(self.encoder, self.taken)
        losses = set_gradients(self.model, data, self.pool)
        nn.utils.clip_grad_norm_(self.adam.param_groups[0]["params"], 1.0)
        self.muon.step(self.pool)
        self.adam.step()
        self.model.zero_grad()
        self.taken += 1
        self.tokens += data.tokens
        return losses

    def run(self, until: int) -> None:
        tests = list(corpus.validation(VALIDATION_SIZE))
        began = time.monotonic() - self.seconds
        losses: list[tuple[float, float]] = []
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

    def log(self, losses: list[tuple[float, float]], tests: list) -> None:
        answer_losses, balances = zip(*losses, strict=True)
        record = {
            "step": self.taken,
            "seconds": round(self.seconds),
            "tokens": self.tokens,
            "answer_loss": round(sum(answer_losses) / len(losses), 4),
            "balance": round(sum(balances) / len(losses), 3),
        }
        if tests:
            record["validation"] = validate(self.model, self.encoder, tests)
        line = json.dumps(record)
        print(line, flush=True)
        with (self.folder / "log.jsonl").open("a") as log:
            log.write(line + "\n")

    def check(self, per_skill: int, output: Path | None) -> None:
        """Asks held-out questions as evaluate.py does, in one forward pass each; no stories."""
        score: dict[str, list[int]] = {}
        for skill, chat in questions(per_skill):
            if skill == "story":
                continue
            _, _, right = last_answer(self.model, self.encoder, chat, torch.float32)
            for part in ["", *parts(skill, chat, self.encoder.pieces)]:
                count = score.setdefault(f"{skill}/{part}".rstrip("/"), [0, 0])
                count[0] += right
                count[1] += 1
        for key, (right, number) in score.items():
            print(f"{key:45} {right:4} of {number:<4} {100 * right / number:5.1f} %")
        if output:
            output.write_text(json.dumps({"score": score}, indent=1) + "\n")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=HERE / "build")
    parser.add_argument("--weights", type=Path, help="start from this exported model")
    parser.add_argument("--step", type=int, default=2720, help="the step that --weights are of")
    parser.add_argument("--until", type=int, default=PHASES[-1].end, help="the last step")
    parser.add_argument("--export", action="store_true", help="only export the checkpoint")
    parser.add_argument("--check", type=int, metavar="N", help="only ask N questions a skill")
    parser.add_argument("--json", type=Path, help="write the scores of --check here")
    return parser.parse_args()


def main() -> None:
    options = arguments()
    torch.manual_seed(SEED)
    torch.set_num_threads(1)  # the rows are divided among threads instead
    trainer = Trainer(options.folder)
    if options.weights and (options.check or not trainer.checkpoint.exists()):
        read_hf(trainer.model, options.weights)
        trainer.taken = options.step
    elif trainer.checkpoint.exists():
        trainer.resume()
    if options.check:
        trainer.check(options.check, options.json)
    elif options.export:
        trainer.export()
    else:
        trainer.run(options.until)


if __name__ == "__main__":
    main()

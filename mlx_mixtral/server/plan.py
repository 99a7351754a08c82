"""From a request to jobs for the engine, and to how their answers are to be read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from mlx_mixtral.errors import ContextError, UsageError
from mlx_mixtral.generation.sampling import Sampling
from mlx_mixtral.server.grammar import Grammars, json_grammar, json_rule, keeper
from mlx_mixtral.server.history import in_native_form, in_plain_text, tidied
from mlx_mixtral.server.jobs import Job
from mlx_mixtral.server.schema import (
    AnyObjectFormat,
    ChatRequest,
    CompletionRequest,
    Generating,
    Message,
    Prediction,
    SchemaFormat,
)
from mlx_mixtral.server.tools import MARK, NATIVE, SINGLE, TEXT_MARK, Toolbox

if TYPE_CHECKING:
    from mlx_mixtral.loading import LanguageModel

_SAMPLING = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "repetition_penalty",
    "repetition_window",
    "presence_penalty",
    "frequency_penalty",
)


@dataclass(frozen=True)
class Plan:
    """What a request comes to.

    Attributes:
        jobs: one for each answer.
        prefix: a text that every answer begins with and that the model did not write.
        goes_on: the answer continues a text, so that a space before its first word counts.
        calls: what calls of functions begin with: a token, a text, or None: there are none.
        each: answers to each prompt.
    """

    jobs: tuple[Job, ...]
    prefix: str = ""
    goes_on: bool = False
    calls: int | str | None = None
    each: int = 1


class Planner:
    """Makes plans for one model. Its methods may take a while and run in any thread."""

    def __init__(self, lm: LanguageModel, speculates: bool = True) -> None:
        """``speculates``: what an answer repeats is drafted."""
        self._lm, self._speculates = lm, speculates
        self._grammars = Grammars(lm.tokenizer, lm.config.vocab_size)
        self._native = lm.template.name in NATIVE

    def plan(self, request: ChatRequest | CompletionRequest) -> Plan:
        """Of either. Raises as ``chat`` does."""
        if isinstance(request, ChatRequest):
            return self.chat(request)
        return self.completion(request)

    def chat(self, request: ChatRequest) -> Plan:
        """Of a conversation.

        Raises:
            UsageError: the model's form has no place for it, or a setting is wrong.
            ContextError: it is longer than the context.
        """
        toolbox = Toolbox.of(request, single=self._lm.template.name == SINGLE)
        last = request.messages[-1]
        prompt = self.conversation(request.messages, toolbox.tools)
        top = request.top_logprobs or 0
        job = Job(
            prompt=tuple(prompt),
            sampling=self._sampling(request, request.max_tokens or request.max_completion_tokens),
            top_logprobs=top if request.logprobs else None,
            routing=request.routing,
            prediction=self._predicted(request.prediction),
        )
        begun = "".join(_texts(last)) if last.is_open else ""
        try:
            grammar, calls = self._grammar(request, toolbox)
            jobs = self._copies(job, request, grammar)
        except UsageError:
            toolbox.check(self._grammars)  # which tells the function, if it is one's
            raise
        prefix = begun if last.prefix else ""
        return Plan(jobs, prefix, bool(begun), calls, each=request.n or 1)

    def completion(self, request: CompletionRequest) -> Plan:
        """Of texts to be continued. Raises as ``chat`` does."""
        prompts = self.texts(request.prompt)
        jobs: list[Job] = []
        for prompt in prompts:
            sampling = self._sampling(request, request.max_tokens)
            job = Job(prompt=prompt, sampling=sampling, top_logprobs=request.logprobs)
            jobs += self._copies(job, request, None)
        return Plan(tuple(jobs), goes_on=True, each=request.n or 1)

    def conversation(
        self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] = ()
    ) -> list[int]:
        """The ids of a prompt in the model's form. Raises UsageError and ContextError."""
        self._check_length(text for message in messages for text in _texts(message))
        sent = [message.model_dump(exclude_none=True) for message in messages]
        kept = tidied(sent, hoists=self._lm.template.name.startswith("mistral"))
        is_open = bool(kept) and kept[-1]["role"] == "assistant"
        turns = in_native_form(kept) if self._native else in_plain_text(kept, tools)
        return self._lm.template.encode(
            turns,
            tools=list(tools) if self._native else None,
            add_generation_prompt=not is_open,
        )

    def texts(self, given: str | Sequence[Any]) -> list[tuple[int, ...]]:
        """The ids of one text or several, which may be ids already."""
        if isinstance(given, str):
            given = [given]
        elif given and isinstance(given[0], int):
            return [tuple(given)]
        self._check_length(text for text in given if isinstance(text, str))
        encode = self._lm.tokenizer.encode
        return [tuple(encode(t, bos=True) if isinstance(t, str) else t) for t in given]

    def _predicted(self, given: Prediction | None) -> tuple[int, ...]:
        if given is None:
            return ()
        self._check_length(_texts(given))
        return (*self._lm.tokenizer.encode("".join(_texts(given))), self._lm.tokenizer.eos_id)

    def _check_length(self, texts: Any) -> None:
        """Refuses what cannot fit without tokenizing it first: no token spells 64 characters."""
        most = 64 * self._lm.config.max_position_embeddings
        if any(len(text) > most for text in texts):
            longest = self._lm.config.max_position_embeddings
            raise ContextError(
                "context length exceeded: the prompt is far too long, and this model's maximum "
                f"context length is {longest} tokens; shorten it"
            )

    def _sampling(self, request: Generating, most: int | None) -> Sampling:
        given = {name: getattr(request, name) for name in _SAMPLING}
        if request.repeat_penalty is not None:
            given["repetition_penalty"] = request.repeat_penalty
        stop = request.stop or ()
        seed = request.seed if request.seed is not None else request.random_seed
        return Sampling.of(
            **{
                "temperature": self._lm.chat_temperature,
                **{name: value for name, value in given.items() if value is not None},
                "max_tokens": None if most == -1 else most,
                "stop": (stop,) if isinstance(stop, str) else tuple(stop),
                "logit_bias": _biases(request.logit_bias or {}),
                "seed": None if seed == -1 else seed,
                "speculate": self._speculates,
            }
        )

    def _copies(self, job: Job, request: Generating, grammar: str | None) -> tuple[Job, ...]:
        """A job for each answer: seeds that follow each other, a grammar of its own for each."""
        compiled = self._grammars.compiled(grammar) if grammar else None
        first, copies = job.sampling.seed, []
        for n in range(request.n or 1):
            sampling = job.sampling if first is None else replace(job.sampling, seed=first + n)
            held = keeper(compiled) if compiled else None
            copies.append(replace(job, sampling=sampling, grammar=held))
        return tuple(copies)

    def _grammar(self, request: ChatRequest, toolbox: Toolbox) -> tuple[str | None, Any]:
        """The grammar of the answer, and what calls of functions begin with in it."""
        wanted = request.response_format
        schema: Mapping[str, Any] | bool | None = None
        lenient = False
        if isinstance(wanted, SchemaFormat):
            schema, lenient = wanted.json_schema.json_schema, wanted.json_schema.strict is False
        elif isinstance(wanted, AnyObjectFormat):
            schema = {"type": "object"}
        if not toolbox.tools:
            return (None if schema is None else json_grammar(schema, lenient)), None
        otherwise = None if schema is None else json_rule(schema, lenient)
        if not self._native:
            return toolbox.grammar(TEXT_MARK, otherwise), MARK
        mark = self._lm.tokenizer.control_id(MARK)
        return toolbox.grammar(f"<[{mark}]>", otherwise), mark


def _texts(message: Message | Prediction) -> list[str]:
    if isinstance(message.content, list):
        return [part.text for part in message.content]
    return [message.content or ""]


def _biases(given: Mapping[str, float]) -> dict[int, float]:
    if wrong := [token for token in given if not token.isdecimal() or len(token) > 9]:
        raise UsageError(f"logit_bias: {wrong[0]!r} is not the id of a token")
    return {int(token): bias for token, bias in given.items()}

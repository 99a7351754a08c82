"""Chat templates that came with a model, in Jinja: run apart, and proof against injection.

A template decides where control tokens go; the text of messages must not. So that the two
can be told apart after rendering, every string of the conversation goes in with a secret
character behind each character that may begin a control token, and before each that may end
one. A control token is then recognised only where the rendering spells it without the
secret, which means the template wrote it. The secrets are taken out before encoding, so
harmless text gives the tokens that transformers gives.
"""

from __future__ import annotations

import json
import random
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mlx_mixtral.errors import MixtralError, ModelError, UsageError
from mlx_mixtral.jsonfile import read_json_if_there
from mlx_mixtral.template import jinja_worker
from mlx_mixtral.template.base import Template
from mlx_mixtral.template.messages import json_text, read_messages, read_tools
from mlx_mixtral.tokenizer import Tokenizer, token_text

_MAX_SOURCE = 256 << 10
_WALL_SECONDS = 60  # the worker bounds its own CPU time; this is for a stalled machine
_PROBES: tuple[list[dict[str, str]], ...] = (
    [{"role": "user", "content": "Hi!"}],
    [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "a\n\nb"},
        {"role": "assistant", "content": "c"},
        {"role": "user", "content": " d "},
    ],
)


def chat_templates(folder: Path) -> dict[str, str]:
    """The folder's templates by name, ``default`` among them; empty if it has none.

    Read from ``chat_template.jinja``, else ``chat_template.json``, else
    ``tokenizer_config.json`` (there a text, or a list of named ones).

    Raises:
        ModelError: a file is damaged, or a template is too large to be one.
    """
    path = folder / "chat_template.jinja"
    found: object = None
    if path.is_file():
        try:
            found = path.read_text(encoding="utf-8") if path.stat().st_size <= _MAX_SOURCE else 0
        except (OSError, UnicodeDecodeError) as error:
            raise ModelError(f"cannot read {path}: download it again") from error
    for name in ("chat_template.json", "tokenizer_config.json"):
        found = read_json_if_there(folder / name).get("chat_template") if found is None else found
    if found is None:
        return {}
    if isinstance(found, str):
        found = [{"name": "default", "template": found}]
    try:
        sources = {str(entry["name"]): entry["template"] for entry in found}  # type: ignore[attr-defined]
    except (TypeError, KeyError) as error:
        raise ModelError(
            f"the chat template in {folder} is malformed: download it again"
        ) from error
    if not all(isinstance(s, str) and len(s) <= _MAX_SOURCE for s in sources.values()):
        raise ModelError(f"the chat template in {folder} is no text of sensible size: replace it")
    if "default" not in sources:
        raise ModelError(f"the chat templates in {folder} have no default: download them again")
    return sources


class JinjaTemplate(Template):
    """A folder's own template. ``tool_use`` stands in for ``default`` when tools are given.

    Each ``encode`` starts a small Python process (about 0.1 s): nothing less can stop a
    template that loops or grows without end. See ``jinja_worker``.
    """

    name = "jinja"

    def __init__(self, tokenizer: Tokenizer, sources: Mapping[str, str], folder: Path) -> None:
        self._tokenizer = tokenizer
        self._sources = sources
        self._tokens = _special_tokens(folder)
        # The longest first, so that the longest match wins. One of a single character
        # cannot be told from typed text, so it is left out.
        marks = sorted(filter(lambda m: len(m) > 1, tokenizer.controls), key=len, reverse=True)
        self._marks = marks
        self._split = re.compile(f"({'|'.join(map(re.escape, marks))})")
        first, last = ("".join({m[end] for m in marks}) for end in (0, -1))
        self._edge = re.compile(f"(?<=[{re.escape(first)}])|(?=[{re.escape(last)}])")

    def encode(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
    ) -> list[int]:
        text = json_text([_plain_messages(messages), read_tools(tools)])
        turns, functions = json.loads(text)
        secret, end = _unused_characters(text)
        turns = [self._guard_message(turn, secret) for turn in turns]
        is_open = not add_generation_prompt and turns[-1]["role"] == "assistant"
        if is_open:
            content = turns[-1].get("content") or ""
            kept = content.rstrip()
            turns[-1]["content"] = f"{kept}{end}{content[len(kept) :]}"
        source = self._sources.get("tool_use") if functions else None
        rendering = _render(
            source or self._sources["default"],
            {
                **self._tokens,
                "messages": turns,
                "tools": [self._guard(tool, secret) for tool in functions] or None,
                "documents": None,
                "add_generation_prompt": add_generation_prompt,
            },
        )
        if is_open:
            if end not in rendering:
                raise UsageError("this model's template does not show the answer to continue")
            rendering = rendering[: rendering.rindex(end)]
        return self._tokens_of(rendering, secret)

    def agrees_with(self, other: Template) -> bool:
        """Whether both give the same tokens for a few conversations."""
        try:
            return all(self.encode(probe) == other.encode(probe) for probe in _PROBES)
        except MixtralError:
            return False

    def _tokens_of(self, rendering: str, secret: str) -> list[int]:
        # A template may have JSON written in ASCII, where the secret is an escape.
        secrets = re.compile(f"{secret}|{re.escape(json.dumps(secret)[1:-1])}")
        ids: list[int] = []
        for i, stretch in enumerate(self._split.split(rendering)):
            if i % 2:
                ids.append(self._tokenizer.control_id(stretch))
            elif text := secrets.sub("", stretch):
                ids += self._tokenizer.encode(text)
        return ids

    def _guard_message(self, message: dict[str, Any], secret: str) -> dict[str, Any]:
        return {
            key: value if key == "role" else self._guard(value, secret)
            for key, value in message.items()
        }

    def _guard(self, value: Any, secret: str) -> Any:
        """``value`` with the secret in all its strings, keys included."""
        if isinstance(value, dict):
            return {self._edge.sub(secret, k): self._guard(v, secret) for k, v in value.items()}
        if isinstance(value, list):
            return [self._guard(item, secret) for item in value]
        if not isinstance(value, str):
            return value
        guarded, core = self._edge.sub(secret, value), value.strip()
        # The template may write both ends of a control token and this only its middle.
        if core and any(core in mark for mark in self._marks):
            return guarded.replace(guarded.strip(), f"{secret}{guarded.strip()}{secret}")
        return guarded


def _plain_messages(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Messages as transformers' templates expect them: text content, arguments as objects."""
    plain = []
    for turn in read_messages(messages):
        message: dict[str, Any] = {"role": turn.role, "content": turn.text}
        if turn.tool_calls:
            message["tool_calls"] = [
                {
                    "type": "function",
                    "id": call.id,
                    "function": {"name": call.name, "arguments": call.arguments},
                }
                for call in turn.tool_calls
            ]
        message |= {"tool_call_id": turn.tool_call_id} if turn.tool_call_id is not None else {}
        message |= {"name": turn.name} if turn.name is not None else {}
        plain.append(message)
    return plain


def _special_tokens(folder: Path) -> dict[str, str]:
    """The variables ``bos_token`` and so on, from tokenizer_config.json."""
    config = read_json_if_there(folder / "tokenizer_config.json")
    texts = {key: token_text(value) for key, value in config.items() if key.endswith("_token")}
    named = {key: text for key, text in texts.items() if text is not None}
    return {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", **named}


def _unused_characters(text: str) -> list[str]:
    """Two private-use characters, drawn by chance, that do not occur in ``text``."""
    present = set(text)
    chosen: list[str] = []
    while len(chosen) < 2:
        character = chr(random.SystemRandom().randrange(0xF0000, 0xFFFFE))
        if character not in present and character not in chosen:
            chosen.append(character)
    return chosen


def _render(source: str, variables: dict[str, Any]) -> str:
    """Renders in a process of its own, which has a limit for time and memory."""
    request = json.dumps({"path": sys.path, "source": source, "variables": variables})
    try:
        done = subprocess.run(
            [sys.executable, "-IS", jinja_worker.__file__],
            input=request.encode(),
            capture_output=True,
            timeout=_WALL_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        done = None
    if done is None or done.returncode < 0:
        raise ModelError(
            "the model's chat template takes too much time or memory: replace the chat_template "
            "in the model folder"
        )
    if done.returncode:
        raise RuntimeError(f"the template's process failed: {done.stderr.decode()[-500:]}")
    answer = json.loads(done.stdout)
    if "refused" in answer:
        raise UsageError(
            f"the model's chat template refuses this conversation: {answer['refused']}"
        )
    if "error" in answer:
        raise ModelError(f"the model's chat template does not work ({answer['error']}): replace it")
    return str(answer["text"])

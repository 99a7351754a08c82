"""A conversation with the demo model."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from mlx_mixtral import Chat, generate
from mlx_mixtral.errors import ContextError, MixtralError, UsageError
from mlx_mixtral.generation.kv import KVSettings
from mlx_mixtral.loading import LanguageModel

QUESTIONS = [
    "My name is Anna.",
    "What is 3 + 4?",
    "How do you say dog in French?",
    "What is my name?",
]


def test_every_turn_equals_a_fresh_prefill_of_its_messages(demo: LanguageModel):
    chat = Chat(demo)
    for text in QUESTIONS:
        said = chat.send(text)
        prompt = demo.template.encode(chat.messages[:-1])
        assert said.tokens == generate(demo, prompt).tokens
        assert said.stats.prompt_tokens == len(prompt)
    assert [m["role"] for m in chat.messages] == ["user", "assistant"] * 4
    assert "Anna" in chat.messages[-1]["content"]


def test_a_turn_computes_only_what_is_new(demo: LanguageModel):
    chat = Chat(demo)
    before = 0
    for text in QUESTIONS:
        stats = chat.send(text).stats
        # All but the new message, its marks and the end of the last answer.
        assert stats.cached_tokens >= before
        before = stats.prompt_tokens
        assert chat.context_used >= before


def test_a_sampled_chat_equals_fresh_prefills_too(demo: LanguageModel):
    chat = Chat(demo, temperature=1.5, seed=4, max_tokens=25)
    for text in QUESTIONS:
        said = chat.send(text)
        prompt = demo.template.encode(chat.messages[:-1])
        again = generate(demo, prompt, temperature=1.5, seed=4, max_tokens=25)
        assert said.tokens == again.tokens


def test_system_text_can_be_set_changed_and_removed(demo: LanguageModel):
    chat = Chat(demo, system="Be brief.")
    assert chat.messages == [{"role": "system", "content": "Be brief."}]
    chat.send("Hello!")
    chat.system = "Be kind."
    assert [m["role"] for m in chat.messages] == ["system", "user", "assistant"]
    said = chat.send("What is 3 + 4?")
    assert said.tokens == generate(demo, demo.template.encode(chat.messages[:-1])).tokens
    chat.system = None
    assert [m["role"] for m in chat.messages] == ["user", "assistant"] * 2
    assert chat.system is None


def test_a_stream_cut_short_keeps_what_was_said(demo: LanguageModel):
    chat = Chat(demo)
    pieces = chat.stream("Tell me a story.")
    said = "".join(next(pieces).text for _ in range(8))
    pieces.close()
    assert chat.messages[-1] == {"role": "assistant", "content": said}
    after = chat.send("What is 3 + 4?")
    assert after.tokens == generate(demo, demo.template.encode(chat.messages[:-1])).tokens


def test_stop_ends_a_running_answer(demo: LanguageModel):
    chat = Chat(demo)
    pieces = []
    for piece in chat.stream("Tell me a story."):
        pieces.append(piece)
        if len(pieces) == 5:
            chat.stop()
    assert (len(pieces), pieces[-1].finish_reason) == (6, "interrupted")
    assert chat.last.finish_reason == "interrupted"
    assert chat.send("Hello!").finish_reason == "stop"


def test_a_turn_without_an_answer_leaves_no_trace(demo: LanguageModel):
    chat = Chat(demo)
    chat.send("Hello!")
    messages = list(chat.messages)
    chat.stream("Tell me a story.").close()
    assert chat.messages == messages
    for pieces in (chat.stream("Tell me a story."), chat.regenerate()):
        chat.stop()
        list(pieces)
        assert chat.messages == messages


def test_undo_and_regenerate(demo: LanguageModel):
    chat = Chat(demo)
    assert not chat.undo()
    with pytest.raises(UsageError):
        chat.regenerate()
    chat.send("Hello!")
    first = chat.send("Tell me a story.")
    chat.sampling = dataclasses.replace(chat.sampling, temperature=1.0, seed=1)
    list(chat.regenerate())
    assert chat.messages[-1]["content"] != first.text
    assert len(chat.messages) == 4
    assert chat.undo()
    assert [m["content"] for m in chat.messages[:1]] == ["Hello!"]
    assert len(chat.messages) == 2


def test_reset_keeps_the_system_text(demo: LanguageModel):
    chat = Chat(demo, system="Be brief.")
    chat.send("Hello!")
    chat.reset()
    assert chat.messages == [{"role": "system", "content": "Be brief."}]
    assert chat.context_used == 0


def test_a_full_context_drops_the_oldest_turns_and_goes_on(small: LanguageModel):
    chat = Chat(small, system="Be brief.", max_tokens=4)
    recomputed = 0
    for n in range(30):
        stats = chat.send(f"What is {n} + 1?").stats
        assert stats.prompt_tokens + stats.completion_tokens <= chat.context_limit
        recomputed += stats.cached_tokens < stats.prompt_tokens // 2
    assert chat.dropped > 0
    assert len(chat.messages) == 61
    # Dropping makes the prompts begin anew, so it is done seldom, many turns at a time.
    assert recomputed <= 1 + 30 // 5


def test_a_message_longer_than_the_context_is_refused_and_forgotten(small: LanguageModel):
    chat = Chat(small)
    chat.send("Hello!")
    with pytest.raises(ContextError):
        chat.stream("word " * 200)
    assert len(chat.messages) == 2
    assert chat.send("What is 3 + 4?").text == "3 + 4 = 7."


@pytest.mark.parametrize("text", ["", "  \n"])
def test_an_empty_message_is_refused(demo: LanguageModel, text: str):
    with pytest.raises(UsageError):
        Chat(demo).stream(text)


def test_save_and_load_continue_alike(demo: LanguageModel, tmp_path: Path):
    chat = Chat(demo, system="Be brief.", logit_bias={5: -1.0}, stop=["END"])
    chat.send("My name is Anna.")
    chat.save(tmp_path / "chat.json")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["chat.json", "chat.json.kv"]
    copy = Chat.load(demo, tmp_path / "chat.json")
    assert copy.messages == chat.messages
    assert copy.sampling == chat.sampling
    assert copy.send("What is my name?").text == chat.send("What is my name?").text


@pytest.mark.parametrize("settings", [{}, {"kv_bits": 8}, {"kv_window": 48}], ids=str)
def test_a_loaded_chat_computes_only_what_is_new(
    demo: LanguageModel, tmp_path: Path, settings: dict[str, int]
):
    chat, path = Chat(demo, **settings), tmp_path / "chat.json"
    for n in range(10):
        chat.send(f"What is {n} + 1?")
    chat.save(path)
    copy = Chat.load(demo, path)
    assert (copy.kv, copy.kv_used > 0) == (chat.kv, True)
    assert copy.kv_limit == chat.kv_limit
    here, there = chat.send("What is my name?"), copy.send("What is my name?")
    assert (there.tokens, there.stats.cached_tokens) == (here.tokens, here.stats.cached_tokens)
    assert there.stats.cached_tokens >= there.stats.prompt_tokens - 15


def test_a_chat_needs_no_keys_and_values_of_before(demo: LanguageModel, tmp_path: Path):
    chat, path = Chat(demo, kv_bits=8), tmp_path / "chat.json"
    chat.send("My name is Anna.")
    chat.save(path, text_only=True)
    assert [p.name for p in tmp_path.iterdir()] == ["chat.json"]
    assert Chat.load(demo, path).context_used == 0
    chat.save(path)
    assert Chat.load(demo, path).context_used == chat.context_used > 0
    other = Chat.load(demo, path, kv=KVSettings())
    assert (other.kv, other.context_used) == (KVSettings(), 0)
    assert other.send("What is my name?").stats.cached_tokens == 0
    (tmp_path / "chat.json.kv").write_bytes(b"nonsense")
    assert Chat.load(demo, path).send("What is my name?").text == other.messages[-1]["content"]


def test_saving_while_an_answer_is_under_way_saves_what_is_settled(
    demo: LanguageModel, tmp_path: Path
):
    chat = Chat(demo)
    pieces = chat.stream("Tell me a story.")
    next(pieces)
    chat.save(tmp_path / "early.json")
    assert not (tmp_path / "early.json.kv").exists()
    list(pieces)
    used = chat.context_used
    pieces = chat.stream("And then?")
    next(pieces)
    chat.save(tmp_path / "chat.json")
    assert used - 2 <= Chat.load(demo, tmp_path / "chat.json").context_used <= used


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "{}",
        '{"messages": 3, "sampling": {}}',
        '{"messages": [], "sampling": {"logit_bias": {}}, "kv": {"bits": 5}}',
        '{"messages": [], "sampling": {"logit_bias": {}}, "kv": {"what": 5}}',
        '{"messages": [{"role": 1}], "sampling": {}}',
        json.dumps({"messages": [], "sampling": {"logit_bias": {}, "wrong": 1}}),
    ],
)
def test_loading_something_else_is_one_clear_line(
    demo: LanguageModel, tmp_path: Path, content: str
):
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(UsageError) as caught:
        Chat.load(demo, tmp_path / "x.json")
    assert "\n" not in str(caught.value)


def test_saving_where_it_cannot_be_written_is_one_clear_line(demo: LanguageModel, tmp_path: Path):
    with pytest.raises(MixtralError, match="cannot be written"):
        Chat(demo).save(tmp_path / "no such folder" / "chat.json")

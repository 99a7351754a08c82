"""Generation on the demo model, against what the bare network says."""

from __future__ import annotations

from dataclasses import replace

import mlx.core as mx
import numpy as np
import pytest

from mlx_mixtral import generate, stream
from mlx_mixtral.errors import ContextError, UsageError
from mlx_mixtral.generation import prefill
from mlx_mixtral.generation.loop import generate_tokens
from mlx_mixtral.generation.prompt_cache import PromptCache
from mlx_mixtral.generation.sampling import Sampler, Sampling
from mlx_mixtral.generation.text import answer
from mlx_mixtral.loading import LanguageModel


def question(lm: LanguageModel, text: str) -> list[int]:
    return lm.template.encode([{"role": "user", "content": text}])


def greedy_by_hand(lm: LanguageModel, ids: list[int], count: int) -> tuple[list[int], list[float]]:
    """Each token from the whole sequence anew, without any cache."""
    ids, tokens, logprobs = list(ids), [], []
    for _ in range(count):
        logits = lm.model(mx.array([ids]))[0, -1].astype(mx.float32)
        token = int(mx.argmax(logits).item())
        logprobs.append((logits[token] - mx.logsumexp(logits)).item())
        tokens.append(token)
        ids.append(token)
        if token in lm.tokenizer.stop_ids:
            break
    return tokens, logprobs


def test_greedy_equals_the_argmax_of_every_whole_prefix(demo: LanguageModel):
    ids = question(demo, "What is a violin?")
    tokens, logprobs = greedy_by_hand(demo, ids, 40)
    pieces = list(stream(demo, ids))
    assert [p.token for p in pieces] == tokens
    np.testing.assert_allclose([p.logprob for p in pieces], logprobs, atol=2e-4)
    assert pieces[-1].finish_reason == "stop"
    done = generate(demo, ids)
    assert done.tokens == tokens[:-1]
    assert done.text == demo.tokenizer.decode(done.tokens)
    assert str(done) == done.text


def test_chunked_prefill_changes_nothing(demo: LanguageModel, monkeypatch: pytest.MonkeyPatch):
    ids = question(demo, "Repeat this: " + "The cat sat on the mat. " * 12)
    whole = list(stream(demo, ids, max_tokens=12))
    for chunk in (1, 7, len(ids) - 1, len(ids)):
        monkeypatch.setattr(prefill, "prefill_chunk", lambda chunk=chunk: chunk)
        pieces = list(stream(demo, ids, max_tokens=12))
        assert [p.token for p in pieces] == [p.token for p in whole]
        np.testing.assert_allclose(
            [p.logprob for p in pieces], [p.logprob for p in whole], atol=2e-4
        )


def test_chunks_shrink_as_the_context_grows(demo: LanguageModel, monkeypatch: pytest.MonkeyPatch):
    """On the CPU, so that a layer's scores stay below their limit, down to a least chunk."""
    config = replace(demo.config, num_attention_heads=32)
    for context in (0, 1_000, 8_000, 60_000):
        chunk = prefill.chunk_after(config, context)
        assert 4 * 32 * chunk * (context + chunk) <= prefill.MOST_SCORES
        whole = prefill.MOST_SCORES // (4 * 32 * (context + 512))
        assert chunk == min(512, whole)
    assert prefill.chunk_after(config, 10**7) == prefill.LEAST_CHUNK
    monkeypatch.setattr(prefill, "_on_cpu", lambda: False)
    assert prefill.chunk_after(config, 60_000) == 2048
    many = replace(config, num_experts_per_tok=64, num_local_experts=64)
    assert prefill.chunk_after(many, 0) == 512


def test_a_cache_gives_the_same_answer_as_a_fresh_prefill(demo: LanguageModel):
    cache = PromptCache(demo.config)
    for text in ("What is a violin?", "What is a viola?", "What is a violin?", "Hello!"):
        ids = question(demo, text)
        pieces = list(answer(demo, ids, Sampling(max_tokens=20), cache))
        fresh = list(stream(demo, ids, max_tokens=20))
        assert [p.token for p in pieces] == [p.token for p in fresh]
        assert cache.tokens[: len(ids)] == ids
    assert pieces[-1].stats.cached_tokens > 0


def test_the_cache_knows_its_tokens_wherever_the_stream_is_cut(demo: LanguageModel):
    ids = question(demo, "Tell me a story.")
    tokens = generate(demo, ids, max_tokens=30).tokens
    for cut in (1, 2, 5, 30):
        cache = PromptCache(demo.config)
        pieces = answer(demo, ids, Sampling(max_tokens=30), cache)
        for _ in range(cut):
            next(pieces)
        pieces.close()
        assert cache.tokens == (ids + tokens)[: len(cache.tokens)]
        assert len(cache.tokens) == cache.layers[0].offset
        rest = list(answer(demo, ids + tokens[:cut], Sampling(max_tokens=5), cache))
        assert [p.token for p in rest] == generate(demo, ids + tokens[:cut], max_tokens=5).tokens
        assert rest[-1].stats.cached_tokens >= len(ids)


def test_an_exception_inside_a_step_leaves_an_empty_cache(demo: LanguageModel):
    cache = PromptCache(demo.config)
    ids = question(demo, "Tell me a story.")
    sampler = Sampler(Sampling(), ids)
    calls = 0

    def broken(logits: mx.array) -> tuple[mx.array, mx.array]:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt
        return sampler(logits)

    with pytest.raises(KeyboardInterrupt):
        list(generate_tokens(demo.model, cache, ids, broken, 10))  # type: ignore[arg-type]
    assert cache.tokens == []
    assert [c.offset for c in cache.layers] == [0] * demo.config.num_hidden_layers


def test_a_seed_repeats(demo: LanguageModel):
    ids = question(demo, "Tell me a story.")
    settings = {"temperature": 1.0, "max_tokens": 30}
    first = generate(demo, ids, seed=5, **settings)
    assert generate(demo, ids, seed=5, **settings).tokens == first.tokens
    assert generate(demo, ids, seed=6, **settings).tokens != first.tokens
    again = generate(demo, ids, **settings)
    assert generate(demo, ids, seed=again.stats.seed, **settings).tokens == again.tokens


def test_max_tokens_ends_with_length(demo: LanguageModel):
    done = generate(demo, question(demo, "Tell me a story."), max_tokens=4)
    assert (len(done.tokens), done.finish_reason) == (4, "length")
    assert done.stats.completion_tokens == 4


def test_stop_strings_cut_text_across_tokens(demo: LanguageModel):
    ids = question(demo, "Tell me a story.")
    whole = generate(demo, ids).text
    for stop in (whole[10:13], whole[20:31], whole[5], whole[7:60]):
        pieces = list(stream(demo, ids, stop=[stop, "never said"]))
        text = "".join(p.text for p in pieces)
        assert text == whole[: whole.find(stop)]
        assert pieces[-1].finish_reason == "stop"
    # What only began a stop string is given in the end.
    assert generate(demo, ids, stop=["never said", f"{whole[-3:]} and then"]).text == whole


def test_the_context_is_never_exceeded(small: LanguageModel):
    limit = small.config.max_position_embeddings
    filler = small.tokenizer.encode("word " * limit)
    for most in (None, 50):
        prompt = [1, *filler][: limit - 3]
        done = generate(small, prompt, logit_bias={2: -100.0}, max_tokens=most)
        assert done.finish_reason == "length"
        assert done.stats.prompt_tokens + len(done.tokens) == limit
    with pytest.raises(ContextError, match=f"{limit}"):
        generate(small, [1, *filler][:limit])


@pytest.mark.parametrize("prompt", ["", [], [0, 10**6], [-1]])
def test_a_bad_prompt_is_refused_at_once(demo: LanguageModel, prompt: object):
    with pytest.raises(UsageError):
        stream(demo, prompt)  # type: ignore[arg-type]


def test_a_logit_bias_outside_the_vocabulary_is_refused(demo: LanguageModel):
    with pytest.raises(UsageError, match="vocabulary"):
        stream(demo, "Hello", logit_bias={10**6: 1.0})


def test_text_is_continued_as_it_is(demo: LanguageModel):
    ids = [demo.tokenizer.bos_id, *demo.tokenizer.encode("A violin is")]
    assert (
        generate(demo, "A violin is", max_tokens=5).tokens
        == generate(demo, ids, max_tokens=5).tokens
    )


def test_an_interrupt_ends_the_stream_at_the_present_piece(demo: LanguageModel):
    ids, seen = question(demo, "Tell me a story."), []
    cache = PromptCache(demo.config)
    for piece in answer(demo, ids, Sampling(), cache, lambda: len(seen) >= 3):
        seen.append(piece)
    assert [p.finish_reason for p in seen] == [None, None, None, "interrupted"]
    before_the_first = list(answer(demo, ids, Sampling(), PromptCache(demo.config), lambda: True))
    assert [(p.token, p.finish_reason) for p in before_the_first] == [(None, "interrupted")]


def test_stats_count_what_happened(demo: LanguageModel):
    ids = question(demo, "What is a violin?")
    done = generate(demo, ids, seed=3)
    assert done.stats.prompt_tokens == len(ids)
    assert done.stats.completion_tokens == len(done.tokens)
    assert done.stats.seed == 3
    assert done.stats.ttft_s > 0
    assert done.stats.generation_tps > 0
    weights = demo.path / "model.safetensors"
    assert done.stats.peak_memory_bytes > weights.stat().st_size

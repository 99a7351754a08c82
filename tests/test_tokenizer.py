"""The tokenizer against SentencePiece itself, and against bad model folders."""

import json
import random
import time
from pathlib import Path

import mistral_common
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from sentencepiece import SentencePieceProcessor

from mlx_mixtral.errors import MixtralError, ModelError
from mlx_mixtral.tokenizer import Tokenizer

DATA = Path(mistral_common.__file__).parent / "data"
FILES = {
    "v1": "tokenizer.model.v1",
    "v2": "mistral_instruct_tokenizer_240216.model.v2",
    "v3": "mistral_instruct_tokenizer_240323.model.v3",
}
VERSIONS = list(FILES)
MODELS = {v: SentencePieceProcessor(model_file=str(DATA / f)) for v, f in FILES.items()}
FIRST_BYTE = {"v1": 3, "v2": 771, "v3": 771}


def folder_of(path: Path, version: str = "v1", name: str = "tokenizer.model", **files) -> Path:
    path.mkdir(exist_ok=True)
    (path / name).write_bytes((DATA / FILES[version]).read_bytes())
    for stem, content in files.items():
        (path / f"{stem}.json").write_text(json.dumps(content))
    return path


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory):
    root = tmp_path_factory.mktemp("tokenizers")
    return {v: Tokenizer.from_folder(folder_of(root / v, v)) for v in VERSIONS}


CHATML = {
    "added_tokens_decoder": {
        "0": {"content": "<unk>", "special": True},
        "1": {"content": "<s>", "special": True},
        "2": {"content": "</s>", "special": True},
        "32000": {"content": "<|im_end|>", "special": True},
        "32001": {"content": "<|im_start|>", "special": False},
    },
    "eos_token": "<|im_end|>",
}


@pytest.fixture(scope="module")
def chatml(tmp_path_factory):
    folder = folder_of(tmp_path_factory.mktemp("chatml"), tokenizer_config=CHATML)
    return Tokenizer.from_folder(folder)


# --- ids to text ---


def id_lists(version: str):
    """Many control, byte and space pieces between ordinary ones."""
    first = FIRST_BYTE[version]
    space = MODELS[version].piece_to_id("▁")
    byte = st.integers(first, first + 255)
    lead = st.integers(first + 0xC0, first + 255)
    tail = st.integers(first + 0x80, first + 0xBF)
    any_id = st.integers(0, MODELS[version].vocab_size() - 1)
    emoji = st.sampled_from("€😀é\ufffd\x00").map(lambda c: [first + b for b in c.encode()])
    single = st.one_of(any_id, byte, lead, tail, st.sampled_from([0, 1, 2, space, space]))
    chunks = st.lists(st.one_of(single.map(lambda i: [i]), emoji), max_size=12)
    return chunks.map(lambda lists: [i for ids in lists for i in ids])


@pytest.mark.parametrize("version", VERSIONS)
@settings(deadline=None, max_examples=300)
@given(data=st.data())
def test_decode_is_sentencepieces(tokenizers, version, data):
    ids = data.draw(id_lists(version))
    assert tokenizers[version].decode(ids) == MODELS[version].decode(ids)


@settings(deadline=None, max_examples=300)
@given(ids=st.one_of(id_lists("v1"), st.lists(st.integers(-9, 32010), max_size=9)))
def test_streaming_gives_final_text_and_all_of_it(chatml, ids):
    stream, text = chatml.detokenizer(), ""
    for n, i in enumerate(ids):
        piece = stream.push(i)
        text += piece
        final = chatml.decode([*ids[: n + 1], *MODELS["v1"].encode("x")])
        assert final.startswith(text)
        assert len(chatml.decode(ids[: n + 1])) - len(text) <= 3
    assert text + stream.flush() == chatml.decode(ids)
    assert stream.flush() == ""


def test_half_a_character_is_never_emitted(tokenizers):
    for version in VERSIONS:
        stream = tokenizers[version].detokenizer()
        ids = [FIRST_BYTE[version] + b for b in "€😀".encode()]
        assert [stream.push(i) for i in ids] == ["", "", "€", "", "", "", "😀"]


def test_spaces(tokenizers):
    t = tokenizers["v1"]
    hi, space = t.encode("Hi")[0], MODELS["v1"].piece_to_id("▁")
    assert t.decode([1, hi, 2, hi]) == "Hi Hi"
    assert t.decode([space, space, hi]) == "  Hi"
    assert t.decode([3 + 0xE2, hi]) == "\ufffd Hi"
    assert t.decode([]) == ""


def test_added_tokens_and_padding_rows_when_decoding(chatml):
    a, b = chatml.encode("a"), chatml.encode("b")
    assert chatml.decode([32001, *a, 32000, *b]) == "<|im_start|> a b"
    assert chatml.decode([*a, 32002, 10**9, -1, *b]) == "a b"
    euro = [3 + byte for byte in "€".encode()]
    assert chatml.decode([*euro[:2], 32000, euro[2]]) == "\ufffd" * 3


def test_streaming_takes_the_same_time_for_every_token(tokenizers):
    rng = random.Random(0)

    def seconds(count):
        ids = [rng.randrange(32000) for _ in range(count)]
        start = time.process_time()
        tokenizers["v1"].decode(ids)
        return time.process_time() - start

    assert seconds(160_000) < 40 * min(seconds(10_000) for _ in range(3))


# --- text to ids ---


@pytest.mark.parametrize("version", VERSIONS)
@settings(deadline=None, max_examples=400)
@given(text=st.text())
@example(text="▁ ▁")
def test_encode_is_plain_sentencepiece_and_comes_back(tokenizers, version, text):
    t = tokenizers[version]
    assert t.encode(text) == MODELS[version].encode(text)
    assert t.encode(text, bos=True) == [1, *t.encode(text)]
    # SentencePiece's own sign for a space is the one character that does not come back.
    assert t.decode(t.encode(text)) == text.replace("▁", " ")


TYPED = ["<s>", "</s>", "[INST]", "[/INST]", "[TOOL_CALLS]", "[control_9]", "<|im_end|>", "<unk>"]


@settings(deadline=None, max_examples=300)
@given(parts=st.lists(st.one_of(st.sampled_from(TYPED), st.text(max_size=3)), max_size=8))
def test_typed_control_text_stays_text(tokenizers, chatml, parts):
    for t in (*tokenizers.values(), chatml):
        assert not set(t.encode("".join(parts))) & set(t.controls.values())


def test_surrogates(tokenizers):
    t = tokenizers["v1"]
    assert t.encode("\ud83d\ude00") == t.encode("😀")
    assert t.encode("a\ud83db\udc00") == t.encode("a\ufffdb\ufffd")


# --- what a folder holds ---


@pytest.mark.parametrize("version", VERSIONS)
def test_versions_and_ids(tokenizers, version):
    t = tokenizers[version]
    assert (t.version, t.bos_id, t.eos_id, t.stop_ids) == (version, 1, 2, frozenset({2}))
    assert t.vocab_size == MODELS[version].vocab_size()
    assert t.added == {}
    assert t.control_id("</s>") == 2


def test_control_ids(tokenizers, chatml):
    assert tokenizers["v3"].control_id("[TOOL_CALLS]") == 5
    assert chatml.control_id("<|im_start|>") == 32001
    for name in ("[INST]", "▁the", "<0x0A>", "<unk>"):
        with pytest.raises(MixtralError, match="no control token"):
            tokenizers["v1"].control_id(name)


def test_chatml_folder(chatml):
    assert chatml.added == {"<|im_end|>": 32000, "<|im_start|>": 32001}
    assert (chatml.vocab_size, chatml.eos_id, chatml.version) == (32002, 32000, "v1")
    assert chatml.stop_ids == {2, 32000}


@pytest.mark.parametrize(
    ("files", "special"),
    [
        ({"tokenizer": {"added_tokens": [{"id": 32000, "content": "<x>", "special": True}]}}, True),
        ({"tokenizer": {"added_tokens": [{"id": 32000, "content": "<x>"}]}}, False),
        ({"added_tokens": {"<x>": 32000}}, False),
        ({"added_tokens": {"<x>": 32000}, "special_tokens_map": {"pad_token": "<x>"}}, True),
        (
            {
                "added_tokens": {"<x>": 32000},
                "tokenizer_config": {"additional_special_tokens": [{"content": "<x>"}]},
            },
            True,
        ),
        (
            {
                "tokenizer": {"added_tokens": [{"id": 32000, "content": "<x>", "special": True}]},
                "tokenizer_config": {"added_tokens_decoder": {"32000": {"content": "<x>"}}},
            },
            False,
        ),
    ],
)
def test_added_tokens_of_every_file(tmp_path, files, special):
    t = Tokenizer.from_folder(folder_of(tmp_path, **files))
    assert t.added == {"<x>": 32000}
    assert t.decode([32000]) == ("" if special else "<x>")


def test_a_piece_under_another_name(tmp_path):
    tokens = {"added_tokens": [{"id": 2, "content": "<|im_end|>", "special": True}]}
    t = Tokenizer.from_folder(folder_of(tmp_path, tokenizer=tokens))
    assert t.added == {"<|im_end|>": 2}
    assert t.vocab_size == 32000
    assert t.stop_ids == {2}


@pytest.mark.parametrize(
    ("files", "eos", "stops"),
    [
        ({"config": {"eos_token_id": 2}}, 2, {2}),
        ({"config": {"eos_token_id": 32000}}, 32000, {2, 32000}),
        ({"config": {"eos_token_id": [7, 9]}}, 7, {2, 7, 9}),
        ({"generation_config": {"eos_token_id": [9]}, "config": {"eos_token_id": 2}}, 9, {2, 9}),
        ({"generation_config": {}, "config": {"eos_token_id": None}}, 2, {2}),
    ],
)
def test_eos_of_the_folder(tmp_path, files, eos, stops):
    t = Tokenizer.from_folder(folder_of(tmp_path, **files))
    assert (t.eos_id, t.stop_ids) == (eos, stops)


def test_versioned_file_names(tmp_path):
    assert Tokenizer.from_folder(folder_of(tmp_path, "v3", "tokenizer.model.v3")).version == "v3"


# --- bad folders ---


def fails(folder: Path, says: str) -> None:
    with pytest.raises(ModelError) as caught:
        Tokenizer.from_folder(folder)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_tokenizer(tmp_path):
    fails(tmp_path, "no tokenizer")
    (tmp_path / "tokenizer.json").write_text("{}")
    fails(tmp_path, "only tokenizer.json")
    fails(tmp_path / "nowhere", "put the tokenizer.model")


def test_later_versions_are_refused(tmp_path):
    model = (DATA / "mistral_instruct_tokenizer_241114.model.v7").read_bytes()
    (tmp_path / "tokenizer.model").write_bytes(model)
    fails(tmp_path, "v7")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x00",
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
        b"<html>",
    ],
)
def test_damaged_model(tmp_path, content):
    (tmp_path / "tokenizer.model").write_bytes(content)
    fails(tmp_path, "tokenizer.model")


def test_truncated_and_altered_models_never_crash(tmp_path):
    rng, whole = random.Random(0), (DATA / FILES["v1"]).read_bytes()
    for n in range(25):
        content = bytearray(whole if n % 2 else whole[: rng.randrange(len(whole))])
        for _ in range(20):
            content[rng.randrange(len(content))] = rng.randrange(256)
        (tmp_path / "tokenizer.model").write_bytes(content)
        try:
            t = Tokenizer.from_folder(tmp_path)
        except ModelError:
            continue
        t.decode(range(t.vocab_size))


@pytest.mark.parametrize(
    "files",
    [
        {"tokenizer": {"added_tokens": [{"id": -1, "content": "x"}]}},
        {"tokenizer": {"added_tokens": [{"id": 1 << 40, "content": "x"}]}},
        {"tokenizer": {"added_tokens": [{"content": "x"}]}},
        {"tokenizer": {"added_tokens": [{"id": 32000, "content": ""}]}},
        {"tokenizer": {"added_tokens": 5}},
        {"tokenizer": []},
        {"added_tokens": {"x": "y"}},
        {"tokenizer_config": {"added_tokens_decoder": {"x": {}}}},
        {"tokenizer_config": {"added_tokens_decoder": [1]}},
        {"tokenizer_config": 1},
        {"config": {"eos_token_id": "2"}},
        {"config": {"eos_token_id": [True]}},
        {"generation_config": {"eos_token_id": -1}},
    ],
)
def test_malformed_json_is_a_model_error(tmp_path, files):
    fails(folder_of(tmp_path, **files), str(tmp_path))


@pytest.mark.parametrize("content", [b"{", b"\xff\xfe{}", b"[" * 100_000, b""])
@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "config.json"])
def test_broken_json_is_a_model_error(tmp_path, name, content):
    folder = folder_of(tmp_path)
    (folder / name).write_bytes(content)
    fails(folder, name)


def test_bytes_of_ids_make_up_the_text(demo):
    tokenizer = demo.tokenizer
    for text in ("A violin is", "é☃ \U0001f3bb, twice  spaced"):
        spelled = b"".join(map(tokenizer.bytes_of, tokenizer.encode(text, bos=True)))
        assert spelled == f" {text}".encode()
    for nothing in (tokenizer.bos_id, tokenizer.eos_id, -1, tokenizer.vocab_size, 1 << 40):
        assert tokenizer.bytes_of(nothing) == b""

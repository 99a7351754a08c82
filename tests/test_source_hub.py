"""Hugging Face repositories: the real client against a hub on this machine (tests/hub.py)."""

from __future__ import annotations

import hashlib
import json
import shutil
import socket
import subprocess
from collections import Counter
from pathlib import Path

import huggingface_hub
import pytest
from hub import FILES, NAME, SHARDS, WANTED, WHOLE, Fault, Hub, Repo, git_blob, shard
from huggingface_hub import constants
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from convert.sources import connection
from convert.sources import hub as source
from convert.sources import xet as quick
from mlx_mixtral.errors import MixtralError, ModelError, UsageError


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """The hub, with this process's client turned to it."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(connection, "PATIENCE", (0.01, 0.01, 0.01))
    monkeypatch.setattr(source, "PATIENCE", (0.01, 0.01, 0.01))
    with Hub().running() as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
        template = hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        hub.repos[NAME] = Repo(FILES)
        huggingface_hub.close_session()
        yield hub
        huggingface_hub.close_session()


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "target"
    path.mkdir()
    return path


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# --- Names


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        ("mistralai/Mixtral-8x7B-v0.1", ("mistralai/Mixtral-8x7B-v0.1", None)),
        ("a/b@main", ("a/b", "main")),
        ("a/b@refs/pr/3", ("a/b", "refs/pr/3")),
        ("a/b.c_d-e@0123abc", ("a/b.c_d-e", "0123abc")),
        ("model", None),
        ("a/b/c", None),
        ("./a/b", None),
        ("/a/b", None),
        ("../b", None),
        ("~/b", None),
        ("a/..", None),
        ("a/b@../x", None),
        ("a/b@x/../y", None),
        ("a/b@", None),
        ("a--b/c", None),
        ("a/b c", None),
        ("a/b\n", None),
        ("https://huggingface.co/a/b", None),
        ("", None),
    ],
)
def test_names(text, parsed):
    assert source.parse(text) == parsed


# --- What a repository holds


def test_look(hub):
    repository = source.look(NAME)
    assert repository.commit == hub.repos[NAME].commit
    assert repository.licence == "apache-2.0"
    assert {file.name for file in repository.files} == WANTED
    assert repository.size == sum(map(len, WHOLE.values()))
    for file in repository.files:
        large = file.name.endswith((".safetensors", ".model"))
        digest = hashlib.sha256(FILES[file.name]).hexdigest()
        assert file.sha256 == (digest if large else None)
        assert file.blob == (None if large else git_blob(FILES[file.name]))
        assert file.size == len(FILES[file.name])


def test_look_at_a_revision(hub):
    hub.repos[NAME].revision = "gptq-4bit/v1"
    assert (
        source.look(NAME, "gptq-4bit/v1").files == source.look(NAME, hub.repos[NAME].commit).files
    )
    with pytest.raises(UsageError, match="no revision nope; see http"):
        source.look(NAME, "nope")


# --- Download


def test_only_what_is_needed_is_asked_for(hub, folder):
    source.download(source.look(NAME), folder)
    assert content(folder) == WHOLE
    assert hub.asked() == WANTED
    moved = {request.file for request in hub.log if request.host == "cdn"}
    assert moved == {*SHARDS, "tokenizer.model"}
    assert all(len(hub.fetched(name)) == 1 for name in WANTED)
    commit = f"/resolve/{hub.repos[NAME].commit}/"  # main may move on meanwhile
    asked = [request for request in hub.log if request.host == "hub" and request.file != "api"]
    assert all(commit in request.path for request in asked)


def test_the_token_is_for_the_hub_alone(hub, folder, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_good")
    hub.repos[NAME] = Repo(FILES, token="hf_good", gated=True)
    source.download(source.look(NAME), folder)
    tokens = Counter((request.host, request.token) for request in hub.log)
    assert set(tokens) == {("hub", "Bearer hf_good"), ("cdn", None)}
    assert content(folder) == WHOLE


def test_a_folder_s_files_arrive_without_it(hub, folder):
    hub.repos[NAME] = Repo({"config.json": b"{}", "Q8/m.gguf": b"GGUF" * 99, "m.gguf": b"GGUF"})
    repository = source.look(NAME, only="Q8/*")
    source.download(repository, folder)
    assert content(folder) == {"config.json": b"{}", "m.gguf": b"GGUF" * 99}


def test_empty_files(hub, folder):
    hub.repos[NAME] = Repo(FILES | {"LICENSE.txt": b"", SHARDS[0]: b""})
    source.download(source.look(NAME), folder)
    assert content(folder) == WHOLE | {"LICENSE.txt": b"", SHARDS[0]: b""}


@pytest.mark.parametrize("how", [{}, {"reset": True}, {"length": False}])
def test_a_cut_connection_goes_on_where_it_ended(hub, folder, how):
    hub.faults[SHARDS[0]] = Fault(cut=100_000, times=2, **how)
    source.download(source.look(NAME), folder)
    assert content(folder) == WHOLE
    assert [start for start, _ in hub.fetched(SHARDS[0])] == [0, 100_000, 200_000]


def test_a_line_that_always_breaks_is_used_as_long_as_it_gives_something(hub, folder):
    hub.faults[SHARDS[0]] = Fault(cut=20_000, times=-1)
    source.download(source.look(NAME), folder)
    assert content(folder) == WHOLE
    starts = [start for start, _ in hub.fetched(SHARDS[0])]
    assert starts == list(range(0, len(FILES[SHARDS[0]]), 20_000))


def test_a_line_that_gives_nothing_is_given_up_and_taken_up_again(hub, folder):
    hub.faults[SHARDS[0]] = Fault(cut=70_000)
    repository = source.look(NAME)
    hub.faults[SHARDS[0]] = Fault(cut=70_000, times=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(connection, "PATIENCE", ())
        with pytest.raises(MixtralError, match=r"broke off .* run the same command again"):
            source.download(repository, folder)
    assert SHARDS[0] not in content(folder)
    source.download(repository, folder)
    assert content(folder) == WHOLE
    assert [start for start, _ in hub.fetched(SHARDS[0])] == [0, 70_000]
    assert all(len(hub.fetched(name)) == 1 for name in WANTED - {SHARDS[0]})


def test_a_server_without_ranges(hub, folder):
    hub.faults[SHARDS[0]] = Fault(cut=100_000)
    repository = source.look(NAME)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(connection, "PATIENCE", ())
        with pytest.raises(MixtralError):
            source.download(repository, folder)
    hub.faults[SHARDS[0]] = Fault(ranges=False)
    source.download(repository, folder)
    assert content(folder) == WHOLE


@pytest.mark.parametrize("shift", [-1000, 1000])
def test_a_server_that_sends_another_range(hub, folder, shift):
    hub.faults[SHARDS[0]] = Fault(cut=100_000)
    repository = source.look(NAME)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(connection, "PATIENCE", ())
        with pytest.raises(MixtralError):
            source.download(repository, folder)
    hub.faults[SHARDS[0]] = Fault(shift=shift)
    with pytest.raises(MixtralError, match="are announced"):
        source.download(repository, folder)
    source.download(repository, folder)
    assert content(folder) == WHOLE
    assert [start for start, _ in hub.fetched(SHARDS[0])] == [0, 100_000, 100_000]


def test_servers_that_recover(hub, folder):
    hub.faults["api"] = Fault(status=503, times=2)
    hub.faults[SHARDS[0]] = Fault(status=500, times=3)
    hub.faults[SHARDS[1]] = Fault(status=429, times=1, headers={"Retry-After": "0"})
    source.download(source.look(NAME), folder)
    assert content(folder) == WHOLE


def test_the_server_says_how_long_to_wait(hub, folder, monkeypatch):
    pauses = []
    monkeypatch.setattr(connection.time, "sleep", pauses.append)
    hub.faults[SHARDS[0]] = Fault(status=429, headers={"Retry-After": "7"})
    limit = {"ratelimit": '"resolvers";r=0;t=5', "ratelimit-policy": '"resolvers";q=3000;w=300'}
    hub.faults[SHARDS[1]] = Fault(status=429, headers=limit)
    source.download(source.look(NAME), folder)
    assert pauses == [7.0, 6.0]
    assert content(folder) == WHOLE


def test_progress_is_of_the_whole(hub, folder):
    repository = source.look(NAME)
    hub.faults[SHARDS[1]] = Fault(cut=50_000, times=-1)
    seen = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(connection, "PATIENCE", ())
        with pytest.raises(MixtralError):
            source.download(repository, folder, lambda *at: seen.append(at))
    hub.faults.clear()
    there = repository.size - len(FILES[SHARDS[1]]) + 50_000
    assert seen[0] == (0, repository.size)
    assert seen[-1] == (there, repository.size)
    seen.clear()
    source.download(repository, folder, lambda *at: seen.append(at))
    assert seen[0] == (there, repository.size)
    assert seen[-1] == (repository.size, repository.size)
    assert seen == sorted(seen)


# --- What came is checked


@pytest.mark.parametrize("name", [SHARDS[0], "config.json"])
def test_wrong_content(hub, folder, name):
    wrong = FILES[name][:-1] + b"!"
    hub.faults[name] = Fault(content=wrong)
    repository = source.look(NAME)
    with pytest.raises(ModelError, match=f"{name} of {NAME} came damaged .* again") as caught:
        source.download(repository, folder)
    assert "\n" not in str(caught.value)
    assert wrong not in content(folder).values()
    source.download(repository, folder)
    assert content(folder) == WHOLE
    assert len(hub.fetched(name)) == 2
    assert all(len(hub.fetched(other)) == 1 for other in WANTED - {name})


@pytest.mark.parametrize("change", [lambda b: b + b"more", lambda b: b[:-1]])
@pytest.mark.parametrize("name", [SHARDS[0], "config.json"])
def test_wrong_length(hub, folder, name, change):
    hub.faults[name] = Fault(content=change(FILES[name]))
    repository = source.look(NAME)
    with pytest.raises(MixtralError, match=r"holds .* bytes where .* are announced"):
        source.download(repository, folder)
    assert name not in content(folder)
    source.download(repository, folder)
    assert content(folder) == WHOLE


def test_a_damaged_part_is_found_out(hub, folder):
    hub.faults[SHARDS[0]] = Fault(cut=100_000, times=-1)
    repository = source.look(NAME)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(connection, "PATIENCE", ())
        with pytest.raises(MixtralError):
            source.download(repository, folder)
    hub.faults.clear()
    (part,) = folder.glob(".*.part")
    part.write_bytes(b"?" * 50_000)
    with pytest.raises(ModelError, match="damaged"):
        source.download(repository, folder)
    source.download(repository, folder)
    assert content(folder) == WHOLE


def test_files_that_are_there_already(hub, folder):
    """Right ones are kept, though nothing says where they come from; wrong ones are not."""
    for name in (SHARDS[0], "config.json"):
        (folder / name).write_bytes(FILES[name])
    (folder / SHARDS[1]).write_bytes(FILES[SHARDS[1]][:-1] + b"!")
    (folder / "tokenizer.model").write_bytes(b"short")
    (folder / ".checked").write_bytes(b"{damaged")
    source.download(source.look(NAME), folder)
    assert content(folder) == WHOLE
    assert not {SHARDS[0], "config.json"} & hub.asked()


def test_what_was_checked_is_not_read_again(hub, folder, monkeypatch):
    repository = source.look(NAME)
    for file in repository.files:
        source.download_file(repository, file, folder)
    hub.log.clear()
    monkeypatch.setattr("convert.sources.checked._content", None)
    source.download(repository, folder)
    assert content(folder) == WHOLE
    assert not hub.log


def test_another_commit_takes_over(hub, folder):
    """Of an unfinished download of other content only what is the same is kept."""
    hub.faults[SHARDS[1]] = Fault(cut=100_000, times=-1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(connection, "PATIENCE", ())
        with pytest.raises(MixtralError):
            source.download(source.look(NAME), folder)
    hub.faults.clear()
    hub.log.clear()
    changed = {name: WHOLE[name] for name in WANTED - {"LICENSE.txt"}}
    changed |= {"config.json": b'{"model_type": "MIXTRAL"}', SHARDS[1]: shard(9, 200_000)}
    hub.repos[NAME] = Repo(changed)
    source.download(source.look(NAME), folder)
    assert content(folder) == changed
    assert hub.asked() == {"config.json", SHARDS[1]}
    assert hub.fetched(SHARDS[1]) == [(0, None)]


def test_one_file(hub, folder):
    repository = source.look(NAME)
    file = next(file for file in repository.files if file.name == SHARDS[0])
    (folder / "mine").write_bytes(b"left alone")
    seen = []
    path = source.download_file(repository, file, folder, lambda *at: seen.append(at))
    assert path == folder / SHARDS[0]
    assert path.read_bytes() == FILES[SHARDS[0]]
    assert (folder / "mine").read_bytes() == b"left alone"
    assert seen[-1] == (file.size, file.size)
    assert source.download_file(repository, file, folder) == path
    assert len(hub.fetched(SHARDS[0])) == 1


# --- Xet


@pytest.fixture
def xet(hub, tmp_path):
    """The same repository with its shards in Xet's storage, a folder here."""
    hf_xet = pytest.importorskip("hf_xet")
    hub.cas = f"local://{tmp_path / 'cas'}"
    with hf_xet.XetSession().new_upload_commit(endpoint=hub.cas) as commit:
        stored = {name: commit.start_upload_bytes(FILES[name]) for name in SHARDS}
    hub.repos[NAME] = Repo(FILES, xet={n: s.result().xet_info.hash for n, s in stored.items()})
    return hub


def test_xet_where_it_is_offered(xet, folder):
    repository = source.look(NAME)
    seen = []
    source.download(repository, folder, lambda *at: seen.append(at))
    assert content(folder) == WHOLE
    assert not any(xet.fetched(name) for name in SHARDS)
    assert seen == sorted(seen)
    assert seen[-1] == (repository.size, repository.size)


def test_a_part_is_not_begun_anew_by_xet(xet, folder, monkeypatch):
    xet.faults[SHARDS[0]] = Fault(cut=100_000)
    repository = source.look(NAME)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(connection, "PATIENCE", ())
        patch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        with pytest.raises(MixtralError):
            source.download(repository, folder)
    source.download(repository, folder)
    assert content(folder) == WHOLE
    assert [start for start, _ in xet.fetched(SHARDS[0])] == [0, 100_000]
    assert not xet.fetched(SHARDS[1])


def test_xet_switched_off(xet, folder, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    source.download(source.look(NAME), folder)
    assert content(folder) == WHOLE
    assert all(xet.fetched(name) == [(0, None)] for name in SHARDS)


@pytest.mark.parametrize("place", ["local:///proc/nowhere", "no address", "http://127.0.0.1:9"])
def test_without_xet_s_storage_the_plain_way_is_taken(xet, folder, monkeypatch, place):
    monkeypatch.setattr(quick, "STALL", 0.3)
    xet.cas = place
    source.download(source.look(NAME), folder)
    assert content(folder) == WHOLE
    assert all(xet.fetched(name) == [(0, None)] for name in SHARDS)
    tries = [request for request in xet.log if request.file == "xet-token"]
    assert len(tries) == 1  # it was not tried again for the second


def test_xet_s_storage_that_does_not_answer(xet, folder, monkeypatch):
    monkeypatch.setattr(quick, "STALL", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        xet.cas = f"http://127.0.0.1:{silent.getsockname()[1]}"
        source.download(source.look(NAME), folder)
    assert content(folder) == WHOLE


def test_what_xet_left_is_fetched_the_plain_way(xet, folder, monkeypatch):
    def breaks_off(found, path, size, tell):
        path.write_bytes(FILES[SHARDS[0]][:120_000])
        raise RuntimeError("Xet's network")

    monkeypatch.setattr(quick, "_reconstruct", breaks_off)
    repository = source.look(NAME)
    file = next(file for file in repository.files if file.name == SHARDS[0])
    source.download_file(repository, file, folder)
    assert (folder / SHARDS[0]).read_bytes() == FILES[SHARDS[0]]
    assert [start for start, _ in xet.fetched(SHARDS[0])] == [120_000]


# --- Headers


def test_header_takes_no_more_than_itself(hub):
    repository = source.look(NAME)
    file = next(file for file in repository.files if file.name == SHARDS[0])
    length = int.from_bytes(FILES[SHARDS[0]][:8], "little")
    assert source.header(repository, file) == FILES[SHARDS[0]][: 8 + length]
    assert hub.fetched(SHARDS[0]) == [(0, 8), (8, 8 + length)]


def test_header_from_a_server_without_ranges(hub):
    hub.faults[SHARDS[0]] = Fault(ranges=False, cut=50_000, times=-1)  # more is not read
    repository = source.look(NAME)
    file = next(file for file in repository.files if file.name == SHARDS[0])
    length = int.from_bytes(FILES[SHARDS[0]][:8], "little")
    assert source.header(repository, file) == FILES[SHARDS[0]][: 8 + length]


@pytest.mark.parametrize(
    "start",
    [b"", b"short", b"\0" * 8, b"\xff" * 8 + b"{}", (3).to_bytes(8, "little") + b"{}"],
)
def test_header_that_cannot_be(hub, start):
    hub.repos[NAME] = Repo({"config.json": b"{}", "model.safetensors": start})
    repository = source.look(NAME)
    with pytest.raises(ModelError, match=r"model.safetensors of .* is not a safetensors file"):
        source.header(repository, repository.files[-1])


def test_header_s_length_is_bounded(hub, monkeypatch):
    repository = source.look(NAME)
    file = next(file for file in repository.files if file.name == SHARDS[0])
    length = len(source.header(repository, file)) - 8
    monkeypatch.setattr("mlx_mixtral.shards.LONGEST_HEADER", length)
    source.header(repository, file)
    hub.log.clear()
    monkeypatch.setattr("mlx_mixtral.shards.LONGEST_HEADER", length - 1)
    with pytest.raises(ModelError, match="is not a safetensors file"):
        source.header(repository, file)
    assert hub.fetched(SHARDS[0]) == [(0, 8)]


# --- What the hub refuses


def fails(work, *says, kind=MixtralError):
    with pytest.raises(kind) as caught:
        work()
    message = str(caught.value)
    assert "\n" not in message
    assert all(word in message for word in says), message


def test_no_such_repository(hub, monkeypatch):
    says = ("no repository a/b", f"{hub.endpoint}/a/b", "hf auth login")
    fails(lambda: source.look("a/b"), *says, kind=UsageError)
    monkeypatch.setenv("HF_TOKEN", "hf_good")
    fails(lambda: source.look("a/b"), *says, kind=UsageError)


def test_not_a_name(hub):
    fails(lambda: source.look("a/b--c"), "'a/b--c' is not the name", kind=UsageError)


def test_private(hub, monkeypatch):
    hub.repos[NAME] = Repo(FILES, token="hf_good")
    fails(lambda: source.look(NAME), "private", "HF_TOKEN", kind=UsageError)
    monkeypatch.setenv("HF_TOKEN", "hf_good")
    assert source.look(NAME).files


@pytest.mark.parametrize("token", [None, "hf_other"])
def test_gated(hub, folder, monkeypatch, token):
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    hub.repos[NAME] = Repo(FILES, gated=True)
    repository = source.look(NAME)  # who may look may not always fetch
    says = ("terms", f"{hub.endpoint}/{NAME}", "hf auth login", "HF_TOKEN")
    fails(lambda: source.download(repository, folder), *says)
    assert not content(folder).keys() & WANTED


def test_bad_token(hub, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_bad")
    fails(lambda: source.look(NAME), "token", "renew", "hf auth login")
    monkeypatch.setenv("HF_TOKEN", "hf_ü")
    fails(lambda: source.look(NAME), "HF_TOKEN has characters")


@pytest.mark.parametrize(
    ("status", "headers", "says"),
    [
        (500, {}, ["a fault just now (error 500)", "run the same command again"]),
        (503, {}, ["error 503"]),
        (429, {"Retry-After": "3600"}, ["in 3600 seconds", "hf auth login"]),
        (429, {}, ["later"]),
        (403, {}, ["may not read", "hf auth login"]),
        (403, {"X-Error-Message": "Access to this resource is disabled."}, ["disabled"]),
    ],
)
def test_refusals_that_last(hub, status, headers, says):
    hub.faults["api"] = Fault(status=status, headers=headers, times=-1)
    fails(lambda: source.look(NAME), *says)
    waits = status in (500, 503) or (status == 429 and not headers)
    assert len(hub.log) == (3 if waits else 1)


@pytest.mark.parametrize(
    "answer",
    [
        b"<html>Log in to the hotel's network</html>",
        b"",
        b"[]",
        b"{}",
        b'{"id": "a/b", "sha": "main", "siblings": []}',
        b"\xff\xfe",
        b"[" * 100_000,
    ],
)
def test_answers_that_make_no_sense(hub, answer):
    hub.faults["api"] = Fault(content=answer)
    fails(lambda: source.look(NAME), "makes no sense", "proxy")


@pytest.mark.parametrize(
    "name",
    [
        "../x",
        "/etc/passwd",
        "LICENSE" + "x" * 250,
        "a/../../x",
        "a\\x",
        "..",
        "./x",
        "a//b",
        "x\x1b[2J",
        "a\nb",
        "",
    ],
)
def test_names_that_point_elsewhere(hub, name):
    hub.repos[NAME] = Repo(FILES | {name: b"x"})
    fails(lambda: source.look(NAME), "points elsewhere", kind=ModelError)


@pytest.mark.parametrize(
    "change",
    [
        {"size": None, "lfs": None},
        {"size": -1, "lfs": None},
        {"size": 10**40, "lfs": None},
        {"size": "5", "lfs": None},
        {"size": 1.5, "lfs": None},
        {"blobId": None, "lfs": None},
        {"blobId": "x", "lfs": None},
        {"lfs": {"size": 5, "sha256": "../../x", "pointerSize": 1}},
        {"lfs": {"size": 5, "pointerSize": 1}},
        {"lfs": 5},
        {"rfilename": 5},
        {"rfilename": None},
    ],
)
def test_listings_that_make_no_sense(hub, change):
    hub.repos[NAME].changes = {SHARDS[0]: change}
    fails(lambda: source.look(NAME), "makes no sense")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=5,
)
FIELDS = ["sha", "siblings", "tags", "id", "cardData", "gated", "lastModified", "safetensors"]


@pytest.mark.fuzz
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(
    top=st.dictionaries(st.sampled_from(FIELDS), JSON, max_size=2),
    entry=st.dictionaries(st.sampled_from(["rfilename", "size", "lfs", "blobId"]), JSON),
)
def test_any_listing(hub, top, entry):
    good = {"sha": "0" * 40, "siblings": [{"rfilename": "m.gguf", "size": 1, "blobId": "0" * 40}]}
    good["siblings"][0] |= entry
    hub.faults["api"] = Fault(content=json.dumps({"id": NAME} | good | top).encode())
    said, files = "", ()
    try:
        files = source.look(NAME).files
    except MixtralError as error:
        said = str(error)
    assert "\n" not in said
    assert bool(files) != bool(said)
    assert all("/" not in file.local and file.size >= 0 for file in files)


# --- The cache of the library


def fill_cache(hub, **options):
    return Path(huggingface_hub.snapshot_download(NAME, **options))


def forget_listing(tmp_path):
    """As older versions of the library left the cache."""
    from huggingface_hub import _tree_cache

    for tree in tmp_path.glob("cache/*/trees"):
        shutil.rmtree(tree)
    _tree_cache._IN_MEMORY_TREE_CACHE.clear()


@pytest.mark.parametrize("known", [True, False])
def test_a_whole_model_in_the_cache(hub, tmp_path, monkeypatch, known):
    assert source.cached(NAME) is None
    snapshot = fill_cache(hub, allow_patterns=[*WANTED])
    if not known:
        forget_listing(tmp_path)
    hub.log.clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert source.cached(NAME) == snapshot
    assert source.cached(NAME, hub.repos[NAME].commit) == snapshot
    assert source.cached(NAME, "main") == snapshot
    assert source.cached(NAME, "other") is None
    assert source.cached("some/other") is None
    assert source.cached("not a name") is None
    assert not hub.log


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("missing", ["config.json", "tokenizer.model", SHARDS[0], SHARDS[1]])
def test_a_part_of_a_model_in_the_cache(hub, tmp_path, known, missing):
    fill_cache(hub, allow_patterns=[*(WANTED - {missing})])
    if not known:
        forget_listing(tmp_path)
    assert source.cached(NAME) is None


@pytest.mark.parametrize("index", [{"x": "model-2.safetensors"}, {"x": ["y"]}, ["x"], None])
def test_an_index_in_the_cache_that_names_what_is_not_there(hub, tmp_path, index):
    files = {
        "config.json": b"{}",
        "tokenizer.json": b"{}",
        "model-00001-of-00001.safetensors": b"x",
        "model.safetensors.index.json": json.dumps({"weight_map": index}).encode(),
    }
    hub.repos[NAME] = Repo(files)
    fill_cache(hub)
    forget_listing(tmp_path)
    assert source.cached(NAME) is None


def test_one_of_several_models_in_the_cache(hub, tmp_path):
    hub.repos[NAME] = Repo({"m.Q4.gguf": b"4", "m.Q8.gguf": b"8"})
    snapshot = fill_cache(hub, allow_patterns=["m.Q4.gguf"])
    assert source.cached(NAME) is None
    assert source.cached(NAME, only="*Q4*") == snapshot
    assert source.cached(NAME, only="*Q8*") is None
    forget_listing(tmp_path)
    assert source.cached(NAME) == snapshot
    assert source.cached(NAME, only="*Q8*") is None


def test_offline(hub, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    fails(lambda: source.look(NAME), "HF_HUB_OFFLINE is set", f"cache {NAME} is not there")


def test_no_network(hub, monkeypatch):
    snapshot = fill_cache(hub)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    fails(lambda: source.look("a/b"), "cannot reach http://127.0.0.1:9", "cache a/b is not there")
    fails(lambda: source.look(NAME), "check the network", f"cache {NAME} is in {snapshot}")


@pytest.mark.parametrize(
    "endpoint", ["http://[", "mirror.example", "ftp://x", "http://", "http://a b"]
)
def test_an_endpoint_that_is_none(hub, monkeypatch, endpoint):
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    fails(lambda: source.look(NAME), f"cannot reach {endpoint} (")


# --- Room on the disk


def test_room_is_looked_at_first(hub, folder, monkeypatch):
    repository = source.look(NAME)
    file = next(file for file in repository.files if file.name == SHARDS[0])
    source.download_file(repository, file, folder)
    hub.log.clear()
    rest = repository.size - file.size
    for free, enough in ((rest - 1, False), (rest, True)):
        usage = shutil.disk_usage(folder)._replace(free=free)
        monkeypatch.setattr(shutil, "disk_usage", lambda _, usage=usage: usage)
        if enough:
            source.download(repository, folder)
            assert content(folder) == WHOLE
        else:
            fails(lambda: source.download(repository, folder), "not enough room", kind=UsageError)
            assert not hub.log


def test_disk_that_fills_up(hub, folder, monkeypatch):
    """As when something else writes at the same time: the free room was enough before."""
    mount = ["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(folder)]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        monkeypatch.setattr(source, "check_room", lambda *_: None)
        fails(lambda: source.download(source.look(NAME), folder), "disk is full", "again")
        subprocess.run([*mount[:4], "remount,size=4m", *mount[5:]], check=True)
        source.download(source.look(NAME), folder)
        assert content(folder) == WHOLE
        assert hub.fetched(SHARDS[0]) == [(0, None)]
    finally:
        subprocess.run(["umount", str(folder)], check=True)

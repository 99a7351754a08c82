"""The names of published models: what they point to, and sizes counted another way."""

from __future__ import annotations

import re
from urllib.parse import parse_qs, urlsplit

import pytest

from convert.sources.published import PUBLISHED

# dim, layers, ffn, kv heads x head dim, experts, vocabulary: from the papers' and cards' tables.
SHAPES = {
    "8x7b": (4096, 32, 14336, 1024, 8, 32000),
    "8x7b-instruct": (4096, 32, 14336, 1024, 8, 32000),
    "8x7b-magnet": (4096, 32, 14336, 1024, 8, 32000),
    "8x22b": (6144, 56, 16384, 1024, 8, 32000),
    "8x22b-magnet": (6144, 56, 16384, 1024, 8, 32000),
    "8x22b-instruct": (6144, 56, 16384, 1024, 8, 32768),
    "7b": (4096, 32, 14336, 1024, 0, 32768),
    "7b-instruct": (4096, 32, 14336, 1024, 0, 32768),
}


def test_every_name_is_here_and_no_other():
    assert set(PUBLISHED) == set(SHAPES)
    assert all(model.name == name for name, model in PUBLISHED.items())


@pytest.mark.parametrize("name", SHAPES)
def test_sizes_follow_from_the_shapes(name):
    dim, layers, ffn, kv, experts, vocabulary = SHAPES[name]
    attention = 2 * dim * dim + 2 * dim * kv
    feed_forward = 3 * dim * ffn * max(experts, 1) + dim * experts  # and the router
    layer = attention + feed_forward + 2 * dim
    assert PUBLISHED[name].parameters == layers * layer + 2 * vocabulary * dim + dim
    assert PUBLISHED[name].size == 2 * PUBLISHED[name].parameters


@pytest.mark.parametrize("name", SHAPES)
def test_what_a_list_shows(name):
    model = PUBLISHED[name]
    assert model.licence == "Apache-2.0"
    assert model.description
    assert "\n" not in model.description
    assert len(model.description) <= 90


@pytest.mark.parametrize("name", [n for n in SHAPES if not n.endswith("-magnet")])
def test_repositories(name):
    owner, _, repository = PUBLISHED[name].source.partition("/")
    size, _, kind = name.partition("-")
    assert owner == "mistralai"
    assert repository.lower().startswith(("mixtral-" if "x" in size else "mistral-") + size)
    assert ("Instruct" in repository) == (kind == "instruct")


@pytest.mark.parametrize(
    ("name", "digest", "trackers"),
    [
        (
            "8x7b-magnet",
            "5546272da9065eddeb6fcd7ffddeef5b75be79a7",
            [
                "udp://opentracker.i2p.rocks:6969/announce",
                "http://tracker.openbittorrent.com:80/announce",
            ],
        ),
        (
            "8x22b-magnet",
            "9238b09245d0d8cd915be09927769d5f7584c1c9",
            [
                "udp://open.demonii.com:1337/announce",
                "http://tracker.opentrackr.org:1337/announce",
            ],
        ),
    ],
)
def test_links(name, digest, trackers):
    parts = urlsplit(PUBLISHED[name].source)
    fields = parse_qs(parts.query)
    assert parts.scheme == "magnet"
    assert fields["xt"] == [f"urn:btih:{digest}"]
    assert fields["tr"] == trackers
    assert re.fullmatch(r"mixtral-8x\d+b(-32kseqlen)?", fields["dn"][0])

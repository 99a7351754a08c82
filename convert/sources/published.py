"""The models as Mistral published them, under the names that a person types."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Published:
    """A model to fetch by name."""

    name: str
    source: str
    """A Hugging Face repository, ``owner/name``, or a magnet link."""
    parameters: int
    description: str
    """One line, for a list of the names."""
    licence: str = "Apache-2.0"
    """As SPDX names it."""

    @property
    def size(self) -> int:
        """What there is to download, in bytes: the weights, 16 bits each. The rest is small."""
        return 2 * self.parameters


# Parameters are counted from the shapes: the vocabulary has 32,000 pieces, and 32,768 in the
# models with the third version of the tokenizer.
_8X7B = 46_702_792_704
_8X22B = 140_620_634_112
_8X22B_V3 = 140_630_071_296
_7B_V3 = 7_248_023_552

# The trackers stand here as Mistral meant them: most copies on the web have them mangled.
_8X7B_MAGNET = (
    "magnet:?xt=urn:btih:5546272da9065eddeb6fcd7ffddeef5b75be79a7&dn=mixtral-8x7b-32kseqlen"
    "&tr=udp%3A%2F%2Fopentracker.i2p.rocks%3A6969%2Fannounce"
    "&tr=http%3A%2F%2Ftracker.openbittorrent.com%3A80%2Fannounce"
)
_8X22B_MAGNET = (
    "magnet:?xt=urn:btih:9238b09245d0d8cd915be09927769d5f7584c1c9&dn=mixtral-8x22b"
    "&tr=udp%3A%2F%2Fopen.demonii.com%3A1337%2Fannounce"
    "&tr=http%3A%2F%2Ftracker.opentrackr.org%3A1337%2Fannounce"
)

_ALL = (
    Published(
        "8x7b-instruct",
        "mistralai/Mixtral-8x7B-Instruct-v0.1",
        _8X7B,
        "Mixtral 8x7B, made for chat; 13 of 47 billion parameters at work on each token",
    ),
    Published(
        "8x7b",
        "mistralai/Mixtral-8x7B-v0.1",
        _8X7B,
        "Mixtral 8x7B, the base model: continues a text",
    ),
    Published(
        "8x22b-instruct",
        "mistralai/Mixtral-8x22B-Instruct-v0.1",
        _8X22B_V3,
        "Mixtral 8x22B, made for chat and tools; 39 of 141 billion parameters at work",
    ),
    Published(
        "8x22b",
        "mistralai/Mixtral-8x22B-v0.1",
        _8X22B,
        "Mixtral 8x22B, the base model: continues a text",
    ),
    Published(
        "7b-instruct",
        "mistralai/Mistral-7B-Instruct-v0.3",
        _7B_V3,
        "Mistral 7B v0.3, made for chat and tools; no mixture of experts, for small machines",
    ),
    Published(
        "7b",
        "mistralai/Mistral-7B-v0.3",
        _7B_V3,
        "Mistral 7B v0.3, the base model; no mixture of experts",
    ),
    Published(
        "8x7b-magnet",
        _8X7B_MAGNET,
        _8X7B,
        "Mixtral 8x7B as it first appeared, by BitTorrent (December 2023)",
    ),
    Published(
        "8x22b-magnet",
        _8X22B_MAGNET,
        _8X22B,
        "Mixtral 8x22B as it first appeared, by BitTorrent (April 2024)",
    ),
)

PUBLISHED: Mapping[str, Published] = {model.name: model for model in _ALL}

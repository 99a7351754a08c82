"""Integer codes and the 32-bit words that hold them.

MLX keeps the codes of a row [in] as one stream of bits, the lowest first, in words that run along
the row. GPTQ keeps the same stream along a column, so that its words [words, out] are MLX's
transposed; 3 bits cross the words the same way, 32 codes in 3 words. AWQ packs eight
neighbours of the other axis into a word.
"""

import math

import numpy as np
from numpy.typing import NDArray

Words = NDArray[np.uint32]
Codes = NDArray[np.uint8]

AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
"""Which of eight neighbouring columns lies in each 4 bits of a word of AWQ, the lowest first."""

# The three swaps that transpose 8 x 8 codes of 4 bits: how far apart the words are, how far the
# bits, and which bits stay where they are in the first word of a pair.
_SWAPS = ((4, 16, 0x0000FFFF), (2, 8, 0x00FF00FF), (1, 4, 0x0F0F0F0F))
_BLOCK = 64  # rows of words: a block of AWQ's largest matrix, 14336 wide, stays in the cache


def run(bits: int) -> tuple[int, int]:
    """The shortest run of codes that fills whole words: how many codes, how many words."""
    words = bits // math.gcd(bits, 32)
    return 32 * words // bits, words


def unpack(words: Words, bits: int) -> Codes:
    """Codes [n, columns] of the stream that runs down the columns of ``words`` [n * bits/32, ...].

    ``bits`` is 1 to 8, and the words are whole runs (see ``run``).
    """
    count, length = run(bits)
    stream = words.reshape(-1, length, words.shape[1])
    codes = np.empty((len(stream), count, words.shape[1]), np.uint8)
    mask = np.uint32((1 << bits) - 1)
    for i in range(count):
        word, shift = divmod(i * bits, 32)
        code = stream[:, word] >> np.uint32(shift)
        if shift + bits > 32:
            code |= stream[:, word + 1] << np.uint32(32 - shift)
        codes[:, i] = code & mask
    return codes.reshape(-1, words.shape[1])


def pack(codes: Codes, bits: int) -> Words:
    """The inverse of ``unpack``."""
    count, length = run(bits)
    runs = codes.reshape(-1, count, codes.shape[1])
    stream = np.zeros((len(runs), length, codes.shape[1]), np.uint32)
    for i in range(count):
        word, shift = divmod(i * bits, 32)
        code = runs[:, i].astype(np.uint32)
        stream[:, word] |= code << np.uint32(shift)
        if shift + bits > 32:
            stream[:, word + 1] |= code >> np.uint32(32 - shift)
    return stream.reshape(-1, codes.shape[1])


def awq_to_gptq(words: Words) -> Words:
    """AWQ's words of 4-bit codes [in, out/8] as GPTQ's [in/8, out].

    Eight words below each other are 8 x 8 codes, to be transposed: halves of words change
    places, then quarters, then single codes. ``in`` is a multiple of 8.
    """
    rows, width = words.shape
    squares = words.reshape(rows // 8, 8, width)
    out = np.empty((rows // 8, 8 * width), np.uint32)
    for begin in range(0, len(squares), _BLOCK):
        block = squares[begin : begin + _BLOCK].copy()
        for apart, shift, stay in _SWAPS:
            for k in (k for k in range(8) if not k & apart):
                first, second = block[:, k], block[:, k + apart]
                moved = ((first >> np.uint32(shift)) ^ second) & np.uint32(stay)
                second ^= moved
                first ^= moved << np.uint32(shift)
        for k, column in enumerate(AWQ_ORDER):
            out[begin : begin + _BLOCK, column::8] = block[:, k]
    return out

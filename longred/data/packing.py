"""Packs pieces of text into full blocks: best fit, no padding, as few cuts as possible."""

from bisect import bisect_right
from collections.abc import Sequence

Part = tuple[int, int]
"""Number of a piece, and how many of its first tokens are used."""


def pack(lengths: Sequence[int], block_length: int, max_blocks: int) -> list[list[Part]]:
    """Return full blocks as lists of parts; a piece is used at most once.

    The longest piece left opens a block; then comes the longest that fits; when none fits, the
    shortest is cut to fill the rest (its end is not used). No block is made that cannot be filled.

    Args:
        lengths: tokens of each piece, each in [1, block_length].
        block_length: tokens of a block.
        max_blocks: make no more than these.
    """
    order = sorted(range(len(lengths)), key=lambda piece: (lengths[piece], -piece))
    sizes = [lengths[piece] for piece in order]
    if sizes and not 1 <= sizes[0] <= sizes[-1] <= block_length:
        raise ValueError(f"pieces of {sizes[0]} to {sizes[-1]} tokens, blocks of {block_length}")
    left = sum(sizes)
    blocks: list[list[Part]] = []
    while len(blocks) < max_blocks and left >= block_length:
        block: list[Part] = []
        room = block_length
        while room:
            chosen = max(0, bisect_right(sizes, room) - 1)
            size, piece = sizes.pop(chosen), order.pop(chosen)
            left -= size
            block.append((piece, min(size, room)))
            room -= min(size, room)
        blocks.append(block)
    return blocks

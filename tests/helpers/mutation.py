"""Seeded mutation of files: what a careless disk, a bad transfer or somebody hostile makes of good ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from zoo.randomness import raw_bits

NUMBERS = (
    b"-1", b"0", b"1e999", b"NaN", b"99999999999999999999", b"true", b"null", b'""', b"[]", b"{}", b"9" * 400,
)  # fmt: skip
BYTES = (
    b"\0",
    b"\xff",
    b"\x7f",
    b"\x80",
    b"\xff\xff\xff\xff",
    b"\0\0\0\0",
    b"\xff" * 8,
    b"[" * 3000,
    b"\n",
    b'"',
)


class Choices:
    """Whole numbers that are a function of a seed."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self._bits: list[int] = []
        self._blocks = 0

    def below(self, number: int) -> int:
        if not self._bits:
            self._bits = raw_bits(self.seed, f"mutation/{self._blocks}", 64).tolist()
            self._blocks += 1
        return self._bits.pop() % max(number, 1)

    def of(self, options: Sequence[bytes]) -> bytes:
        return options[self.below(len(options))]


def _flip(content: bytes, choose: Choices) -> bytes:
    at = choose.below(len(content))
    return content[:at] + bytes([content[at] ^ (1 << choose.below(8))]) + content[at + 1 :]


def _replace(content: bytes, choose: Choices) -> bytes:
    at, new = choose.below(len(content)), choose.of(BYTES)
    return content[:at] + new + content[at + len(new) :]


def _insert(content: bytes, choose: Choices) -> bytes:
    at = choose.below(len(content) + 1)
    return content[:at] + choose.of((*BYTES, *NUMBERS)) + content[at:]


def _cut(content: bytes, choose: Choices) -> bytes:
    return content[: choose.below(len(content))]


def _drop(content: bytes, choose: Choices) -> bytes:
    at = choose.below(len(content))
    return content[:at] + content[at + 1 + choose.below(64) :]


def _repeat(content: bytes, choose: Choices) -> bytes:
    at = choose.below(len(content))
    piece = content[at : at + 1 + choose.below(200)]
    return content[:at] + piece * (1 + choose.below(9)) + content[at:]


def _number(content: bytes, choose: Choices) -> bytes:
    """Another number, or something that is none, in the place of one that is written out."""
    digits = [i for i, byte in enumerate(content) if 48 <= byte <= 57]
    if not digits:
        return _flip(content, choose)
    at = digits[choose.below(len(digits))]
    return content[:at] + choose.of(NUMBERS) + content[at + 1 :]


KINDS: tuple[Callable[[bytes, Choices], bytes], ...] = (
    _flip, _replace, _insert, _cut, _drop, _repeat, _number,
)  # fmt: skip


def mutants(content: bytes, seed: int) -> Iterator[bytes]:
    """Endless mutants of a file, each of one to three changes."""
    choose = Choices(seed)
    while True:
        changed = content
        for _ in range(1 + choose.below(3)):
            changed = KINDS[choose.below(len(KINDS))](changed or b" ", choose)
        yield changed

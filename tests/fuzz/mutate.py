"""Inputs made of a corpus: bytes are cut, doubled, flipped and spliced; words that hurt parsers are put in."""

from __future__ import annotations

import random
from collections.abc import Sequence

#: What breaks parsers, pages and spreadsheets; every target gets them, whatever it reads.
WORDS = (
    b"\x00", b"\xff\xfe", b"\xef\xbb\xbf", b"\xed\xa0\x80", b"\n", b"\r", b"\t", b"\x1b[2J", b"\x7f",
    "\u202e".encode(), "\u2028".encode(), "\U000e0041".encode(), "\u0000".encode(), "\u0661".encode(),
    b"-", b"--", b"0", b"-1", b"1e999", b"-1e308", b"1e308", b"NaN", b"Infinity", b"9" * 40, b"9" * 5000,
    b"0x" + b"f" * 5000, b"1:1:1", b"1" + b":1" * 3000, b"1_", b"0_7", b"0b", b".", b"1e5", b"true", b"null",
    b"~", b"!!int", b'!!int ""', b"!!float _", b"!!bool x", b"!!binary =", b"!!timestamp 2024-99-99",
    b"!!python/object/apply:os.system [id]", b"!!set {a}", b"2024-13-45", b"<<: *a", b"<<: [*a, *a]", b"&a ",
    b"*a", b"? ", b"? [a]", b": ", b"- ", b"| ", b">-\n", b"%YAML 9.9\n", b"---\n", b"...\n", b"#", b"{",
    b"}", b"[",
    b"]", b"{}", b"[]", b"''", b'""', b'"\\ud800"', b'"\\u0000"', b'"', b",", b"[" * 3000, b'{"a":' * 3000,
    b"<script>alert(1)</script>", b"<img src=x onerror=alert(1)>", b"</script>", b"{{7*7}}", b"{% raw %}",
    b"=cmd|'/c calc'!A0", b"@SUM(1)", b"+1", b"](javascript:alert(1))", b"`", b"|", b"../../../../etc/passwd",
    b"/etc/passwd", b"con.txt", b"%s%n", b"$(id)", b"${HOME}", b"~/x", b"file:///etc/passwd", b"http://[",
)  # fmt: skip


def mutant(rng: random.Random, corpus: Sequence[bytes], words: Sequence[bytes] = ()) -> bytes:
    """Return an input: one of `corpus` after a few random changes; now and then noise, or nothing."""
    if rng.random() < 0.02:
        return rng.randbytes(rng.randrange(200))
    data = bytearray(rng.choice(corpus))
    dictionary = (*WORDS, *words)
    for _ in range(min(8, 1 + int(rng.expovariate(1.2)))):
        _change(rng, data, corpus, dictionary)
    return bytes(data)


def _change(rng: random.Random, data: bytearray, corpus: Sequence[bytes], words: Sequence[bytes]) -> None:
    at = rng.randrange(len(data) + 1)
    size = min(len(data) - at, 1 << rng.randrange(9))
    kind = rng.randrange(9)
    if kind == 0:
        data[at : at + size] = b""
    elif kind == 1:
        data[at:at] = data[at : at + size] * rng.choice((1, 1, 2, 50))
    elif kind == 2 and at < len(data):
        data[at] ^= 1 << rng.randrange(8)
    elif kind == 3 and at < len(data):
        data[at] = rng.randrange(256)
    elif kind == 4:
        other = rng.choice(corpus)
        start = rng.randrange(len(other) + 1)
        data[at : at + size] = other[start : start + (1 << rng.randrange(9))]
    elif kind == 5:
        del data[at:]
    elif kind == 6:
        _token(rng, data, at, rng.choice(words))
    else:
        data[at:at] = rng.choice(words)


def _token(rng: random.Random, data: bytearray, at: int, word: bytes) -> None:
    """Replace the run of word characters at a place: most often that is one value of a text format."""
    start = end = at
    while start and chr(data[start - 1]).isalnum():
        start -= 1
    while end < len(data) and chr(data[end]).isalnum():
        end += 1
    data[start:end] = word

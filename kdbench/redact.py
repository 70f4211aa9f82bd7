"""Passwords and tokens out of what is printed or kept. Imports nothing of kdbench: errors use it."""

from __future__ import annotations

import contextlib
import functools
import io
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

#: Shortest value that is taken for a secret, in characters: shorter ones stand in ordinary words.
SHORTEST = 6
_STARS = "***"
_NAME = re.compile(
    r"(^|_)(TOKEN|JWT|SECRET|CREDENTIALS?|CONNECTION_STRING|APIKEY|(API|ACCESS|PRIVATE|SECRET|ACCOUNT)_KEY)(_|$)"
    r"|PASSW(OR)?D(_|$)|_(PWD|KEY|AUTH)$"  # PGPASSWORD and REDISCLI_AUTH, too
)
_NO_SECRET = re.compile(r"_(PATH|FILE|DIR|URL|URI|ID|NAME|TYPE|TTL)$")
_IN_URI = re.compile(r"://(?:[^\s/:@'\"]*:([^\s@'\"]+)|([^\s/:@'\"]{20,}))@")
_IN_QUERY = re.compile(r"(?i)[?&]\w*(?:password|passwd|token|secret|pwd)\w*=([^&\s'\"]+)")
_CHUNK = 1 << 20
_learnt: set[str] = set()


def learn(text: str) -> None:
    """Take note of the secrets in a URI that did not come by the environment."""
    _learnt.update(_in_text(text))


def secrets_of(environment: Mapping[str, str]) -> tuple[str, ...]:
    """Return the secret values of an environment, the longest first.

    They are what variables named as one hold (``MLFLOW_TRACKING_TOKEN``, ``HF_TOKEN``, ``AWS_SECRET_ACCESS_KEY``),
    and the passwords in any URI; with them their URL-quoted and unquoted forms.
    """
    found: set[str] = set(_learnt)
    for name, value in environment.items():
        upper = name.upper()
        if _NAME.search(upper) and not _NO_SECRET.search(upper):
            found.update(_forms(value.strip()))
        if "://" in value:
            found.update(_in_text(value))
    return tuple(sorted((v for v in found if len(v) >= SHORTEST), key=lambda v: (-len(v), v)))


def _in_text(text: str) -> Iterable[str]:
    values = [part for match in _IN_URI.findall(text) for part in match if part] + _IN_QUERY.findall(text)
    return [form for value in values for form in _forms(value)]


def _forms(value: str) -> tuple[str, ...]:
    return value, unquote(value), quote(value, safe=""), repr(value)[1:-1]


def redact(text: str) -> str:
    """Return `text` with this process's secrets and the user, password and tokens of URIs replaced by ``***``."""
    text = hide(text)
    text = re.sub(r"(://)[^\s'\"]*@", rf"\1{_STARS}@", text)
    return re.sub(r"(?i)\b(\w*(?:password|passwd|token|secret|pwd)\w*)=[^&\s'\"]+", rf"\1={_STARS}", text)


def hide(text: str) -> str:
    """Return `text` with this process's secrets replaced by ``***``, and nothing else changed."""
    pattern = _pattern(secrets_of(os.environ))
    return text if pattern is None else pattern.sub(_STARS, text)


def hidden(value: Any) -> Any:
    """Return JSON data with secrets hidden in every text of it; keys stay."""
    if isinstance(value, str):
        return hide(value)
    if isinstance(value, dict):
        return {key: hidden(item) for key, item in value.items()}
    if isinstance(value, list):
        return [hidden(item) for item in value]
    return value


@functools.lru_cache(maxsize=8)
def _pattern(values: tuple[str, ...]) -> re.Pattern[str] | None:
    return re.compile("|".join(map(re.escape, values))) if values else None


class HidingStream(io.TextIOWrapper):
    """Text output in which each text that is written has its secrets hidden."""

    def write(self, text: str, /) -> int:
        """Write a text; the length of what was given is returned."""
        super().write(hide(text))
        return len(text)


def hiding(fd: int) -> HidingStream:
    """Return a line-buffered text stream over an open file descriptor, which it does not close."""
    raw = open(fd, "wb", buffering=0, closefd=False)  # noqa: SIM115 - the stream holds it
    return HidingStream(
        raw, encoding="utf-8", errors="backslashreplace", line_buffering=True, write_through=True
    )


def scrub(path: Path) -> int:
    """Overwrite the secrets in a file by stars, in place and of equal length; return how many there were.

    For what got by the stream: output of subprocesses and of C code, and texts that were written in pieces. A file
    that is not there, is no plain one or gives errors is left alone; a process that appends to it meanwhile is not
    disturbed.
    """
    values = [value.encode("utf-8", "surrogateescape") for value in secrets_of(os.environ)]
    count = 0
    with contextlib.suppress(OSError):
        if not values or path.is_symlink() or not path.is_file():
            return 0
        pattern = re.compile(b"|".join(map(re.escape, values)))
        overlap, start = max(map(len, values)) - 1, 0
        with open(path, "r+b") as file:
            while True:
                file.seek(start)
                chunk = file.read(_CHUNK)
                for match in pattern.finditer(chunk):
                    file.seek(start + match.start())
                    file.write(b"*" * len(match[0]))
                    count += 1
                if len(chunk) < _CHUNK:
                    break
                start += len(chunk) - overlap
    return count

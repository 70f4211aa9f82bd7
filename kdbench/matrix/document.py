"""YAML text as plain data plus the line of every key and value. No pydantic, no torch."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from kdbench.errors import MatrixError, visible

#: Keys and list positions from the root to a value, e.g. ``("methods", 1, "params", "beta")``.
KeyPath = tuple[str | int, ...]

#: Largest file that is read, in bytes.
MAX_BYTES = 1 << 20
#: Largest number of values after aliases are expanded.
MAX_NODES = 100_000
#: Deepest nesting of lists and mappings.
MAX_DEPTH = 64
#: Longest number, in characters. Python takes minutes for those of a megabyte and refuses to write them out.
MAX_NUMBER = 100

_TAG = "tag:yaml.org,2002:"
_SCALARS = frozenset(_TAG + kind for kind in ("str", "int", "float", "bool", "null"))
_OCTAL = re.compile(r"[-+]?0[0-7_]+")


class _Loader(yaml.SafeLoader):
    """SafeLoader with two repairs: ``5e-4`` is a number, and dates stay text; it stops at MAX_NODES."""

    count = 0

    def resolve(self, kind: type[yaml.Node], value: Any, implicit: Any) -> Any:
        # What is tried on every plain text takes time by the square of its length; no number is that long.
        if kind is yaml.ScalarNode and implicit[0] and len(value) > MAX_NUMBER:
            return _TAG + "str"
        return super().resolve(kind, value, implicit)

    def compose_node(self, parent: Any, index: Any) -> Any:
        self.count += 1
        if self.count > MAX_NODES:
            raise yaml.MarkedYAMLError(
                problem=f"more than {MAX_NODES:,} values", problem_mark=self.get_mark()
            )
        return super().compose_node(parent, index)


_Loader.yaml_implicit_resolvers = {
    first: [pair for pair in pairs if pair[0] != _TAG + "timestamp"]
    for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    _TAG + "float",
    re.compile(r"[-+]?(?:[0-9][0-9_]*\.?[0-9_]*|\.[0-9][0-9_]*)[eE][-+]?[0-9]+\Z"),
    list("-+.0123456789"),
)


def format_path(path: Sequence[str | int]) -> str:
    """Return ``methods[1].params.beta`` for ``("methods", 1, "params", "beta")``."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


@dataclass(frozen=True)
class Mark:
    """Where a value stands: 1-based line and, for an unquoted scalar, its text as written."""

    line: int
    plain: str | None = None


@dataclass
class Document:
    """A parsed file.

    Attributes:
        display: name of the file in messages.
        data: mappings with text keys, lists, text, int, float (finite), bool and None.
        marks: key path -> where it stands; the root is ``()``.
    """

    display: str
    data: Any
    marks: dict[KeyPath, Mark] = field(default_factory=dict)

    def mark(self, path: Sequence[str | int]) -> Mark:
        """Return the mark of `path`, or of its nearest ancestor that is in the file."""
        path = tuple(path)
        while path and path not in self.marks:
            path = path[:-1]
        return self.marks.get(path, Mark(1))

    def where(self, path: Sequence[str | int]) -> str:
        """Return ``file.yaml:12`` for `path` or its nearest ancestor."""
        return f"{self.display}:{self.mark(path).line}"


class _Builder:
    def __init__(self, display: str, loader: _Loader) -> None:
        self.display = display
        self.loader = loader
        self.marks: dict[KeyPath, Mark] = {}
        self.count = 0
        self.open: list[int] = []

    def fail(self, line: int, path: KeyPath, problem: str) -> MatrixError:
        at = f"{format_path(path)}: " if path else ""
        return MatrixError(visible(f"{self.display}:{line}: {at}{problem}"))

    def build(self, node: yaml.Node, path: KeyPath, line: int | None = None) -> Any:
        line = node.start_mark.line + 1 if line is None else line
        self.count += 1
        if self.count > MAX_NODES:
            raise self.fail(line, path, f"more than {MAX_NODES:,} values after aliases are expanded")
        if id(node) in self.open:
            raise self.fail(line, path, "an alias stands inside the value that it refers to")
        if len(self.open) >= MAX_DEPTH:
            raise self.fail(line, path, f"nested deeper than {MAX_DEPTH} levels")
        if isinstance(node, yaml.ScalarNode):
            self.marks[path] = Mark(line, node.value if node.style is None else None)
            return self.scalar(node, path)
        self.marks[path] = Mark(line)
        self.open.append(id(node))
        try:
            if isinstance(node, yaml.SequenceNode) and node.tag == _TAG + "seq":
                return [self.build(item, (*path, i)) for i, item in enumerate(node.value)]
            if isinstance(node, yaml.MappingNode) and node.tag == _TAG + "map":
                return self.mapping(node, path)
        finally:
            self.open.pop()
        raise self.fail(line, path, f"the tag {node.tag} is not allowed; expected plain YAML values")

    def mapping(self, node: yaml.MappingNode, path: KeyPath) -> dict[str, Any]:
        own: dict[str, yaml.Node] = {}
        lines: dict[str, int] = {}
        merged: list[yaml.Node] = []
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            if key_node.tag == _TAG + "merge":
                merged += value_node.value if isinstance(value_node, yaml.SequenceNode) else [value_node]
                continue
            if key_node.tag != _TAG + "str":
                hint = f"; quote it: '{key_node.value}'" if isinstance(key_node, yaml.ScalarNode) else ""
                raise self.fail(line, path, f"a key must be text{hint}")
            key = str(key_node.value)
            if key in own:
                raise self.fail(
                    line, (*path, key), f"key '{key}' is given twice, on lines {lines[key]} and {line}"
                )
            own[key], lines[key] = value_node, line
        out: dict[str, Any] = {}
        here = self.marks[path]
        # YAML merge key: earlier mappings win over later ones, the mapping's own keys over all.
        for source in reversed(merged):
            if not isinstance(source, yaml.MappingNode):
                raise self.fail(
                    source.start_mark.line + 1, path, "'<<' takes a mapping or a list of mappings"
                )
            out.update(self.build(source, path))
        replaced: set[KeyPath] = set()
        for key in own:
            if key in out:
                replaced.add((*path, key))
        if replaced:
            # marks of what a merge brought; one pass for all keys, for there may be thousands
            end = len(path) + 1
            self.marks = {p: mark for p, mark in self.marks.items() if p[:end] not in replaced}
        for key, value_node in own.items():
            out[key] = self.build(value_node, (*path, key), lines[key])
        self.marks[path] = here
        return out

    def scalar(self, node: yaml.ScalarNode, path: KeyPath) -> Any:
        line, text = node.start_mark.line + 1, node.value
        if node.tag not in _SCALARS:
            raise self.fail(line, path, f"the tag {node.tag} is not allowed; expected plain YAML values")
        number = node.tag[len(_TAG) :] in ("int", "float")
        if number and len(text) > MAX_NUMBER:
            raise self.fail(
                line, path, f"{text[:40]}... has more than {MAX_NUMBER} characters, too many for a number"
            )
        try:
            value = self.loader.construct_object(node)
        except (ValueError, LookupError, yaml.YAMLError):  # PyYAML trips over `!!int ""` and `!!bool x`
            raise self.fail(line, path, f"{text[:40]!r} is not a valid {node.tag[len(_TAG) :]}") from None
        if isinstance(value, float) and not math.isfinite(value):
            raise self.fail(line, path, f"{text} is not a finite number")
        if isinstance(value, int | float) and not isinstance(value, bool):
            if ":" in text:
                raise self.fail(line, path, f"YAML reads {text} as the base-60 number {value}; quote it")
            if _OCTAL.fullmatch(text):
                hint = f"YAML reads {text} as the octal number {value}"
                raise self.fail(line, path, f"{hint}; write it without leading zeros, or quote it")
        return value


def parse(text: str, display: str) -> Document:
    """Parse one YAML document. Raises MatrixError with file and line."""
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
    except yaml.MarkedYAMLError as e:
        mark = e.problem_mark or e.context_mark
        problem = " ".join(str(e.problem or e.context).split())
        raise MatrixError(
            visible(f"{display}:{mark.line + 1 if mark else 1}: not valid YAML: {problem}")
        ) from None
    except yaml.reader.ReaderError as e:
        line = text.count("\n", 0, e.position) + 1
        raise MatrixError(f"{display}:{line}: not valid YAML: {e.reason}") from None
    except RecursionError:
        raise MatrixError(f"{display}:1: nested deeper than {MAX_DEPTH} levels") from None
    if node is None:
        return Document(display, None, {(): Mark(1)})
    builder = _Builder(display, loader)
    data = builder.build(node, ())
    return Document(display, data, builder.marks)


def read(path: Path, display: str) -> tuple[Document, bytes]:
    """Read and parse a file; return it with its bytes. Raises MatrixError."""
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except OSError as e:
        raise MatrixError(f"{display}: cannot be read: {e.strerror or e}") from None
    if len(raw) > MAX_BYTES:
        raise MatrixError(f"{display}: larger than {MAX_BYTES // 1024} KiB; is it a matrix or recipe file?")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as e:
        line = raw.count(b"\n", 0, e.start) + 1
        raise MatrixError(f"{display}:{line}: not UTF-8 text") from None
    return parse(text, display), raw

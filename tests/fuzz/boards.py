"""Boards of records that are valid and hostile: what comes out is looked at, not only that it comes out."""

from __future__ import annotations

import copy
import csv
import html.parser
import io
import json
import random
import re
from pathlib import Path
from typing import Any

from factories import make_record, make_speed_record, signed

from kdbench.leaderboard.csv_file import render_csv
from kdbench.leaderboard.curves import Curve
from kdbench.leaderboard.folder import build_folder, load_folder
from kdbench.leaderboard.site import render_site
from kdbench.leaderboard.site.load import run_board
from kdbench.matrix.identity import cell_id

from .engine import Target

#: What must not come out as more than text. The marker tells where it came to.
_TEXTS = (
    "<script>kdx()</script>", "</script><script>kdx()</script>", "<img src=x onerror=kdx()>", '" onload="kdx()',
    "' onload='kdx()", "javascript:kdx()", "](javascript:kdx())", "![x](http://kdx)", "=kdx()", "+kdx",
    "-kdx", "@kdx",
    "\t=kdx", "\r\n=kdx", "kdx\u202e", "kdx\x1b[2J", "kdx\x00", "\ufeff=kdx", "＝kdx", "{{kdx}}",
    "{% kdx %}", "a|b\nkdx",
    "../../kdx", "/etc/kdx", "C:\\kdx", "kdx\ud7ff", "😀" * 40, "e\u0301" * 60, "&lt;kdx", "<!--", "]]>",
    "#", "", " ",
    "www.kdx.org", "http://kdx", "@everyone", "`kdx`", "~~~", "x" * 200, "constructor", "__proto__", "\\", "%0a",
)  # fmt: skip
_NUMBERS: tuple[Any, ...] = (
    0,
    -1,
    1,
    10**15,
    10**18,
    10**400,
    -(10**400),
    1e308,
    -1e308,
    5e-324,
    0.1,
    2**63,
    1e30,
)
_DEEP: Any = None
for _ in range(150):
    _DEEP = [_DEEP]


def _places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    if isinstance(value, dict):
        return [p for k, v in value.items() for p in _places(v, (*path, k))]
    if isinstance(value, list):
        return [p for k, v in enumerate(value) for p in _places(v, (*path, k))]
    return [path]


def _put(record: dict[str, Any], path: tuple[Any, ...], value: Any) -> None:
    for key in path[:-1]:
        record = record[key]
    record[path[-1]] = value


def hostile(rng: random.Random) -> list[dict[str, Any]]:
    """Return records with the same few hostile values in the same places, identities and digests made to fit."""
    method = rng.choice((*_TEXTS[:12], "kd", "kd"))
    base = [make_record(method="vanilla", teacher=None, seed=0), make_record(method=method, seed=0)]
    base += [
        make_record(method=method, seed=1, status=rng.choice(("done", "failed")), message=rng.choice(_TEXTS))
    ]
    if rng.random() < 0.2:
        base.append(make_speed_record())
    changes = []
    for _ in range(rng.randrange(6)):
        path = rng.choice(_places(base[1]))
        pool = (_TEXTS, _NUMBERS, (None, True, [], {}, _DEEP))
        changes.append((path, rng.choice(pool[rng.choice((0, 0, 1, 2) if path[0] != "labels" else (0,))])))
    out = []
    for record in base:
        record = copy.deepcopy(record)
        for path, value in changes:
            try:
                _put(record, path, value)
            except (KeyError, IndexError, TypeError):
                continue
        labels, identity = record.get("labels"), record.get("identity")
        if isinstance(labels, dict) and isinstance(identity, dict) and rng.random() < 0.95:
            # what tables show must be what the identity says, or the record is refused for that alone
            part = identity.get("method")
            name = part.get("name") if isinstance(part, dict) else None
            if isinstance(name, str):
                labels["method"] = name
            labels["seed"], record["protocol"] = identity.get("seed"), identity.get("protocol")
        try:
            record["cell_id"] = cell_id(identity)
            out.append(signed(record) if rng.random() < 0.5 else record)
        except (ValueError, TypeError, KeyError, AttributeError):
            out.append(record)
    return out


class _Page(html.parser.HTMLParser):
    """Looks for what a stranger's text must not become."""

    def __init__(self, name: str, text: str) -> None:
        super().__init__()
        self.name, self.script = name, False
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.script = tag == "script" and dict(attrs).get("type") != "application/json"
        for key, value in attrs:
            address = key in ("href", "src", "action", "formaction", "xlink:href")
            # of a page's own addresses, none has a scheme or another machine
            foreign = address and re.match(r"\s*([a-z][a-z0-9+.-]*:|//)", value or "", re.IGNORECASE)
            if key.startswith("on") or (foreign and "kdx" in (value or "")):
                raise AssertionError(f"{self.name}: <{tag} {key}={value!r:.100}>")

    def handle_endtag(self, tag: str) -> None:
        self.script = False

    def handle_data(self, data: str) -> None:
        if self.script and "kdx" in data:
            raise AssertionError(f"{self.name}: in a script: {data!r:.200}")

    def handle_comment(self, data: str) -> None:
        if "kdx" in data:
            raise AssertionError(f"{self.name}: in a comment: {data!r:.100}")


def look(name: str, content: bytes) -> None:
    """Raise AssertionError where a stranger's text became markup, a formula or a control character."""
    if name.endswith("plotly.min.js"):
        return
    text = content.decode("utf-8")
    if bad := re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ufeff]", text):
        raise AssertionError(f"{name}: control character {bad[0]!r}")
    if name.endswith((".html", ".svg")):
        _Page(name, text)
    if name.endswith(".md") and re.search(r"<(script|img)|(?<!\\)\]\((javascript|http)[^)]*kdx", text):
        raise AssertionError(f"{name}: markup of a record")
    if name.endswith(".csv"):
        for row in csv.reader(io.StringIO(text)):
            for cell in row:
                if cell.startswith(("=", "+", "@", "\t", "\r", "＝")) or (
                    cell.startswith("-") and not re.fullmatch(r"-[\d.]+(e[+-]?\d+)?", cell)
                ):
                    raise AssertionError(f"{name}: a formula: {cell!r:.80}")


def _board(data: bytes, where: Path) -> None:
    rng = random.Random(data)
    folder = where / "boards" / "b"
    (folder / "records").mkdir(parents=True)
    for record in hostile(rng):
        name = str(record.get("cell_id", ""))
        if re.fullmatch(r"[0-9a-f]{64}", name):
            (folder / "records" / f"{name}.json").write_text(json.dumps(record))
    info = {
        "title": rng.choice(_TEXTS) or "T",
        "description": rng.choice(_TEXTS),
        "notes": [rng.choice(_TEXTS)],
    }
    (folder / "board.yaml").write_text(json.dumps(info))
    build_folder(folder)
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.suffix in (".md", ".csv", ".svg"):
            look(path.name, path.read_bytes())
    loaded = load_folder(folder)
    for name, content in render_site([_with_curves(loaded)]):
        if ".." in Path(name).parts or Path(name).is_absolute():
            raise AssertionError(f"a page outside the site: {name!r}")
        look(name, content)


def _with_curves(loaded: Any) -> Any:
    columns = {"train_loss": (1.0, 0.5), "val_top1": (None, 60.0), "test_top1": (50.0, 61.0)}
    found = [r for row in loaded.board.rows for r in row.records]
    curves = {r.cell_id: Curve((1, 2), columns) for r in found}
    return run_board(loaded.folder, loaded.board, curves, render_csv(loaded.board).encode())


TARGETS = (Target("board", lambda rng: rng.randbytes(8), _board, share=4),)

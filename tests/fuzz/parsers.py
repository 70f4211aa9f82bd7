"""Targets that read text: matrix files, ``--set``, records, curves, ``board.yaml``, what a run folder holds."""

from __future__ import annotations

import functools
import json
import random
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from factories import make_record, make_speed_record, signed

from kdbench.cli.leaderboard import folder_name
from kdbench.errors import KdbenchError, MatrixError, RecordError
from kdbench.launch import looking
from kdbench.leaderboard import curves, folder
from kdbench.matrix import expand, load_matrix
from kdbench.matrix.studies import read_studies
from kdbench.results import confusion, holder, progress, store
from kdbench.results.system import read_samples

from .engine import Target, bad_message
from .mutate import mutant

_ROOT = Path(__file__).resolve().parents[2]
_TRIED = "matrix.yaml"


def _of(corpus: Callable[[], list[bytes]], words: Sequence[bytes] = ()) -> Callable[[random.Random], bytes]:
    return lambda rng: mutant(rng, corpus(), words)


@functools.cache
def matrices() -> list[bytes]:
    """Short matrix files first: whole axes and all sections in a few lines each."""
    small = [
        b"name: a\ndatasets: [digits]\npairs: [{teacher: t, student: s}]\nmethods: [kd]\n"
        b"seeds: 2\nrecipe: quick\n",
        b"name: b\ndatasets: [{name: d, limit_train: 5, args: {x: 1}}]\nteachers: [t, null]\nstudents: [s]\n"
        b"methods:\n  - vanilla\n  - {name: kd, params: &p {t: 4.0, a: 1e-3}, label: 'x'}\n"
        b"  - {name: kd, params: {<<: *p, t: 2}}\nseeds: [0, 3]\nrecipe: {base: quick, epochs: 1}\n"
        b"exclude: [{method: vanilla, seed: 0}]\ninclude: [{method: kd, student: z}]\nthroughput: false\n",
        b"name: c\ndatasets: [d]\npairs: [{teacher: {name: t, checkpoint: x.pt, mean: [0.5], std: [0.5]}, "
        b"student: s, assistant: m}]\nmethods: [kd]\nseeds: 1\nteacher_recipe: {epochs: 2}\n"
        b"recipe: {epochs: 1, batch_size: 8, optimizer: {name: sgd, lr: 0.1}, "
        b"schedule: {name: step, milestones: [1], gamma: 0.1}, augment: {kind: none}}\n"
        b"tune: {trials: 3, methods: [kd], pair: {teacher: t, student: u}}\n",
    ]
    return small * 3 + [p.read_bytes() for p in sorted((_ROOT / "kdbench/matrices").glob("*.yaml"))]


_KEYS = (
    b"name", b"datasets", b"pairs", b"teachers", b"students", b"methods", b"seeds", b"recipe", b"base",
    b"include",
    b"exclude", b"tune", b"throughput", b"batch_sizes", b"params", b"args", b"preset", b"label", b"checkpoint",
    b"epochs", b"optimizer", b"lr", b"schedule", b"augment", b"gang", b"slots_per_gpu", b"timeout_s", b"task",
    b"matrix.yaml", b"../matrix.yaml",
)  # fmt: skip


def _matrix(data: bytes, where: Path) -> None:
    (where / _TRIED).write_bytes(data)
    try:
        expand(load_matrix(_TRIED, cwd=where))
    except MatrixError as error:
        _each_line_says_where(error)
        raise


def _each_line_says_where(error: MatrixError) -> None:
    """A problem a line, and a line a problem: no text of the file may start one."""
    for line in str(error).splitlines():
        if (
            not line.startswith((_TRIED, "--set ", "recipes/", "... and "))
            and ".yaml" not in line.partition(":")[0]
        ):
            raise AssertionError(f"a line that does not say where: {line!r:.200}")


_SETS = [
    b"recipe.epochs=3", b"methods.0.params.t=4", b"students=[a, b]", b"pairs.0.teacher.args.x=1", b"seeds=[1,2]",
    b"tune.trials=3", b"recipe=quick", b"datasets.0={name: d, limit_train: 3}",
    b"include.0.method.0.recipe.epochs=1",
]  # fmt: skip


def _set(data: bytes, where: Path) -> None:
    (where / _TRIED).write_bytes(matrices()[1])
    try:
        expand(load_matrix(_TRIED, sets=data.decode("utf-8", "surrogateescape").split("\0"), cwd=where))
    except MatrixError as error:
        _each_line_says_where(error)
        raise


@functools.cache
def records() -> list[bytes]:
    """Records made here, and a few of committed boards."""
    made = [
        make_record(),
        signed(make_record(method="plain", teacher=None)),
        make_record(status="failed"),
        make_speed_record(),
    ]
    texts = [json.dumps(record, indent=indent).encode() for record in made for indent in (None, 2)]
    for board in sorted((_ROOT / "leaderboards").glob("*/records"))[:4]:
        texts.append(min(board.glob("*.json"), key=lambda p: (p.stat().st_size, p.name)).read_bytes())
    return texts


def _record(data: bytes, where: Path) -> None:
    path = where / "result.json"
    path.write_bytes(data)
    try:
        store.read_record_dict(path)
        record = store.read_record(path)
    except KdbenchError:
        if _reads(path):
            raise AssertionError("read_record took what read_record_dict refused") from None
        raise
    store.write_record(where / "again", record)
    if store.read_record(where / "again" / "result.json").cell_id != record.cell_id:
        raise AssertionError("another record after it was written")
    name = where / "b" / "records" / f"{record.cell_id}.json"
    name.parent.mkdir(parents=True)
    name.write_bytes(data)
    folder.build_folder(where / "b")


def _reads(path: Path) -> bool:
    try:
        store.read_record(path)
        store.read_record_dict(path)
    except KdbenchError:
        return False
    return True


_CURVE = b"epoch,train_loss,val_top1,test_top1\n1,2.5,,10\n2,1.5,20,30.5\n3,1e-5,20,30.5\n"
_ROWS = [
    b'{"epoch": 1, "train": {"loss": 2.0}, "eval": {"student": {"val/top1": 3, "test/top1": 4.5}}}\n'
    b'{"epoch": 2, "train": {"loss": 1.0}, "eval": {"student": {"val/top1": 5, "test/top1": 6.5}}}\n',
]


def _curve(data: bytes, where: Path) -> None:
    """As the file of a board, and as the file of a run that becomes one."""
    (where / "curves.jsonl").write_bytes(data)
    found = curves.cell_curve(where, "student")
    if found is not None:
        data = curves.dump(found)
    one = curves.parse(data, where / "x.csv")
    _, record = _valid()
    for name in curves.COLUMNS:
        curves.band([record, record], {record.cell_id: one}, name)


@functools.cache
def _valid():  # type: ignore[no-untyped-def]
    made = make_record()
    return made, store.validate_record(made, "made here")


_INFO = [
    b"title: T\ndescription: what it is for\nnotes: [one, two]\nreferences: [kd, vanilla]\n",
    b"title: |\n  long\n  text\nnotes:\n- a\n- 'b'\n",
]


def _info(data: bytes, where: Path) -> None:
    (where / "board.yaml").write_bytes(data)
    folder.read_info(where)


_RUN = [
    b'{"name": "quickstart", "title": "T", "protocol": 1}',
    b"true,a,b\na,1,2\nb,3,4\n",
    b'{"at": 1.5, "cpu": 3}\n{"at": 2.5, "cpu": 4}\n',
    b'{"studies": {"kd": {"params": {"a": 1}}}}',
]


def _run(data: bytes, where: Path) -> None:
    (where / "matrix.json").write_bytes(data)
    for name in ("system.jsonl", "tuned.json", "confusion.csv"):
        (where / name).write_bytes(data)
    read_samples(where)
    for read in (confusion.read_confusion, read_studies):
        try:
            read(where)
        except KdbenchError as error:
            if bad := bad_message(error, lines=False):
                raise AssertionError(bad) from error
    folder_name(str(store.RunFolder(where).matrix()["name"]), where / "matrix.json")


#: What a cell was asked and how far it is, in one.
_ASKED = [
    b'{"labels": {"variant": "kd", "teacher": "t", "student": "s", "dataset": "d", "seed": 1, "role": "student"},'
    b' "recipe": {"epochs": 4}, "epoch": 2, "host": "here", "pid": 3, "machine": "m", "expiry_s": 60.0}\n',
    b"1" * 64 + b" 0\n" + b"4" * 64 + b" 1\n",
    b"kdbench run-matrix m.yaml --runs 'a b'",
]


def _status(data: bytes, where: Path) -> None:
    """As any file of a cell, for the plan and for ``kdbench status``, which judge and do not refuse."""
    run = store.RunFolder(where)
    (where / "matrix.json").write_text('{"name": "m"}')
    named = re.search(rb'"cell_id": *"([0-9a-f]{64})"', data)
    cells = [run.cell(c * 64) for c in "123"] + [run.cell(named[1].decode() if named else "4" * 64)]
    for cell in cells:
        cell.mkdir(parents=True, exist_ok=True)
    (cells[0] / "cell.json").write_bytes(data)
    (cells[0] / "curves.jsonl").write_bytes(data)
    (cells[0] / ".lease-1").write_text(holder.myself("token", 60.0))
    (cells[1] / ".lease-1").write_bytes(data)
    (cells[2] / "checkpoint.safetensors").write_bytes(data)
    (cells[3] / "result.json").write_bytes(data)
    (where / progress.COMMAND).write_bytes(data)
    (where / ".lease-1").write_bytes(data)
    for cell in cells:
        looking.facts_of(cell)
    watch = progress.RunWatch(run)
    for plan in (None, data):
        if plan is not None:
            (where / progress.PLAN).write_bytes(plan)
        said = watch.look()
        json.dumps(said.as_dict(), allow_nan=False)
        for line in (progress.read_command(run) or "", *(x.label for x in (*said.running, *said.failures))):
            if not line.isprintable():
                raise AssertionError(f"it reaches a terminal: {line!r:.200}")
    if (facts := looking.facts_of(cells[3])).status is None:
        raise RecordError(facts.reason)


TARGETS = (
    Target("matrix", _of(matrices, _KEYS), _matrix, share=24, lines=True),
    Target("set", _of(lambda: _SETS, _KEYS), _set, share=12, lines=True),
    Target("record", _of(records, (b"cell_id", b"identity", b"status", b"done")), _record, share=16),
    Target("curves", _of(lambda: [_CURVE, *_ROWS]), _curve, share=8),
    Target("board-yaml", _of(lambda: _INFO, (b"title", b"notes")), _info, share=6),
    Target(
        "status",
        _of(lambda: [*_ASKED * 4, *records()], (b"cell_id", b"status", b"cost", b"labels", b"epoch")),
        _status,
        share=3,
    ),
    Target("run-folder", _of(lambda: _RUN, (b"name",)), _run, share=4),
)

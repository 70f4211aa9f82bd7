"""Answers that need torch, for a parent that must not import it: hyper-parameters, needs, devices.

Questions go to a process of the fork server; answers about unchanged code are kept in the user's cache, so that
planning a finished matrix starts no process at all.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdbench.api import cache_dir
from kdbench.errors import KdbenchError
from kdbench.launch.life import tie
from kdbench.matrix.identity import canonical_json, cell_id
from kdbench.measure.cores import cores
from kdbench.redact import hiding
from kdbench.registry import Registry, code_digest
from kdbench.results.store import atomic_write_json

if TYPE_CHECKING:
    from kdbench.engine.copies import Copies

Answer = dict[str, Any]

#: Fewest questions that are worth a process of their own.
SMALLEST_SHARE = 16


class Resolver:
    """Asks questions in batches. A question is a mapping with ``ask`` (``method``, ``probe`` or ``device``).

    `waits` is called once, before the first question that takes a process, and so seconds.
    """

    def __init__(
        self, registry: Registry, disable: Sequence[str] = (), waits: Callable[[], None] | None = None
    ) -> None:
        self._registry, self._disable, self._waits = registry, list(disable), waits
        self._versions = {name: _version(name) for name in ("torch", "timm", "kdbench")}

    def ask(self, questions: Sequence[Mapping[str, Any]]) -> list[Answer]:
        """Return one answer per question, in order."""
        keys = [self._key(q) for q in questions]
        answers = {key: _read(key) for key in keys if key is not None}
        todo = [i for i, key in enumerate(keys) if key is None or answers.get(key) is None]
        fresh = dict(zip(todo, self._in_process([questions[i] for i in todo]), strict=True)) if todo else {}
        for i, answer in fresh.items():
            key = keys[i]
            if key is not None and answer.get("error") is None:
                _write(key, answer)
        return [fresh[i] if i in fresh else dict(answers[keys[i]] or {}) for i in range(len(questions))]

    def _key(self, question: Mapping[str, Any]) -> str | None:
        """Return the cache key: the question, the versions and the code that answers it; None: never kept."""
        if question["ask"] == "device":
            return None
        cell = question.get("cell", {})
        if any(t["source"] == "checkpoint" for t in cell.get("teachers", ())):
            return None
        names = [("methods", question.get("name") or cell.get("method"))]
        if cell:
            names += [("architectures", cell["student"]["name"]), ("datasets", cell["dataset"]["name"])]
            names += [("architectures", t["architecture"]["name"]) for t in cell["teachers"]]
            names += [("architectures", cell["assistant"]["name"])] if cell.get("assistant") else []
            names += [("tasks", cell["task"])]
        code = {f"{kind}:{n}": code_digest(self._registry.get(kind, n).entry.target) for kind, n in names}
        facts = {
            "question": question,
            "versions": self._versions,
            "core": code_digest("kdbench.engine"),
            "code": code,
        }
        return cell_id(json.loads(canonical_json(facts)))

    def _in_process(self, questions: Sequence[Mapping[str, Any]]) -> list[Answer]:
        """Ask one process for each core, or fewer where there is little to ask."""
        if self._waits is not None:
            self._waits()
            self._waits = None
        # neighbours in the list share networks, so each process gets a stretch of it
        size = max(SMALLEST_SHARE, -(-len(questions) // cores()))
        asked: list[tuple[Any, Any, Any]] = []
        try:
            for i in range(0, len(questions), size):
                asked.append(self._start(questions[i : i + size]))
            received = [_receive(*one) for one in asked]  # all of them, before a failure of one is told
        finally:
            # also after Ctrl-C: Python waits for its processes in the end, and one may hang in an import
            for *_, life in asked:
                life.close()
        for process, answers in received:
            if answers is None:
                raise KdbenchError(
                    f"the planning process ended with code {process.exitcode}; "
                    "a plug-in may crash at import: try --disable-plugin"
                )
            if isinstance(answers, str):
                raise KdbenchError(answers)
        return [answer for _, answers in received for answer in answers]

    def _start(self, questions: Sequence[Mapping[str, Any]]) -> tuple[Any, Any, Any]:
        from kdbench.launch.server import context

        ctx = context()
        ours, theirs = ctx.Pipe()
        end, life = ctx.Pipe(duplex=False)
        asked = [dict(q) for q in questions]
        process = ctx.Process(target=answer_all, args=(theirs, self._disable, asked, end))
        process.start()
        theirs.close()
        end.close()
        return process, ours, life


def _receive(process: Any, connection: Any, life: Any) -> tuple[Any, Any]:
    """Return the process with its list of answers, its complaint (text), or None when it died."""
    try:
        answers = connection.recv()
    except EOFError:
        answers = None
    process.join()
    life.close()
    return process, answers


def answer_all(
    connection: Any, disable: list[str], questions: list[dict[str, Any]], life: Any = None
) -> None:
    """Entry of the planning process, which ends when the other end of `life` is closed."""
    import signal

    from kdbench.engine.copies import Copies

    # methods are set up here, and may print what they find in the environment
    sys.stdout, sys.stderr = hiding(1), hiding(2)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if life is not None:
        os.setsid()
        tie(life)
    try:
        registry = Registry.load(disable=disable)
        nets = Copies()
        result: Any = [_answer(registry, q, nets) for q in questions]
    except KdbenchError as e:
        result = str(e)
    except Exception as e:
        result = f"planning failed: {type(e).__name__}: {e}"
    connection.send(result)
    connection.close()
    os._exit(0)


def _answer(registry: Registry, question: dict[str, Any], nets: Copies) -> Answer:
    from kdbench.engine.cellspec import CellFile
    from kdbench.engine.precision import automatic
    from kdbench.engine.probe import check_compile, check_device, probe, resolve_method

    if question["ask"] == "device":
        import torch

        gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
        device = question["device"]
        if device == "auto":
            device = "cuda" if gpus else "cpu"
        problems = [check_device(device, p) for p in question["precisions"] or ("fp32",)]
        problems += [check_compile(device, mode) for mode in question.get("compiles", ())]
        error = next((p for p in problems if p), None)
        return {"device": device, "gpus": gpus, "error": error, "auto": None if error else automatic(device)}
    if question["ask"] == "method":
        return asdict(resolve_method(registry, question["name"], question["preset"], question["params"]))
    try:
        return asdict(probe(registry, CellFile.model_validate(question["cell"]), nets))
    except Exception as e:
        reason = f"{type(e).__name__}: {e}".splitlines()[0][:300]
        return {"error": f"method '{question['cell']['method']}' fails in setup: {reason}"}


def _path(key: str) -> Path:
    return Path(cache_dir("resolve")) / f"{key}.json"


def _read(key: str) -> Answer | None:
    try:
        answer = json.loads(_path(key).read_text())
    except (OSError, ValueError):
        return None
    return answer if isinstance(answer, dict) else None


def _write(key: str, answer: Answer) -> None:
    try:
        _path(key).parent.mkdir(parents=True, exist_ok=True)
        atomic_write_json(_path(key), answer)
    except OSError:
        pass  # a cache that cannot be written costs time, not results


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""

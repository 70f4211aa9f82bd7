"""Cell ids and derived seeds: the same on every machine and in every process. No torch, no ``hash()``."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from operator import index
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kdbench.matrix.spec import CellSpec

#: Version of the protocol; raised when results made before no longer compare with those made after.
PROTOCOL = 1

_TEACHER_KINDS = ("cell", "checkpoint", "pretrained")


def canonical_json(obj: Any) -> bytes:
    """Return the one JSON text of `obj`: keys sorted, no spaces, ASCII, floats by ``repr``, tuples as lists.

    1 and 1.0 differ, so float fields must have gone through their model; -0.0 becomes 0.0. Raises ValueError
    for NaN and infinity, TypeError for keys that are not text and for anything that JSON has no word for.
    """
    return json.dumps(
        _plain(obj, ()), sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False
    ).encode("ascii")


def _plain(value: Any, path: tuple[str, ...]) -> Any:
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"{'.'.join(path) or 'value'}: {value} has no place in a cell id")
        return value + 0.0
    if isinstance(value, Mapping):
        if bad := [key for key in value if not isinstance(key, str)]:
            raise TypeError(f"{'.'.join(path) or 'value'}: the key {bad[0]!r} is not text")
        return {key: _plain(item, (*path, key)) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, (*path, str(i))) for i, item in enumerate(value)]
    raise TypeError(f"{'.'.join(path) or 'value'}: {type(value).__name__} has no place in a cell id")


def cell_id(identity: Mapping[str, Any]) -> str:
    """Return the sha256 (64 hexadecimal digits) of the canonical JSON of an identity."""
    return hashlib.sha256(canonical_json(identity)).hexdigest()


def derive_seed(seed: int, *axes: str | int) -> int:
    """Return a seed in [0, 2**63) for one use of `seed`, e.g. ``derive_seed(0, "data")``.

    Different axes give independent seeds; a text and an integer of the same digits are different axes.
    """
    parts = [index(seed), *(axis if isinstance(axis, str) else index(axis) for axis in axes)]
    digest = hashlib.sha256(json.dumps(parts, separators=(",", ":")).encode("ascii")).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def identity(
    spec: CellSpec,
    *,
    params: Mapping[str, Any],
    method_version: str,
    student_version: str,
    dataset_revision: str,
    dataset_version: str,
    task_version: str,
    teachers: Sequence[Mapping[str, Any]],
    storage: str | None = None,
    dataset_args: Mapping[str, Any] | None = None,
    assistant_version: str | None = None,
    teacher_cache: str | None = None,
) -> dict[str, Any]:
    """Return everything that can change the result of a cell, and nothing else.

    Args:
        spec: the cell; its labels, throughput, timeout, evaluators and data set arguments are not part of it,
            but for a cell that measures speed only: then how it measures is.
        params: all hyper-parameters of the method, presets and defaults resolved by its model.
        method_version, student_version, dataset_version, task_version: of the registry entries.
        dataset_revision: changes with the content of the data set.
        teachers: per teacher that the method uses ``{"cell": id}``, ``{"checkpoint": sha256, "architecture":
            name, "args": {...}}`` or ``{"pretrained": name, ...}``.
        storage: ``resident`` or ``stream``, where the spec says ``auto``.
        dataset_args: parameters of the data set that change the images and that its revision does not cover
            (its resolved parameters without those in ``Dataset.location``).
        assistant_version: of the assistant's registry entry; None for a method that uses none: then the pair's
            assistant is no part of the identity.
        teacher_cache: dtype of the table that the cell reads its teacher from; None for a cell that reads none:
            then it is no part of the identity, whatever the recipe allows.

    Raises ValueError when `storage` is left open or a teacher does not name exactly one source.
    """
    storage = storage or spec.dataset.storage
    if storage not in ("resident", "stream"):
        raise ValueError(f"storage must be 'resident' or 'stream' in a cell id, not {storage!r}")
    for teacher in teachers:
        if sum(kind in teacher for kind in _TEACHER_KINDS) != 1:
            raise ValueError(f"a teacher has one of {', '.join(_TEACHER_KINDS)}, not {sorted(teacher)}")
    out: dict[str, Any] = {
        "protocol": PROTOCOL,
        "task": {"name": spec.task, "version": task_version},
        "method": {"name": spec.method.name, "version": method_version, "params": dict(params)},
        "student": {"name": spec.student.name, "version": student_version, "args": dict(spec.student.args)},
        "teachers": [dict(teacher) for teacher in teachers],
        "dataset": {
            "name": spec.dataset.name,
            "version": dataset_version,
            "revision": dataset_revision,
            "args": dict(dataset_args or {}),
            "limit_train": spec.dataset.limit_train,
            "limit_test": spec.dataset.limit_test,
            "storage": storage,
        },
        "recipe": spec.recipe.model_dump(mode="json", exclude={"teacher_cache"}),
        "seed": spec.seed,
    }
    if spec.throughput is not None and spec.throughput.only:
        out["throughput"] = spec.throughput.model_dump(mode="json")
    if assistant_version is not None:
        if spec.assistant is None:
            raise ValueError("the method uses an assistant and the cell has none")
        args = dict(spec.assistant.args)
        out["assistant"] = {"name": spec.assistant.name, "version": assistant_version, "args": args}
    if teacher_cache is not None:
        out["teacher_cache"] = teacher_cache
    # equal values that were found by another search, or written by hand, are another claim and so another cell
    if spec.tuning is not None:
        out["tuning"] = spec.tuning.conditions()
    if spec.role == "trial":
        out["trial"] = True
    return out

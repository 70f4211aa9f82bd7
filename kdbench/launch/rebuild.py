"""From a record back to the ``cell.json`` that it was made from."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from kdbench.engine.build_dataset import make_dataset
from kdbench.engine.cellspec import Arch, CellFile, Data, TeacherSource
from kdbench.errors import KdbenchError
from kdbench.launch.resolve import Resolver
from kdbench.matrix.identity import PROTOCOL, cell_id
from kdbench.matrix.recipe import CROP_KEYS, SCHEDULE_COMMON, SCHEDULE_KEYS, Recipe
from kdbench.registry import Registry
from kdbench.results.schema import Record


@dataclass(frozen=True)
class Here:
    """What a record cannot know of this machine.

    Attributes:
        data: arguments that say where the data set lies.
        checkpoints: files with teachers' weights, found by their digest.
        evaluators: extra measurements to make again.
        threads: on the CPU; None: as in the record.
    """

    data: Mapping[str, Any] = field(default_factory=dict)
    checkpoints: Sequence[Path] = ()
    evaluators: Sequence[str] = ()
    device: str = "cpu"
    threads: int | None = None
    disable: Sequence[str] = ()


def rebuild(record: Record, registry: Registry, here: Here) -> tuple[CellFile, int]:
    """Return the cell of a record, and how many checkpoints of its teacher's route the method reads.

    Raises KdbenchError for what this installation cannot run again: another protocol, version of a part or
    revision of the data, a data set or checkpoint that is not found, a cell that trains nothing.
    """
    identity, where = record.identity, f"cell {record.cell_id[:12]}"
    try:
        return _rebuild(record, registry, here, where)
    except (KeyError, TypeError, AttributeError) as error:
        keys = ", ".join(sorted(map(str, identity)))
        raise KdbenchError(
            f"{where}: its identity ({keys[:200]}) is not that of a cell: {error!r}"
        ) from error


def _rebuild(record: Record, registry: Registry, here: Here, where: str) -> tuple[CellFile, int]:
    identity = record.identity
    if cell_id(identity) != record.cell_id:
        raise KdbenchError(f"{where}: cell_id is not the sha256 of the identity")
    if identity["protocol"] != PROTOCOL:
        raise KdbenchError(f"{where}: is of protocol {identity['protocol']}, this kdbench runs {PROTOCOL}")
    if "throughput" in identity:
        raise KdbenchError(f"{where}: only measures speed; measure again and use `kdbench compare`")
    _check_versions(identity, registry, where)
    method, params = identity["method"]["name"], identity["method"]["params"]
    answer = Resolver(registry, here.disable).ask(
        [{"ask": "method", "name": method, "preset": None, "params": params}]
    )[0]
    if answer.get("error"):
        raise KdbenchError(f"{where}: {answer['error']}")
    assistant = identity.get("assistant")
    cpu = here.device == "cpu"
    threads = here.threads or (record.environment.get("threads") if cpu else None)
    file = CellFile(
        cell_id=record.cell_id,
        protocol=record.protocol,
        identity=identity,
        labels=record.labels,
        task=identity["task"]["name"],
        method=method,
        params=answer["params"],
        student=_arch(identity["student"]),
        assistant=_arch(assistant) if assistant else None,
        teachers=[_teacher(record, k, where, here) for k in range(len(identity["teachers"]))],
        dataset=_data(record, registry, here, where),
        recipe=_recipe(identity["recipe"], identity.get("teacher_cache"), where),
        seed=identity["seed"],
        teacher_cache=identity.get("teacher_cache"),
        route=answer["route"],
        tuning=record.tuning,
        evaluators=list(here.evaluators),
        device=here.device,
        threads=threads if isinstance(threads, int) and threads > 0 else None,
        disable_plugins=list(here.disable),
    )
    return file, answer["route"]


def _check_versions(identity: Mapping[str, Any], registry: Registry, where: str) -> None:
    parts = [("task", "tasks"), ("method", "methods"), ("student", "architectures"), ("dataset", "datasets")]
    parts += [("assistant", "architectures")] if identity.get("assistant") else []
    for part, kind in parts:
        name, version = identity[part]["name"], identity[part]["version"]
        here = registry.get(kind, name).version
        if here != version:
            raise KdbenchError(
                f"{where}: {part} '{name}' is of version {version} there and {here} here, which is another cell"
            )


def _arch(part: Mapping[str, Any]) -> Arch:
    return Arch(name=part["name"], args=part["args"])


def _teacher(record: Record, k: int, where: str, here: Here) -> TeacherSource:
    said = record.identity["teachers"][k]
    if "cell" in said:
        if not re.fullmatch(r"[0-9a-f]{64}", str(said["cell"])):
            raise KdbenchError(f"{where}: its teacher {said['cell']!r:.80} is no cell id")
        # the architecture comes with the teacher's own record, see kdbench.launch.reproduce
        return TeacherSource(architecture=Arch(name=""), source="cell", ref=said["cell"])
    arch = Arch(name=said["architecture"], args=said["args"])
    if "pretrained" in said:
        return TeacherSource(architecture=arch, source="pretrained", ref=said["pretrained"])
    mean, std = said.get("mean"), said.get("std")
    wanted = said["checkpoint"]
    for path in here.checkpoints:
        try:
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise KdbenchError(f"{path}: cannot be read ({error.strerror or error})") from error
        if digest == wanted:
            ref = str(path.resolve())
            return TeacherSource(
                architecture=arch, source="checkpoint", ref=ref, sha256=digest, mean=mean, std=std
            )
    raise KdbenchError(
        f"{where}: its teacher '{arch.name}' is a checkpoint of sha256 {wanted}: give the file with --checkpoint"
    )


def _data(record: Record, registry: Registry, here: Here, where: str) -> Data:
    said = record.identity["dataset"]
    location = registry.get("datasets", said["name"]).load().location
    for key in here.data:
        if key not in location:
            raise KdbenchError(
                f"--data {key}: is no place of the data set '{said['name']}'; it has {_list(location)}"
            )
    if inside := sorted(set(said["args"]) & set(location)):
        raise KdbenchError(f"{where}: its identity names a place on a machine ({inside[0]}), which none does")
    args = {**said["args"], **here.data}
    try:
        revision = make_dataset(registry, said["name"], args).describe().revision
    except KdbenchError as error:
        hint = f"; say where it lies by --data {sorted(location)[0]}=PATH" if location else ""
        raise KdbenchError(f"{where}: {error}{hint}") from error
    if revision != said["revision"]:
        raise KdbenchError(
            f"{where}: data set '{said['name']}' is of revision {said['revision']} there and {revision} here"
        )
    return Data(
        name=said["name"],
        label=record.labels.dataset,
        args=args,
        limit_train=said["limit_train"],
        limit_test=said["limit_test"],
        storage=said["storage"],
        revision=revision,
    )


def _list(names: frozenset[str]) -> str:
    return ", ".join(sorted(names)) or "none"


def _recipe(said: Mapping[str, Any], table: str | None, where: str) -> Recipe:
    """Make a recipe of its dump, which has all keys, while a recipe refuses those that it does not read."""
    plain = {**said, "teacher_cache": table or "off"}
    schedule, augment = dict(said["schedule"]), dict(said["augment"])
    reads = SCHEDULE_KEYS.get(schedule["name"], frozenset()) | SCHEDULE_COMMON
    plain["schedule"] = {k: v for k, v in schedule.items() if k in reads}
    if augment["kind"] != "crop":
        augment = {k: v for k, v in augment.items() if k not in CROP_KEYS}
    plain["augment"] = augment
    try:
        return Recipe.model_validate(plain)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise KdbenchError(f"{where}: its recipe is none of this kdbench: {key}: {first['msg']}") from error

"""Valid records for tests, without training anything."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kdbench.matrix.identity import cell_id
from kdbench.results.content import content_sha256

TEACHER_ARCH = "timm:test_resnet"
STUDENT_ARCH = "timm:test_efficientnet"


def signed(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return a record with the digest of its content, as kdbench writes it."""
    return {**record, "content_sha256": content_sha256(record)}


def teacher_id(teacher: str) -> str:
    return cell_id({"teacher": teacher})


def _merge(base: dict[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    out = dict(base)
    for key, value in over.items():
        if isinstance(value, Mapping) and isinstance(out.get(key), dict):
            out[key] = _merge(out[key], value)
        else:
            out[key] = value
    return out


def make_identity(
    *,
    method: str = "kd",
    params: Mapping[str, Any] | None = None,
    seed: int = 0,
    student: str = STUDENT_ARCH,
    dataset: str = "digits",
    teachers: tuple[Mapping[str, Any], ...] = (),
    recipe: Mapping[str, Any] | None = None,
    protocol: int = 1,
) -> dict[str, Any]:
    return {
        "protocol": protocol,
        "task": {"name": "classification", "version": "1"},
        "method": {"name": method, "params": dict(params or {}), "version": "0.1.0"},
        "student": {"name": student, "args": {}, "version": "0.1.0"},
        "dataset": {
            "name": dataset,
            "revision": "1797-1",
            "version": "0.1.0",
            "args": {},
            "limit_train": None,
            "limit_test": None,
            "storage": "resident",
        },
        "recipe": dict(
            recipe or {"epochs": 3, "optimizer": {"name": "momentum", "lr": 0.05}, "precision": "fp32"}
        ),
        "seed": seed,
        "teachers": [dict(t) for t in teachers],
    }


def make_record(
    *,
    method: str = "kd",
    variant: str | None = None,
    seed: int = 0,
    status: str = "done",
    top1: float = 72.0,
    teacher: str | None = TEACHER_ARCH,
    teacher_top1: float = 80.0,
    student: str = STUDENT_ARCH,
    dataset: str = "digits",
    params: Mapping[str, Any] | None = None,
    recipe: Mapping[str, Any] | None = None,
    role: str = "student",
    protocol: int = 1,
    step_ms: float = 10.0,
    message: str = "loss is not finite",
    **overrides: Any,
) -> dict[str, Any]:
    """Return a record that the schema accepts; mappings in `overrides` are merged into it, key by key."""
    identity = make_identity(
        method=method,
        params=params,
        seed=seed,
        student=student,
        dataset=dataset,
        teachers=({"cell": teacher_id(teacher)},) if teacher else (),
        recipe=recipe,
        protocol=protocol,
    )
    record: dict[str, Any] = {
        "schema_version": 1,
        "cell_id": "",
        "status": status,
        "protocol": protocol,
        "labels": {
            "matrix": "quickstart",
            "task": "classification",
            "dataset": dataset,
            "student": student,
            "teacher": teacher,
            "method": method,
            "variant": variant or method,
            "recipe": "quick",
            "role": role,
            "seed": seed,
            "fidelity": "paper",
            "preset": None,
        },
        "identity": identity,
        "environment": {
            "cpu": "Test CPU",
            "device_name": "cpu",
            "torch": "2.15.0",
            "timm": "1.0.31",
            "kdbench": "0.1.0",
            "precision": "fp32",
        },
        "plugins": {"method": {"distribution": "kdbench", "version": "0.1.0", "git": None, "code": "0" * 16}},
        "started_at": "2026-01-02T03:04:05+00:00",
        "finished_at": "2026-01-02T03:05:05+00:00",
    }
    if status == "done":
        record |= {
            "primary": "student",
            "deployables": {
                "student": {
                    "last": {"top1": top1, "top5": min(100.0, top1 + 15.0), "nll": 0.9, "ece": 4.0},
                    "best_val": {"epoch": 2, "by": top1 + 0.5, "top1": top1 - 0.25},
                    "best_test": {"epoch": 2, "by": top1 + 1.0, "top1": top1 + 1.0},
                    "params": 40_000,
                    "macs": 2_000_000,
                }
            },
            "throughput": {
                "student": {
                    str(size): {
                        "images_per_s": 500.0 * size**0.5,
                        "latency_ms_p50": 2.0 * size**0.5,
                        "latency_ms_p95": 2.5 * size**0.5,
                        "iqr_ratio": 0.05,
                        "rounds": 30,
                        "peak_memory_mb": None,
                    }
                    for size in (1, 64)
                }
            },
            "cost": {
                "train_s": 50.0,
                "eval_s": 4.0,
                "log_s": 0.1,
                "setup_s": 1.0,
                "train_images_per_s": 100.0 * 1000 / step_ms / 10,
                "step_ms": step_ms,
                "teacher_share": 0.2 if teacher else None,
                "extra_params": 0,
                "epochs": 3,
                "steps": 75,
                "device_hours": 0.25,
                "peak_memory_mb": 300.0,
                "attempts": 1,
            },
            "teachers": [
                {
                    "source": "cell",
                    "ref": teacher_id(teacher),
                    "architecture": teacher,
                    "sha256": None,
                    "top1": teacher_top1,
                }
            ]
            if teacher
            else [],
            "floors": {"majority": 10.1},
            "weights_sha256": "a" * 64,
        }
    else:
        record["error"] = {"type": "RuntimeError", "message": message, "traceback": None}
    record = _merge(record, overrides)
    if not record["cell_id"]:
        record["cell_id"] = cell_id(record["identity"])
    return record


def make_curves(epochs: int = 3, top1: float = 72.0) -> list[dict[str, Any]]:
    """Rows of ``curves.jsonl``, one per epoch, counted from 1."""
    return [
        {
            "epoch": e,
            "phase": "main",
            "train": {"loss": 2.0 / e, "lr": 0.05 / e},
            "val": {"top1": top1 - 2.0 * (epochs - e)},
            "test": {"top1": top1 - 1.0 * (epochs - e), "nll": 1.0 / e},
            "images_per_s": 1000.0 + e,
        }
        for e in range(1, epochs + 1)
    ]


def write_run(folder: Path, records: list[dict[str, Any]], *, name: str = "quickstart") -> Path:
    """Write a run folder with records and, for finished cells, curves."""
    for record in records:
        cell = folder / "cells" / record["cell_id"]
        cell.mkdir(parents=True)
        (cell / "result.json").write_text(json.dumps(record))
        if record["status"] == "done":
            rows = make_curves(top1=record["deployables"]["student"]["last"]["top1"])
            (cell / "curves.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    (folder / "matrix.json").write_text(json.dumps({"name": name, "title": "Test matrix", "protocol": 1}))
    return folder


def make_speed_row(**overrides: Any) -> dict[str, Any]:
    """Return one speed of a record's ``speeds``: inference of 64 images, 1,000 a second."""
    row = {
        "model": "small",
        "mode": "infer",
        "precision": "fp32",
        "batch_size": 64,
        "images_per_s": 1000.0,
        "step_ms": 64.0,
        "iqr_ratio": 0.01,
        "latency_ms_p50": 65.0,
        "latency_ms_p95": 70.0,
        "rounds": 5,
        "calls": 1,
        "drift_percent": 0.5,
        "peak_memory_mb": 100.0,
        "params": 40_000,
        "macs": 2_000_000,
        "activations": 10_000,
        "samples_ms": [63.8, 63.9, 64.0, 64.1, 64.2],
    }
    return row | overrides


def make_speed_record(
    student: str = "small", rows: list[dict[str, Any]] | None = None, *, seed: int = 0, **environment: Any
) -> dict[str, Any]:
    """Return the record of a cell that measures speed only."""
    record = make_record(
        method="plain",
        teacher=None,
        student=student,
        seed=seed,
        environment={"device": "cpu", "threads": 1, **environment},
    )
    record["speeds"] = [{**row, "model": student} for row in (rows or [make_speed_row()])]
    record["cost"], record["throughput"] = None, {}
    record["deployables"]["student"].update(last={}, best_val=None, best_test=None)
    record["identity"] = {
        **record["identity"],
        "throughput": {"only": True, "place": sorted(environment.items())},
    }
    record["cell_id"] = cell_id(record["identity"])
    return record

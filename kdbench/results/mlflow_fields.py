"""What of a record goes to MLflow and under which names. Imports no mlflow.

Names (metrics): ``final/*`` after the last epoch, ``best_val/*``, ``best_test/*``, ``val/*``, ``test/*`` and
``train/*`` per epoch, ``perf/*`` speed, ``cost/*`` training cost, ``model/*`` size, ``floor/*`` trivial
baselines; networks other than the primary one are prefixed ``deploy.<name>/``.
"""

from __future__ import annotations

import json
import math
import posixpath
import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

#: MLflow's limits (mlflow.utils.validation, 3.x).
MAX_KEY = 250
MAX_PARAM_VALUE = 6000
MAX_TAG_VALUE = 5000
MAX_DATASET_DIGEST = 36
#: Rows of ``curves.jsonl`` use short names; these are the ones in MLflow.
_CURVE_NAMES = {
    "lr": "train/lr",
    "loss": "train/loss",
    "images_per_s": "perf/epoch_images_per_s",
    "train_images_per_s": "perf/epoch_images_per_s",
    "train/images_per_s": "perf/epoch_images_per_s",
    "perf/images_per_s": "perf/epoch_images_per_s",
    "step_ms": "perf/epoch_step_ms",
    "train_s": "cost/epoch_train_s",
    "eval_s": "cost/epoch_eval_s",
}
_RUN_STATUS = {"done": "FINISHED", "interrupted": "KILLED"}


def key(name: str) -> str:
    """Return `name` as MLflow takes it: letters, digits and ``_-. /``, a normal relative path."""
    name = re.sub(r"[^\w\-. /]", "_", name, flags=re.ASCII).strip("/")[:MAX_KEY].strip("/")
    if not name or posixpath.normpath(name) != name or name.startswith(".."):
        name = re.sub(r"[/.]+", "_", name) or "_"
    return name


def flatten(value: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    """Yield (``prefix.key.key``, leaf) of nested mappings; lists are leaves."""
    if isinstance(value, Mapping):
        for name, item in value.items():
            yield from flatten(item, f"{prefix}.{name}")
    else:
        yield prefix, value


def _text(value: Any) -> str:
    return json.dumps(value) if isinstance(value, (list, tuple, dict)) else str(value)


def params(record: Mapping[str, Any]) -> dict[str, str]:
    """Return the parameters of a run: what was compared, the recipe and the method's hyper-parameters.

    Charts of MLflow leave out runs that lack one of their parameters, so what every cell has a place for is
    there for every cell, as ``None`` where the place is empty. What only one method knows, ``method.*``, is
    absent elsewhere: a filler among numbers would make MLflow drop either the numbers or the filler's runs.
    """
    labels, identity = record["labels"], record["identity"]
    out: dict[str, Any] = {
        name: labels.get(name)
        for name in (
            "task", "dataset", "teacher", "assistant", "student", "method", "variant", "preset", "recipe", "seed"
        )
    }  # fmt: skip
    method = identity.get("method")
    if isinstance(method, Mapping):
        out.update(flatten(method.get("params", {}), "method"))
    for name in ("recipe", "student", "dataset"):
        part = identity.get(name)
        if isinstance(part, Mapping):
            skipped = () if name == "recipe" else ("name", "version")
            out.update(flatten({k: v for k, v in part.items() if k not in skipped}, name))
    return {key(k): _text(v)[:MAX_PARAM_VALUE] for k, v in out.items()}


def tags(record: Mapping[str, Any]) -> dict[str, str]:
    """Return the tags of a cell's run, without those that identify it."""
    labels = record["labels"]
    out: dict[str, Any] = {
        "kdbench.protocol": record["protocol"],
        "kdbench.status": record["status"],
        "kdbench.role": labels.get("role", "student"),
        "kdbench.matrix": labels.get("matrix", ""),
        "kdbench.fidelity": labels.get("fidelity", ""),
        "kdbench.track": labels.get("track") or "default",
    }
    for kind, plugin in record.get("plugins", {}).items():
        out[f"kdbench.plugin.{kind}"] = f"{plugin['distribution']} {plugin['version']}"
    for name, value in record.get("environment", {}).items():
        out[f"env.{name}"] = value
    if record.get("weights_sha256"):
        out["kdbench.weights_sha256"] = record["weights_sha256"]
    error = record.get("error")
    if error:
        out["kdbench.error"] = f"{error['type']}: {error['message']}"
    return {key(k): _text(v)[:MAX_TAG_VALUE] for k, v in out.items() if v is not None}


def primary_deployable(record: Mapping[str, Any]) -> str | None:
    """Return the name of the network that is ranked, or None where nothing was evaluated."""
    deployables = record.get("deployables") or {}
    name = record.get("primary")
    return name if name in deployables else next(iter(deployables), None)


#: What is told of each speed of a cell that measures nothing else.
_SPEEDS = (
    "images_per_s", "step_ms", "latency_ms_p50", "latency_ms_p95", "peak_memory_mb", "iqr_ratio", "batch_size"
)  # fmt: skip


def final_metrics(record: Mapping[str, Any]) -> dict[str, float]:
    """Return every number of the record that is not per epoch."""
    out: dict[str, float | None] = {}
    primary = primary_deployable(record)
    for name, net in (record.get("deployables") or {}).items():
        prefix = "" if name == primary else f"deploy.{name}/"
        for metric, value in net["last"].items():
            out[f"{prefix}final/{metric}"] = value
        for best in ("best_val", "best_test"):
            found = net.get(best)
            if found:
                out[f"{prefix}{best}/top1"] = found["top1"]
                out[f"{prefix}{best}/epoch"] = found["epoch"]
        out[f"{prefix}model/params"] = net.get("params")
        out[f"{prefix}model/macs"] = net.get("macs")
    for name, sizes in (record.get("throughput") or {}).items():
        prefix = "" if name == primary else f"deploy.{name}/"
        for size, speed in sizes.items():
            out[f"{prefix}perf/infer_images_per_s_b{size}"] = speed["images_per_s"]
            for metric in ("latency_ms_p50", "latency_ms_p95", "peak_memory_mb"):
                out[f"{prefix}perf/{metric}_b{size}"] = speed.get(metric)
    for row in record.get("speeds") or ():
        size = "auto" if row["found_by"] else row["batch_size"]
        prefix = f"perf/{row['precision']}/{row['mode']}"
        for metric in _SPEEDS if row["status"] == "done" else ():
            out[f"{prefix}_{metric}_b{size}"] = row[metric]
    for name, value in (record.get("cost") or {}).items():
        out[f"perf/{name}" if name == "train_images_per_s" else f"cost/{name}"] = value
    for name, value in (record.get("floors") or {}).items():
        out[f"floor/{name}"] = value
    for name, value in (record.get("extra") or {}).items():
        out[f"final/{name}"] = value
    return {key(k): float(v) for k, v in out.items() if v is not None and _is_number(v)}


def curve_metrics(
    rows: Sequence[Mapping[str, Any]], primary: str | None = None
) -> list[tuple[str, float, int]]:
    """Return (metric, value, step = epoch) of every number in the rows of ``curves.jsonl``.

    ``eval`` holds metrics per deployable, `primary` (default: the first) goes without prefix; ``lr`` holds a
    rate per optimizer, the first is ``train/lr``. Other groups may nest (``{"val": {"top1": 71.0}}``) or not
    (``{"val/top1": 71.0}``, ``{"val_top1": 71.0}``). Where a resumed cell wrote an epoch twice, the later row
    holds.
    """
    out: dict[tuple[str, int], float] = {}
    for number, row in enumerate(rows, 1):
        epoch = row.get("epoch", number)
        if not isinstance(epoch, int) or isinstance(epoch, bool):
            epoch = number
        for name, value in _curve_values(row, primary):
            if _is_number(value):
                out[name, epoch] = float(value)
    return [(name, value, epoch) for (name, epoch), value in sorted(out.items())]


def _curve_values(row: Mapping[str, Any], primary: str | None) -> Iterator[tuple[str, Any]]:
    for name, value in row.items():
        if name == "eval" and isinstance(value, Mapping):
            first = primary if primary in value else next(iter(value), None)
            for net, metrics in value.items():
                prefix = "" if net == first else f"deploy.{net}/"
                for metric, leaf in metrics.items() if isinstance(metrics, Mapping) else ():
                    yield key(f"{prefix}{metric}"), leaf
        elif name == "lr" and isinstance(value, Mapping):
            for number, (optimizer, leaf) in enumerate(value.items()):
                yield key("train/lr" if number == 0 else f"train/lr_{optimizer}"), leaf
        elif name != "epoch":
            for path, leaf in flatten(value, name):
                yield _curve_name(path.replace(".", "/")), leaf


def _curve_name(name: str) -> str:
    if name in _CURVE_NAMES:
        return _CURVE_NAMES[name]
    if "/" not in name:
        group, _, rest = name.partition("_")
        name = f"{group}/{rest}" if rest and group in ("val", "test", "train") else f"train/{name}"
    return key(_CURVE_NAMES.get(name, name))


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def system_metrics(samples: Sequence[Mapping[str, float]]) -> list[tuple[str, float, int, int]]:
    """Return (metric, value, step, milliseconds since 1970) of samples of the machine, a step for each."""
    out = []
    for step, row in enumerate(samples):
        names = sorted(row.keys() - {"at"})
        out += [(key(f"system/{name}"), float(row[name]), step, int(row["at"])) for name in names]
    return out


def run_name(record: Mapping[str, Any]) -> str:
    """Return the name of a run in lists."""
    labels = record["labels"]
    teacher = f"{labels['teacher']} -> " if labels.get("teacher") else ""
    seed = f"seed {labels['seed']}" if labels.get("seed") is not None else "all seeds"
    return f"{labels['variant']} | {teacher}{labels['student']} | {labels['dataset']} | {seed}"


def run_status(status: str) -> str:
    """Return MLflow's run status for a cell's status."""
    return _RUN_STATUS.get(status, "FAILED")


def dataset_input(record: Mapping[str, Any]) -> tuple[str, str, str]:
    """Return (name, digest, source as JSON) of the data set; the digest is its revision where it is short."""
    labels, part = record["labels"], record["identity"].get("dataset")
    part = dict(part) if isinstance(part, Mapping) else {}
    text = json.dumps(part, sort_keys=True)
    revision = part.get("revision")
    if not isinstance(revision, str) or not 0 < len(revision) <= MAX_DATASET_DIGEST:
        import hashlib

        revision = hashlib.sha256(text.encode()).hexdigest()[:MAX_DATASET_DIGEST]
    source = {"tags": {"mlflow.source.name": f"kdbench:{labels['dataset']}", "kdbench.dataset": text}}
    return labels["dataset"] or "dataset", revision, json.dumps(source)


def epoch_ms(when: Any) -> int | None:
    """Return an ISO 8601 time as milliseconds since 1970, None where it is none; without a zone it is UTC."""
    try:
        time = datetime.fromisoformat(str(when))
    except ValueError:
        return None
    if time.tzinfo is None:
        time = time.replace(tzinfo=UTC)
    return max(0, int(time.timestamp() * 1000))

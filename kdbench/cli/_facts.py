"""What `kdbench show` tells of an entry, as plain values."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kdbench.errors import KdbenchError, UnknownName, did_you_mean

if TYPE_CHECKING:
    from kdbench.registry import Registered, Registry

#: Input side in pixels at which an architecture is built to count its parameters; models of a namespace are
#: built at the usual size of image classifiers, the others at that of small images.
IMAGE_SIZE, NAMESPACE_IMAGE_SIZE, NUM_CLASSES = 32, 224, 10


def matrix_facts(name: str) -> dict[str, Any]:
    """Return path and text of a shipped matrix. Raises UnknownName."""
    from kdbench.cli._matrices import MATRICES, shipped_matrices

    shipped = {m.name: m for m in shipped_matrices()}
    if name not in shipped:
        hint = did_you_mean(name, shipped) or ": see `kdbench list matrices`"
        raise UnknownName(f"unknown matrix {name!r}{hint}")
    matrix = shipped[name]
    return {
        "kind": MATRICES,
        "name": name,
        "summary": matrix.summary,
        "path": matrix.path.as_posix(),
        "text": matrix.path.read_text(encoding="utf-8"),
    }


def entry_facts(registry: Registry, item: Registered) -> dict[str, Any]:
    """Return what is known of an entry, its target loaded. Raises PluginError."""
    from kdbench.cli._table import entry_row, ordinary_capabilities
    from kdbench.registry import documentation

    target = item.load()
    facts: dict[str, Any] = {
        **entry_row(item.kind, item.entry),
        "name": item.name,
        "version": item.version,
        "documentation": documentation(target),
        "plugin": item.plugin.name,
        "distribution": item.plugin.distribution,
        "distribution_version": item.plugin.version,
        "plugin_git": item.plugin.git,
    }
    extra = {"methods": _method, "architectures": _architecture, "datasets": _dataset, "tasks": _task}
    if item.kind == "methods":
        needs = item.entry.needs  # type: ignore[attr-defined]
        facts["needs_text"] = needs.describe(ordinary_capabilities(registry))
    if item.kind in extra:
        facts |= extra[item.kind](item, target)
    return facts


def _method(item: Registered, target: Any) -> dict[str, Any]:
    from kdbench.cli._table import plain

    return {
        "fidelity": getattr(target, "fidelity", None),
        "parameters": _parameters(target),
        "presets": plain(getattr(target, "presets", {})),
        "search": {
            key: {**s.plain(), "source": s.source} for key, s in getattr(target, "search", {}).items()
        },
    }


def _parameters(target: Any) -> list[dict[str, Any]]:
    from kdbench.cli._table import plain
    from kdbench.registry import describe_params

    return [plain(p) for p in describe_params(target.Params)] if hasattr(target, "Params") else []


def _architecture(item: Registered, build: Any) -> dict[str, Any]:
    declared = getattr(item.entry, "params_count", None)
    if declared is not None:
        return {"params_count": declared}
    size = IMAGE_SIZE if item.model is None else NAMESPACE_IMAGE_SIZE
    args: dict[str, Any] = {} if item.model is None else {"model": item.model}
    args |= {"num_classes": NUM_CLASSES, "in_chans": 3, "image_size": size}
    count = _count_parameters(item, build, args)
    return {"params_count": count, "counted_at": f"{NUM_CLASSES} classes, {size}x{size} input"}


def _count_parameters(item: Registered, build: Any, args: dict[str, Any]) -> int:
    import torch

    try:
        try:
            with torch.device("meta"):
                net = build(**args)
        except (RuntimeError, NotImplementedError):
            # Some constructors compute with their weights, which tensors without data cannot do.
            net = build(**args)
    except KdbenchError:
        raise
    except Exception as error:
        first = str(error).strip().split("\n")[0]
        raise KdbenchError(f"architecture {item.name!r} cannot be built with {args}: {first}") from error
    return sum(p.numel() for p in net.parameters())


def _dataset(item: Registered, target: Any) -> dict[str, Any]:
    from kdbench.cli._table import plain

    facts: dict[str, Any] = {"parameters": _parameters(target)}
    if any(p["required"] for p in facts["parameters"]):
        facts["facts"] = "depend on the parameters"
        return facts
    try:
        info = target().describe()
    except Exception as error:
        facts["facts"] = f"not available: {' '.join(str(error).split())}"
        return facts
    facts["facts"] = plain(info)
    return facts


def _task(item: Registered, target: Any) -> dict[str, Any]:
    from kdbench.cli._table import plain

    task = target()
    variants = task.variants or ("",)
    metrics = [{"variant": v, **plain(m)} for v in variants for m in task.metrics(v)]
    return {"metrics": metrics, "variants": list(task.variants)}

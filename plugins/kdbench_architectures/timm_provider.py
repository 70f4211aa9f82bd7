"""The ``timm:`` namespace: any model of timm, by its own constructor (imports torch and timm on use only)."""

from __future__ import annotations

import contextlib
import difflib
import json
import os
import subprocess
import sys
import uuid
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

_LIST_PROGRAM = "import json, timm; print(json.dumps(timm.list_models()))"


def build(
    *,
    model: str,
    num_classes: int,
    in_chans: int,
    image_size: int,
    pretrained: bool = False,
    **args: Any,
) -> nn.Module:
    """Build a timm model.

    Models whose published weights hold for one input size only (ViT, Swin, Mixer ...) are made for
    `image_size` where their constructor allows it; timm then resamples position embeddings of hub weights.

    Args:
        model: name in timm, with or without a tag of pretrained weights (``resnet18``, ``resnet18.a1_in1k``).
        num_classes: outputs of the head.
        in_chans: channels of the input.
        image_size: side of the square input in pixels.
        pretrained: load the weights that timm's hub has for the model.
        args: further arguments of the model's constructor.

    Raises:
        KdbenchError: unknown model or tag, arguments that the constructor refuses, weights that do not exist
            or cannot be loaded.
    """
    import timm

    from kdbench.api import KdbenchError

    if pretrained:
        check_pretrained(model=model, **args)
    cfg = _config(model)
    kwargs = {"num_classes": num_classes, "in_chans": in_chans, **args}
    size = (image_size, image_size)
    fixed = cfg is not None and cfg.fixed_input_size and tuple(cfg.input_size[-2:]) != size
    sized = kwargs | {"img_size": image_size} if fixed and "img_size" not in args else kwargs
    try:
        try:
            return timm.create_model(model, pretrained=pretrained, **sized)
        except TypeError as e:
            if sized is kwargs or "img_size" not in str(e):
                raise
            return timm.create_model(model, pretrained=pretrained, **kwargs)
    except Exception as e:
        if pretrained:
            raise KdbenchError(f"timm:{model}: pretrained weights could not be loaded: {_line(e)}") from e
        given = f" with args {{{', '.join(f'{k}: {v!r}' for k, v in args.items())}}}" if args else ""
        raise KdbenchError(
            f"timm:{model}{given} cannot be built for {image_size}x{image_size} images: {_line(e)}"
        ) from e


def check_pretrained(*, model: str, **args: Any) -> None:
    """Raise KdbenchError for an unknown model or tag, and for a model without weights; nothing is fetched."""
    from kdbench.api import KdbenchError

    cfg = _config(model)
    own_weights = {"pretrained_cfg", "pretrained_cfg_overlay"} & set(args)
    if not own_weights and not (cfg is not None and cfg.has_weights):
        raise KdbenchError(f"timm:{model}: pretrained: true, but timm has no weights for this model")


def _config(model: str) -> Any:
    """Return timm's configuration of a model's weights, or None. Raises KdbenchError."""
    import timm
    from timm.models import get_pretrained_cfg

    from kdbench.api import KdbenchError

    if not timm.is_model(model):
        near = _near(model, timm.list_models())
        raise KdbenchError(f"timm {timm.__version__} has no model '{model}'{near}")
    try:
        return get_pretrained_cfg(model)
    except RuntimeError as e:
        arch = model.split(".", 1)[0]
        tags = timm.list_pretrained(f"{arch}.*")
        known = f"; known: {', '.join(tags)}" if tags else ""
        raise KdbenchError(f"timm:{model}: {_line(e)}{known}") from e


def names() -> list[str]:
    """Return the names of all timm models, without importing torch into this process.

    The list is kept in the cache folder per timm version; the first call asks a child process (seconds).

    Raises:
        KdbenchError: when timm is not installed or cannot be imported.
    """
    from kdbench.api import KdbenchError, cache_dir

    try:
        version = metadata.version("timm")
    except metadata.PackageNotFoundError as e:
        raise KdbenchError("timm is not installed") from e
    path = cache_dir(f"timm-names-{version}.json")
    cached = _read(path)
    if cached is not None:
        return cached
    child = subprocess.run(
        [sys.executable, "-c", _LIST_PROGRAM], capture_output=True, text=True, timeout=300, check=False
    )
    if child.returncode != 0:
        cause = (child.stderr.strip().splitlines() or ["no message"])[-1]
        raise KdbenchError(f"timm {version} cannot list its models: {cause}")
    found: list[str] = json.loads(child.stdout.strip().splitlines()[-1])
    _write(path, found)
    return found


def _read(path: Path) -> list[str] | None:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    valid = isinstance(found, list) and found and all(isinstance(name, str) for name in found)
    return found if valid else None


def _write(path: Path, found: list[str]) -> None:
    """Write the list atomically; a cache that cannot be written is done without."""
    temp = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temp, "x", encoding="utf-8") as f:
            json.dump(found, f)
            f.flush()
            os.fsync(f.fileno())
        os.replace(temp, path)
    except OSError:
        with contextlib.suppress(OSError):
            temp.unlink(missing_ok=True)


def _near(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(known), n=3, cutoff=0.6)
    return f" (did you mean {' or '.join(repr(n) for n in near)}?)" if near else ""


def _line(error: BaseException) -> str:
    text = " ".join(str(error).split()) or "no message"
    text = text if len(text) <= 300 else text[:297] + "..."
    return f"{type(error).__name__}: {text}"

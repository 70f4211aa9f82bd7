"""Loading of trained teachers: from a cell, from a checkpoint file, or hub weights; always verified."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load as load_safetensors
from torch import Tensor, nn

from kdbench.engine.cellspec import TeacherSource
from kdbench.engine.normalise import Normalisation, config, of_weights
from kdbench.errors import KdbenchError
from kdbench.protocol.types import DataInfo, NotApplicable
from kdbench.results.artifacts import MODEL, route_path
from kdbench.results.store import read_record_dict


class TeacherError(KdbenchError):
    """A teacher that cannot be built or loaded, so that a message finds the teacher's line in the matrix."""


def load_cell_weights(net: nn.Module, folder: Path) -> dict[str, Any]:
    """Load the weights that a cell left in `folder` and return its record.

    Raises KdbenchError when the cell is not done or the file is not the one that the record describes.
    """
    record = read_record_dict(folder / "result.json")
    if record["status"] != "done":
        raise KdbenchError(f"teacher cell {record['cell_id'][:12]} is {record['status']}, not done")
    path = folder / MODEL
    data = _read(path)
    if hashlib.sha256(data).hexdigest() != record.get("weights_sha256"):
        raise KdbenchError(
            f"{path}: the weights are not those of the cell's record; remove the file and rerun"
        )
    fit(net, _tensors(data, path), str(path))
    return record


def load_checkpoint(net: nn.Module, path: Path, sha256: str | None) -> str:
    """Load a user's checkpoint (safetensors, or a torch file without code) and return its sha256.

    Raises KdbenchError when it is missing, corrupt, another file than `sha256` says, or of other shape.
    """
    data = _read(path)
    digest = hashlib.sha256(data).hexdigest()
    if sha256 is not None and digest != sha256.lower():
        raise KdbenchError(f"{path}: sha256 is {digest}, the matrix expects {sha256}")
    try:
        if path.suffix == ".safetensors":
            state: Any = load_safetensors(data)
        else:
            # of the bytes that were hashed: the file may be another one by now
            state = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as e:
        raise KdbenchError(f"{path}: not a checkpoint that can be read ({_unreadable(path, data, e)})") from e
    fit(net, unwrap(state), str(path))
    return digest


def _unreadable(path: Path, data: bytes, error: Exception) -> str:
    """Return why a checkpoint cannot be read: the reader's words, or what was found where these say nothing."""
    if not data:
        return "the file is empty"
    if path.suffix != ".safetensors" and not data.startswith((b"PK\x03\x04", b"\x80")):
        return f"it starts with {data[:8]!r}, which no file of torch.save does"
    text = (str(error).splitlines() or [""])[0][:120]
    return text if " " in text.strip() else f"{type(error).__name__}{f': {text}' if text else ''}"


def unwrap(state: Any) -> Mapping[str, Tensor]:
    """Return the state dict inside the usual wrappings (``state_dict``, ``model``, ``module.`` prefixes)."""
    for key in ("state_dict", "model", "model_state_dict"):
        if isinstance(state, Mapping) and isinstance(state.get(key), Mapping):
            state = state[key]
    if not isinstance(state, Mapping):
        return {}
    return {str(k).removeprefix("module."): v for k, v in state.items() if isinstance(v, Tensor)}


def fit(net: nn.Module, state: Mapping[str, Tensor], what: str) -> None:
    """Load a state dict strictly.

    Raises:
        KdbenchError: naming the first key that does not fit.
        NotApplicable: the weights are this architecture's, for images of another size.
    """
    mine = net.state_dict()
    sized = _made_for_another_size(net, mine, state)
    if sized is not None:
        raise NotApplicable(
            f"{Path(what).name}: its weights hold for images of another size: '{sized}' has shape "
            f"{tuple(state[sized].shape)}, this data set needs {tuple(mine[sized].shape)}"
        )
    for key, value in mine.items():
        if key not in state:
            raise KdbenchError(f"{what}: no tensor '{key}'; is it a checkpoint of this architecture?")
        if tuple(state[key].shape) != tuple(value.shape):
            raise KdbenchError(
                f"{what}: '{key}' has shape {tuple(state[key].shape)}, the architecture needs {tuple(value.shape)}"
            )
    extra = sorted(set(state) - set(mine))
    if extra:
        raise KdbenchError(f"{what}: unknown tensor '{extra[0]}'; is it a checkpoint of this architecture?")
    try:
        net.load_state_dict(dict(state))
    except RuntimeError as e:  # tensors that cannot be copied: sparse, quantised
        raise KdbenchError(f"{what}: its tensors do not fit ({' '.join(str(e).split())[:200]})") from e


def _made_for_another_size(
    net: nn.Module, mine: Mapping[str, Tensor], state: Mapping[str, Tensor]
) -> str | None:
    """Return the first tensor whose shape differs if only those do that hold for one image size, else None.

    Such tensors (position embeddings, token mixers) are few beside those of equal shape, and not the head's.
    """
    if not config(net).get("fixed_input_size") or set(mine) != set(state):
        return None
    other = [key for key, value in mine.items() if value.shape != state[key].shape]
    get = getattr(net, "get_classifier", None)
    heads = () if get is None else get()
    heads = heads if isinstance(heads, (tuple, list)) else (heads,)
    head = {p.data_ptr() for module in heads if isinstance(module, nn.Module) for p in module.parameters()}
    if any(mine[key].data_ptr() in head for key in other):
        return None
    return other[0] if other and len(other) < len(mine) / 2 else None


def expected_normalisation(source: TeacherSource, net: nn.Module) -> Normalisation | None:
    """Return what a teacher's weights expect; None: images as the data set gives them, or not known."""
    if source.mean is not None and source.std is not None:
        return Normalisation(source.mean, source.std)
    return of_weights(net) if source.source == "pretrained" else None


def doubts(name: str, source: TeacherSource, net: nn.Module, info: DataInfo) -> list[str]:
    """Return warnings on hub weights that may not do what a reader expects of a teacher."""
    if source.source != "pretrained":
        return []
    out = []
    if expected_normalisation(source, net) is None:
        out.append(
            f"{name}: its weights do not say how their input is normalised; the data set's way was used"
        )
    classes = config(net).get("num_classes")
    if classes is not None and classes != info.num_classes:
        out.append(
            f"{name}: its weights have {classes} classes and the data set {info.num_classes}, "
            "so its classifier has random weights"
        )
    return out


def route_loaders(folder: Path, epochs: list[int]) -> list[Callable[[], Mapping[str, Tensor]]]:
    """Return one lazy loader per kept checkpoint of a teacher's training route."""
    paths = [route_path(folder, e) for e in epochs]
    missing = [p for p in paths if not p.exists()]
    if missing:
        raise KdbenchError(f"{missing[0]}: the teacher's route was not kept; rerun its cell")
    return [lambda p=p: _tensors(_read(p), p) for p in paths]  # type: ignore[misc]


def _tensors(data: bytes, path: Path) -> dict[str, Tensor]:
    try:
        return load_safetensors(data)
    except Exception as e:
        raise KdbenchError(f"{path}: not a checkpoint that can be read ({_unreadable(path, data, e)})") from e


def _read(path: Path) -> bytes:
    if path.exists() and not path.is_file():
        raise KdbenchError(f"{path}: cannot read the checkpoint (not a regular file)")
    try:
        return path.read_bytes()
    except OSError as e:
        raise KdbenchError(f"{path}: cannot read the checkpoint ({e.strerror or e})") from e

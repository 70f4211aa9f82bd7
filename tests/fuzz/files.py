"""Targets that read files in binary forms: images, checkpoints, data batches, and metadata of plug-ins."""

from __future__ import annotations

import functools
import io
import json
import os
import pickle
import random
import struct
import sys
import zlib
from pathlib import Path
from unittest import mock

import pluggy
import torch
from PIL import Image
from safetensors.torch import save

from kdbench.engine.checkpoint import load_state
from kdbench.engine.teachers import load_checkpoint
from kdbench.errors import KdbenchError
from kdbench.hooks import GROUP, KdbenchSpec
from kdbench.registry.discovery import find_entry_points
from kdbench.registry.plugins import load_plugin
from kdbench.registry.provenance import git_revision
from kdbench_datasets import cifar_files
from kdbench_datasets.image_folder import ImageFolder

from .engine import Target, bad_message
from .mutate import mutant


@functools.cache
def images() -> list[bytes]:
    """Small images of every kind that is read, and some that promise more than they hold."""
    made = []
    for mode, size in (("RGB", (9, 7)), ("L", (5, 5)), ("P", (4, 4)), ("RGBA", (6, 3)), ("I;16", (3, 3))):
        for kind in ("PNG", "JPEG", "BMP", "WEBP"):
            out = io.BytesIO()
            try:
                Image.effect_noise(size, 50).convert(mode).save(out, kind)
            except (OSError, ValueError):
                continue
            made.append(out.getvalue())
    return [*made, png(60_000, 60_000), png(9000, 9000), png(3, 2**31 - 1), png(0, 0)]


def png(width: int, height: int, rows: int = 4) -> bytes:
    """Return a PNG that says to be of a size and holds a few rows of it: some bytes that stand for gigabytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    data = zlib.compress(b"\0" * min(rows * (1 + width), 1 << 20), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def _image(data: bytes, where: Path) -> None:
    """An image folder whose first image is the input, whatever it is."""
    for split in ("train", "test"):
        (where / "d" / split / "c").mkdir(parents=True)
        (where / "d" / split / "c" / "a.png").write_bytes(data)
    found = ImageFolder(ImageFolder.Params(root=where / "d"))
    found.image("train", 0)
    found.describe()


_NAMES = (
    "a.png", "b.jpg", "x\ny.png", "<img src=x>.png", "\x1b[2J.png", "\udcff.png", "=1+1.bmp",
    ".hidden.png", "c.txt",
    "-rf.png", "d" * 200 + ".png", "\u202egnp.png",
)  # fmt: skip
_FOLDERS = ("train", "test", "val", "valid", "c", "d\ne", "<b>", "sub", "\udcfe", ".dot")


def _tree(data: bytes, where: Path) -> None:
    """A tree made as the input's bytes say: folders, images, links within and out of it, pipes."""
    rng = random.Random(data)
    root = where / "d"
    good = images()[0]
    folders = [root]
    for split in ("train", "test"):
        path = root / split / "c"
        path.mkdir(parents=True)
        folders += [path.parent, path]
        if rng.random() < 0.9:
            (path / "a.png").write_bytes(good)
    for _ in range(rng.randrange(12)):
        parent = rng.choice(folders)
        name, kind = rng.choice(_NAMES), rng.randrange(9)
        try:
            if kind < 3:
                content = good if rng.random() < 0.8 else b""
                if not os.path.lexists(
                    parent / name
                ):  # a link would not be followed, but be taken for an escape
                    (parent / name).write_bytes(content)
            elif kind < 6:
                made = parent / rng.choice(_FOLDERS)
                if os.path.lexists(made):
                    continue
                made.mkdir()
                folders.append(made)
            elif kind == 6:
                link, inside = parent / rng.choice((*_FOLDERS, name)), rng.choice(folders)
                if not os.path.lexists(link):
                    link.symlink_to(inside, target_is_directory=True)
            elif kind == 7:
                link = parent / rng.choice((*_FOLDERS, name))
                if not os.path.lexists(link):
                    link.symlink_to(rng.choice(("/etc", "/etc/passwd", "nowhere", "..")))
            else:
                os.mkfifo(parent / name)
        except OSError:
            continue
    found = ImageFolder(ImageFolder.Params(root=root))
    info = found.describe()
    for index in range(min(3, info.n_train)):
        found.image("train", index)


@functools.cache
def _net() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))


class Opens:
    """What a malicious pickle holds: a call that leaves a file behind."""

    def __init__(self, path: Path | str) -> None:
        self.path = str(path)

    def __reduce__(self):  # type: ignore[no-untyped-def]
        return open, (self.path, "w")


@functools.cache
def checkpoints() -> list[bytes]:
    """State dicts as safetensors and as torch writes them (both of its formats), a state, and code in a pickle."""
    state = _net().state_dict()
    zipped, legacy, code = io.BytesIO(), io.BytesIO(), io.BytesIO()
    torch.save({"state_dict": state}, zipped)
    torch.save(state, legacy, _use_new_zipfile_serialization=False)
    torch.save({"state_dict": Opens("/tmp/kdbench-fuzz-was-here")}, code)
    bomb = pickle.dumps(Opens("/tmp/kdbench-fuzz-was-here"))
    skeleton = {"state": json.dumps({"$d": [["a", {"$t": "t0"}], ["b", {"$u": [1, 2.5, None]}]]})}
    whole = save({"t0": torch.arange(4.0)}, metadata=skeleton)
    header = b'{"t0":{"dtype":"F32","shape":[%s],"data_offsets":[0,%s]}}'
    attacks = [
        struct.pack("<Q", 2**63) + b"{}",
        struct.pack("<Q", 2) + b"{}",
        *(
            struct.pack("<Q", len(h)) + h + b"\0" * 16
            for h in (
                header % (b"4294967296,4294967296", b"16"),
                header % (b"4", b"99999999"),
                header % (b"-1", b"16"),
            )
        ),
    ]
    return [save(state), whole, zipped.getvalue(), legacy.getvalue(), code.getvalue(), bomb, *attacks]


_SUFFIXES = (".safetensors", ".pt", ".pth", ".ckpt", "")


def _checkpoint(data: bytes, where: Path) -> None:
    """The same bytes under every name that is read, and as the state of a cut cell."""
    errors = []
    for suffix in _SUFFIXES:
        path = where / f"w{suffix}"
        path.write_bytes(data)
        try:
            load_checkpoint(_net(), path, None)
        except KdbenchError as error:
            errors.append(error)
    try:
        load_state(where / "w.safetensors")
    except KdbenchError as error:
        errors.append(error)
    for error in errors:
        if bad := bad_message(error, lines=False):
            raise AssertionError(bad) from error
    if len(errors) > len(_SUFFIXES):
        raise errors[0]


@functools.cache
def batches() -> list[bytes]:
    import numpy as np

    pixels = np.zeros((2, 3072), np.uint8)
    made = {b"data": pixels, b"labels": [1, 2], b"fine_labels": [0, 1]}
    return [
        *(pickle.dumps(made, protocol) for protocol in (0, 2, 4)),
        pickle.dumps(Opens("/tmp/kdbench-fuzz-was-here")),
    ]


def _batch(data: bytes, where: Path) -> None:
    import hashlib

    path = where / "data_batch_1"
    path.write_bytes(data)
    files = cifar_files.CifarFiles("http://x/y.tar.gz", "", "f", (), (), b"labels", 10, 2, 2)
    cifar_files._read_batch(path, hashlib.md5(data, usedforsecurity=False).hexdigest(), files)


_PARTS = b"\n=====\n"
_METADATA = [
    _PARTS.join(
        [
            b"Metadata-Version: 2.1\nName: some-plugin\nVersion: 1.0\nSummary: x\n\ntext\n",
            b"[kdbench]\nfirst = kdb_fuzz_absent_module\nsecond = kdb_fuzz_absent.module:name\n"
            b"[console_scripts]\na = b:c\n",
            b'{"url": "file:///nowhere/x", "dir_info": {"editable": true}}',
        ]
    ),
    _PARTS.join(
        [
            b"Name: x\nVersion: 0\n",
            b"[kdbench]\nx=y",
            b'{"url": "git+https://x", "vcs_info": {"commit_id": "abc"}}',
        ]
    ),
]


def _metadata(data: bytes, where: Path) -> None:
    """A distribution's files as the input has them, found and loaded as plug-ins are."""
    parts = [*data.split(_PARTS), b"", b""]
    folder = where / "some_plugin-1.0.dist-info"
    folder.mkdir()
    for name, content in zip(("METADATA", "entry_points.txt", "direct_url.json"), parts, strict=False):
        (folder / name).write_bytes(content)
    with mock.patch.object(sys, "path", [str(where)]):
        found = find_entry_points()
        git_revision(parts[2].decode("utf-8", "replace"))
        for source in found:
            # a value that survives mutation may name a module of Python's own: that would be imported
            if "kdb_fuzz" in source.entry_point.value:
                manager = pluggy.PluginManager(GROUP)
                manager.add_hookspecs(KdbenchSpec)
                info = load_plugin(manager, source)
                _ = info.git
                if info.status == "active":
                    raise AssertionError("a module that does not exist became a plug-in")
                raise KdbenchError(" ".join(f"{info.label}: {info.reason}".split()) or "?")


TARGETS = (
    Target(
        "image", lambda rng: mutant(rng, images(), (b"IHDR", b"IDAT", b"\xff\xd8", b"RIFF")), _image, share=8
    ),
    Target("image-tree", lambda rng: rng.randbytes(8), _tree, share=6),
    Target(
        "checkpoint",
        lambda rng: mutant(rng, checkpoints(), (b"$t", b"$d", b"$u", b"t0")),
        _checkpoint,
        share=8,
    ),
    Target(
        "cifar-batch", lambda rng: mutant(rng, batches(), (b"cos\nsystem\n", b"c__builtin__\neval\n")), _batch
    ),
    Target(
        "plugin-metadata",
        lambda rng: mutant(rng, _METADATA, (b"Name", b"kdbench", b"url")),
        _metadata,
        share=6,
    ),
)

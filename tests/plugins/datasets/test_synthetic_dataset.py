"""Synthetic images: determinism, statistics, the signal."""

from __future__ import annotations

import hashlib
import subprocess
import sys

import numpy as np
import pytest
from pydantic import ValidationError

from kdbench.api import DataError
from kdbench_datasets.synthetic import Synthetic


def data(**kw: int) -> Synthetic:
    return Synthetic(
        Synthetic.Params(**({"num_classes": 5, "image_size": 32, "n_train": 100, "n_test": 40} | kw))
    )


def test_defaults_are_imagenets_shape():
    info = Synthetic().describe()
    assert (info.num_classes, info.image_size, info.n_train, info.n_test) == (1000, 224, 1024, 256)
    assert Synthetic().arrays("train", np.array([3])).shape == (1, 224, 224, 3)


def test_images_are_a_function_of_seed_split_and_index():
    a = data().arrays("train", np.array([7, 3]))
    assert np.array_equal(a[0], data().arrays("train", np.array([7]))[0])
    assert np.array_equal(a[1], np.asarray(data().image("train", 3)))
    assert not np.array_equal(a[0], data(seed=1).arrays("train", np.array([7]))[0])
    assert not np.array_equal(a[0], data().arrays("test", np.array([7]))[0])


def test_the_pixels_never_change():
    x = data().arrays("train", np.arange(4))
    assert hashlib.sha256(x.tobytes()).hexdigest()[:16] == "b3746f13bdd656c9"


def test_statistics_are_as_described():
    info = data(num_classes=200, n_train=400).describe()
    x = data(num_classes=200, n_train=400).arrays("train", np.arange(400)) / 255
    np.testing.assert_allclose(x.mean((0, 1, 2)), info.mean, atol=0.01)
    np.testing.assert_allclose(x.std((0, 1, 2)), info.std, atol=0.01)


def test_classes_can_be_told_apart():
    d = data()
    y = {s: d.labels(s) for s in ("train", "test")}
    x = {s: d.arrays(s, np.arange(len(y[s]))).astype(float) for s in y}
    means = np.stack([x["train"][y["train"] == k].mean(0) for k in range(5)])
    distance = ((x["test"][:, None] - means) ** 2).sum((2, 3, 4))
    assert (distance.argmin(1) == y["test"]).mean() > 0.95


def test_revisions_tell_parameters_apart():
    base = {"num_classes": 5, "image_size": 32, "n_train": 100, "n_test": 40, "seed": 0}
    revisions = {data(**(base | {k: v + 3})).describe().revision for k, v in base.items()}
    assert len(revisions | {data().describe().revision}) == 6


def test_errors():
    with pytest.raises(DataError, match="no split 'val'"):
        data().labels("val")
    with pytest.raises(IndexError):
        data().image("train", 100)
    with pytest.raises(ValidationError):
        Synthetic.Params(num_classes=1)


def test_no_data_set_module_imports_torch_or_what_it_does_not_need():
    program = (
        "import importlib, sys, kdbench_datasets as p\n"
        "assert 'pydantic' not in sys.modules\n"
        "for e in p.kdbench_datasets():\n"
        "    m, a = e.target.split(':')\n"
        "    getattr(importlib.import_module(m), a)\n"
        "from kdbench_datasets.digits import Digits; Digits().describe()\n"
        "from kdbench_datasets.synthetic import Synthetic; Synthetic().describe()\n"
        "bad = {'torch', 'numpy', 'sklearn', 'pandas', 'scipy', 'PIL'} & set(sys.modules)\n"
        "sys.exit(str(sorted(bad) or ''))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.stderr.strip() == ""

"""The digits: constants against the data, the split, the images."""

from __future__ import annotations

import numpy as np
import pytest

from kdbench.api import DataError
from kdbench_datasets.digits import Digits


def test_facts_are_those_of_the_data():
    digits = Digits()
    info = digits.describe()
    y = {s: digits.labels(s) for s in ("train", "test")}
    assert (info.n_train, info.n_test) == (len(y["train"]), len(y["test"])) == (1438, 359)
    x = digits.arrays("train", np.arange(info.n_train)) / 255
    np.testing.assert_allclose(x.mean((0, 1, 2)), info.mean, atol=5e-4)
    np.testing.assert_allclose(x.std((0, 1, 2)), info.std, atol=5e-4)
    assert info.num_classes == 10
    assert not info.flip
    assert info.revision == "digits-v1"


def test_the_split_is_stratified_and_a_partition():
    from sklearn.datasets import load_digits

    digits = Digits()
    pixels, target = load_digits(return_X_y=True)
    total = np.bincount(target)
    test = np.bincount(digits.labels("test"))
    assert np.array_equal(test, [round(0.2 * n) for n in total])
    assert np.array_equal(np.bincount(digits.labels("train")) + test, total)
    both = np.concatenate([digits.arrays(s, np.arange(len(digits.labels(s)))) for s in ("train", "test")])
    assert len({x.tobytes() for x in both}) == len({x.tobytes() for x in pixels})


def test_the_split_never_moves():
    # first labels as split by the hash of each image's number
    digits = Digits()
    assert digits.labels("test")[:12].tolist() == [1, 6, 7, 4, 7, 3, 4, 6, 2, 1, 9, 1]
    assert digits.labels("train").dtype == np.int64


def test_images():
    digits = Digits()
    x = digits.arrays("test", np.array([5, 0]))
    assert x.shape == (2, 32, 32, 3)
    assert x.dtype == np.uint8
    assert np.array_equal(x[..., 0], x[..., 1])
    assert np.array_equal(x[..., 0], x[..., 2])
    image = digits.image("test", 5)
    assert image.mode == "RGB"
    assert np.array_equal(np.asarray(image), x[0])
    everything = digits.arrays("train", np.arange(1438))
    assert everything.min() == 0
    assert everything.max() == 255


def test_what_is_given_out_cannot_change_the_data():
    digits = Digits()
    digits.labels("test")[:] = 0
    digits.arrays("test", np.arange(3))[:] = 0
    assert digits.labels("test").any()
    assert digits.arrays("test", np.arange(3)).any()


def test_a_linear_model_learns_it():
    from sklearn.linear_model import RidgeClassifier

    digits = Digits()
    x = {s: digits.arrays(s, np.arange(len(digits.labels(s))))[:, ::4, ::4, 0] for s in ("train", "test")}
    flat = {s: v.reshape(len(v), -1) / 255 for s, v in x.items()}
    model = RidgeClassifier().fit(flat["train"], digits.labels("train"))
    assert model.score(flat["test"], digits.labels("test")) > 0.85


def test_there_is_no_third_split():
    with pytest.raises(DataError, match="no split 'val'"):
        Digits().labels("val")

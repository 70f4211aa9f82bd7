"""The tutorial and the how-to pages, followed to the letter with real processes."""

from __future__ import annotations

import pytest
from commands import records
from fake_distributions import Distributions

pytestmark = pytest.mark.e2e

#: Not run: minutes, a server that does not end, or what the test environment has done already.
LEFT_OUT = ("python3 -m venv", "kdbench run-matrix quickstart", "kdbench ui")
QUICK = ("--workers", "1", "--sink", "none")


def follow(steps, distribution=None, mlflow=()):
    """Run the commands of a page; what they print, together.

    Of a plug-in, the installation is what pip would write. Only the runs in `mlflow` go to MLflow.
    """
    printed = []
    for line in steps.commands():
        if line.startswith(LEFT_OUT):
            continue
        if line == "pip install -e .":
            name, module = distribution
            Distributions(steps.site).add_metadata(name, {module: module}, version="0.1.0")
        else:
            further = QUICK if line.startswith("kdbench run-matrix") else ()
            printed.append(steps.run(line, *(further[:2] if line in mlflow else further)))
    return "".join(printed)


def statuses(steps, name):
    found = records(steps.folder / "runs" / name).values()
    return sorted((r["labels"]["variant"], r["labels"]["seed"], r["status"]) for r in found)


def test_the_tutorial(walk):
    steps = walk("tutorial/first-matrix.md")
    assert steps.save_files() == ["mine.yaml", "make_images.py", "my-images.yaml"]
    follow(steps, mlflow=["kdbench run-matrix mine.yaml"])
    assert len(steps.ran) >= 10
    assert statuses(steps, "mine") == [
        ("kd", 0, "done"),
        ("kd", 1, "done"),
        ("kd(temperature=2.0)", 0, "done"),
        ("kd(temperature=2.0)", 1, "done"),
        ("vanilla", 0, "done"),  # the teacher
        ("vanilla", 0, "done"),
        ("vanilla", 1, "done"),
    ]
    assert {status for _, _, status in statuses(steps, "my-images")} == {"done"}
    assert (steps.folder / "mlflow.db").exists()


def test_an_architecture_is_added(walk):
    steps = walk("how-to/add-an-architecture.md")
    files = ["my_networks/wide_net.py", "my_networks/__init__.py", "pyproject.toml", "wide.yaml"]
    assert steps.save_files() == files
    follow(steps, ("my-networks", "my_networks"))
    assert [v for v, _, status in statuses(steps, "wide") if status == "done"] == [
        *("fitnet", "kd", "ofd", "vanilla", "vanilla")
    ]
    networks = {
        (r["labels"]["teacher"], r["labels"]["student"]) for r in records(steps.folder / "runs/wide").values()
    }
    assert networks >= {("wide-net(width=32)", "wide-net")}


def test_a_data_set_is_added(walk):
    steps = walk("how-to/add-a-dataset.md")
    files = ["my_data/npz_images.py", "my_data/__init__.py", "pyproject.toml", "make_npz.py", "bright.yaml"]
    assert steps.save_files() == files
    assert "number of classes" in follow(steps, ("my-data", "my_data"))
    found = statuses(steps, "bright")
    assert len(found) == 3
    assert {status for _, _, status in found} == {"done"}


def test_the_data_set_tells_what_is_missing(walk, monkeypatch):
    from kdbench.api import DataError

    steps = walk("how-to/add-a-dataset.md")
    steps.save_files()
    monkeypatch.syspath_prepend(steps.folder)
    from my_data.npz_images import NpzImages

    data = NpzImages(NpzImages.Params(path=steps.folder / "none.npz", classes=4))
    with pytest.raises(DataError, match="no file"):
        data.describe()
    steps.run("python make_npz.py")
    data = NpzImages(NpzImages.Params(path=steps.folder / "bright.npz", classes=4))
    assert (data.describe().n_train, data.describe().n_test) == (64, 32)
    assert data.arrays("train", [0, 5]).shape == (2, 32, 32, 3)
    with pytest.raises(DataError, match="no array val_y"):
        data.labels("val")

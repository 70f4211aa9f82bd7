"""What a matrix may ask of Ray, and what becomes of it there."""

import sys

import pytest

from kdbench.api import KdbenchError
from kdbench_launchers.ray.launcher import RayLauncher
from kdbench_launchers.ray.options import read_options

METHODS = {"vanilla", "dear"}


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"num_cpu": 2}, "num_cpu: unknown key (did you mean 'num_cpus'"),
        ({"num_cpus": 0}, "num_cpus: expected a number greater than 0, got 0"),
        ({"num_cpus": "2"}, "num_cpus: expected a number, got '2'"),
        (
            {"num_gpus": 1.5},
            "num_gpus: expected a part of one GPU or a whole number of them, got 1.5",
        ),
        ({"num_gpus": -1}, "num_gpus: expected a number greater than or equal to 0, got -1"),
        (
            {"memory": "8 gigs"},
            "memory: expected a size such as 16GiB or 16G, or a number of bytes, got '8 gigs'",
        ),
        (
            {"memory": "16Gi"},
            "memory: expected a size such as 16GiB or 16G, or a number of bytes, got '16Gi'",
        ),
        ({"resources": {"GPU": 1}}, "resources: GPU is given as num_gpus, got {'GPU': 1}"),
        ({"resources": {"tpu": 0}}, "resources.tpu: expected a number greater than 0, got 0"),
        (
            {"address": "ray://head:10001"},
            "address: expected auto, local or HOST:PORT; a run",
        ),
        ({"max_retries": -1}, "max_retries: expected a number greater than or equal to 0, got -1"),
        ({"runtime_env": "pip"}, "runtime_env: expected a mapping, got 'pip'"),
        ({"methods": {"daer": {}}}, "methods.daer: the matrix has no such method (did you mean 'dear'?)"),
        (
            {"methods": {"dear": {"num_gpu": 1}}},
            "methods.dear.num_gpu: unknown key (did you mean 'num_gpus'",
        ),
        ({"methods": {"dear": {"max_retries": 1}}}, "methods.dear.max_retries: unknown key"),
        ({"memory": "0GB"}, "memory: expected a number greater than 0, got 0"),
        ({"methods": {"dear": {"num_gpus": 2.5}}}, "methods.dear.num_gpus: expected a part of one"),
    ],
)
def test_options_that_cannot_be(given, told):
    with pytest.raises(KdbenchError) as e:
        read_options(given, METHODS)
    assert str(e.value).startswith(f"launcher_options.ray.{told}")
    assert "\n" not in str(e.value)


def test_a_method_has_what_differs_and_the_rest():
    given = {
        "num_cpus": 2,
        "num_gpus": 0.5,
        "memory": "8GB",
        "max_retries": 1,
        "methods": {"dear": {"num_gpus": 2, "resources": {"big": 1}}},
    }
    options = read_options(given, METHODS)
    usual = {"num_cpus": 2.0, "num_gpus": 0.5, "memory": 8 << 30}
    assert options.of("vanilla").task() == usual
    assert options.of("dear").task() == {**usual, "num_gpus": 2.0, "resources": {"big": 1.0}}
    assert options.of("dear").asked() == {"CPU": 2, "GPU": 2, "memory": 8 << 30, "big": 1}
    assert read_options({}, METHODS).of("vanilla").task() == {"num_cpus": 1.0, "num_gpus": 0.0}


@pytest.mark.parametrize(
    ("given", "size"),
    [(5, 5), ("5", 5), ("5KB", 5120), ("5KiB", 5120), ("5K", 5120), ("1TB", 1 << 40), (None, None)],
)
def test_memory(given, size):
    assert read_options({"memory": given}, METHODS).memory == size


def test_the_place_is_that_of_the_cells(tmp_path):
    def place(asked, **settings):
        return RayLauncher.place({"settings": settings, "methods": METHODS, "run": tmp_path}, asked)

    assert place("auto").device == "cpu"
    assert place("auto", num_gpus=0.25).device == "cuda"
    assert place("cpu", num_gpus=1).device == "cpu"
    assert [place("auto", num_cpus=n).cores for n in (0.5, 1, 3.9)] == [1, 1, 3]


def test_without_ray_there_is_one_line(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(KdbenchError, match=r"^the launcher 'ray' needs .*pip install 'kdbench\[ray\]'$"):
        RayLauncher.place({"run": tmp_path}, "cpu")

"""What a matrix may ask of Slurm, and how cells are dealt out to jobs."""

import sys
from pathlib import Path

import pytest

from kdbench.api import Job, KdbenchError
from kdbench_launchers.slurm.arrays import MOST_TASKS, arrays, grouped
from kdbench_launchers.slurm.launcher import SlurmLauncher
from kdbench_launchers.slurm.options import Options, read_options
from kdbench_launchers.slurm.queue import parse

METHODS = {"vanilla", "dear"}
KEYS = {"partition", "gpus_per_node", "dependency", "mem", "setup"}


def job(number, method="vanilla", after=(), cost=1.0):
    return Job(f"{number:064x}", Path("cells") / str(number), str(number), after, method=method, cost=cost)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"partitoin": "gpu"}, "launcher_options.slurm.partitoin: unknown key (did you mean 'partition'?)"),
        ({"dependency": "x"}, "launcher_options.slurm.dependency: the launcher sets it by itself"),
        ({"cells_per_job": 0}, "launcher_options.slurm.cells_per_job: expected a number greater than or"),
        ({"time": "4:00"}, "launcher_options.slurm.time: expected a whole number, got '4:00'"),
        (
            {"mem": "16Gi"},
            "launcher_options.slurm.mem: expected a size such as 16G, or a number of MB, got '16Gi'",
        ),
        (
            {"methods": {"daer": {}}},
            "launcher_options.slurm.methods.daer: the matrix has no such method (did",
        ),
        ({"methods": {"dear": {"tiem": 1}}}, "launcher_options.slurm.methods.dear.tiem: unknown key (did"),
        ({"methods": {"dear": {"poll_s": 1}}}, "launcher_options.slurm.methods.dear.poll_s: unknown key"),
        ({"methods": {"dear": {"time": 0}}}, "launcher_options.slurm.methods.dear.time: expected a number"),
    ],
)
def test_options_that_cannot_be(given, told):
    with pytest.raises(KdbenchError) as e:
        read_options(given, METHODS, KEYS)
    assert str(e.value).startswith(told)
    assert "\n" not in str(e.value)


def test_a_method_has_what_differs_and_the_rest():
    given = {
        "partition": "gpu",
        "time": 60,
        "cells_per_job": 4,
        "methods": {"dear": {"time": 600, "mem": "64GB"}},
    }
    options = read_options(given, METHODS, KEYS)
    usual, dear = options.of("vanilla").sbatch(), options.of("dear").sbatch()
    assert (usual["time"], dear["time"]) == (60, 600)
    assert {k: v for k, v in dear.items() if k not in ("time", "mem")} == {
        k: v for k, v in usual.items() if k != "time"
    }
    assert dear["mem"] == "64GB"
    assert dear["partition"] == "gpu"
    assert usual["additional_parameters"] == {"requeue": True}
    assert "cells_per_job" not in usual
    assert options.of("dear").cells_per_job == 4


def test_the_device_is_that_of_the_jobs(tmp_path):
    def device(asked, **settings):
        return SlurmLauncher.place({"settings": settings, "methods": METHODS, "run": tmp_path}, asked).device

    assert device("auto") == "cpu"
    assert device("auto", gpus_per_node=1) == "cuda"
    assert device("cpu", gpus_per_node=1) == "cpu"
    assert device("cuda") == "cuda"


def test_submitit_is_asked_for_only_when_it_is_needed(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(KdbenchError, match=r"pip install 'kdbench\[slurm\]'"):
        SlurmLauncher.place({"run": tmp_path}, "cpu")


def test_teachers_come_first_and_each_set_of_resources_has_an_array():
    teacher, other = job(1), job(2)
    learns, dear = job(3, after=(teacher.cell_id,)), job(4, "dear", (other.cell_id,))
    alone, orphan = job(5), job(6, after=("f" * 64,))
    options = Options(cells_per_job=2, methods={"dear": {"time": 9, "cells_per_job": 1}})
    jobs = [learns, dear, teacher, other, alone, orphan]
    made = [(a.resources.time, a.groups) for a in arrays(jobs, options, lambda j: j.cost)]
    assert made == [
        (60, ((teacher, alone), (other, orphan))),
        (60, ((learns,),)),
        (9, ((dear,),)),
    ]


def test_groups_are_few_and_about_equal():
    jobs = [job(n, cost=n) for n in range(1, 8)]
    groups = grouped(jobs, 3, lambda j: j.cost)
    assert [[j.cost for j in g] for g in groups] == [[7, 4, 1], [6, 3], [5, 2]]
    assert grouped(jobs, 100, lambda j: j.cost) == [tuple(reversed(jobs))]


def test_arrays_have_a_largest_size():
    jobs = [job(n) for n in range(MOST_TASKS + 1)]
    made = list(arrays(jobs, Options(), lambda j: 1.0))
    assert [len(a.groups) for a in made] == [MOST_TASKS, 1]


def test_queue_of_arrays_and_lone_jobs():
    text = "one|12|0\none|12|7\ntwo|13|N/A\n\nslurm: a word\n"
    assert parse(text) == {"one": ("12", frozenset({0, 7})), "two": ("13", frozenset({0}))}

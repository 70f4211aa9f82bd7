"""``precision: auto`` and ``compile: auto`` are settled before cells have ids."""

import pytest
from matrices import RECIPE, write_matrix

from kdbench.engine.precision import Precision, automatic
from kdbench.errors import KdbenchError
from kdbench.launch.plan import Planner
from kdbench.launch.precision import settle
from kdbench.launch.progress import PlainProgress
from kdbench.launch.session import Options, Session
from kdbench.matrix import expand, load_matrix
from kdbench.registry import Registry
from kdbench.results.store import RunFolder


class Asked:
    """A resolver that knows one answer, and keeps the questions."""

    def __init__(self, **answer):
        self.answer, self.questions = {"error": None, **answer}, []

    def ask(self, questions):
        self.questions += questions
        return [self.answer]


@pytest.fixture
def load(tmp_path):
    def make(precision, compile="none", **overrides):
        recipe = {**RECIPE, "precision": precision, "compile": compile}
        path = write_matrix(tmp_path / "m.yaml", name="m", recipe=recipe, **overrides)
        return load_matrix(str(path))

    return make


def test_one_answer_holds_for_all_cells_and_their_teachers(load):
    resolver = Asked(auto="bf16", device="cuda")
    specs = expand(load("auto", methods=["vanilla", "kd"], seeds=2)).cells
    cells, lines = settle(specs, resolver, "cuda")
    assert lines == ["precision auto: bf16 on this GPU, which has units for it"]
    assert {c.recipe.precision for c in cells} == {"bf16"}
    assert {c.teacher.recipe.precision for c in cells if c.teacher} == {"bf16"}
    assert [q["device"] for q in resolver.questions] == ["cuda"]


def test_nothing_is_asked_where_every_recipe_says(load):
    resolver = Asked(auto="bf16")
    cells = list(expand(load("fp32")).cells)
    assert settle(cells, resolver, "cpu") == (cells, [])
    assert resolver.questions == []


@pytest.mark.parametrize(
    ("precision", "line"),
    [
        ("bf16", "precision auto: bf16 on this CPU, which need not be faster for small networks"),
        ("fp32", "precision auto: fp32 on this CPU, which has no units for bf16"),
    ],
)
def test_what_it_stands_for_is_told(load, precision, line):
    resolver = Asked(auto=precision, device="cpu")
    assert settle(expand(load("auto")).cells, resolver, "auto")[1] == [line]


def test_a_plan_says_it_first(load, tmp_path):
    registry = Registry.load()
    plan = Planner(registry, load("auto"), RunFolder(tmp_path / "run"), (), "cpu").plan()
    session = Session(registry, plan, Options(sinks=("none",), device="cpu"), PlainProgress())
    assert plan.notes == session.sharing()[:1]
    assert plan.notes[0].startswith(f"precision auto: {automatic('cpu')} on this CPU")


def test_a_device_that_is_not_there_is_an_error(load):
    with pytest.raises(KdbenchError, match="no usable CUDA"):
        settle(expand(load("auto")).cells, Asked(error="no usable CUDA device"), "cuda")


def test_the_cell_id_is_that_of_the_precision_itself(load, tmp_path):
    def ids(precision):
        run = RunFolder(tmp_path / "run")
        plan = Planner(Registry.load(), load(precision), run, (), "cpu").plan()
        assert {c.file.recipe.precision for c in plan.cells} <= {"fp32", "bf16"}
        return {c.id for c in plan.cells}

    assert ids("auto") == ids(automatic("cpu"))


@pytest.mark.parametrize(("device", "compiled"), [("cpu", "none"), ("cuda", "auto")])
def test_on_a_cpu_nothing_compiles_by_itself(load, device, compiled):
    specs = expand(load("fp32", compile="auto", methods=["kd"])).cells
    cells, lines = settle(specs, Asked(auto="bf16", device=device), "auto")
    assert {(c.recipe.compile, c.recipe.precision) for c in cells} == {(compiled, "fp32")}
    assert lines == (["compile auto: none on the CPU"] if device == "cpu" else [])


def test_cells_of_compile_auto_form_gangs_on_a_cpu(load, tmp_path):
    def told(compile):
        matrix = load("fp32", compile=compile, methods=["kd", "dkd"])
        plan = Planner(registry, matrix, RunFolder(tmp_path / "run"), (), "cpu").plan()
        session = Session(registry, plan, Options(device="cpu", workers=1), PlainProgress())
        return {c.id for c in plan.cells}, session.sharing()

    registry = Registry.load()
    ids, lines = told("auto")
    assert ids == told("none")[0]
    assert lines[0] == "compile auto: none on the CPU"
    assert lines[-1] == "2 of 3 cells share batches and teacher, in 1 gang"
    assert told("graph")[1][-1] == (
        "warning: 3 cell(s) have recipe.compile: graph, which needs a GPU, and here is none"
    )


def test_it_never_reaches_the_engine():
    import torch

    with pytest.raises(KdbenchError, match="auto"):
        Precision("auto", torch.device("cpu"))

"""``kdbench tune`` from a matrix to ``tuned.json``, with sessions that train nothing but leave records."""

from __future__ import annotations

import json

import pytest
from factories import make_record
from matrices import STUDENT, TEACHER, write_matrix

from kdbench.errors import KdbenchError, MatrixError
from kdbench.launch import tune
from kdbench.launch.plan import Planner
from kdbench.launch.session import Options
from kdbench.launch.tune import Tuner
from kdbench.matrix import load_matrix
from kdbench.matrix.studies import read_studies
from kdbench.registry import Registry
from kdbench.results.lease import Lease
from kdbench.results.store import RunFolder

TUNE = {"trials": 2, "seeds": [9]}
#: One parameter of whole numbers, so that trials of all tests ask the same questions of the planner.
ONE = {"kd": {"temperature": {"choices": [1.0, 2.0, 4.0]}}}
BOTH = {"search": {**ONE, "dkd": ONE["kd"]}}


@pytest.fixture(scope="module")
def registry():
    return Registry.load()


@pytest.fixture
def sessions(monkeypatch):
    """Replace sessions by one that leaves a record in each open cell; a list of the cells, and who fails."""

    class Fake:
        ran: list = []
        outcome = staticmethod(lambda cell: "done")
        stop_after: int | None = None

        def __init__(self, registry, plan, options, progress):
            self.plan, self.options = plan, options

        def open_cells(self):
            cells = [c for c in self.plan.cells if c.status in ("to run", "interrupted")]
            return [c for c in cells if c.spec.role == "teacher" or not self.options.only_teachers]

        def run(self):
            for cell in self.open_cells():
                if Fake.stop_after is not None and len(Fake.ran) >= Fake.stop_after:
                    cell.status = "interrupted"
                    return True
                Fake.ran.append(cell)
                cell.status = Fake.outcome(cell)
                temperature = cell.file.params.get("temperature", 0.0)
                seen = {"metric": "top1", "higher_is_better": True, "best": 90.0, "last": 50.0 + temperature}
                record = make_record(
                    cell_id=cell.id,
                    identity=cell.file.identity,
                    labels=cell.file.labels.model_dump(),
                    status=cell.status,
                    validation=seen if cell.spec.role == "trial" else None,
                )
                cell.folder.mkdir(parents=True, exist_ok=True)
                (cell.folder / "result.json").write_text(json.dumps(record))
                (cell.folder / "model.safetensors").write_bytes(b"")
            return False

    monkeypatch.setattr(tune, "Session", Fake)
    Fake.ran = []
    return Fake


@pytest.fixture
def tuner(tmp_path, registry):
    def make(only=(), block=None, **overrides):
        content = {
            "methods": ["vanilla", "kd"],
            "tune": {**TUNE, "search": ONE, **(block or {})},
            **overrides,
        }
        loaded = load_matrix(write_matrix(tmp_path / "m.yaml", **content))
        options = Options(device="cpu")
        return Tuner(registry, loaded, RunFolder(tmp_path / "run"), options, lambda: None, only)

    return make


def told(tmp_path):
    return {s.variant: s for s in read_studies(tmp_path / "run").values()}


def test_every_method_gets_the_budget_and_a_larger_one_goes_on(tmp_path, tuner, sessions):
    assert tuner(block=BOTH, methods=["kd", "dkd"]).run(2) is False
    assert {name: len(s.trials) for name, s in told(tmp_path).items()} == {"kd": 2, "dkd": 2}
    roles = [c.spec.role for c in sessions.ran]
    assert roles[0] == "teacher"
    assert set(roles[1:]) == {"trial"}
    before = [t.model_dump() for t in told(tmp_path)["kd"].trials]
    assert tuner(only=["kd"], block=BOTH, methods=["kd", "dkd"]).run(3) is False
    after = told(tmp_path)
    assert [t.model_dump() for t in after["kd"].trials][:2] == before
    assert {name: len(s.trials) for name, s in after.items()} == {"kd": 3, "dkd": 2}
    assert all(t.value == 50.0 + t.params["temperature"] for t in after["kd"].trials)


def test_trials_have_a_folder_of_their_own_and_the_runs_teacher(tmp_path, tuner, sessions):
    tuner(only=["kd"]).run(1)
    teacher, trial = sessions.ran
    assert (tmp_path / "run/cells" / teacher.id / "result.json").exists()
    assert not (tmp_path / "run/cells" / teacher.id).is_symlink()
    assert [p.name for p in (tmp_path / "run/cells").iterdir()] == [teacher.id]
    assert trial.folder == tmp_path / "run/tune/cells" / trial.id
    assert (trial.spec.seed, trial.file.labels.variant, trial.file.trial) == (9, "kd #0", True)
    assert trial.folder.parent / trial.file.teachers[0].ref == teacher.folder
    assert [r["cell_id"] for _, r in RunFolder(tmp_path / "run").records()] == [teacher.id]


def test_trials_that_fail_count(tmp_path, tuner, sessions):
    sessions.outcome = staticmethod(lambda cell: "diverged" if cell.spec.role == "trial" else "done")
    assert tuner(only=["kd"]).run(2) is False
    assert [(t.status, t.value) for t in told(tmp_path)["kd"].trials] == [("diverged", None)] * 2
    ran = len(sessions.ran)
    tuner(only=["kd"]).run(2)
    assert len(sessions.ran) == ran


def test_an_interrupted_trial_runs_again_with_its_values(tmp_path, tuner, sessions):
    sessions.stop_after = 1
    assert tuner(only=["kd"]).run(3) is True
    assert told(tmp_path)["kd"].trials == []
    sessions.stop_after = None
    assert tuner(only=["kd"]).run(3) is False
    assert [t.number for t in told(tmp_path)["kd"].trials] == [0, 1, 2]


def test_no_search_without_its_teacher(tmp_path, tuner, sessions):
    sessions.outcome = staticmethod(lambda cell: "failed" if cell.spec.role == "teacher" else "done")
    with pytest.raises(KdbenchError, match=r"\(teacher\): failed: .*no search without its teacher"):
        tuner(only=["kd"]).run(2)
    assert told(tmp_path)["kd"].trials == []


def test_a_value_is_the_mean_over_the_seeds(tmp_path, tuner, sessions):
    one = tuner(only=["kd"], block={"seeds": [9, 10], "select": "best"})
    one.run(1)
    assert [c.spec.seed for c in sessions.ran[1:]] == [9, 10]
    assert [t.value for t in told(tmp_path)["kd"].trials] == [90.0]


def test_a_trial_fails_with_any_of_its_seeds(tmp_path, tuner, sessions):
    sessions.outcome = staticmethod(lambda cell: "oom" if cell.spec.seed == 10 else "done")
    tuner(only=["kd"], block={"seeds": [9, 10]}).run(1)
    assert [(t.status, t.value) for t in told(tmp_path)["kd"].trials] == [("oom", None)]


def test_the_run_takes_what_was_found(tmp_path, tuner, sessions, registry):
    one = tuner()
    assert one.run(2) is False
    found = told(tmp_path)
    assert (found["vanilla"].space, found["vanilla"].trials) == ({}, [])
    loaded = load_matrix(tmp_path / "m.yaml")
    plan = Planner(registry, loaded, RunFolder(tmp_path / "run"), ()).plan()
    teacher, *students = plan.cells
    assert (teacher.status, teacher.file.labels.track) == ("done", "default")
    assert [(c.file.labels.variant, c.file.labels.track) for c in students] == [
        ("vanilla", "default"),
        ("kd", "default"),
        ("vanilla", "per-pair-tuned"),
        ("kd", "per-pair-tuned"),
    ]
    kd = students[-1].file
    best = found["kd"].best(2)
    assert kd.params["temperature"] == best.params["temperature"]
    assert (kd.tuning.value, kd.tuning.trials, kd.tuning.space) == (best.value, 2, ONE["kd"])
    assert kd.tuning.pair == f"{TEACHER}->{STUDENT}"
    assert students[2].file.tuning.trials == 0
    assert len({c.id for c in plan.cells}) == 5


def test_what_cannot_be_is_told_and_takes_no_trial(tmp_path, tuner, sessions):
    one = tuner(pairs=[{"teacher": None, "student": STUDENT}])
    assert one.run(2) is False
    assert sessions.ran == []
    assert told(tmp_path)["kd"].reason == "needs 1 teacher(s), the pair has none"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"only": ["kdd"]}, "--method kdd: the matrix has no such method (did you mean 'kd'"),
        ({"tune": None}, "the matrix has no 'tune' block"),
        (
            {"block": {"search": {"kd": {"temperatur": {"choices": [1.0, 2.0]}}}}},
            "no hyper-parameter 'temperatur' (did you mean 'temperature'?)",
        ),
        (
            {"block": {"search": {"kd": {"temperature": {"low": -1.0, "high": 2.0}}}}},
            "the space of 'kd': method 'kd': temperature: Input should be greater than 0",
        ),
        ({"recipe": {"base": "quick", "epochs": 2, "val_fraction": 0.0}}, "recipe.val_fraction is 0"),
    ],
)
def test_bad_input(tuner, given, said):
    with pytest.raises((MatrixError, KdbenchError)) as error:
        tuner(**given)
    assert said in str(error.value)


def test_two_at_a_time_is_refused(tmp_path, tuner, sessions):
    (tmp_path / "run").mkdir()
    lease = Lease(tmp_path / "run")
    assert lease.take()
    with pytest.raises(KdbenchError, match="another kdbench is running this matrix"):
        tuner(only=["kd"]).run(1)
    lease.close()

"""Which cells an invocation takes up, and what becomes of events, with a launcher that trains nothing."""

import errno
import json
import os
import re
import signal
from types import SimpleNamespace

import pytest
from factories import make_record, signed
from matrices import write_matrix

from kdbench.errors import KdbenchError, MatrixError
from kdbench.hooks import Place
from kdbench.launch.aside import set_aside
from kdbench.launch.local import LocalLauncher
from kdbench.launch.looking import costs, facts_of
from kdbench.launch.mirror import Mirrors
from kdbench.launch.plan import Planner
from kdbench.launch.progress import PlainProgress
from kdbench.launch.session import Options, Session
from kdbench.matrix import load_matrix
from kdbench.registry import Registry
from kdbench.results.lease import Lease
from kdbench.results.store import RunFolder


@pytest.fixture(scope="module")
def registry():
    return Registry.load()


@pytest.fixture
def plan(tmp_path, registry):
    path = write_matrix(tmp_path / "m.yaml", name="m", methods=["vanilla", "kd", "dkd"])
    return Planner(registry, load_matrix(str(path)), RunFolder(tmp_path / "run"), ()).plan()


@pytest.fixture
def session(plan, registry, monkeypatch):
    """Make a session whose launcher writes the given statuses, by method; ``died`` ones leave no record."""

    def make(outcomes=None, **options):
        made = Session(registry, plan, Options(sinks=("none",), device="cpu", **options), PlainProgress())
        monkeypatch.setattr(made, "_devices", lambda cells: ("cpu", 0))

        def launch(jobs, gpus, hear):
            made.jobs = jobs
            for job in jobs:
                cell = made._cells[job.cell_id]
                hear({"event": "started", "cell_id": job.cell_id})
                status = (outcomes or {}).get(cell.file.method, "done")
                if status == "died":
                    told = {"event": "died", "status": "crashed", "message": "gone"}
                    hear({**told, "cell_id": job.cell_id})
                    continue
                put(cell, status)
                hear({"event": "finished", "cell_id": job.cell_id})

        monkeypatch.setattr(made, "_launch", launch)
        return made

    return make


def put(cell, status):
    cell.folder.mkdir(parents=True, exist_ok=True)
    record = make_record(
        cell_id=cell.id, identity=cell.file.identity, labels=cell.file.labels.model_dump(), status=status
    )
    (cell.folder / "result.json").write_text(json.dumps(record))


def chosen(session):
    return [(c.file.labels.role, c.file.method) for c in session.open_cells()]


ALL = [("teacher", "vanilla"), ("student", "vanilla"), ("student", "kd"), ("student", "dkd")]


def test_open_cells(plan, session):
    assert chosen(session()) == ALL
    assert chosen(session(only_teachers=True)) == ALL[:1]
    teacher, vanilla, kd, dkd = plan.cells
    teacher.status = vanilla.status = "done"
    kd.status, dkd.status = "crashed", "interrupted"
    assert chosen(session()) == ALL[3:]
    assert chosen(session(rerun="failed")) == ALL[2:]
    assert chosen(session(rerun="all")) == ALL
    vanilla.stale = True
    assert chosen(session(rerun="changed")) == [ALL[1], ALL[3]]
    dkd.status = "not_applicable"
    assert chosen(session(rerun="all")) == ALL[:3]


def test_students_open_again_with_their_teacher(plan, session):
    _, vanilla, kd, dkd = plan.cells
    vanilla.status = "failed"
    kd.status = "failed"
    dkd.status = "done"
    # the teacher is to run: the student that waited for it comes along, the one that failed by itself does not
    assert chosen(session()) == [ALL[0], ALL[2]]


def test_run_leaves_records_and_statuses(plan, session):
    made = session({"kd": "failed", "dkd": "died"})
    assert made.run() is False
    assert [c.status for c in plan.cells] == ["done", "done", "failed", "crashed"]
    assert plan.cells[3].reason == "gone"
    record = json.loads((plan.cells[3].folder / "result.json").read_text())
    assert (record["status"], record["error"]["message"]) == ("crashed", "gone")
    for cell in plan.cells:
        written = json.loads((cell.folder / "cell.json").read_text())
        assert (written["cell_id"], written["device"], written["threads"]) == (cell.id, "cpu", 1)
    assert json.loads((plan.run.path / "matrix.json").read_text())["name"] == "m"


def test_jobs_name_their_teachers_only_while_these_run(plan, session):
    made = session()
    made.run()
    assert [job.after for job in made.jobs] == [(), (), (plan.cells[0].id,), (plan.cells[0].id,)]
    for cell in plan.cells[2:]:
        cell.status = "failed"
    again = session(rerun="failed")
    again.run()
    assert [job.after for job in again.jobs] == [(), ()]


def test_earlier_results_are_put_aside(plan, session):
    kd = plan.cells[2]
    put(kd, "failed")
    first = (kd.folder / "result.json").read_bytes()
    (kd.folder / "checkpoint.safetensors").write_bytes(b"state")
    kd.status = "failed"
    session(rerun="failed").run()
    assert (kd.folder / "previous" / "result-1.json").read_bytes() == first
    assert not (kd.folder / "checkpoint.safetensors").exists()  # failed by its own code: from nothing
    (kd.folder / "checkpoint.safetensors").write_bytes(b"state")
    put(kd, "timeout")
    kd.status = "timeout"
    session(rerun="failed").run()
    assert len(list((kd.folder / "previous").iterdir())) == 2
    assert (kd.folder / "checkpoint.safetensors").exists()  # cut from outside: goes on


@pytest.mark.parametrize("status", ["failed", "done"])
@pytest.mark.parametrize("moment", ["pathlib.Path.unlink", "pathlib.Path.rename"])
def test_a_kill_while_a_cell_makes_way_leaves_nothing_to_go_on_from(plan, monkeypatch, status, moment):
    kd = plan.cells[2]
    put(kd, status)
    (kd.folder / "checkpoint.safetensors").write_bytes(b"state of the code before")
    kd.status = status

    def kill(*arguments, **more):
        raise KeyboardInterrupt

    monkeypatch.setattr(moment, kill)
    with pytest.raises(KeyboardInterrupt):
        set_aside(kd, keep_done=False)
    assert facts_of(kd.folder).status == status


def test_records_that_are_of_no_use_are_told_once(plan, session, capsys):
    kd = plan.cells[2]
    put(kd, "done")
    path, there = kd.folder / "result.json", kd.folder / "previous" / "result-1.json"
    edited = {**signed(json.loads(path.read_text())), "status": "failed"}
    path.write_text(json.dumps(edited))
    session().run()
    why = (
        f"its record cannot be read: {path}: content_sha256 is not the digest of the content: the record was "
    )
    where = "it is put aside as previous/result-1.json, and the cell runs again"
    told = f"note: {kd.label}: {why}edited after it was written; {where}"
    assert capsys.readouterr().err.splitlines().count(told) == 1
    assert json.loads(there.read_text()) == edited


def test_a_record_that_the_file_system_does_not_give_stays(plan, session, monkeypatch):
    kd = plan.cells[2]
    put(kd, "done")
    real = os.stat

    def stall(path, *more, **how):
        if path == kd.folder / "result.json" and not how:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return real(path, *more, **how)

    monkeypatch.setattr("kdbench.results.store.os.stat", stall)
    monkeypatch.setattr("pathlib.Path.exists", os.path.lexists)  # it is there, for all that anybody can tell
    with pytest.raises(KdbenchError, match="Stale file handle"):
        session().run()
    assert not (kd.folder / "previous").is_dir()


def test_a_note_about_a_cell_names_it(plan, session, capsys):
    kd = plan.cells[2]
    made = session()
    made._launch = lambda jobs, gpus, hear: hear({"event": "note", "cell_id": kd.id, "message": "something"})
    made.run()
    assert f"note: {kd.label}: something" in capsys.readouterr().err.splitlines()


def test_damaged_record_of_a_cell_that_cannot_be(plan, session, capsys):
    kd = plan.cells[2]
    kd.status, kd.reason = "not_applicable", "needs what is not there"
    kd.folder.mkdir(parents=True)
    (kd.folder / "result.json").write_text("{")
    session().run()
    assert json.loads((kd.folder / "result.json").read_text())["status"] == "not_applicable"
    there = kd.folder / "previous" / "result-1.json"
    assert there.read_text() == "{"
    assert "; it is put aside as previous/result-1.json\n" in capsys.readouterr().err


def test_a_result_of_a_cell_that_cannot_be_any_more_stays(plan, session, capsys):
    kd = plan.cells[2]
    put(kd, "done")
    kd.status, kd.reason = "not_applicable", "needs what is not there"
    before = (kd.folder / "result.json").read_bytes()
    session().run()
    assert (kd.folder / "result.json").read_bytes() == before
    told = f"note: {kd.label}: not applicable by now: needs what is not there; its earlier result stays"
    assert told in capsys.readouterr().err.splitlines()


def test_not_applicable_cells_get_a_record(plan, session):
    kd = plan.cells[2]
    kd.status, kd.reason = "not_applicable", "needs what is not there"
    session().run()
    record = json.loads((kd.folder / "result.json").read_text())
    assert record["status"] == "not_applicable"
    assert record["error"]["message"] == "needs what is not there"


def test_second_run_of_the_folder_is_refused(plan, session):
    plan.run.path.mkdir(parents=True)
    lock = Lease(plan.run.path)
    assert lock.take()
    with pytest.raises(KdbenchError, match="another kdbench is running this matrix"):
        session().run()
    lock.close()
    assert session().run() is False


def test_finished_result_survives_a_death(plan, session, capsys):
    """A finished teacher that is trained again for its route, and dies, keeps its record."""
    teacher = plan.cells[0]
    put(teacher, "done")
    kept = (teacher.folder / "result.json").read_bytes()
    teacher.status = "to run"
    session({"vanilla": "died"}).run()
    assert (teacher.folder / "result.json").read_bytes() == kept
    assert "gone; its earlier result stays" in capsys.readouterr().err


def test_shares_of_the_machine_reach_the_cells(plan, session, capsys, monkeypatch):
    monkeypatch.setattr("kdbench.launch.session.cores", lambda: 6)
    session(workers=2).run()
    seen = {(f["threads"], f["loaders"]) for f in map(written, plan.cells)}
    assert seen == {(1, 2)}
    session(rerun="all", workers=2, threads=4).run()
    assert {(f["threads"], f["loaders"]) for f in map(written, plan.cells)} == {(4, 0)}
    assert "2 worker(s) with 4 thread(s) each are more than the 6 core(s)" in capsys.readouterr().err


def test_what_does_not_go_with_the_machine_is_told_by_plan_and_run(session, capsys, monkeypatch):
    monkeypatch.setattr("kdbench.launch.session.cores", lambda: 2)
    made = session(workers=2, threads=2, slots_per_gpu=3)
    warnings = [line for line in made.sharing() if line.startswith("warning: ")]
    assert [line[:43] for line in warnings] == [
        "warning: 2 worker(s) with 2 thread(s) each ",
        "warning: --slots-per-gpu changes nothing: c",
    ]
    made.run()
    assert [x for x in capsys.readouterr().err.splitlines() if x.startswith("warning: ")] == warnings
    assert not [line for line in session(workers=2).sharing() if "warning" in line]


def written(cell):
    return json.loads((cell.folder / "cell.json").read_text())


def test_time_left_is_told_once_a_cell_is_done(plan, session, capsys):
    made = session()
    assert made.expected() == "expected time: unknown before the first cells"
    made.run()
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("done")]
    assert len(lines) == 4
    assert all(re.search(r"left \d+:\d\d\)$", line) for line in lines)
    assert lines[-1].endswith("(4/4, left 0:00)")


def test_the_plan_and_the_run_expect_the_same(plan, session, capsys):
    """Also of cells that share: the time is that of gangs, before they are launched."""
    put(plan.cells[1], "done")
    record = json.loads((plan.cells[1].folder / "result.json").read_text())
    plan.cells[1].status, plan.cells[1].seen = "done", {**costs(record), "device": "cpu"}
    alone = session(workers=1, gang="off").expected()
    expected = session(workers=1).expected()
    assert expected != alone
    session(workers=1).run()
    assert [line for line in capsys.readouterr().err.splitlines() if "expected" in line] == [expected]


def test_cells_that_are_cut_are_no_progress(plan, session, capsys, monkeypatch):
    made = session()

    def launch(jobs, gpus, hear):
        for job, kind in zip(jobs, ("finished", "interrupted", "interrupted", "finished"), strict=True):
            hear({"event": "started", "cell_id": job.cell_id})
            if kind == "finished":
                put(made._cells[job.cell_id], "done")
            hear({"event": kind, "cell_id": job.cell_id})

    monkeypatch.setattr(made, "_launch", launch)
    made.run()
    told = capsys.readouterr().err.splitlines()
    assert [
        line.endswith("the same command resumes it") for line in told if line.startswith("interrupted")
    ] == [
        True,
        True,
    ]
    assert [re.search(r"\((\d/\d)", line)[1] for line in told if line.startswith("done")] == ["1/4", "2/4"]


def test_the_plan_is_told_before_the_sinks_are_opened(session, monkeypatch, capsys):
    made = session(workers=1)

    def opened(facts, uri):
        raise KdbenchError("no further")

    monkeypatch.setattr(made._mirrors, "open", opened)
    with pytest.raises(KdbenchError, match="no further"):
        made.run()
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "m: 4 cell(s) to run, 0 finished before"
    assert lines[-1] == "2 of 4 cells share batches and teacher, in 1 gang"


def test_cells_that_run_again_are_told_as_done_before(plan, session, capsys):
    plan.cells[1].status = plan.cells[2].status = "done"
    session(rerun="all").run()
    assert capsys.readouterr().err.splitlines()[0] == "m: 4 cell(s) to run, 2 of them done before"


def test_a_line_is_told_once(session, capsys):
    made = session(workers=1)
    made.run()
    made._tell(made.sharing())
    lines = capsys.readouterr().err.splitlines()
    assert sum("in 1 gang" in line for line in lines) == 1


def test_costs_follow_the_operations_before_anything_is_known(plan, session):
    made = session()
    made.run()
    cost = {(job.label.split(" ")[0], job.after != ()): job.cost for job in made.jobs}
    assert cost["kd", True] > cost["vanilla", False] > 1e6


def test_what_would_share_is_told_and_nothing_is_written(session, tmp_path):
    assert session(workers=1).sharing()[-1] == "2 of 4 cells share batches and teacher, in 1 gang"
    assert not any("gang" in line for line in session(workers=1, gang="off").sharing())
    assert not (tmp_path / "run").exists()


def test_cells_that_compile_are_told_where_they_would_share(plan, session):
    for cell in plan.cells:
        cell.change(recipe=cell.file.recipe.model_copy(update={"compile": "default"}))
    line = "4 cell(s) compile, so each runs in a process of its own"
    assert session(workers=1).sharing()[-1] == line
    assert line not in session(workers=1, gang="off").sharing()


def test_launchers_that_know_no_gangs_get_every_cell_alone(session, capsys):
    made = session(workers=1, gang="auto")
    made.run()
    assert made._arrange(made.jobs, 1, object) == made.jobs
    assert "warning: the launcher 'local' runs every cell alone" in capsys.readouterr().err
    assert [len(j.gang) for j in made._arrange(made.jobs, 1, LocalLauncher)] == [0, 0, 2]


class Elsewhere:
    """A launcher whose cells run on other machines."""

    asked = []

    def __init__(self, options):
        self.options = options

    @classmethod
    def place(cls, options, device):
        cls.asked.append((options, device))
        return Place(device="cuda", cores=6, leaving="they go on", news=True)


@pytest.fixture
def elsewhere(plan, registry, monkeypatch):
    """A session with such a launcher, which runs what a test puts in as ``work(launcher, jobs, report, stop)``."""
    monkeypatch.setattr("kdbench.launch.local.LocalLauncher", Elsewhere)
    Elsewhere.asked.clear()

    def make(work, **options):
        Elsewhere.run = work
        return Session(registry, plan, Options(sinks=("none",), **options), PlainProgress())

    return make


def test_cells_elsewhere_are_no_matter_of_this_machine(plan, elsewhere, monkeypatch):
    monkeypatch.setattr("kdbench.launch.session.warm_up", lambda: pytest.fail("no worker runs here"))
    monkeypatch.setattr("kdbench.launch.session.Resolver", lambda *_: pytest.fail("no GPU is asked for here"))
    monkeypatch.setattr("kdbench.launch.session.SystemSampler", lambda *_: pytest.fail("no load is sampled"))
    seen = []
    elsewhere(lambda self, jobs, report, stop: seen.extend([self.options, jobs])).run()
    options, jobs = seen
    assert Elsewhere.asked == [({k: options[k] for k in ("settings", "methods", "run")}, "auto")]
    assert (options["settings"], options["methods"]) == ({}, {"vanilla", "kd", "dkd"})
    assert options["run"] == plan.run.path
    assert options["workers"] == len(jobs) == len(ALL)
    assert [job.method for job in jobs] == [method for _, method in ALL]
    cell = json.loads((jobs[0].folder / "cell.json").read_text())
    assert (cell["device"], cell["threads"], cell["loaders"]) == ("cuda", None, 4)


def test_workers_bound_what_runs_elsewhere(elsewhere):
    seen = []
    elsewhere(lambda self, *_: seen.append(self.options["workers"]), workers=2).run()
    assert seen == [2]


def test_endings_from_before_are_mirrored_and_no_progress(plan, elsewhere, monkeypatch, capsys):
    for cell in plan.cells:
        put(cell, "done")
        cell.status = "done"
    mirrored = []

    def work(self, jobs, report, stop):
        assert jobs == []
        report({"event": "note", "message": "a word"})
        for cell in (plan.cells[1].id, "0" * 64):  # the other is in the matrix no more
            report({"event": "found", "cell_id": cell})

    session = elsewhere(work)
    assert session.open_cells() == []
    assert not session.idle()
    monkeypatch.setattr(session._mirrors, "write", lambda folder: mirrored.append(folder.name))
    assert not session.run()
    assert mirrored == [plan.cells[1].id]
    told = capsys.readouterr().err
    assert "a word" in told
    assert "done " not in told


def test_an_ending_without_a_record_of_a_cell_that_does_not_run_now(plan, elsewhere):
    """Such as one that crashed in a job of Slurm, where the next command is for the teachers alone."""
    told = []
    session = elsewhere(
        lambda self, jobs, report, stop: told.append(report({"event": "found", "cell_id": kd.id}))
    )
    kd = plan.cells[2]
    assert not session.run()
    assert told == [None]


def test_parent_that_lost_the_run_folder_writes_no_failure(plan, elsewhere, capsys):
    def work(self, jobs, report, stop):
        (plan.run.path / ".lease-2").write_text(json.dumps({"token": "other", "host": "node7", "pid": 12}))
        (plan.run.path / ".lease-1").unlink()
        for job in jobs:
            report({"event": "died", "cell_id": job.cell_id, "status": "crashed", "message": "it ended"})

    assert elsewhere(work).run()
    assert not list(plan.run.path.glob("cells/*/result.json"))
    assert "another kdbench took over the run folder" in capsys.readouterr().err


def test_leaving_is_told_as_the_launcher_says(elsewhere, capsys):
    def work(self, jobs, report, stop):
        signal.raise_signal(signal.SIGINT)
        assert stop() == 1

    assert elsewhere(work).run()
    assert "they go on" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"slrum": {}}, "slrum: unknown launcher 'slrum' (did you mean 'slurm'?)"),
        ({"local": {"workers": 2}}, "local.workers: the launcher 'local' takes no options"),
        ({"slurm": {}, "ray": {"num_cpu": 1}}, "ray.num_cpu: unknown key (did you mean 'num_cpus' "),
        ({"slurm": {"time": 9, "tiem": 1}}, "slurm.tiem: unknown key (did you mean 'time'?)"),
        (
            {"slurm": {"methods": {"dkt": {}}}},
            "slurm.methods.dkt: the matrix has no such method (did you mean",
        ),
    ],
)
def test_options_that_a_launcher_does_not_take(registry, tmp_path, given, told):
    """Of any launcher, though another one is chosen; told where they stand."""
    path = write_matrix(tmp_path / "m.yaml", name="m", methods=["dkd"], launcher_options=given)
    plan = Planner(registry, load_matrix(str(path)), RunFolder(tmp_path / "run"), ()).plan()
    with pytest.raises(MatrixError) as e:
        Session(registry, plan, Options(sinks=("none",), device="cpu"), PlainProgress())
    key = told.partition(": ")[0].rpartition(".")[2]
    (line,) = [
        n for n, text in enumerate(path.read_text().splitlines(), 1) if text.strip().startswith(f"{key}:")
    ]
    assert str(e.value).startswith(f"{path}:{line}: launcher_options.{told}")


def test_an_option_of_the_command_line(registry, tmp_path):
    path = write_matrix(tmp_path / "m.yaml", name="m", launcher_options={"ray": {"memory": "16G"}})
    loaded = load_matrix(str(path), sets=["launcher_options.ray.memory=16Gi"])
    plan = Planner(registry, loaded, RunFolder(tmp_path / "run"), ()).plan()
    line = "^--set launcher_options.ray.memory: expected a size such as 16GiB or 16G, or .*, got '16Gi'$"
    with pytest.raises(MatrixError, match=line):
        Session(registry, plan, Options(sinks=("none",), device="cpu"), PlainProgress())


def test_options_for_a_method_that_is_left_out(registry, tmp_path):
    given = {"slurm": {"methods": {"dkd": {"time": 5}, "vanilla": {"time": 5}}}}
    path = write_matrix(tmp_path / "m.yaml", name="m", methods=["kd", "dkd"], launcher_options=given)
    plan = Planner(registry, load_matrix(str(path)), RunFolder(tmp_path / "run"), ()).plan(["method=kd"])
    Session(registry, plan, Options(sinks=("none",), device="cpu"), PlainProgress())


def test_sinks_are_closed_once(registry, monkeypatch):
    """Ctrl-C while a slow store is closed has the session close it again."""
    closed = []

    class Sink:
        def open(self, matrix, uri):
            pass

        def close(self, status):
            closed.append(status)

    monkeypatch.setattr(registry, "get", lambda kind, name: SimpleNamespace(load=lambda: Sink))
    mirrors = Mirrors(registry, ("slow",), pytest.fail, "")
    mirrors.open({}, None)
    mirrors.close("finished")
    mirrors.close("failed")
    assert closed == ["finished"]


def test_a_sink_that_fails_tells_no_password(registry, monkeypatch):
    class Sink:
        def open(self, matrix, uri):
            raise ValueError(f"API request to {uri}/api failed")

    told = []
    monkeypatch.setattr(registry, "get", lambda kind, name: SimpleNamespace(load=lambda: Sink))
    mirrors = Mirrors(registry, ("slow",), told.append, "")
    mirrors.open({}, "http://me:my-password@host")
    mirrors.close("finished")
    assert "API request to http://***@host/api failed" in told[0]

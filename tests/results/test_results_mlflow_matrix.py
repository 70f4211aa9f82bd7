"""What stands in MLflow for a whole matrix: rows of seeds, the machine, what people do to the runs."""

import json
import math

from factories import make_record, write_run
from stores import contents, key_of

from kdbench.leaderboard.mirrored import tell
from kdbench.results.mlflow_sink import MlflowSink
from kdbench.results.store import RunFolder
from kdbench.results.sync import sync
from kdbench.results.system import SYSTEM


def _sync(run, uri):
    told = tell(RunFolder(run).good_records())
    return sync(run, MlflowSink(), uri=uri, annotations=told.annotations, summaries=told.summaries)


def _active(uri):
    """Return the client and the runs that are not deleted; of an identity there is one, of the matrix the last."""
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=uri, registry_uri=uri)
    experiment = client.get_experiment_by_name("kdbench/quickstart")
    runs = client.search_runs([experiment.experiment_id], max_results=1000)
    found = {key_of(r): r for r in runs}
    assert len(found) == len(runs) - sum(key_of(r)[0] == "matrix" for r in runs) + 1
    return client, found


def test_a_summary_run_is_replaced_when_seeds_are_added(uri, tmp_path):
    run = write_run(tmp_path / "quickstart", [make_record(seed=s, top1=70.0 + s) for s in range(2)])
    _sync(run, uri)
    first = contents(uri, "quickstart")
    ((key, summary),) = ((k, v) for k, v in first.items() if k[0] == "summary")
    assert summary["metrics"]["final/top1"] == [(0, "70.5")]
    assert (summary["params"]["seed"], summary["tags"]["kdbench.seeds"]) == ("all", "0, 1")
    assert summary["params"].keys() == first["cell", make_record(seed=0)["cell_id"]]["params"].keys()
    assert summary["inputs"]
    _sync(run, uri)
    assert contents(uri, "quickstart") == first

    write_run(run, [make_record(seed=2, top1=72.0)])
    _sync(run, uri)
    said = {k: v for k, v in _active(uri)[1].items() if k[0] == "summary"}
    assert said.keys() == {key}
    assert said[key].data.metrics["final/top1"] == 71.0


def test_what_people_rename_and_delete_in_the_ui_harms_nothing(uri, tmp_path):
    records = [make_record(seed=s, method=m) for m in ("vanilla", "kd") for s in range(2)]
    run = write_run(tmp_path / "quickstart", records)
    _sync(run, uri)
    said = contents(uri, "quickstart")
    client, runs = _active(uri)
    renamed, deleted = (runs["cell", r["cell_id"]].info.run_id for r in records[:2])
    parent = runs["matrix", "quickstart"]
    client.update_run(renamed, name="my favourite")
    client.delete_run(deleted)
    client.delete_run(parent.info.run_id)
    client.delete_run(next(r.info.run_id for (kind, _), r in runs.items() if kind == "summary"))

    counts = _sync(run, uri)
    assert (counts.written, counts.unchanged, counts.failed) == (1, 3, 0)
    again = contents(uri, "quickstart")
    name = again["cell", records[0]["cell_id"]].pop("name")
    assert name == "my favourite"
    again["cell", records[0]["cell_id"]]["name"] = said["cell", records[0]["cell_id"]]["name"]
    again["cell", records[0]["cell_id"]]["tags"].pop("mlflow.runName")
    said["cell", records[0]["cell_id"]]["tags"].pop("mlflow.runName")
    matrix = ("matrix", "quickstart")
    assert again.pop(matrix)["metrics"] == {"cells/done": [(0, "1.0")]}
    assert said.pop(matrix)["metrics"] == {"cells/done": [(0, "4.0")]}
    assert again == said

    client.restore_run(deleted)  # now there are two of this cell
    _sync(run, uri)
    assert {key for key in _active(uri)[1] if key != matrix} == said.keys()


def test_a_gap_that_no_longer_holds_is_taken_back(uri, tmp_path):
    record = make_record()
    run = write_run(tmp_path / "quickstart", [record])
    cell = record["cell_id"]
    for value in (0.4, 0.4, float("nan"), float("nan")):
        sync(run, MlflowSink(), uri=uri, annotations={cell: {"final/gap_closed": value}})
    history = contents(uri, "quickstart")["cell", cell]["metrics"]["final/gap_closed"]
    assert sorted(value for _, value in history) == ["0.4", "nan"]
    assert math.isnan(_active(uri)[1]["cell", cell].data.metrics["final/gap_closed"])


def test_samples_of_the_machine_are_on_the_run_of_the_matrix(uri, tmp_path):
    run = write_run(tmp_path / "quickstart", [make_record()])
    rows = [{"at": 1000.0 * k, "cpu_utilization_percentage": 10.0 * k} for k in (1, 2)]
    (run / SYSTEM).write_text("".join(json.dumps(row) + "\n" for row in rows))
    sync(run, MlflowSink(), uri=uri)
    client, runs = _active(uri)
    parent = runs["matrix", "quickstart"]
    history = client.get_metric_history(parent.info.run_id, "system/cpu_utilization_percentage")
    assert [(m.step, m.value, m.timestamp) for m in history] == [(0, 10.0, 1000), (1, 20.0, 2000)]
    sync(run, MlflowSink(), uri=uri)
    assert len(contents(uri, "quickstart")) == 2


def test_runs_of_an_earlier_layout_are_written_anew(uri, tmp_path):
    record = make_record()
    run = write_run(tmp_path / "quickstart", [record])
    sync(run, MlflowSink(), uri=uri)
    client, runs = _active(uri)
    client.set_tag(runs["cell", record["cell_id"]].info.run_id, "kdbench.layout", "1")
    assert sync(run, MlflowSink(), uri=uri).written == 1
    assert sync(run, MlflowSink(), uri=uri).unchanged == 1

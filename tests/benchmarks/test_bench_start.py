"""From the start of a warm cell's process to its first training step, through the real launcher. Goal: 0.3 s.

The fork server is up, as it is for all cells of a matrix but the first. The cells are those of the quickstart, of
one step each: data set, networks, teacher's weights, taps and the method's setup are all in the time; the step,
the evaluation and what comes after are not. The checkpoint after the epoch is, since it is told of only then.
"""

import statistics

from matrix_runs import run

CELLS = {
    "name": "start",
    "datasets": [{"name": "digits", "limit_train": 80, "limit_test": 40}],
    "methods": ["vanilla", "kd", "ab", "ofd", "dkd"],
    "seeds": 2,
    "recipe": {"base": "quick", "epochs": 1, "batch_size": 64, "drop_last": True},
    "gang": "off",
}


def test_start_to_first_step(benchmark, tmp_path, monkeypatch):
    def go():
        return run(tmp_path / "run", monkeypatch, CELLS, workers=1)

    times, plan = benchmark.pedantic(go, rounds=1)
    first = min(times.started, key=times.started.get)
    by_method = {}
    for cell in plan.cells:
        row = times.rows[cell.id]
        assert row["steps"] == 1
        until = times.epoch[cell.id] - times.started[cell.id] - row["train_s"] - row.get("eval_s", 0.0)
        if cell.id != first:
            by_method.setdefault(cell.file.method, []).append(until)
    medians = {method: statistics.median(values) for method, values in by_method.items()}
    median = statistics.median(v for values in by_method.values() for v in values)
    slowest = max(medians, key=medians.get)
    benchmark.extra_info |= {"start_s": median, "start_s_by_method": medians}
    print(f"\nstart to first step: {median:.3f} s (slowest: {slowest}, {medians[slowest]:.3f} s)")
    # the goal is 0.3 s; the bound leaves room for a machine that is busy
    assert median < 0.8

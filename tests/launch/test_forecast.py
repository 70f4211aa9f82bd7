"""Seconds of cells from made-up records, epochs and operations."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from kdbench.launch.forecast import Forecast, Seen, Size, seen_in

BASE = Size("kd", "{}", "resnet->vit", "digits", "64", epochs=10, images=100, macs=1e6, teachers=1)


def record(train_s: float, eval_s: float = 0.0, **cost: Any) -> dict[str, Any]:
    facts = {"train_s": train_s, "eval_s": eval_s, "setup_s": 0.5, "log_s": 0.5, "peak_memory_mb": 1.0}
    return {"status": "done", "cost": {**facts, **cost}}


def row(train_s: float, eval_s: float = 0.0) -> dict[str, Any]:
    return {"train_s": train_s, "eval_s": eval_s, "step_ms": 1.0}


def seen(size: Size, train_s: float, elapsed_s: float | None = None) -> Seen:
    found = seen_in(size, record(train_s), elapsed_s)
    assert found is not None
    return found


def seconds(target: Size, *known: Seen) -> float | None:
    return Forecast({"x": target}, known).seconds("x")


def test_nothing_known() -> None:
    forecast = Forecast({"x": BASE})
    assert not forecast.knows
    assert forecast.seconds("x") is None
    assert forecast.left("x", 3.0) is None


def test_epochs_before_this_run_are_neither_done_again_nor_forgotten() -> None:
    forecast = Forecast({"x": BASE, "y": BASE}, begun={"x": [row(2.0)] * 7})
    assert forecast.knows
    assert (forecast.cost("x"), forecast.cost("y")) == (pytest.approx(6.0), pytest.approx(20.0))
    assert forecast.left("x", 1.0) == pytest.approx(5.0)
    forecast.lost("x")  # as when it starts
    forecast.epoch("x", row(2.0))
    assert forecast.left("x", 3.0) == pytest.approx(4.0)
    forecast.ended("x", record(20.0))
    assert forecast.cost("x") == pytest.approx(21.0)


def test_another_seed_of_the_same_cell() -> None:
    assert seconds(BASE, seen(BASE, 20.0)) == pytest.approx(21.0)  # with setup and checkpoints
    assert seconds(replace(BASE, epochs=30), seen(BASE, 20.0)) == pytest.approx(61.0)
    assert seconds(replace(BASE, images=50), seen(BASE, 20.0)) == pytest.approx(11.0)
    assert seconds(BASE, seen(BASE, 10.0), seen(BASE, 20.0), seen(BASE, 90.0)) == pytest.approx(21.0)


def test_the_nearest_cells_count() -> None:
    """Each further cell is nearer than those before it, and its seconds are taken."""
    other_step = replace(BASE, step="32", data="cifar", pair="p", method="m")
    other_data = replace(BASE, data="cifar", pair="p", method="m")
    other_both = replace(BASE, pair="p", method="vanilla")
    other_method = replace(BASE, method="crd")
    other_pair = replace(BASE, pair="p")
    other_params = replace(BASE, params='{"alpha": 1}')
    known: list[Seen] = []
    nearer = [other_step, other_data, other_both, other_pair, other_method, other_params, BASE]
    for k, size in enumerate(nearer):
        known.append(seen(size, 100.0 * (k + 1)))
        assert seconds(BASE, *known) == pytest.approx(100.0 * (k + 1) + 1.0), size


def test_operations_scale_what_other_networks_took() -> None:
    small = replace(BASE, pair="small", macs=1e5)
    assert seconds(BASE, seen(small, 4.0)) == pytest.approx(41.0)
    # another method on the same networks needs no scaling
    assert seconds(BASE, seen(small, 4.0), seen(replace(BASE, method="at"), 7.0)) == pytest.approx(8.0)


def test_uncounted_networks_still_get_a_number() -> None:
    assert seconds(replace(BASE, macs=None), seen(replace(BASE, pair="p"), 8.0)) == pytest.approx(9.0)


def test_the_cost_before_the_first_cell_follows_the_operations() -> None:
    sizes = {"small": replace(BASE, macs=1e5), "large": BASE, "long": replace(BASE, epochs=20)}
    forecast = Forecast(sizes)
    assert forecast.cost("small") < forecast.cost("large") < forecast.cost("long")
    assert forecast.cost("long") == pytest.approx(20 * forecast.cost("small"))
    # where one cannot be counted, all are compared by passes and teachers
    sizes["odd"] = replace(BASE, macs=None, teachers=0)
    assert Forecast(sizes).cost("large") == pytest.approx(2 * Forecast(sizes).cost("odd"))


def test_the_cost_after_it_is_in_seconds() -> None:
    forecast = Forecast({"x": BASE, "y": BASE})
    forecast.ended("y", record(20.0))
    assert forecast.cost("x") == forecast.seconds("x") == pytest.approx(21.0)


def test_seconds_besides_training_come_from_the_wall() -> None:
    assert seen(BASE, 20.0, elapsed_s=25.0).rest_s == pytest.approx(5.0)
    assert seen(BASE, 20.0, elapsed_s=20.0).rest_s == pytest.approx(1.0)  # records count whole seconds
    of_gang = seen_in(BASE, record(20.0, peak_memory_mb=None), 90.0)
    assert of_gang is not None
    assert of_gang.rest_s == pytest.approx(1.0)
    resumed = seen_in(BASE, record(20.0, attempts=2), 3.0)
    assert resumed is not None
    assert resumed.rest_s is None


@pytest.mark.parametrize("status", ["failed", "oom", "not_applicable"])
def test_cells_that_are_not_done_tell_nothing(status: str) -> None:
    assert seen_in(BASE, {**record(20.0), "status": status}) is None
    assert seen_in(BASE, {"status": "done", "cost": None}) is None
    forecast = Forecast({"x": BASE})
    forecast.epoch("x", row(1.0))
    forecast.ended("x", {"status": status})
    assert not forecast.knows


def test_epochs_of_a_running_cell_tell_of_it_and_of_others() -> None:
    forecast = Forecast({"x": BASE, "y": replace(BASE, epochs=20)})
    for train_s in (5.0, 2.0, 2.0):  # the first warms up
        forecast.epoch("x", row(train_s, eval_s=0.5))
    assert forecast.seconds("x") == pytest.approx(25.0)
    assert forecast.seconds("y") == pytest.approx(50.0)
    assert forecast.left("x", elapsed_s=8.5) == pytest.approx(25.0 - 7.5)


def test_left_knows_of_more_epochs_than_the_recipe_says() -> None:
    """A method with an epoch of its own before the recipe's: the record has both."""
    forecast = Forecast({"x": BASE}, [seen(BASE, 40.0)])
    for _ in range(10):
        forecast.epoch("x", row(2.0))
    assert forecast.left("x", 20.0) == pytest.approx(20.0 + 0.5)


def test_left_of_a_cell_without_epochs_is_what_is_left_of_the_forecast() -> None:
    forecast = Forecast({"x": BASE}, [seen(BASE, 20.0)])
    assert forecast.left("x", 1.0) == pytest.approx(20.0)
    assert forecast.left("x", 100.0) == 0.0


def test_done_cells_count_before_running_ones_of_the_same_kind() -> None:
    forecast = Forecast({"x": BASE, "y": BASE}, [seen(BASE, 20.0)])
    forecast.epoch("x", row(9.0))
    assert forecast.seconds("y") == pytest.approx(21.0)

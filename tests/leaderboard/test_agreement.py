"""When a cell that was run again agrees with its record."""

import pytest
from factories import make_record

from kdbench.cli.reproduce import _report
from kdbench.leaderboard.agreement import agreement
from kdbench.results.schema import Record

CPU = {"device": "cpu", "deterministic": True, "threads": 1, "cpu_count": 2}


def record(seed=0, top1=70.0, weights="a" * 64, environment=None, **more):
    more = {"environment": {**CPU, **(environment or {})}, "weights_sha256": weights, **more}
    return Record.model_validate(make_record(seed=seed, top1=top1, **more))


BOARD = [record(seed, top1) for seed, top1 in enumerate((70.0, 71.0, 72.0))]
OTHER = {"torch": "2.16.0"}


def test_equal_bits_agree_anywhere():
    found = agreement(BOARD[0], record(environment={**OTHER, "cpu_count": 64}), BOARD)
    assert found.agrees is True
    assert found.reason == "bit-equal: the weights and 10 metrics"
    assert found.environment == ("torch: 2.15.0 there, 2.16.0 here",)
    assert found.metrics == ()


@pytest.mark.parametrize(
    ("again", "reason"),
    [
        (record(top1=70.01), "the metrics differ on equal weights, in an equal environment"),
        (record(weights="b" * 64), "the weights differ, in an equal environment"),
    ],
)
def test_nothing_less_than_bits_agrees_in_an_equal_environment(again, reason):
    found = agreement(BOARD[0], again, BOARD)
    assert found.agrees is False
    assert found.reason.startswith(reason)


@pytest.mark.parametrize(("top1", "agrees"), [(66.0, False), (66.1, True), (75.9, True), (76.0, False)])
def test_elsewhere_the_seeds_of_the_row_decide(top1, agrees):
    # 71 ± 4.3027 · 1 · sqrt(4/3) is 66.03 to 75.97
    found = agreement(BOARD[0], record(top1=top1, weights="b" * 64, environment=OTHER), BOARD)
    assert found.agrees is agrees
    assert "66.03 to 75.97 %, where 3 seeds predict one more" in found.reason
    assert "student/last/top1: 70.0 there" in found.metrics[0]


def test_results_that_are_not_deterministic_are_for_the_seeds_too():
    loose = {"deterministic": False}
    old, again = record(environment=loose), record(weights="b" * 64, environment=loose)
    assert agreement(old, again, BOARD).agrees is True


def test_equal_weights_do_not_give_another_accuracy_on_another_machine():
    found = agreement(BOARD[0], record(top1=71.0, environment=OTHER), BOARD)
    assert found.agrees is False
    assert "rounding" in found.reason
    assert agreement(BOARD[0], record(top1=70.05, environment=OTHER), BOARD).agrees is True


def test_one_seed_says_nothing():
    found = agreement(BOARD[0], record(weights="b" * 64, environment=OTHER), BOARD[:1])
    assert found.agrees is None
    assert "fewer than 2 seeds" in found.reason


@pytest.mark.parametrize(
    ("old", "new", "agrees"),
    [
        ("done", "diverged", False),
        ("done", "oom", None),
        ("diverged", "diverged", True),
        ("failed", "done", False),
    ],
)
def test_statuses(old, new, agrees):
    assert agreement(record(status=old), record(status=new), BOARD).agrees is agrees


def test_other_code_of_a_part_is_told():
    plugin = {"distribution": "kdbench", "version": "0.1.0", "git": None, "code": "1" * 16}
    found = agreement(BOARD[0], record(plugins={"method": plugin}, weights="b" * 64), BOARD)
    assert found.environment == ("method: other code of kdbench 0.1.0",)
    assert found.agrees is True


def test_metrics_that_were_not_measured_again_are_named():
    old = record()
    old.deployables["student"].last["agreement"] = 90.0
    found = agreement(old, record(), BOARD)
    assert (found.agrees, found.unmeasured) == (True, ("student/last/agreement",))


def test_other_weights_are_compatible_and_do_not_agree(capsys):
    for weights, word in (
        ("a" * 64, "agrees: "),
        ("b" * 64, "compatible: the weights differ; top-1 70.00 %"),
    ):
        with pytest.raises(SystemExit) as left:
            _report(agreement(BOARD[0], record(weights=weights, environment=OTHER), BOARD))
        assert left.value.code == 0
        assert capsys.readouterr().out.splitlines()[-1].startswith(word)


def test_no_accuracy_beyond_what_there_can_be_is_predicted():
    board = [record(seed, top1) for seed, top1 in enumerate((98.0, 99.0, 100.0))]
    assert "to 100.00 %" in agreement(board[0], record(weights="b" * 64, environment=OTHER), board).reason
    board = [record(seed, top1) for seed, top1 in enumerate((0.0, 1.0, 2.0))]
    assert (
        "within 0.00 to"
        in agreement(board[0], record(top1=1.0, weights="b" * 64, environment=OTHER), board).reason
    )

import pytest
from factories import make_curves, make_record

from kdbench.results import mlflow_fields as fields
from kdbench.results.digest import record_sha256


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("final/top1", "final/top1"),
        ("a b-c.d_e", "a b-c.d_e"),
        ("Ω=1", "__1"),
        ("../etc", "_etc"),
        ("a//b", "a_b"),
        ("/a/", "a"),
        ("", "_"),
        ("..", "_"),
    ],
)
def test_key(name, expected):
    assert fields.key(name) == expected


def test_keys_pass_mlflow_validation():
    from mlflow.utils.validation import _validate_metric_name, _validate_param_name

    for name in ("x" * 400, "a/../../b", "<script>", "a\nb", "é" * 300, "./x", "x/."):
        _validate_metric_name(fields.key(name))
        _validate_param_name(fields.key(name))


def test_curve_rows_of_all_forms_give_the_same_names():
    nested = fields.curve_metrics(make_curves())
    flat = fields.curve_metrics(
        [
            {
                "epoch": r["epoch"],
                "train/loss": r["train"]["loss"],
                "lr": r["train"]["lr"],
                "val_top1": r["val"]["top1"],
                "test/top1": r["test"]["top1"],
                "test_nll": r["test"]["nll"],
                "train_images_per_s": r["images_per_s"],
            }
            for r in make_curves()
        ]
    )
    assert nested == flat
    assert {name for name, _, _ in nested} == {
        "train/loss",
        "train/lr",
        "val/top1",
        "test/top1",
        "test/nll",
        "perf/epoch_images_per_s",
    }


def test_rows_with_several_networks_and_optimizers():
    row = {
        "epoch": 3,
        "phase": "main",
        "steps": 4,
        "train": {"loss": 1.5, "loss/ce": 1.0},
        "lr": {"main": 0.1, "generator": 0.2},
        "train_s": 2.0,
        "step_ms": 500.0,
        "eval": {"peer": {"test/top1": 60.0}, "student": {"test/top1": 70.0, "val/top1": 71.0}},
    }
    assert fields.curve_metrics([row], "student") == [
        ("cost/epoch_train_s", 2.0, 3),
        ("deploy.peer/test/top1", 60.0, 3),
        ("perf/epoch_step_ms", 500.0, 3),
        ("test/top1", 70.0, 3),
        ("train/loss", 1.5, 3),
        ("train/loss/ce", 1.0, 3),
        ("train/lr", 0.1, 3),
        ("train/lr_generator", 0.2, 3),
        ("train/steps", 4.0, 3),
        ("val/top1", 71.0, 3),
    ]


def test_repeated_epoch_keeps_the_later_row_and_skips_what_is_no_number():
    rows = [{"epoch": 1, "val": {"top1": 1.0}}, {"epoch": 1, "val": {"top1": 2.0}, "loss": None, "ok": True}]
    assert fields.curve_metrics(rows) == [("val/top1", 2.0, 1)]
    assert fields.curve_metrics([{"epoch": 1, "loss": float("nan")}]) == []


def test_long_values_are_cut():
    record = make_record(params={"text": "x" * 10_000})
    assert len(fields.params(record)["method.text"]) == fields.MAX_PARAM_VALUE


def test_digest_sees_every_change_but_not_the_order_of_keys():
    record = make_record()
    assert record_sha256(record) == record_sha256(dict(reversed(record.items())))
    assert record_sha256(record) != record_sha256(make_record(top1=72.1))


def test_times():
    assert fields.epoch_ms("1970-01-01T00:00:01Z") == 1000
    assert fields.epoch_ms("1970-01-01T00:00:01") == 1000
    assert fields.epoch_ms("yesterday") is None


def test_dataset_digest_fits():
    record = make_record()
    assert fields.dataset_input(record)[1] == "1797-1"
    record["identity"]["dataset"]["revision"] = "f" * 64
    assert len(fields.dataset_input(record)[1]) == 36

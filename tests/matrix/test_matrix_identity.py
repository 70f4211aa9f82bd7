from __future__ import annotations

import copy
import hashlib
import json
import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdbench.matrix import (
    ArchSpec,
    CellSpec,
    DatasetSpec,
    MethodSpec,
    Recipe,
    canonical_json,
    cell_id,
    derive_seed,
    identity,
)
from kdbench.matrix.throughput import ThroughputItem

leaves = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=12)
)
trees = st.recursive(
    leaves,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
    max_leaves=10,
)
mappings = st.dictionaries(st.text(max_size=6), trees, max_size=5)


def reversed_keys(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: reversed_keys(value[key]) for key in reversed(list(value))}
    return [reversed_keys(item) for item in value] if isinstance(value, list) else value


@given(mappings)
def test_order_of_keys_does_not_matter(tree: dict[str, Any]):
    assert canonical_json(tree) == canonical_json(reversed_keys(tree))
    assert cell_id(tree) == cell_id(reversed_keys(tree))


@given(mappings)
def test_text_reads_back_to_the_same_value_and_id(tree: dict[str, Any]):
    again = json.loads(canonical_json(tree))
    assert again == tree
    assert cell_id(again) == cell_id(tree)


@given(mappings, mappings)
def test_different_texts_for_different_values(one: dict[str, Any], other: dict[str, Any]):
    same = json.dumps(one, sort_keys=True).replace("-0.0", "0.0") == json.dumps(
        other, sort_keys=True
    ).replace("-0.0", "0.0")
    assert (canonical_json(one) == canonical_json(other)) is same


def test_canonical_text():
    assert canonical_json({"b": (1, 1.0, -0.0), "a": {"é": True, "n": None}}) == (
        b'{"a":{"n":null,"\\u00e9":true},"b":[1,1.0,0.0]}'
    )
    assert cell_id({}) == hashlib.sha256(b"{}").hexdigest()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_numbers_that_are_not_finite_are_refused(bad: float):
    with pytest.raises(ValueError, match=r"^a\.1: "):
        canonical_json({"a": [0, bad]})


@pytest.mark.parametrize("bad", [{1: "x"}, {"a": {None: 1}}, {"a": {1, 2}}, {"a": b"x"}, {"a": object()}])
def test_things_without_a_json_word_are_refused(bad: Any):
    with pytest.raises(TypeError):
        canonical_json(bad)


def test_derived_seeds_never_change():
    # A change of any of these numbers makes earlier records incomparable: raise PROTOCOL.
    assert derive_seed(0) == 7520536977032167579
    assert derive_seed(0, "data") == 5732295396801746946
    assert derive_seed(1, "data", 2) == 6250831496550997560


@given(st.integers(0, 2**63 - 1), st.lists(st.text(max_size=5) | st.integers(-5, 5), max_size=3))
def test_derived_seed_is_a_63_bit_number(seed: int, axes: list[str | int]):
    assert 0 <= derive_seed(seed, *axes) < 2**63


@given(
    st.lists(st.tuples(st.integers(0, 9), st.text(max_size=3), st.integers(0, 9)), unique=True, max_size=20)
)
def test_derived_seeds_of_different_uses_differ(uses: list[tuple[int, str, int]]):
    assert len({derive_seed(*use) for use in uses}) == len(uses)
    assert derive_seed(0, "1") != derive_seed(0, 1)
    assert derive_seed(0, "a", "b") != derive_seed(0, "ab")


def test_derive_seed_takes_numpy_integers_and_refuses_other_types():
    numpy = pytest.importorskip("numpy")
    assert derive_seed(numpy.int64(3), numpy.int32(4)) == derive_seed(3, 4)
    with pytest.raises(TypeError):
        derive_seed(1.0)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        derive_seed(0, 1.5)  # type: ignore[arg-type]


SPEC = CellSpec(
    role="student",
    task="classification",
    method=MethodSpec("kd", {"T": 4.0}),
    teacher=None,
    student=ArchSpec("little", {"width": 2}),
    dataset=DatasetSpec("folder", "mine", {"root": "/somewhere"}),
    recipe=Recipe.model_validate({"epochs": 12, "optimizer": {"name": "momentum", "lr": 0.05}}),
    seed=0,
)
RESOLVED: dict[str, Any] = {
    "params": {"T": 4.0},
    "method_version": "1",
    "student_version": "1",
    "dataset_revision": "r1",
    "dataset_version": "1",
    "task_version": "1",
    "teachers": [{"cell": "a" * 64}],
    "storage": "resident",
    "dataset_args": {"image_size": 32},
}


def the_id(spec: CellSpec = SPEC, **changes: Any) -> str:
    return cell_id(identity(spec, **{**RESOLVED, **changes}))


def recipe(**changes: Any) -> Recipe:
    raw = {**SPEC.recipe.model_dump(mode="json", exclude_unset=True), **changes}
    return Recipe.model_validate(raw)


@pytest.mark.parametrize(
    "changes",
    [
        {"params": {"T": 2.0}},
        {"params": {"T": 4.0, "alpha": 1.0}},
        {"method_version": "2"},
        {"student_version": "2"},
        {"dataset_revision": "r2"},
        {"dataset_version": "2"},
        {"task_version": "2"},
        {"teachers": []},
        {"teachers": [{"cell": "b" * 64}]},
        {"teachers": [{"cell": "a" * 64}, {"cell": "a" * 64}]},
        {"teachers": [{"checkpoint": "a" * 64, "architecture": "big", "args": {}}]},
        {"teachers": [{"pretrained": "timm:resnet18"}]},
        {"storage": "stream"},
        {"dataset_args": {"image_size": 64}},
    ],
    ids=str,
)
def test_id_changes_with_what_was_resolved(changes: dict[str, Any]):
    assert the_id(**changes) != the_id()


@pytest.mark.parametrize(
    "changes",
    [
        {"task": "other"},
        {"method": MethodSpec("dkd", {"T": 4.0})},
        {"student": ArchSpec("other", {"width": 2})},
        {"student": ArchSpec("little", {"width": 3})},
        {"dataset": replace(SPEC.dataset, name="other")},
        {"dataset": replace(SPEC.dataset, limit_train=10)},
        {"dataset": replace(SPEC.dataset, limit_test=10)},
        {"seed": 1},
        {"recipe": recipe(epochs=13)},
    ],
    ids=str,
)
def test_id_changes_with_the_cell(changes: dict[str, Any]):
    assert the_id(replace(SPEC, **changes)) != the_id()


#: Another value for every key of a recipe.
OTHER_VALUES: dict[str, Any] = {
    "epochs": 3,
    "batch_size": 65,
    "eval_batch_size": 3,
    "drop_last": True,
    "optimizer": {"name": "adamw", "lr": 0.001},
    "filter_bias_and_bn": True,
    "schedule": {"name": "constant"},
    "clip_grad": 1.0,
    "augment": {"kind": "none"},
    "precision": "bf16",
    "channels_last": False,
    "val_fraction": 0.2,
    "eval_every": 2,
    "label_smoothing": 0.1,
    "deterministic": False,
}


def test_table_of_the_teacher_enters_the_id_of_cells_that_read_it_only():
    allowed = replace(SPEC, recipe=recipe(teacher_cache="fp16"))
    assert the_id(allowed) == the_id()
    used = {the_id(allowed, teacher_cache=dtype) for dtype in (None, "fp16", "fp32")}
    assert len(used) == 3


@pytest.mark.parametrize("key", sorted(set(Recipe.model_fields) - {"teacher_cache"}))
def test_id_changes_with_every_key_of_the_recipe(key: str):
    if key == "compile":  # takes one value so far
        other = recipe().model_copy(update={"compile": "another"})
    else:
        other = recipe(**{key: OTHER_VALUES[key]})
    assert the_id(replace(SPEC, recipe=other)) != the_id()


@pytest.mark.parametrize(
    "changes",
    [
        {"method": MethodSpec("kd", {"T": 4.0}, label="another label")},
        {"method": MethodSpec("kd", {}, preset="resolves-to-the-same")},
        {"dataset": replace(SPEC.dataset, label="elsewhere", args={"root": "/elsewhere"})},
        {"dataset": replace(SPEC.dataset, storage="resident")},
        {"throughput": None},
        {"timeout_s": 5.0},
        {"evaluators": ("agreement",)},
        {"role": "teacher"},
        {"pair": "p"},
        {"source": ("methods", 7)},
        {"recipe": SPEC.recipe.named("renamed")},
        {"recipe": recipe(val_fraction=0.1, drop_last=False)},
    ],
    ids=str,
)
def test_id_does_not_depend_on_words_places_and_measurement(changes: dict[str, Any]):
    assert the_id(replace(SPEC, **changes)) == the_id()


def test_how_speed_is_measured_is_the_cell_where_nothing_else_is():
    def at(**changes: Any) -> str:
        how = {"batch_sizes": [1, "auto"], "rounds": 3, **changes}
        return the_id(replace(SPEC, throughput=ThroughputItem.model_validate(how)))

    first = at(only=True)
    assert first == at(only=True)
    others = {at(only=True, batch_sizes=[2]), at(only=True, precisions=["bf16"]), at(only=True, rounds=4)}
    assert len({first, the_id(), *others}) == 5
    assert at(batch_sizes=[1]) == the_id()


def test_id_of_a_known_cell():
    # Fails when the form of the identity changes; then PROTOCOL must be raised.
    assert the_id() == "76fc1f5c225ae03075c47a58a0a278b698689511acc6eb28d190bdb5efade252"


def test_id_is_the_same_in_another_process():
    code = f"from kdbench.matrix.identity import cell_id; print(cell_id({identity(SPEC, **RESOLVED)!r}))"
    env = {"PYTHONHASHSEED": "12345", "PYTHONPATH": ":".join(sys.path)}
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env)
    assert out.stdout.strip() == the_id()


def test_identity_does_not_share_state_with_its_inputs():
    params = {"T": [1]}
    before = copy.deepcopy(identity(SPEC, **{**RESOLVED, "params": params}))
    assert identity(SPEC, **{**RESOLVED, "params": params}) == before
    assert json.loads(canonical_json(before)) == before


def test_open_storage_and_vague_teachers_are_refused():
    with pytest.raises(ValueError, match="storage"):
        the_id(storage=None)
    with pytest.raises(ValueError, match="storage"):
        the_id(storage="auto")
    with pytest.raises(ValueError, match="teacher"):
        the_id(teachers=[{"architecture": "big"}])
    with pytest.raises(ValueError, match="teacher"):
        the_id(teachers=[{"cell": "a", "pretrained": "b"}])


def test_an_assistant_changes_the_id_only_where_it_is_used():
    trio = replace(SPEC, assistant=ArchSpec("middle", {"deep": 2}))
    assert the_id(trio) == the_id()
    used = the_id(trio, assistant_version="1")
    others = {
        the_id(),
        the_id(trio, assistant_version="2"),
        the_id(replace(SPEC, assistant=ArchSpec("middle", {"deep": 3})), assistant_version="1"),
        the_id(replace(SPEC, assistant=ArchSpec("other", {"deep": 2})), assistant_version="1"),
    }
    assert len(others) == 4
    assert used not in others
    with pytest.raises(ValueError, match="uses an assistant"):
        the_id(assistant_version="1")

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from matrix_files import SMALL, error, load, swap

from kdbench.errors import MatrixError
from kdbench.matrix import (
    ArchSpec,
    CellSpec,
    Expansion,
    MethodSpec,
    content_key,
    expand,
    teacher_cell,
    variant_label,
)
from kdbench.matrix import expand as expand_function


def cells(folder: Path, text: str = SMALL, *only: str) -> Expansion:
    return expand(load(folder, text), only=only)


def rows(expansion: Expansion) -> list[tuple[str, str | None, str, str, int]]:
    return [
        (variant_label(c.method), c.teacher and c.teacher.name, c.student.name, c.dataset.label, c.seed)
        for c in expansion.cells
    ]


def expand_error(folder: Path, text: str = SMALL, *only: str) -> str:
    loaded = load(folder, text)
    with pytest.raises(MatrixError) as caught:
        expand(loaded, only=only)
    return str(caught.value)


def test_order_and_content(tmp_path: Path):
    got = rows(cells(tmp_path))
    assert got == [
        (method, "big", "little", "digits", seed)
        for method in ("alone", "kd", "dkd(beta=2.0)")
        for seed in (0, 1)
    ]
    first = cells(tmp_path).cells[0]
    assert first.role == "student"
    assert first.source == ("methods", 0)
    assert first.pair == "big->little"
    assert first.recipe.name == "quick"
    assert first.throughput is not None


names = st.lists(st.sampled_from("abcdefg"), min_size=1, max_size=4, unique=True)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30, deadline=None)
@given(names, names, names, names, st.integers(1, 4))
def test_count_is_the_product_of_the_axes(
    tmp_path: Path,
    datasets: list[str],
    teachers: list[str],
    students: list[str],
    methods: list[str],
    seeds: int,
):
    text = f"""\
name: p
datasets: [{", ".join(datasets)}]
teachers: [{", ".join(teachers)}, null]
students: [{", ".join(students)}]
methods: [{", ".join(methods)}]
seeds: {seeds}
recipe: quick
"""
    expansion = cells(tmp_path, text)
    n = len(datasets) * (len(teachers) + 1) * len(students) * len(methods) * seeds
    assert len(expansion.cells) == n
    assert len({content_key(c) for c in expansion.cells}) == n
    assert not expansion.warnings
    without = cells(tmp_path, text + f"exclude: [{{method: {methods[0]}, seed: 0, teacher: null}}]\n")
    assert len(without.cells) == n - len(datasets) * len(students)


def test_exclude(tmp_path: Path):
    got = rows(cells(tmp_path, SMALL + "exclude: [{method: [kd, dkd], seed: 1}]\n"))
    assert [(m, s) for m, *_, s in got] == [("alone", 0), ("alone", 1), ("kd", 0), ("dkd(beta=2.0)", 0)]


@pytest.mark.parametrize(
    ("item", "left"),
    [
        ("{teacher: big}", 0),
        ("{teacher: null}", 6),
        ("{student: little, seed: [0, 1], method: alone}", 4),
        ("{method: 'dkd(beta=2.0)'}", 4),
        ("{pair: big->little, method: kd}", 4),
        ("{dataset: digits, seed: 0}", 3),
        ("{dataset: other}", 6),
    ],
)
def test_exclude_axes(tmp_path: Path, item: str, left: int):
    text = SMALL + f"exclude: [{item}]\n"
    if not left:
        assert expand_error(tmp_path, text) == "m.yaml:7: exclude: it leaves no cell of the matrix"
        return
    expansion = cells(tmp_path, text)
    assert len(expansion.cells) == left
    assert expansion.warnings == (["m.yaml:7: exclude[0] matches no cell"] if left == 6 else [])


def test_include_takes_every_value_of_the_axes_left_out(tmp_path: Path):
    expansion = cells(tmp_path, SMALL + "include: [{method: {name: ab, preset: small}, seed: [0, 9]}]\n")
    assert rows(expansion)[6:] == [("ab[small]", "big", "little", "digits", s) for s in (0, 9)]
    assert expansion.cells[-1].source == ("include", 0, "method")


def test_include_refers_to_what_the_matrix_has(tmp_path: Path):
    got = rows(cells(tmp_path, SMALL + "include: [{method: [dkd, new], student: [little, tiny], seed: 5}]\n"))
    assert got[6:] == [
        ("dkd(beta=2.0)", "big", "little", "digits", 5),
        ("new", "big", "little", "digits", 5),
        ("dkd(beta=2.0)", "big", "tiny", "digits", 5),
        ("new", "big", "tiny", "digits", 5),
    ]


def test_include_new_data_set_and_no_teacher(tmp_path: Path):
    text = (
        SMALL + "include: [{method: alone, teacher: null, dataset: {name: cifar, limit_train: 9}, seed: 0}]\n"
    )
    assert rows(cells(tmp_path, text))[6:] == [("alone", None, "little", "cifar", 0)]


def test_include_comes_after_exclude(tmp_path: Path):
    text = SMALL + "exclude: [{method: kd}]\ninclude: [{method: {name: kd}, seed: 1}]\n"
    assert [(m, s) for m, *_, s in rows(cells(tmp_path, text))[-1:]] == [("kd", 1)]


def test_include_with_a_recipe(tmp_path: Path):
    expansion = cells(tmp_path, SMALL + "include: [{method: kd, seed: 0, recipe: {epochs: 3}}]\n")
    new = expansion.cells[-1]
    assert len(expansion.cells) == 7
    assert (new.recipe.epochs, new.recipe.batch_size) == (3, 64)
    assert new.recipe.name == "quick(epochs=3)"
    assert variant_label(new.method) == "kd(recipe.epochs=3)"
    assert new.teacher is not None
    assert new.teacher.recipe.epochs == 12


def test_include_of_a_trained_teacher_with_its_own_recipe(tmp_path: Path):
    for teacher in ("{name: huge, recipe: {epochs: 2}}", "[{name: huge, recipe: {epochs: 2}}]"):
        new = cells(tmp_path, SMALL + f"include: [{{teacher: {teacher}, method: kd, seed: 0}}]\n").cells[-1]
        assert new.teacher is not None
        assert (new.teacher.name, new.teacher.recipe.epochs, new.teacher.recipe.name) == (
            "huge",
            2,
            "quick(epochs=2)",
        )


def test_duplicates_are_merged_with_a_warning(tmp_path: Path):
    expansion = cells(tmp_path, swap("[alone, kd,", "[alone, kd, {name: kd},"))
    assert len(expansion.cells) == 6
    assert expansion.warnings == ["m.yaml:4: 2 duplicate cells merged"]
    expansion = cells(tmp_path, SMALL + "include:\n- {method: kd, seed: [0, 3]}\n")
    assert len(expansion.cells) == 7
    assert expansion.warnings == ["m.yaml:4 and m.yaml:8: 1 duplicate cell merged"]


def test_one_label_for_two_things_is_refused(tmp_path: Path):
    text = swap("[alone, kd,", "[alone, {name: kd, label: x}, {name: ab, label: x},")
    assert expand_error(tmp_path, text).startswith("m.yaml:4: method 'x': two different ones have this label")
    text = swap("[digits]", "[{name: f, args: {root: a}}, {name: f, args: {root: b}}]")
    assert expand_error(tmp_path, text).startswith("m.yaml:2: data set 'f': two different ones")


def test_too_many_cells(tmp_path: Path):
    text = swap("seeds: 2", "seeds: 10000", swap("[digits]", "[a, b, c, d]"))
    assert expand_error(tmp_path, text).startswith("m.yaml:5: the matrix has more than 100,000 cells")


# --only


@pytest.mark.parametrize(
    ("only", "count"),
    [
        (["method=kd"], 2),
        (["method=kd,alone"], 4),
        (["method=kd,alone seed=0"], 2),
        (["method=kd,alone", "seed=1"], 2),
        (["seed=0", "seed=0,1"], 3),
        (["method=dkd"], 2),
        (["method=dkd(beta=2.0)"], 2),
        (["teacher=big"], 6),
        (["student=little dataset=digits"], 6),
        (["pair=big->little"], 6),
        ([], 6),
    ],
)
def test_only(tmp_path: Path, only: list[str], count: int):
    assert len(cells(tmp_path, SMALL, *only).cells) == count


def test_only_keeps_labels_with_commas_and_spaces_whole(tmp_path: Path):
    text = swap(
        "{name: dkd, params: {beta: 2.0}}", "{name: dkd, params: {a: 1, b: 2}}, {name: ab, label: my ab v=2}"
    )
    got = rows(cells(tmp_path, text, "method=dkd(a=1, b=2),kd seed=0"))
    assert [m for m, *_ in got] == ["kd", "dkd(a=1, b=2)"]


def test_only_pair_label_and_missing_teacher(tmp_path: Path):
    text = swap("student: little}", "student: little, label: first}, {teacher: null, student: little}")
    assert len(cells(tmp_path, text, "pair=first").cells) == 6
    assert len(cells(tmp_path, text, "teacher=null").cells) == 6
    assert {c.pair for c in cells(tmp_path, text).cells} == {"first", "little"}


@pytest.mark.parametrize(
    ("only", "expected"),
    [
        (
            "metod=kd",
            "--only metod=kd: unknown axis 'metod' (did you mean 'method'?); expected one of method",
        ),
        ("kd", "--only kd: unknown axis 'kd'"),
        ("method=dkdd", "--only method=dkdd: no cell has it (did you mean 'dkd' or 'kd'?); there is alone"),
        ("method=kd,nix", "--only method=nix: no cell has it"),
        ("seed=7", "--only seed=7: no cell has it; there is 0, 1"),
        ("seed=", "--only seed=: expected seed=VALUE"),
        ("method", "--only method: expected method=VALUE"),
        ("pair=x", "--only pair=x: no cell has it"),
    ],
)
def test_only_errors(tmp_path: Path, only: str, expected: str):
    assert expand_error(tmp_path, SMALL, only).startswith(expected)


def test_only_that_leaves_nothing(tmp_path: Path):
    text = SMALL + "exclude: [{method: kd, seed: 1}]\n"
    assert (
        expand_error(tmp_path, text, "method=kd seed=1")
        == "--only method=kd seed=1: no cell matches all of it"
    )


# teachers


def test_teacher_cell(tmp_path: Path):
    text = SMALL + "teacher_recipe: {epochs: 40}\nteacher_seed: 3\nteacher_method: solo\nevaluators: [e]\n"
    spec = cells(tmp_path, text).cells[2]
    alone = teacher_cell(spec)
    assert alone is not None
    assert (alone.role, alone.method, alone.teacher, alone.student.name) == (
        "teacher",
        MethodSpec("solo"),
        None,
        "big",
    )
    assert (alone.recipe.epochs, alone.recipe.name, alone.seed) == (40, "quick(epochs=40)", 3)
    assert alone.evaluators == ()
    assert alone.dataset == spec.dataset
    second = teacher_cell(spec, 1)
    assert second == replace(alone, seed=4)
    assert teacher_cell(alone) is None


def test_one_teacher_cell_for_all_that_share_it(tmp_path: Path):
    text = swap("student: little}", "student: little}, {teacher: big, student: tiny}")
    found = [teacher_cell(c) for c in cells(tmp_path, text).cells]
    assert len(found) == 12
    assert all(t == found[0] for t in found)
    assert len({content_key(t) for t in found if t is not None}) == 1


@pytest.mark.parametrize(
    ("teacher", "label"),
    [
        ("{name: big, pretrained: true}", "big[pretrained]"),
        ("{name: big, args: {w: 2}, checkpoint: f.safetensors}", "big(w=2)[checkpoint]"),
        ("null", None),
    ],
)
def test_teachers_that_are_not_trained(tmp_path: Path, teacher: str, label: str | None):
    spec = cells(tmp_path, swap("teacher: big", f"teacher: {teacher}")).cells[0]
    assert teacher_cell(spec) is None
    assert (spec.teacher and spec.teacher.label) == label


def test_checkpoints_are_found_beside_the_matrix_file(tmp_path: Path):
    text = swap("teacher: big", "teacher: {name: big, checkpoint: sub/f.safetensors}")
    spec = cells(tmp_path, text).cells[0]
    assert spec.teacher is not None
    assert spec.teacher.checkpoint == str(tmp_path.resolve() / "sub" / "f.safetensors")
    text = swap("teacher: big", f"teacher: {{name: big, checkpoint: {tmp_path}/g}}")
    spec = cells(tmp_path, text).cells[0]
    assert spec.teacher is not None
    assert spec.teacher.checkpoint == f"{tmp_path}/g"


def test_teacher_with_its_own_recipe_and_seed(tmp_path: Path):
    text = swap("teacher: big", "teacher: {name: big, recipe: cifar30, seed: 9}")
    alone = teacher_cell(cells(tmp_path, text).cells[0])
    assert alone is not None
    assert (alone.recipe.name, alone.recipe.epochs, alone.seed) == ("cifar30", 30, 9)


# recipes of methods


def test_method_with_its_own_recipe(tmp_path: Path):
    expansion = cells(
        tmp_path, swap("params: {beta: 2.0}", "params: {beta: 2.0}, recipe: {optimizer: {lr: 0.5}}")
    )
    spec = expansion.cells[-1]
    assert (spec.recipe.optimizer.lr, spec.recipe.optimizer.momentum) == (0.5, 0.9)
    assert variant_label(spec.method) == "dkd(beta=2.0, recipe.optimizer.lr=0.5)"
    assert expansion.cells[0].recipe.optimizer.lr == 0.05
    other = cells(tmp_path, swap("params: {beta: 2.0}", "recipe: cifar30")).cells[-1]
    assert other.recipe.name == "cifar30"
    assert variant_label(other.method) == "dkd(recipe.base=cifar30)"


def test_method_recipe_with_another_schedule(tmp_path: Path):
    changes = "recipe: {base: cifar240, schedule: {name: cosine}}"
    spec = cells(tmp_path, swap("params: {beta: 2.0}", changes)).cells[-1]
    assert spec.recipe.schedule.name == "cosine"
    assert spec.recipe.schedule.milestones == ()


@pytest.mark.parametrize(
    ("method", "label"),
    [
        (MethodSpec("kd"), "kd"),
        (MethodSpec("dkd", {"beta": 2.0}), "dkd(beta=2.0)"),
        (MethodSpec("ab", preset="cifar100"), "ab[cifar100]"),
        (MethodSpec("ab", {"w": 1, "on": True, "mode": "x"}, "p"), "ab[p](w=1, on=true, mode=x)"),
        (MethodSpec("ab", {"deep": {"a": [1, 2]}}), "ab(deep.a=[1, 2])"),
        (MethodSpec("dkd", {"beta": 2.0}, label="dkd b2"), "dkd b2"),
    ],
)
def test_variant_label(method: MethodSpec, label: str):
    assert variant_label(method) == label


def test_long_labels_are_cut_but_stay_different():
    one, other = (variant_label(MethodSpec("m", {"words": ["x" * 300, n]})) for n in (1, 2))
    assert len(one) <= 200
    assert one != other


def test_same_line_and_labels_do_not_matter_to_equality(tmp_path: Path):
    spec = cells(tmp_path).cells[0]
    moved = replace(spec, source=("methods", 5), pair="other")
    assert moved == spec
    assert content_key(moved) == content_key(spec)
    assert isinstance(spec, CellSpec)


def test_expansion_is_repeatable(tmp_path: Path):
    assert cells(tmp_path).cells == expand_function(load(tmp_path)).cells
    assert error(tmp_path, sets=["seeds=x"]).startswith("--set seeds")


# assistants

TRIO = swap("student: little}", "student: little, assistant: {name: middle, args: {deep: 2}}}")


def test_assistant_of_a_pair(tmp_path: Path):
    for c in cells(tmp_path, TRIO).cells:
        assert c.assistant == ArchSpec("middle", {"deep": 2})
        assert c.pair == "big->little"
        alone = teacher_cell(c)
        assert alone is not None
        assert alone.assistant is None
    assert {c.assistant for c in cells(tmp_path).cells} == {None}
    assert content_key(cells(tmp_path, TRIO).cells[0]) != content_key(cells(tmp_path).cells[0])


def test_assistant_of_an_include(tmp_path: Path):
    known = cells(tmp_path, TRIO + "include: [{student: [little, tiny], method: new, seed: 0}]\n").cells[6:]
    assert [(c.student.name, c.assistant and c.assistant.name) for c in known] == [
        ("little", "middle"),
        ("tiny", None),
    ]
    given = cells(tmp_path, TRIO + "include: [{student: [little, tiny], assistant: other, seed: 0}]\n").cells[
        6:
    ]
    assert {(c.student.name, c.assistant and c.assistant.name) for c in given} == {
        ("little", "other"),
        ("tiny", "other"),
    }


def test_assistant_must_be_an_architecture(tmp_path: Path):
    message = error(tmp_path, swap("student: little}", "student: little, assistant: {nmae: middle}}"))
    assert message.startswith("m.yaml:3: pairs[0].assistant")
    assert "did you mean 'name'" in message

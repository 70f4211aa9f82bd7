"""The plan: statuses from disk, shared teachers, and what cannot be."""

import json

import pytest
from factories import make_record
from matrices import DIGITS, RECIPE, STUDENT, TEACHER, write_matrix

from kdbench.errors import KdbenchError
from kdbench.launch import looking
from kdbench.launch.plan import Planner
from kdbench.matrix import load_matrix
from kdbench.registry import Registry
from kdbench.results.store import RunFolder


@pytest.fixture(scope="module")
def registry():
    return Registry.load()


@pytest.fixture
def make_plan(tmp_path, registry):
    def make(*, only=(), **overrides):
        path = write_matrix(tmp_path / "m.yaml", name="m", **overrides)
        return Planner(registry, load_matrix(str(path)), RunFolder(tmp_path / "run"), ()).plan(only)

    return make


def finish(cell, **more):
    """Put a record of `cell` on disk."""
    cell.folder.mkdir(parents=True, exist_ok=True)
    record = make_record(
        cell_id=cell.id,
        identity=cell.file.identity,
        labels=cell.file.labels.model_dump(),
        plugins={"method": {"code": None}},
        **more,
    )
    (cell.folder / "result.json").write_text(json.dumps(record))


def test_teachers_come_first_and_are_shared(make_plan):
    plan = make_plan(methods=["vanilla", "kd", "dkd"], seeds=3)
    assert len(plan.cells) == 10
    teacher, *students = plan.cells
    assert teacher.file.labels.role == "teacher"
    assert {c.file.labels.role for c in students} == {"student"}
    assert [c.after for c in students if c.file.method == "vanilla"] == [[]] * 3
    assert [c.after for c in students if c.file.method != "vanilla"] == [[teacher.id]] * 6
    assert len({c.id for c in plan.cells}) == 10
    assert plan.counts() == {"to run": 10}


def test_same_plan_again(make_plan):
    first, second = (make_plan(methods=["vanilla", "kd"], seeds=2) for _ in range(2))
    assert [c.id for c in first.cells] == [c.id for c in second.cells]


def test_order_of_methods_and_labels_do_not_enter_the_ids(make_plan):
    first = make_plan(methods=["vanilla", "kd"])
    second = make_plan(methods=["kd", {"name": "vanilla", "label": "alone"}], title="another title")
    assert {c.id for c in first.cells} == {c.id for c in second.cells}


@pytest.mark.parametrize(
    "change",
    [
        {"recipe": {**RECIPE, "epochs": 3}},
        {"datasets": [{**DIGITS, "limit_train": 96}]},
        {"seeds": [7]},
        {"pairs": [{"teacher": TEACHER, "student": "resnet8"}]},
    ],
)
def test_what_changes_the_result_changes_the_id(make_plan, change):
    base = make_plan(methods=["vanilla"])
    other = make_plan(methods=["vanilla"], **change)
    assert not {c.id for c in base.cells} & {c.id for c in other.cells}


def test_two_teachers_of_different_seeds(make_plan):
    plan = make_plan(methods=["feed", "kd"])
    teachers = [c for c in plan.cells if c.file.labels.role == "teacher"]
    assert [c.spec.seed for c in teachers] == [0, 1]
    feed = next(c for c in plan.cells if c.file.method == "feed")
    kd = next(c for c in plan.cells if c.file.method == "kd")
    assert feed.after == [c.id for c in teachers]
    assert kd.after == [teachers[0].id]


def test_student_that_is_also_the_teacher(make_plan):
    """A network trained alone is one cell, whether asked for as a student, a teacher or both."""
    pairs = [{"teacher": TEACHER, "student": STUDENT}, {"teacher": None, "student": TEACHER}]
    plan = make_plan(methods=["vanilla", "kd"], pairs=pairs)
    cells = [c for c in plan.cells if c.file.student.name == TEACHER and c.file.method == "vanilla"]
    assert len(cells) == 1
    assert cells[0].file.labels.role == "student"
    kd = next(c for c in plan.cells if c.file.method == "kd" and c.status == "to run")
    assert kd.after == [cells[0].id]


def test_route_is_asked_of_the_teacher(make_plan):
    rco = {"name": "rco", "params": {"anchors": 2}}
    plan = make_plan(methods=["kd", rco], recipe={**RECIPE, "epochs": 4})
    (teacher,) = [c for c in plan.cells if c.file.labels.role == "teacher"]
    assert teacher.file.keep_epochs == [2, 4]
    finish(teacher)
    (teacher.folder / "model.safetensors").write_bytes(b"")
    again = make_plan(methods=["kd", rco], recipe={**RECIPE, "epochs": 4})
    assert again.cells[0].status == "to run"
    assert again.cells[0].reason == "its weights or route are needed again"
    (teacher.folder / "route").mkdir()
    for epoch in (2, 4):
        (teacher.folder / "route" / f"epoch-{epoch:04d}.safetensors").write_bytes(b"")
    assert make_plan(methods=["kd", rco], recipe={**RECIPE, "epochs": 4}).cells[0].status == "done"


@pytest.mark.parametrize("status", ["done", "failed", "crashed", "timeout", "diverged", "oom", "interrupted"])
def test_status_of_a_record(make_plan, status):
    (cell,) = make_plan(methods=["vanilla"]).cells
    finish(cell, status=status)
    (seen,) = make_plan(methods=["vanilla"]).cells
    assert seen.status == status


def test_checkpoint_without_record_is_interrupted(make_plan):
    (cell,) = make_plan(methods=["vanilla"]).cells
    cell.folder.mkdir(parents=True)
    (cell.folder / "checkpoint.safetensors").write_bytes(b"")
    assert make_plan(methods=["vanilla"]).cells[0].status == "interrupted"


def test_unreadable_record_is_run_again(make_plan):
    (cell,) = make_plan(methods=["vanilla"]).cells
    cell.folder.mkdir(parents=True)
    (cell.folder / "result.json").write_text("{")
    (seen,) = make_plan(methods=["vanilla"]).cells
    assert seen.status == "to run"
    assert "cannot be read" in seen.reason


def test_other_code_of_the_method_is_seen(make_plan, monkeypatch):
    (cell,) = make_plan(methods=["vanilla"]).cells
    finish(cell)
    record = json.loads((cell.folder / "result.json").read_text())
    record["plugins"]["method"]["code"] = "0" * 16
    (cell.folder / "result.json").write_text(json.dumps(record))
    (seen,) = make_plan(methods=["vanilla"]).cells
    assert (seen.status, seen.stale) == ("done", True)
    monkeypatch.setattr(looking, "code_digest", lambda target: "0" * 16)
    looking.look(seen, Registry.load())
    assert (seen.status, seen.stale) == ("done", False)


def test_only(make_plan):
    plan = make_plan(methods=["vanilla", "kd"], seeds=2, only=["method=kd", "seed=1"])
    assert [(c.file.labels.role, c.file.method, c.spec.seed) for c in plan.cells] == [
        ("teacher", "vanilla", 0),
        ("student", "kd", 1),
    ]


def test_not_applicable_with_reason(make_plan):
    plan = make_plan(methods=["ab"], pairs=[{"teacher": "timm:test_vit", "student": STUDENT}])
    cell = next(c for c in plan.cells if c.file.method == "ab")
    assert cell.status == "not_applicable"
    assert "activation" in cell.reason


def test_unknown_name_comes_with_file_and_line(make_plan, tmp_path):
    with pytest.raises(KdbenchError, match=rf"^{tmp_path}/m\.yaml:\d+: .*'kdd'.*did you mean") as raised:
        make_plan(methods=["kdd"])
    assert "\n" not in str(raised.value)


MIDDLE = {"teacher": TEACHER, "student": STUDENT, "assistant": {"name": "resnet8"}}


def test_an_assistant_is_part_of_the_cells_that_need_it_and_of_no_other(make_plan):
    methods = ["vanilla", "kd", "takd", {"name": "takd", "preset": "one-teacher"}]
    without = {c.file.labels.variant: c for c in make_plan(methods=methods).cells[1:]}
    given = {c.file.labels.variant: c for c in make_plan(methods=methods, pairs=[MIDDLE]).cells[1:]}
    for variant in ("vanilla", "kd", "takd[one-teacher]"):
        assert given[variant].id == without[variant].id
        assert given[variant].file.assistant is given[variant].file.labels.assistant is None
        assert "assistant" not in given[variant].file.identity
    takd = given["takd"]
    assert (takd.status, takd.file.assistant.name) == ("to run", "resnet8")
    assert takd.file.identity["assistant"]["name"] == takd.file.labels.assistant == "resnet8"
    assert f"{TEACHER} -> resnet8 -> {STUDENT}" in takd.label
    assert len(takd.after) == 1
    other = make_plan(methods=["takd"], pairs=[{**MIDDLE, "assistant": "resnet20"}]).cells[-1]
    assert len({takd.id, other.id, without["takd"].id}) == 3


def test_a_pair_without_an_assistant(make_plan):
    cell = next(c for c in make_plan(methods=["takd"]).cells if c.file.method == "takd")
    assert (cell.status, cell.reason) == ("not_applicable", "needs a pair with an assistant")


def test_a_teacher_of_nothing_that_can_be_is_not_trained(make_plan):
    assert [c.file.method for c in make_plan(methods=["takd"]).cells] == ["takd"]
    assert [c.file.method for c in make_plan(methods=["takd", "kd"]).cells] == ["vanilla", "takd", "kd"]


def test_lines_of_what_stands_under_include_or_teachers(make_plan, tmp_path):
    def line(word, **overrides):
        with pytest.raises(KdbenchError) as raised:
            make_plan(methods=["kd"], **overrides)
        text = (tmp_path / "m.yaml").read_text().splitlines()
        at = int(str(raised.value).removeprefix(f"{tmp_path}/m.yaml:").partition(":")[0])
        assert word in "".join(text[at - 1 : at + 3])

    line("resnet9", include=[{"student": STUDENT, "assistant": "resnet9", "seed": 7}])
    line("resnet9", pairs=None, teachers=[TEACHER], students=[STUDENT, "resnet9"])
    line("digitz", include=[{"dataset": "digitz"}])
    line(
        "missing.pt", pairs=None, teachers=[{"name": TEACHER, "checkpoint": "missing.pt"}], students=[STUDENT]
    )


def test_unknown_assistant_comes_with_file_and_line(make_plan, tmp_path):
    with pytest.raises(KdbenchError, match=rf"^{tmp_path}/m\.yaml:\d+: .*'resnet9'.*did you mean"):
        make_plan(methods=["kd"], pairs=[{**MIDDLE, "assistant": "resnet9"}])


def test_an_assistant_that_cannot_be_built(make_plan):
    bad = {**MIDDLE, "assistant": {"name": "resnet8", "args": {"deep": 3}}}
    with pytest.raises(KdbenchError, match=r"m\.yaml:\d+: .*'resnet8'.*deep"):
        make_plan(methods=["takd"], pairs=[bad])


@pytest.fixture
def checkpoint(tmp_path):
    """Write untrained weights of the teacher; returns its item of a pair."""
    import timm
    from safetensors.torch import save_file

    net = timm.create_model(TEACHER.removeprefix("timm:"), num_classes=10, in_chans=3)
    save_file(net.state_dict(), tmp_path / "teacher.safetensors")
    return lambda **more: {"name": TEACHER, "checkpoint": "teacher.safetensors", **more}


def test_normalisation_of_a_checkpoint_reaches_the_cell_and_its_id(make_plan, checkpoint):
    def kd(**more):
        pairs = [{"teacher": checkpoint(**more), "student": STUDENT}]
        (cell,) = make_plan(methods=["kd"], pairs=pairs).cells
        assert cell.status == "to run"
        return cell

    plain, given = kd(), kd(mean=[0.5, 0.5, 0], std=[0.25, 0.25, 1])
    (source,) = given.file.teachers
    assert (source.mean, source.std) == ((0.5, 0.5, 0.0), (0.25, 0.25, 1.0))
    assert given.file.identity["teachers"][0]["std"] == [0.25, 0.25, 1.0]
    assert plain.file.teachers[0].mean is None
    assert set(plain.file.identity["teachers"][0]) == {"checkpoint", "architecture", "args"}
    other = kd(mean=[0.5, 0.5, 0], std=[0.25, 0.25, 0.5])
    assert len({plain.id, given.id, other.id}) == 3


def test_normalisation_has_a_value_for_each_channel(make_plan, checkpoint):
    pairs = [{"teacher": checkpoint(mean=[0.5], std=[0.5]), "student": STUDENT}]
    with pytest.raises(
        KdbenchError, match=r"m\.yaml:\d+: .*mean and std have 1 values, 'digits' has 3 channels"
    ):
        make_plan(methods=["kd"], pairs=pairs)


@pytest.mark.parametrize(
    ("params", "why"),
    [
        ({"temperature": -1}, "temperature: Input should be greater than 0, got -1"),
        ({"alpha": 0.5, "temperature": 0}, "temperature: Input should be greater than 0"),
        ({"tempreature": 2}, "tempreature: unknown (did you mean 'temperature'"),
    ],
)
def test_hyper_parameters_are_checked_before_any_cell(make_plan, tmp_path, params, why):
    with pytest.raises(KdbenchError) as raised:
        make_plan(methods=["vanilla", {"name": "kd", "params": params}])
    key, text = why.partition(":")[0], (tmp_path / "m.yaml").read_text().splitlines()
    (line,) = [n for n, words in enumerate(text, 1) if words.strip().startswith(f"{key}:")]
    assert str(raised.value).startswith(f"{tmp_path}/m.yaml:{line}: method 'kd': {why}")
    assert not (tmp_path / "run").exists()


def test_loaded_weights_have_no_route(make_plan, checkpoint):
    hub = {"name": TEACHER, "pretrained": True}
    for teacher in (checkpoint(), hub):
        (cell,) = make_plan(methods=["rco"], pairs=[{"teacher": teacher, "student": STUDENT}]).cells
        assert cell.status == "not_applicable"
        assert cell.reason == "needs the training route of a teacher trained here; loaded weights have none"


def refused(make_plan, tmp_path, **overrides):
    """Return the number of the matrix's line that a refusal names, and what it says."""
    with pytest.raises(KdbenchError) as raised:
        make_plan(**overrides)
    message = str(raised.value)
    assert "\n" not in message
    number, _, text = message.removeprefix(f"{tmp_path}/m.yaml:").partition(": ")
    return int(number), text


def lines_from(tmp_path, number):
    return [line.strip() for line in (tmp_path / "m.yaml").read_text().splitlines()[number - 1 :]]


def test_pretrained_where_there_are_no_weights(make_plan, tmp_path):
    def pairs(name):
        return [
            {"teacher": TEACHER, "student": name},
            {"teacher": {"name": name, "pretrained": True}, "student": name},
        ]

    number, text = refused(make_plan, tmp_path, pairs=pairs("resnet20"), methods=["vanilla", "kd"])
    assert text == "'resnet20' has no pretrained weights; these have: timm:*"
    assert lines_from(tmp_path, number)[:3] == ["- teacher:", "name: resnet20", "pretrained: true"]
    _, text = refused(make_plan, tmp_path, pairs=pairs("timm:test_resnet.none"), methods=["kd"])
    assert "Invalid pretrained tag" in text
    _, text = refused(make_plan, tmp_path, pairs=pairs("timm:coatnet_nano_cc_224"), methods=["kd"])
    assert text == "timm:coatnet_nano_cc_224: pretrained: true, but timm has no weights for this model"


@pytest.mark.parametrize("where", ["pairs", "teachers", "include"])
def test_a_bad_checkpoint_is_told_at_the_teacher(make_plan, tmp_path, where):
    (tmp_path / "junk.pth").write_bytes(b"edge" * 30)
    bad = {"name": TEACHER, "checkpoint": "junk.pth"}
    overrides = {
        "pairs": {"pairs": [{"teacher": TEACHER, "student": STUDENT}, {"student": TEACHER, "teacher": bad}]},
        "teachers": {"pairs": None, "teachers": [TEACHER, bad], "students": [STUDENT]},
        "include": {"include": [{"teacher": bad, "student": TEACHER}]},
    }[where]
    number, text = refused(make_plan, tmp_path, methods=["kd"], **overrides)
    head = [] if where == "teachers" else ["teacher:"]
    found = [line.removeprefix("- ") for line in lines_from(tmp_path, number)]
    assert found[: len(head) + 2] == [*head, f"name: {TEACHER}", "checkpoint: junk.pth"]
    assert text == (
        f"{tmp_path}/junk.pth: not a checkpoint that can be read (it starts with b'edgeedge', which no file of "
        "torch.save does)"
    )


def test_a_checkpoint_of_other_shape_is_told_at_the_teacher(make_plan, tmp_path, checkpoint):
    pairs = [{"student": STUDENT, "teacher": checkpoint()}]
    small = {"name": "synthetic", "args": {"num_classes": 4, "n_train": 64, "n_test": 16}}
    number, text = refused(make_plan, tmp_path, pairs=pairs, methods=["kd"], datasets=[small])
    assert lines_from(tmp_path, number)[0] == "teacher:"
    assert "has shape (10, " in text


def test_loaded_weights_are_one_teacher(make_plan, checkpoint):
    hub = {"name": TEACHER, "pretrained": True}
    sequential = {"name": "feed", "params": {"variant": "sequential"}}
    for teacher, what in ((checkpoint(), "a checkpoint is"), (hub, "pretrained weights are")):
        pairs = [{"teacher": teacher, "student": STUDENT}]
        feed, alone = make_plan(methods=["feed", sequential], pairs=pairs).cells
        assert feed.status == "not_applicable"
        assert feed.reason == (
            f"needs 2 different teachers, and {what} only one; teachers trained here differ by seed"
        )
        assert alone.status == "to run"


@pytest.mark.parametrize(
    ("changes", "images"),
    [
        ({"limit": 65, "val_fraction": 0.0}, 65),
        ({"limit": 75, "val_fraction": 0.1}, 65),  # 10 classes, so 10 are held out
        ({"limit": 64, "val_fraction": 0.0}, None),
        ({"limit": 65, "val_fraction": 0.0, "drop_last": True}, None),
        ({"limit": 65, "val_fraction": 0.0, "batch_size": 63}, None),
    ],
)
def test_a_last_batch_of_one_image_is_told(make_plan, changes, images):
    data = {**DIGITS, "limit_train": changes.pop("limit")}
    recipe = {**RECIPE, "batch_size": 64, **changes}
    plan = make_plan(methods=["vanilla", "kd"], datasets=[data], recipe=recipe)
    found = [w for w in plan.warnings if "1 image" in w]
    if images is None:
        assert found == []
    else:
        (warning,) = found
        assert f"'digits': {images} images to train on" in warning
        assert "set drop_last: true in the recipe, or another batch_size" in warning


def test_the_count_of_the_plan_is_that_of_the_run(make_plan):
    from kdbench.engine.data.splits import make_splits
    from kdbench.launch.foresight import training_images
    from kdbench_datasets.digits import Digits

    info = Digits().describe()
    for limit, share in ((None, 0.1), (75, 0.1), (500, 0.33), (500, 0.0)):
        data = {"name": "digits", **({"limit_train": limit} if limit else {})}
        plan = make_plan(methods=["vanilla"], datasets=[data], recipe={**RECIPE, "val_fraction": share})
        splits = make_splits(Digits(), info, val_fraction=share, limit_train=limit)
        assert training_images(plan.cells[0].spec, info) == len(splits["train"])

"""Published values: the shipped file, what stands beside a row, and the audit."""

from dataclasses import replace

import pytest
from click.testing import CliRunner
from factories import make_record

from kdbench.cli.leaderboard import leaderboard
from kdbench.errors import KdbenchError
from kdbench.leaderboard import render_board
from kdbench.leaderboard.audit import gaps, mixed
from kdbench.leaderboard.published import published_for
from kdbench.leaderboard.published_file import COLUMNS, RESULTS, entries, method_of, names, read_entries
from kdbench.leaderboard.rows import make_rows
from kdbench.matrix import load_matrix
from kdbench.registry import Registry
from kdbench.results.schema import Record

HOBBIT = "github.com/HobbitLong/RepDistiller"


@pytest.fixture(scope="module")
def recipe():
    """The recipe of CIFAR-100 papers, on all training images."""
    return recipe_of(0.0)


def recipe_of(val_fraction, **more):
    from kdbench.matrix.recipe import Recipe

    return Recipe.model_validate(
        {
            "epochs": 240,
            "optimizer": {"name": "momentum", "lr": 0.05, "weight_decay": 5e-4},
            "schedule": {"name": "multistep", "milestones": [150, 180, 210]},
            "val_fraction": val_fraction,
            **more,
        }
    ).model_dump(mode="json")


def row(method="crd", recipe=None, *, teacher="resnet32x4", student="resnet8x4", **more):
    more = {"dataset": "cifar100", "top1": 75.0, "params": {}, **more}
    record = make_record(
        method=method, teacher=teacher, student=student, recipe=recipe or recipe_of(0.1), **more
    )
    (found,) = make_rows([Record.model_validate(record)])
    return found


def test_an_equal_protocol_is_found_equal(recipe):
    values = {v.source.split()[0]: v for v in published_for(row(recipe=recipe))}
    theirs = values[HOBBIT]
    assert (theirs.value, theirs.selection, theirs.protocol_equal) == (75.51, "last epoch", True)
    assert theirs.difference == pytest.approx(75.0 - 75.51)
    assert theirs.differences == ()


def test_what_differs_is_told(recipe):
    short = recipe_of(0.1, epochs=24, schedule={"name": "multistep", "milestones": [0.625, 0.75, 0.875]})
    (theirs,) = [v for v in published_for(row(recipe=short)) if v.source.startswith(HOBBIT)]
    assert theirs.protocol_equal is False
    assert theirs.differences == ("epochs 240 there, 24 here", "val_fraction 0 there, 0.1 here")


def test_best_epochs_and_unknown_recipes_are_not_equal(recipe):
    found = published_for(row("dkd", recipe, params={"standardise": False}))
    by_protocol = {v.selection: v for v in found}
    best = by_protocol["best epoch"]
    assert best.protocol_equal is False
    assert best.differences == ("best epoch on the test split there, last epoch here",)
    unknown = [v for v in published_for(row("reviewkd", recipe)) if v.selection == "not known"]
    assert unknown
    assert all(v.protocol_equal is None for v in unknown)


def test_options_of_a_method_make_another(recipe):
    plain = published_for(row("dkd", recipe, params={"standardise": False}))
    ls = published_for(row("dkd", recipe, params={"standardise": True}))
    assert {v.method for v in plain} == {"DKD"}
    assert {v.method for v in ls} == {"DKD+LS"}


def test_light_students_have_their_own_learning_rate(recipe):
    light = row("crd", recipe, teacher="vgg13", student="mobilenetv2_half")
    (theirs,) = [v for v in published_for(light) if v.source.startswith(HOBBIT)]
    assert theirs.differences == ("optimizer.lr 0.01 there, 0.05 here",)


@pytest.mark.parametrize(
    "other",
    [
        {"dataset": "digits"},
        {"student": "resnet8x4(a=1)"},
        {"teacher": "resnet56"},
        {"role": "teacher"},
        {"method": "nobody"},
    ],
)
def test_nothing_else_is_compared(other):
    assert published_for(row(**other)) == []


def test_the_student_alone_is_compared_with_the_student_alone(recipe):
    (theirs,) = published_for(row("vanilla", recipe, teacher=None))
    assert (theirs.method, theirs.value, theirs.sd) == ("student alone", 72.5, None)


def test_values_from_memory_are_left_out_unless_asked_for():
    unread = next(e for e in entries() if not e.verified and e.dataset == "cifar100")
    nets = names()["architectures"]["cifar100"]
    mine = row(method_of(unread.method)[0], teacher=nets[unread.teacher], student=nets[unread.student])
    assert unread.top1 not in {v.value for v in published_for(mine)}
    assert unread.top1 in {v.value for v in published_for(mine, unverified=True)}
    for name, text in render_board(mine.records, title="x").items():
        assert unread.source not in text.decode(), name


def test_a_board_shows_value_ours_difference_and_protocol(recipe):
    files = render_board(row(recipe=recipe).records, title="x")
    page = files["README.md"].decode()
    assert "| crd | resnet32x4 → resnet8x4 | cifar100 | 75.00 | 75.51 | -0.51 | yes |" in page
    table = files["published.csv"].decode().splitlines()
    assert "cifar100,quick,resnet32x4,resnet8x4,crd" in table[1]
    assert ",75.0000,CRD,75.5100,,-0.5100,yes,,last epoch,80.0000,79.4200," in table[1]


def test_a_board_without_published_values_says_nothing():
    files = render_board([Record.model_validate(make_record())], title="x")
    assert "published.csv" not in files
    assert "ublished" not in files["README.md"].decode()


def test_every_name_means_something_that_is_there():
    registry = Registry.load()
    known = {e.method: method_of(e.method)[0] for e in entries()}
    assert known["KD+LS"] == "kdls"
    for published in names()["methods"]:
        assert registry.get("methods", names()["methods"][published]["method"])
        assert published in known
    for dataset, nets in names()["architectures"].items():
        for architecture in nets.values():
            assert registry.get("architectures", architecture)
        mine = {n for e in entries() if e.dataset == dataset for n in (e.teacher, e.student)}
        assert mine <= set(nets)
    for protocol in names()["protocols"].values():
        assert set(protocol["students"]) <= {e.student for e in entries()}


def test_the_shipped_matrix_differs_only_by_its_validation_split():
    """The recipe that the sources share is the one that ``cifar100-standard`` says it follows."""
    cells = load_matrix("cifar100-standard").matrix
    mine = row(recipe=cells.recipe.model_dump(mode="json"))
    (theirs,) = [v for v in published_for(mine) if v.source.startswith(HOBBIT)]
    assert theirs.differences == ("val_fraction 0 there, 0.1 here",)


LINE = "cifar100,a,75.0,b,70.0,KD,72.5,,,last_epoch,file,somewhere,"


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (LINE.replace("72.5", "nan"), "line 2: top1: expected percent"),
        (LINE.replace("72.5", "725"), "line 2: top1: expected percent"),
        (LINE.replace("72.5", ""), "line 2: top1: empty"),
        (LINE.replace("last_epoch", "last-epoch"), "did you mean 'last_epoch'"),
        (LINE.replace(",file,", ",yes,"), "verified: 'yes' is not one of"),
        (LINE.replace("somewhere", ""), "source: empty"),
        (LINE.replace(",,last", ",crd,last"), "protocol: 'crd' is not one of"),
        (LINE + ",", "expected 13 columns"),
        (LINE[:-1], "expected 13 columns"),
    ],
)
def test_a_broken_file_is_named_by_line(tmp_path, line, problem):
    path = tmp_path / "p.csv"
    path.write_text(",".join(COLUMNS) + f"\n{line}\n")
    with pytest.raises(KdbenchError) as caught:
        read_entries(path)
    assert problem in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_check_reads_the_shipped_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("kdbench.leaderboard.published_file.read_entries", broken)
    (tmp_path / "leaderboards" / "q" / "records").mkdir(parents=True)
    result = CliRunner().invoke(leaderboard, ["check"])
    assert result.exit_code == 1
    assert "published_results.csv: line 7" in result.output


def broken():
    raise KdbenchError(f"{RESULTS}: line 7: top1: empty")


def test_audit_of_the_shipped_file_finds_what_is_known_of_it():
    found = mixed(entries())
    apart = found["one method and pair, given differently"]
    assert apart[0].startswith("3.85: ICKD on resnet34 → resnet18, imagenet: 72.19 (as in the paper;")
    (teacher,) = found["teachers of one name that differ"]
    assert teacher.startswith("resnet34, imagenet: 73.31 (")
    text = "\n".join(line for title, lines in found.items() if "never shown" not in title for line in lines)
    for entry in entries():
        assert entry.verified or entry.source not in text


def test_audit_finds_copies_and_mixed_rules():
    first = next(e for e in entries() if e.selection == "last_epoch")
    copy = replace(first, source="other table", selection="best_epoch")
    own = replace(copy, method="New", selection="last_epoch", top1=80.0)
    found = mixed([first, copy, own])
    (line,) = found["copied into a table with another selection rule"]
    assert line.startswith("KD, cifar100: 1 value(s) of other table (best epoch) are those of")
    assert found["more than one selection rule in a table"] == [
        "other table, cifar100: best epoch, last epoch"
    ]
    assert found["one method and pair, given differently"] == []


def test_audit_lists_the_largest_gap_first(tmp_path, monkeypatch, recipe):
    near, far = row("crd", recipe, top1=75.4), row("rkd", recipe, top1=60.0)
    first, *_ = gaps([near, far])
    assert (first.row.labels.variant, first.published.value) == ("rkd", 71.9)
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(leaderboard, ["audit", "--top", "2"])
    assert result.exit_code == 0, result.output
    assert result.output.startswith("gaps between published and measured: none\n")
    assert "and 12 more (--top)" in result.output
    assert "\nsources: [1] " in result.output
    assert "(as in the paper; [1])" in result.output

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from matrix_files import SMALL, error, load, swap, write

from kdbench.errors import MatrixError
from kdbench.matrix import expand, load_matrix, matrix_names


def test_short_forms_and_defaults(tmp_path: Path):
    loaded = load(tmp_path)
    matrix = loaded.matrix
    assert [m.name for m in matrix.methods] == ["alone", "kd", "dkd"]
    assert matrix.methods[2].params == {"beta": 2.0}
    assert matrix.datasets[0].name == "digits"
    assert matrix.pairs is not None
    assert matrix.pairs[0].teacher is not None
    assert matrix.pairs[0].teacher.name == "big"
    assert matrix.seeds == (0, 1)
    assert matrix.task == "classification"
    assert matrix.throughput is not None
    assert matrix.throughput.batch_sizes == (1, 64)
    assert matrix.throughput.rounds == 30
    assert matrix.timeout_s is None
    assert matrix.teacher_method == "vanilla"
    assert loaded.path == (tmp_path / "m.yaml").resolve()
    assert loaded.text_sha256 == hashlib.sha256(SMALL.encode()).hexdigest()


def test_seeds_and_throughput(tmp_path: Path):
    assert load(tmp_path, swap("seeds: 2", "seeds: [7, 3]")).matrix.seeds == (7, 3)
    assert load(tmp_path, SMALL + "throughput: false\n").matrix.throughput is None
    own = load(tmp_path, SMALL + "throughput: {batch_sizes: [8], rounds: 3}\n").matrix.throughput
    assert own is not None
    assert (own.batch_sizes, own.rounds) == ((8,), 3)


GANG = "expected auto, off or a number of cells from 2 to 64"
SLOTS = "expected auto or a number of cells from 1 to 16"
NEAR = " (did you mean 'auto'?); got 'atuo'"

#: What replaces what in SMALL -> the start of the message.
REFUSED = [
    ("seeds: 2", "seeds: true", "m.yaml:5: seeds: expected a number of seeds (integer) or a list"),
    ("seeds: 2", "seeds: 0", "m.yaml:5: seeds: expected a number of seeds from 1 to 10000"),
    ("seeds: 2", "seeds: 2.0", "m.yaml:5: seeds: expected a number of seeds"),
    ("seeds: 2", "seeds: '2'", "m.yaml:5: seeds: expected a number of seeds"),
    ("seeds: 2", "seeds: []", "m.yaml:5: seeds: expected at least 1 item"),
    (
        "seeds: 2",
        "seeds:\n- 1\n- -1",
        "m.yaml:7: seeds[1]: expected a number greater than or equal to 0, got -1",
    ),
    (
        "seeds: 2",
        "seeds: [1, yes]",
        "m.yaml:5: seeds[1]: expected an integer, got true; YAML reads yes as true",
    ),
    ("seeds: 2", "seeds: [1, 2.5]", "m.yaml:5: seeds[1]: expected an integer, got 2.5"),
    ("seeds: 2", "seeds: [1, '2']", "m.yaml:5: seeds[1]: expected an integer, got '2'; it is quoted text"),
    ("seeds: 2", "seeds: [4, 4]", "m.yaml:5: seeds[1]: 4 is given twice"),
    ("seeds: 2", "seeds: 010", "m.yaml:5: seeds: YAML reads 010 as the octal number 8"),
    ("seeds: 2\n", "", "m.yaml:1: the key 'seeds' is missing"),
    ("seeds: 2", "sedes: 2", "m.yaml:5: sedes: unknown key 'sedes' (did you mean 'seeds' or"),
    ("seeds: 2", "seeds: 2\nname: x", "m.yaml:6: name: key 'name' is given twice, on lines 1 and 6"),
    ("name: small", "name: no", "m.yaml:1: name: expected text, got false; YAML reads no as false: quote it"),
    ("name: small", "name: Small", "m.yaml:1: name: expected at most 64 lower-case letters"),
    ("name: small", "name: ../x", "m.yaml:1: name: expected at most 64 lower-case letters"),
    ("name: small", "name: " + "x" * 65, "m.yaml:1: name: expected at most 64"),
    ("[digits]", "[]", "m.yaml:2: datasets: expected at least 1 item"),
    ("[digits]", "digits", "m.yaml:2: datasets: expected a list, got 'digits'"),
    ("[digits]", "[3]", "m.yaml:2: datasets[0]: expected a mapping, got 3"),
    ("[digits]", "['a b']", "m.yaml:2: datasets[0]: expected text without spaces, got 'a b'"),
    (
        "[digits]",
        "[{name: x, limit_train: 0}]",
        "m.yaml:2: datasets[0].limit_train: expected a number greater",
    ),
    (
        "[digits]",
        "[{name: x, storage: gpu}]",
        "m.yaml:2: datasets[0].storage: 'gpu' is not possible; expected",
    ),
    ("[digits]", "[{name: x, args: [1]}]", "m.yaml:2: datasets[0].args: expected a mapping"),
    ("student: little", "studnet: little", "m.yaml:3: pairs[0].studnet: unknown key 'studnet' (did you mean"),
    ("student: little", "student: null", "m.yaml:3: pairs[0].student: expected a mapping, got null"),
    ("teacher: big, ", "", "m.yaml:3: pairs[0]: the key 'teacher' is missing"),
    (
        "teacher: big",
        "teacher: {name: big, pretrained: true, checkpoint: f}",
        "m.yaml:3: pairs[0].teacher.pretrained: 'pretrained' and 'checkpoint' exclude",
    ),
    (
        "teacher: big",
        "teacher: {name: big, sha256: " + "a" * 64 + "}",
        "m.yaml:3: pairs[0].teacher.sha256: 'sha256' is the digest of a checkpoint",
    ),
    (
        "teacher: big",
        "teacher: {name: big, checkpoint: f, sha256: x}",
        "m.yaml:3: pairs[0].teacher.sha256: expected 64 hexadecimal digits",
    ),
    (
        "teacher: big",
        "teacher: {name: big, mean: [0.5], std: [0.5]}",
        "m.yaml:3: pairs[0].teacher.mean: 'mean' is how the input of a 'checkpoint' was normalised; there is none",
    ),
    (
        "teacher: big",
        "teacher: {name: big, pretrained: true, mean: [0.5], std: [0.5]}",
        "m.yaml:3: pairs[0].teacher.mean: 'mean' is how the input of a 'checkpoint' was normalised; timm says",
    ),
    (
        "teacher: big",
        "teacher: {name: big, checkpoint: f, mean: [0.5]}",
        "m.yaml:3: pairs[0].teacher.mean: 'mean' goes with 'std', which is missing",
    ),
    (
        "teacher: big",
        "teacher: {name: big, checkpoint: f, std: [0.5]}",
        "m.yaml:3: pairs[0].teacher.std: 'std' goes with 'mean', which is missing",
    ),
    (
        "teacher: big",
        "teacher: {name: big, checkpoint: f, mean: [0.5, 0], std: [0.5, 0]}",
        "m.yaml:3: pairs[0].teacher.std: each value must be above 0 and at most 1",
    ),
    (
        "teacher: big",
        "teacher: {name: big, checkpoint: f, mean: [123.7], std: [58.4]}",
        "m.yaml:3: pairs[0].teacher.mean: each value must be at least 0 and at most 1: pixels go from 0 to 1",
    ),
    (
        "teacher: big",
        "teacher: {name: big, checkpoint: f, mean: [0.5], std: [0.5, 0.5]}",
        "m.yaml:3: pairs[0].teacher.std: 'mean' has 1 values and 'std' 2",
    ),
    (
        "teacher: big",
        "teacher: {name: big, checkpoint: f, mean: 0.5, std: [0.5]}",
        "m.yaml:3: pairs[0].teacher.mean: expected a list, got 0.5",
    ),
    (
        "teacher: big",
        "teacher: {name: big, pretrained: true, recipe: quick}",
        "m.yaml:3: pairs[0].teacher.recipe: 'recipe' is for a teacher that is trained",
    ),
    ("pairs:", "teachers: [a]\npairs:", "m.yaml:3: teachers: 'teachers' and 'pairs' exclude each other"),
    ("pairs: [{teacher: big, student: little}]\n", "", "m.yaml:1: pairs: give either 'pairs' or both"),
    (
        "pairs: [{teacher: big, student: little}]",
        "teachers: [a]",
        "m.yaml:1: students: 'students' is missing",
    ),
    (
        "pairs: [{teacher: big, student: little}]",
        "students: [a]",
        "m.yaml:1: teachers: 'teachers' is missing",
    ),
    (
        "params: {beta: 2.0}",
        "param: {beta: 2.0}",
        "m.yaml:4: methods[2].param: unknown key 'param' (did you mean",
    ),
    ("params: {beta: 2.0}", "params: 3", "m.yaml:4: methods[2].params: expected a mapping, got 3"),
    ("params: {beta: 2.0}", "label: ''", "m.yaml:4: methods[2].label: "),
    ("params: {beta: 2.0}", 'label: "a\\nb"', "m.yaml:4: methods[2].label: expected one line of text"),
    ("params: {beta: 2.0}", "recipe: {epochs: x}", "m.yaml:4: methods[2].recipe.epochs: expected an integer"),
    ("params: {beta: 2.0}", "recipe: quik", "m.yaml:4: unknown recipe 'quik' (did you mean 'quick'?)"),
    ("recipe: quick", "recipe: quik", "m.yaml:6: unknown recipe 'quik' (did you mean 'quick'?)"),
    ("recipe: quick", "recipe: 3", "m.yaml:6: expected the name of a recipe or a mapping, got 3"),
    ("recipe: quick", "recipe: nowhere.yaml", "m.yaml:6: no recipe file 'nowhere.yaml'"),
    ("recipe: quick\n", "", "m.yaml:1: the key 'recipe' is missing"),
    (
        "recipe: quick",
        "recipe:\n  base: quick\n  optimizer:\n    lr: -1",
        "m.yaml:9: recipe.optimizer.lr: expected a number greater than 0, got -1",
    ),
    (
        "recipe: quick",
        "recipe:\n  base: quick\n  schedule:\n    name: cosin",
        "m.yaml:9: recipe.schedule.name: 'cosin' is not possible (did you mean 'cosine'?)",
    ),
    (
        "recipe: quick",
        "recipe:\n  base: cifar240\n  schedule: {milestones: [150, 300]}",
        "m.yaml:8: recipe.schedule.milestones: milestone 300 is not before the end",
    ),
    ("recipe: quick", "recipe: quick\nthroughput: true", "m.yaml:7: throughput: expected false or a mapping"),
    ("recipe: quick", "recipe: quick\nthroughput: null", "m.yaml:7: throughput: expected false or a mapping"),
    (
        "recipe: quick",
        "recipe: quick\nthroughput: {batch_sizes: [1, 1]}",
        "m.yaml:7: throughput.batch_sizes: batch sizes must differ",
    ),
    (
        "recipe: quick",
        "recipe: quick\nthroughput: {precisions: [bf16]}",
        "m.yaml:7: throughput.precisions: 'precisions' needs 'only: true'",
    ),
    (
        "recipe: quick",
        "recipe: quick\nthroughput: {batch_sizes: [1, auto]}",
        "m.yaml:7: throughput.batch_sizes: 'auto' needs 'only: true'",
    ),
    (
        "recipe: quick",
        "recipe: quick\nthroughput: {only: true, modes: [infer, infer]}",
        "m.yaml:7: throughput.modes: modes must differ",
    ),
    (
        "recipe: quick",
        "recipe: quick\nthroughput: {only: true}",
        "m.yaml:3: pairs: with 'throughput.only' nothing is trained: expected null for every teacher",
    ),
    ("recipe: quick", "recipe: quick\nevaluators: [a, a]", "m.yaml:7: evaluators[1]: 'a' is given twice"),
    ("recipe: quick", "recipe: quick\ntimeout_s: 0", "m.yaml:7: timeout_s: expected a number greater than 0"),
    ("recipe: quick", "recipe: quick\ntimeout_s: .inf", "m.yaml:7: timeout_s: .inf is not a finite number"),
    (
        "recipe: quick",
        "recipe: quick\nexclude:\n- {metod: kd}",
        "m.yaml:8: exclude[0].metod: unknown key 'metod'",
    ),
    (
        "recipe: quick",
        "recipe: quick\nexclude: [{}]",
        "m.yaml:7: exclude[0]: an item of exclude names at least",
    ),
    (
        "recipe: quick",
        "recipe: quick\nexclude: [{method: [no]}]",
        "m.yaml:7: exclude[0].method[0]: expected text",
    ),
    (
        "recipe: quick",
        "recipe: quick\ninclude: [{}]",
        "m.yaml:7: include[0]: an item of include names at least",
    ),
    ("recipe: quick", "recipe: quick\ninclude: [{seed: -1}]", "m.yaml:7: include[0].seed"),
    *(
        ("recipe: quick", f"recipe: quick\ngang: {value}", f"m.yaml:7: gang: {GANG}{rest}")
        for value, rest in [("1", "; got 1"), ("65", ";"), ("2.0", ";"), ("on", ";"), ("atuo", NEAR)]
    ),
    *(
        ("recipe: quick", f"recipe: quick\nslots_per_gpu: {value}", f"m.yaml:7: slots_per_gpu: {SLOTS}{rest}")
        for value, rest in [("0", "; got 0"), ("17", ";"), ("off", ";"), ("atuo", NEAR)]
    ),
]


@pytest.mark.parametrize(("old", "new", "expected"), REFUSED, ids=[new[:40] for _, new, _ in REFUSED])
def test_errors_name_file_line_and_key(tmp_path: Path, old: str, new: str, expected: str):
    message = error(tmp_path, swap(old, new))
    assert message.startswith(expected)
    assert "\n" not in message


@pytest.mark.parametrize("text", ["", "# only a comment\n", "- a\n- b\n", "just text\n"])
def test_files_that_are_no_mapping(tmp_path: Path, text: str):
    assert error(tmp_path, text).startswith("m.yaml:1: the file is")


def test_several_errors_deepest_first_and_at_most_20(tmp_path: Path):
    text = swap("seeds: 2", "seeds: x", swap("beta: 2.0}", "beta: 2.0}, lable: x"))
    lines = error(tmp_path, text).splitlines()
    assert [line.split(": ")[1] for line in lines] == ["methods[2].lable", "seeds"]
    many = error(tmp_path, SMALL + "".join(f"key{i}: 1\n" for i in range(50))).splitlines()
    assert len(many) == 20
    assert many[-1] == "... and 31 more"


def test_a_broken_recipe_is_told_once(tmp_path: Path):
    text = swap("recipe: quick", "recipe: {base: quick, epochs: 0}\nteacher_recipe: {batch_size: 8}")
    text = swap("params: {beta: 2.0}", "recipe: {batch_size: 8}", text)
    assert error(tmp_path, text).count("epochs") == 1


def test_error_in_an_anchor_is_found_where_it_is_used(tmp_path: Path):
    text = swap("kd, {name: dkd, params: {beta: 2.0}}", "&x {name: kd, prams: {}}, *x")
    lines = error(tmp_path, text).splitlines()
    assert [line.split(": ")[1] for line in lines] == ["methods[1].prams", "methods[2].prams"]


def test_where(tmp_path: Path):
    loaded = load(tmp_path, sets=["recipe.epochs=3", "methods.1=ab"])
    assert loaded.where("methods", 2, "params", "beta") == "m.yaml:4"
    assert loaded.where("seeds") == "m.yaml:5"
    assert loaded.where("title") == "m.yaml:1"
    assert loaded.where() == "m.yaml:1"
    assert loaded.where("recipe") == "m.yaml:6"
    assert loaded.where("recipe", "epochs") == "--set recipe.epochs"
    assert loaded.where("recipe", "batch_size") == "m.yaml:6"
    assert loaded.where("methods", 1, "name") == "--set methods.1"


# --set


def recipe_of(folder: Path, *sets: str, text: str = SMALL):
    return load(folder, text, sets=sets).matrix.recipe


def test_set_recipe_keys(tmp_path: Path):
    recipe = recipe_of(
        tmp_path,
        "recipe.epochs=10",
        "recipe.optimizer.lr=1e-3",
        "recipe.augment.kind=rrc",
        "recipe.drop_last=true",
    )
    assert (recipe.epochs, recipe.optimizer.lr, recipe.drop_last) == (10, 1e-3, True)
    assert recipe.optimizer.momentum == 0.9
    assert recipe.augment.kind == "rrc"


def test_set_does_what_an_edit_of_the_file_does(tmp_path: Path):
    by_set = load(tmp_path, sets=["recipe.epochs=10", "methods.1.params.T=2", "seeds=[4]"])
    text = swap("recipe: quick", "recipe: {base: quick, epochs: 10}")
    text = swap("seeds: 2", "seeds: [4]", swap(" kd,", " {name: kd, params: {T: 2}},", text))
    edited = load(tmp_path, text)
    assert by_set.matrix == edited.matrix
    assert expand(by_set).cells == expand(edited).cells
    assert [c.recipe.name for c in expand(by_set).cells] == ["quick(epochs=10)"] * 3


def test_set_other_places(tmp_path: Path):
    loaded = load(
        tmp_path,
        sets=[
            "datasets.0.limit_train=50",
            "pairs.0.student.args.width=2",
            "pairs.0.teacher.seed=3",
            "throughput.rounds=5",
            "teacher_recipe.epochs=4",
            "methods.2.params.beta=8",
            "methods.0.label=plain",
            "title=two words",
        ],
    )
    matrix = loaded.matrix
    assert matrix.datasets[0].limit_train == 50
    assert matrix.pairs is not None
    assert matrix.pairs[0].student.args == {"width": 2}
    assert matrix.pairs[0].teacher is not None
    assert matrix.pairs[0].teacher.seed == 3
    assert matrix.throughput is not None
    assert matrix.throughput.rounds == 5
    assert matrix.teacher_recipe is not None
    assert (matrix.teacher_recipe.epochs, matrix.teacher_recipe.batch_size) == (4, 64)
    assert matrix.methods[2].params == {"beta": 8}
    assert matrix.methods[0].label == "plain"
    assert matrix.title == "two words"


def test_later_sets_see_earlier_ones(tmp_path: Path):
    loaded = load(
        tmp_path, sets=["methods=[kd, ab]", "methods.1.params.w=1", "recipe=cifar30", "recipe.epochs=2"]
    )
    assert [m.name for m in loaded.matrix.methods] == ["kd", "ab"]
    assert loaded.matrix.methods[1].params == {"w": 1}
    assert expand(loaded).cells[0].recipe.name == "cifar30(epochs=2)"


@pytest.mark.parametrize(
    ("assignment", "expected"),
    [
        ("recipe.epoch=3", "--set recipe.epoch: unknown key 'epoch' (did you mean 'epochs'?)"),
        ("recip.epochs=3", "--set recip.epochs: unknown key 'recip' (did you mean 'recipe'?)"),
        ("recipe.optimizer.rate=3", "--set recipe.optimizer.rate: unknown key 'rate'"),
        ("methods.7.name=x", "--set methods.7.name: methods has the items 0 to 2; there is no item '7'"),
        (
            "methods.kd.params=x",
            "--set methods.kd.params: methods has the items 0 to 2; there is no item 'kd'",
        ),
        ("methods.-1=x", "--set methods.-1: methods has the items 0 to 2"),
        (
            "methods.1.parms.beta=2",
            "--set methods.1.parms.beta: unknown key 'parms' (did you mean 'params'?)",
        ),
        ("seeds.0=1", "--set seeds.0: seeds is 2 and has no '0'"),
        ("teachers.0.seed=1", "--set teachers.0.seed: teachers is not in the file and has no '0'"),
        ("recipe.epochs", "--set recipe.epochs: expected KEY.PATH=VALUE"),
        ("=3", "--set =3: expected KEY.PATH=VALUE"),
        ("recipe..epochs=3", "--set recipe..epochs=3: expected KEY.PATH=VALUE"),
        ("recipe.epochs=[1", "--set recipe.epochs:1: not valid YAML"),
        ("recipe.epochs=x", "--set recipe.epochs: expected an integer, got 'x'"),
        ("recipe.epochs=no", "--set recipe.epochs: expected an integer, got false"),
        ("recipe.epochs=", "--set recipe.epochs: expected an integer, got null"),
        ("recipe=quik", "--set recipe: unknown recipe 'quik' (did you mean 'quick'?)"),
        ("methods.1.params=3", "--set methods.1.params: expected a mapping, got 3"),
    ],
)
def test_set_errors(tmp_path: Path, assignment: str, expected: str):
    assert error(tmp_path, sets=[assignment]).startswith(expected)


# finding


def test_shipped_matrices_by_name(tmp_path: Path):
    assert {"quickstart", "cifar10-jpeg", "throughput-timm"} <= set(matrix_names())
    assert load_matrix("quickstart", cwd=tmp_path).matrix.name == "quickstart"


def test_a_file_of_that_name_comes_first(tmp_path: Path):
    write(tmp_path, SMALL, "quickstart")
    assert load_matrix("quickstart", cwd=tmp_path).matrix.name == "small"


def test_paths(tmp_path: Path):
    path = write(tmp_path, SMALL)
    assert load_matrix(path).matrix.name == "small"
    assert load_matrix(str(path)).where("seeds") == f"{path}:5"
    assert load_matrix("./m.yaml", cwd=tmp_path).where("seeds") == "./m.yaml:5"


@pytest.mark.parametrize(
    ("ref", "expected"),
    [
        ("quickstat", "quickstat: no such matrix file (did you mean 'quickstart'?)"),
        ("mm.yaml", "mm.yaml: no such matrix file (did you mean 'm.yaml'?)"),
        ("no/such/place.yaml", "no/such/place.yaml: no such matrix file"),
        (".", ".: is a folder"),
        ("", ": is a folder"),
    ],
)
def test_unknown_matrices(tmp_path: Path, ref: str, expected: str):
    write(tmp_path, SMALL)
    with pytest.raises(MatrixError) as caught:
        load_matrix(ref, cwd=tmp_path)
    assert str(caught.value).startswith(expected)


def test_recipe_file_beside_the_matrix(tmp_path: Path):
    write(tmp_path, "base: quick\nepochs: 7\n", "mine.yaml")
    loaded = load(tmp_path, swap("recipe: quick", "recipe: mine.yaml"))
    assert loaded.matrix.recipe.epochs == 7
    write(tmp_path, "base: quick\nepochs: x\n", "mine.yaml")
    message = error(tmp_path, swap("recipe: quick", "recipe: mine.yaml"))
    assert message.startswith("mine.yaml:2: epochs: expected an integer")

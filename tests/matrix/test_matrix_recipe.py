from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from kdbench.errors import MatrixError
from kdbench.matrix import Recipe, load_recipe, recipe_names
from kdbench.matrix.recipe_files import FOLDER, merge, resolve

LEAST = {"epochs": 10, "optimizer": {"name": "momentum", "lr": 0.1}}


def problem(**changes: Any) -> str:
    with pytest.raises(ValidationError) as caught:
        Recipe.model_validate({**LEAST, **changes})
    return str(caught.value)


@pytest.mark.parametrize("name", recipe_names())
def test_shipped_recipes_load_and_say_what_they_are(name: str):
    recipe = load_recipe(name)
    assert recipe.name == name
    assert recipe.epochs >= 1
    first = (FOLDER / f"{name}.yaml").read_text(encoding="utf-8").splitlines()[0]
    assert first.startswith("# ")
    assert first.endswith(".")


def test_the_named_recipes_are_there():
    assert {"quick", "cifar240", "cifar200-nesterov", "imagenet100", "cifar30"} <= set(recipe_names())


def test_cifar240_decays_at_the_published_epochs():
    recipe = load_recipe("cifar240")
    assert [m * recipe.epochs for m in recipe.schedule.milestones] == [150, 180, 210]
    assert recipe.optimizer.model_dump() == {
        "name": "momentum",
        "lr": 0.05,
        "weight_decay": 5e-4,
        "momentum": 0.9,
        "betas": None,
        "eps": None,
    }


def test_defaults():
    recipe = Recipe.model_validate(LEAST)
    assert recipe.batch_size == 64
    assert recipe.eval_batch_size == 256
    assert recipe.schedule.name == "cosine"
    assert recipe.augment.flip == "auto"
    assert recipe.val_fraction == 0.1
    assert recipe.deterministic
    assert recipe.name == "inline"


@pytest.mark.parametrize("value", ["off", False, "none"])
def test_compile_is_turned_off_as_other_switches_are(value: Any):
    assert Recipe.model_validate({**LEAST, "compile": value}).compile == "none"


@pytest.mark.parametrize(
    "changes",
    [
        {"epochs": 0},
        {"epochs": 1.0},
        {"epochs": True},
        {"epochs": "3"},
        {"drop_last": 1},
        {"batch_size": 0},
        {"val_fraction": 1.0},
        {"val_fraction": -0.1},
        {"val_fraction": float("nan")},
        {"clip_grad": 0},
        {"precision": "fp8"},
        {"compile": True},
        {"unknown": 1},
        {"label_smoothing": 1.0},
        {"optimizer": {"name": "SGD", "lr": 0.1}},
        {"optimizer": {"name": "sgd", "lr": 0.0}},
        {"optimizer": {"name": "sgd", "lr": float("inf")}},
        {"optimizer": {"name": "sgd", "lr": 0.1, "nesterov": True}},
        {"optimizer": {"name": "adam", "lr": 0.1, "betas": [0.9]}},
        {"optimizer": {"name": "adam", "lr": 0.1, "betas": [0.9, 1.0]}},
        {"augment": {"kind": "rrc", "padding": 4}},
        {"augment": {"flip": 1}},
        {"augment": {"flip": "yes"}},
        {"schedule": {"name": "step"}},
        {"schedule": {"name": "multistep"}},
        {"schedule": {"name": "multistep", "milestones": [0.5, 3]}},
        {"schedule": {"name": "multistep", "milestones": [0.5, 0.5]}},
        {"schedule": {"name": "multistep", "milestones": [1.0]}},
        {"schedule": {"name": "multistep", "milestones": [0]}},
        {"schedule": {"name": "multistep", "milestones": [True]}},
        {"schedule": {"name": "multistep", "milestones": [0.5], "min_lr": 0.1}},
        {"schedule": {"name": "cosine", "gamma": 0.1}},
        {"schedule": {"name": "cosine", "warmup_epochs": 10}},
    ],
    ids=str,
)
def test_refused(changes: dict[str, Any]):
    assert "validation error" in problem(**changes)


def test_refusals_say_why():
    assert "'cosine' does not read 'gamma'" in problem(schedule={"name": "cosine", "gamma": 0.1})
    late = problem(schedule={"name": "multistep", "milestones": [5, 10]})
    assert "milestone 10 is not before the end (10 epochs)" in late
    assert "fractions" in late


def test_integers_become_floats_where_a_float_is_meant():
    recipe = Recipe.model_validate({**LEAST, "clip_grad": 5})
    assert recipe.clip_grad == 5.0
    assert isinstance(recipe.model_dump(mode="json")["clip_grad"], float)


def test_a_recipe_survives_being_written_out_and_read():
    for name in recipe_names():
        recipe = load_recipe(name)
        again = Recipe.model_validate(recipe.model_dump(mode="json", exclude_unset=True))
        assert again.model_dump() == recipe.model_dump()


def test_a_recipe_cannot_be_changed():
    with pytest.raises(ValidationError):
        load_recipe("quick").epochs = 3  # type: ignore[misc]


def test_renaming_makes_a_copy():
    recipe = load_recipe("quick")
    assert recipe.named("other").name == "other"
    assert recipe.name == "quick"


def test_merge_is_deep_and_leaves_the_base_alone():
    base = {"epochs": 1, "optimizer": {"name": "sgd", "lr": 0.1, "momentum": 0.8}}
    assert merge(base, {"optimizer": {"lr": 0.2}}) == {
        "epochs": 1,
        "optimizer": {"name": "sgd", "lr": 0.2, "momentum": 0.8},
    }
    assert base["optimizer"] == {"name": "sgd", "lr": 0.1, "momentum": 0.8}


def test_merge_drops_what_the_new_choice_does_not_read():
    base = {
        "optimizer": {"name": "momentum", "lr": 0.1, "weight_decay": 0.1, "momentum": 0.8},
        "schedule": {"name": "multistep", "milestones": [0.5], "gamma": 0.2, "warmup_epochs": 2},
        "augment": {"kind": "crop", "padding": 2, "flip": True},
    }
    changes = {"optimizer": {"name": "adamw"}, "schedule": {"name": "cosine"}, "augment": {"kind": "rrc"}}
    assert merge(base, changes) == {
        "optimizer": {"name": "adamw", "lr": 0.1, "weight_decay": 0.1},
        "schedule": {"name": "cosine", "warmup_epochs": 2},
        "augment": {"kind": "rrc", "flip": True},
    }
    assert merge(base, {"schedule": {"name": "step", "every_epochs": 3}})["schedule"] == {
        "name": "step",
        "gamma": 0.2,
        "warmup_epochs": 2,
        "every_epochs": 3,
    }


def test_recipe_files_and_their_bases(tmp_path: Path):
    (tmp_path / "own.yaml").write_text("base: quick\nepochs: 5\n")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "next.yaml").write_text("base: ../own.yaml\nbatch_size: 8\n")
    recipe = load_recipe("sub/next.yaml", folder=tmp_path)
    assert (recipe.epochs, recipe.batch_size, recipe.optimizer.lr) == (5, 8, 0.05)
    assert recipe.name == "sub/next.yaml"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("epochs: 3\n", "r.yaml:1: the key 'optimizer' is missing"),
        ("base: quick\nepochs: 0\n", "r.yaml:2: epochs: expected a number greater than or equal to 1, got 0"),
        ("base: quick\nepoch: 3\n", "r.yaml:2: epoch: unknown key 'epoch' (did you mean 'epochs'?)"),
        ("base: r.yaml\n", "r.yaml:1: the recipe 'r.yaml' is its own base"),
        ("base: quik\n", "r.yaml:1: unknown recipe 'quik' (did you mean 'quick'?)"),
        ("base: 3\n", "r.yaml:1: base: expected the name of a recipe, got 3"),
        ("- a\n", "r.yaml:1: expected the name of a recipe or a mapping, got ['a']"),
    ],
)
def test_errors_in_a_recipe_file_name_its_line(tmp_path: Path, text: str, expected: str):
    (tmp_path / "r.yaml").write_text(text)
    with pytest.raises(MatrixError) as caught:
        load_recipe("r.yaml", folder=tmp_path)
    assert str(caught.value).startswith(expected)


def test_missing_recipes(tmp_path: Path):
    with pytest.raises(MatrixError, match=r"unknown recipe 'cifar204' \(did you mean 'cifar240'"):
        load_recipe("cifar204")
    with pytest.raises(MatrixError, match=r"no recipe file 'x\.yaml'"):
        load_recipe("x.yaml", folder=tmp_path)
    with pytest.raises(MatrixError, match=r"unknown recipe '\.\./matrices/quickstart'"):
        load_recipe("../matrices/quickstart")


def test_labels(tmp_path: Path):
    def label(value: Any) -> str:
        return resolve(value, folder=tmp_path, where=lambda *keys: "f:1").label

    assert label("quick") == "quick"
    assert (
        label({"base": "quick", "epochs": 3, "optimizer": {"lr": 0.01}})
        == "quick(epochs=3, optimizer.lr=0.01)"
    )
    assert label(LEAST) == "inline"
    assert len(label({"base": "quick", **{f"key{i}": i for i in range(99)}})) <= 200

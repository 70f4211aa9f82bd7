from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from kdbench.cli import main
from kdbench.matrix import expand, load_matrix, matrix_names
from kdbench.matrix.json_schema import matrix_schema, recipe_schema
from kdbench.matrix.load import FOLDER
from kdbench.matrix.recipe import Recipe
from kdbench.matrix.recipe_files import FOLDER as RECIPES
from kdbench.matrix.schema import Matrix


@pytest.mark.parametrize("name", matrix_names())
def test_shipped_matrices_load_expand_and_say_what_they_are(name: str):
    loaded = load_matrix(name)
    assert loaded.matrix.name == name
    expansion = expand(loaded)
    assert expansion.cells
    assert not expansion.warnings
    first = (FOLDER / f"{name}.yaml").read_text(encoding="utf-8").splitlines()[0]
    assert first.startswith("# ")
    assert first.endswith(".")


def test_what_the_shipped_matrices_hold():
    def axes(name: str) -> tuple[set[str], int]:
        cells = expand(load_matrix(name)).cells
        return {c.method.name for c in cells}, len(cells)

    assert axes("quickstart") == ({"vanilla", "kd", "ab", "ofd", "dkd"}, 15)
    assert axes("cifar10-jpeg") == ({"vanilla", "kd", "dkd", "ab", "ofd", "fitnet"}, 18)
    speed = expand(load_matrix("throughput-timm")).cells
    assert len(speed) == len({c.student.name for c in speed}) == 40
    assert all(c.teacher is None for c in speed)
    how = speed[0].throughput
    assert how is not None
    assert how.only
    assert (how.modes, how.precisions) == (("infer", "train"), ("fp32", "bf16"))
    assert how.batch_sizes == (1, 64, 256, "auto")


def test_the_commands_in_the_comments_work():
    sets = ["datasets.0.limit_train=5000", "datasets.0.limit_test=2000", "recipe.epochs=3", "seeds=1"]
    cells = expand(load_matrix("cifar10-jpeg", sets=[*sets, "datasets.0.args.root=/data/cifar10"])).cells
    assert len(cells) == 6
    assert cells[0].dataset.limit_train == 5000
    assert cells[0].dataset.args == {"root": "/data/cifar10"}
    speed = load_matrix("throughput-timm", sets=["throughput.batch_sizes=[1,8]"])
    assert len(expand(speed, only=["student=timm:resnet18"]).cells) == 1


def test_the_timm_models_exist():
    timm = pytest.importorskip("timm")
    known = set(timm.list_models())
    shipped = [c for name in matrix_names() for c in expand(load_matrix(name)).cells]
    names = {c.student.name for c in shipped} | {c.teacher.name for c in shipped if c.teacher}
    wanted = {name.removeprefix("timm:") for name in names if name.startswith("timm:")}
    assert wanted
    assert wanted <= known


# JSON schema


def refs(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        yield from ([node["$ref"]] if "$ref" in node else [])
        for value in node.values():
            yield from refs(value)
    elif isinstance(node, list):
        for value in node:
            yield from refs(value)


def fits(value: Any, schema: dict[str, Any], root: dict[str, Any]) -> bool:
    """Check the few keywords that the exported schemas use."""
    if "$ref" in schema:
        return fits(value, root["$defs"][schema["$ref"].removeprefix("#/$defs/")], root)
    if "anyOf" in schema and not any(fits(value, option, root) for option in schema["anyOf"]):
        return False
    if "const" in schema and value != schema["const"]:
        return False
    if "enum" in schema and value not in schema["enum"]:
        return False
    kinds = {
        "object": dict,
        "array": list,
        "string": str,
        "integer": int,
        "number": (int, float),
        "boolean": bool,
        "null": type(None),
    }
    if "type" in schema:
        if not isinstance(value, kinds[schema["type"]]):
            return False
        if isinstance(value, bool) and schema["type"] in ("integer", "number"):
            return False
    if isinstance(value, list) and "items" in schema:
        return all(fits(item, schema["items"], root) for item in value)
    if isinstance(value, dict) and "properties" in schema:
        known = schema["properties"]
        if schema.get("additionalProperties") is False and set(value) - set(known):
            return False
        if set(schema.get("required", ())) - set(value):
            return False
        return all(fits(item, known[key], root) for key, item in value.items() if key in known)
    return True


@pytest.mark.parametrize("schema", [matrix_schema(), recipe_schema()], ids=["matrix", "recipe"])
def test_references_resolve(schema: dict[str, Any]):
    found = {ref.removeprefix("#/$defs/") for ref in refs(schema)}
    assert found
    assert found <= set(schema["$defs"])


def test_matrix_schema_has_every_key_and_says_what_it_means():
    schema = matrix_schema()
    assert set(schema["properties"]) == set(Matrix.model_fields)
    assert schema["additionalProperties"] is False
    assert set(schema["$defs"]["RecipeChanges"]["properties"]) == {"base", *Recipe.model_fields}
    assert "required" not in schema["$defs"]["RecipeChanges"]
    for name in ("datasets", "pairs", "methods"):
        assert schema["properties"][name]
    described = schema["properties"]["teacher_recipe"]["description"]
    assert "Without base" in described


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.yaml")), ids=lambda p: p.stem)
def test_shipped_matrices_fit_the_schema(path: Path):
    schema, data = matrix_schema(), yaml.safe_load(path.read_text(encoding="utf-8"))
    assert fits(data, schema, schema)
    assert not fits({**data, "sedes": 1}, schema, schema)
    assert not fits({**data, "seeds": "5"}, schema, schema)
    assert not fits({**data, "methods": [3]}, schema, schema)
    assert not fits({k: v for k, v in data.items() if k != "recipe"}, schema, schema)


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda p: p.stem)
def test_shipped_recipes_fit_the_schema(path: Path):
    schema, data = recipe_schema(), yaml.safe_load(path.read_text(encoding="utf-8"))
    assert fits(data, schema, schema)
    assert fits({"base": "quick", "optimizer": {"lr": 0.1}}, schema, schema)
    assert not fits({"optimizer": {"lr": 0.1}}, schema, schema)
    assert not fits({**data, "epoch": 1}, schema, schema)


# the verb


@pytest.mark.parametrize("kind", ["matrix", "recipe", "record"])
def test_schema_verb_prints_json(kind: str):
    result = CliRunner().invoke(main, ["schema", kind])
    assert result.exit_code == 0, result.output
    schema = json.loads(result.output)
    assert schema["title"] == f"kdbench {kind}"
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"


def test_schema_verb_writes_a_file(tmp_path: Path):
    out = tmp_path / "matrix.json"
    result = CliRunner().invoke(main, ["schema", "--output", str(out)])
    assert result.exit_code == 0, result.output
    assert json.loads(out.read_text()) == matrix_schema()
    assert [p.name for p in tmp_path.iterdir()] == ["matrix.json"]


def test_schema_verb_errors(tmp_path: Path):
    result = CliRunner().invoke(main, ["schema", "matrx"])
    assert result.exit_code == 2
    missing = CliRunner().invoke(main, ["schema", "--output", str(tmp_path / "no" / "x.json")])
    assert missing.exit_code == 2
    assert "no such folder" in missing.output


def test_loading_a_matrix_imports_no_torch():
    code = (
        "import sys; from kdbench.matrix import load_matrix, expand; expand(load_matrix('quickstart'));"
        "print([m for m in ('torch', 'timm', 'numpy', 'pandas', 'mlflow', 'scipy') if m in sys.modules])"
    )
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env)
    assert out.stdout.strip() == "[]"

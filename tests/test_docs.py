"""The documents say what the code does: every key, every example, every command, every link."""

from __future__ import annotations

import importlib
import inspect
import json
import re
import shlex
from dataclasses import MISSING, fields
from pathlib import Path

import pytest

from kdbench import hooks
from kdbench.cli import VERBS
from kdbench.matrix import expand, load_matrix, tune
from kdbench.matrix import recipe as recipes
from kdbench.matrix import schema as matrices
from kdbench.protocol.types import Golden, Opt, Phase, Tap
from kdbench.results import progress
from kdbench.results import schema as records

ROOT = Path(__file__).parents[1]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "plugins/template/README.md",
    *sorted((ROOT / "docs").rglob("*.md")),
]
AUTHORS_GUIDE = ROOT / "docs/how-to/write-a-method.md"
MATRIX_SECTIONS = {
    "Matrix": matrices.Matrix,
    "Data set": matrices.DatasetItem,
    "Architecture": matrices.ArchItem,
    "Teacher": matrices.TeacherItem,
    "Pair": matrices.Pair,
    "Method": matrices.MethodItem,
    "Throughput": matrices.ThroughputItem,
    "Include": matrices.Include,
    "Exclude": matrices.Exclude,
    "Tune": matrices.Tune,
    "Search": tune.SearchItem,
    "Recipe": recipes.Recipe,
    "Optimizer": recipes.Optimizer,
    "Schedule": recipes.Schedule,
    "Augmentation": recipes.Augment,
}
RECORD_SECTIONS = {
    cls.__name__: cls
    for cls in (
        records.Record,
        records.Labels,
        records.Deployable,
        records.BestEpoch,
        records.BatchSpeed,
        records.Cost,
        records.TeacherRef,
        records.Tuning,
        records.Validation,
        records.Plugin,
        records.Failure,
    )
}


def sections(path: Path) -> dict[str, str]:
    """Text under each heading of the second level."""
    parts = re.split(r"^## (.+)$", path.read_text(), flags=re.M)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def table(text: str) -> dict[str, list[str]]:
    """First column, without backquotes -> the other columns, of the first table whose rows are names."""
    rows = {}
    for line in text.splitlines():
        if line.startswith("| `"):
            name, *rest = (cell.strip() for cell in line.strip("|").split("|"))
            rows[name.strip("`")] = rest
        elif rows:
            break
    return rows


def blocks(path: Path, language: str) -> list[str]:
    """Code between fences of a language; "" for fences without one."""
    found = re.findall(r"^```(\w*)\n(.*?)^```$", path.read_text(), flags=re.M | re.S)
    return [code for name, code in found if name == language]


@pytest.mark.parametrize("heading", MATRIX_SECTIONS)
def test_the_matrix_page_has_every_key(heading):
    rows = table(sections(ROOT / "docs/reference/matrix.md")[heading])
    fields = MATRIX_SECTIONS[heading].model_fields
    assert rows.keys() == fields.keys()
    for key, info in fields.items():
        _, default, meaning = rows[key]
        assert (default == "required") == info.is_required(), key
        if isinstance(info.default, (bool, int, float)):
            assert default == f"`{json.dumps(info.default)}`", key
        elif isinstance(info.default, str) and info.default:
            assert default == f"`{info.default}`", key
        assert meaning
        # an item of include or exclude names what its axis has elsewhere
        if info.description and heading not in ("Include", "Exclude"):
            assert meaning == info.description, key


@pytest.mark.parametrize("heading", RECORD_SECTIONS)
def test_the_records_page_has_every_field(heading):
    rows = table(sections(ROOT / "docs/reference/records.md")[heading])
    assert list(rows) == list(RECORD_SECTIONS[heading].model_fields)
    assert all(meaning for _, meaning in rows.values())


def test_the_records_page_has_every_status():
    assert tuple(table(sections(ROOT / "docs/reference/records.md")["Statuses"])) == records.STATUSES


def test_the_status_page_has_every_state_and_key():
    page = sections(ROOT / "docs/reference/status.md")
    assert set(table(page["States"])) == {*progress.OPEN, *records.STATUSES}
    assert list(table(page["JSON"])) == list(progress.RunStatus("m").as_dict())
    assert list(table(page["Running"])) == [f.name for f in fields(progress.Running)]
    assert list(table(page["Failures"])) == [f.name for f in fields(progress.Failed)]


def test_the_method_page_has_every_field():
    text = AUTHORS_GUIDE.read_text()
    for cls in (Tap, Phase, Opt, Golden):
        for field in fields(cls):
            assert re.search(rf"^\| .*`{field.name}`.* \|", text, flags=re.M), f"{cls.__name__}.{field.name}"


HOOKS_PAGE = ROOT / "docs/reference/hooks.md"
SPECS = {n: inspect.signature(f) for n, f in vars(hooks.KdbenchSpec).items() if n.startswith("kdbench_")}
ENTRIES = [hooks.Entry, *hooks.Entry.__subclasses__()]


@pytest.mark.parametrize("name", SPECS)
def test_the_hooks_page_has_every_hook_and_argument(name):
    arguments = [a for a in SPECS[name].parameters if a != "self"]
    rows = table(sections(HOOKS_PAGE)["Events" if arguments else "Providers"])
    told = rows[f"{name}({', '.join(arguments)})"]
    assert all(told)
    if arguments:
        assert [a.strip("` ") for a in told[0].split(",")] == arguments


def test_the_hooks_page_has_no_hook_that_does_not_exist():
    assert set(re.findall(r"`(kdbench_\w+)\(", HOOKS_PAGE.read_text())) == set(SPECS)


@pytest.mark.parametrize("cls", [*ENTRIES, hooks.Needs], ids=lambda cls: cls.__name__)
def test_the_hooks_page_has_every_field(cls):
    own = [f for f in fields(cls) if cls is hooks.Entry or f not in fields(hooks.Entry)]
    rows = table(sections(HOOKS_PAGE)[cls.__name__])
    told = {name: rest for names, rest in rows.items() for name in re.findall(r"\w+", names)}
    if cls in (hooks.LauncherEntry, hooks.SinkEntry):
        assert own == []
        return
    assert [f.name for f in own] == list(told)
    for f in own:
        assert (told[f.name][0] == "required") == (f.default is MISSING and f.default_factory is MISSING)
        if f.default is not MISSING:
            defaults = told[f.name][0].strip("`").split(", ")
            assert str(f.default) in (d.strip('"') or "" for d in defaults), f.name


def test_the_hooks_page_has_jobs_launchers_and_sinks():
    text = HOOKS_PAGE.read_text()
    job = text.partition("### Job")[2].partition("\n## ")[0]
    assert list(table(job)) == [f.name for f in fields(hooks.Job)]
    for protocol, heading in ((hooks.Launcher, "LauncherEntry"), (hooks.Sink, "SinkEntry")):
        rows = table(sections(HOOKS_PAGE)[heading])
        for name, function in vars(protocol).items():
            # typing gives a protocol without a constructor one of its own
            if inspect.isfunction(function) and function.__module__ == hooks.__name__:
                arguments = [a for a in inspect.signature(function).parameters if a != "self"]
                assert re.findall(r"\w+", rows[name][0]) == arguments, name


def test_the_method_page_has_what_a_run_offers():
    from kdbench.protocol.run import Run

    names = {n for n in (*Run.__annotations__, *vars(Run)) if not n.startswith("_")}
    described = sections(AUTHORS_GUIDE)["What `run` offers"]
    assert [n for n in sorted(names) if not re.search(rf"\b{n}\b", described)] == []


@pytest.mark.parametrize("number", range(3))
def test_the_examples_of_the_method_page_pass_the_conformance_suite(number, check_method):
    from kdbench.api import Method

    examples = [code for code in blocks(AUTHORS_GUIDE, "python") if "(Method):" in code]
    assert len(examples) == 3
    space: dict[str, object] = {"__name__": "example"}
    exec(compile(examples[number], AUTHORS_GUIDE.name, "exec"), space)
    made = [v for v in space.values() if isinstance(v, type) and issubclass(v, Method) and v is not Method]
    assert len(made) == 1
    check_method(made[0])


def test_the_golden_value_of_the_method_page_is_right(monkeypatch):
    import torch

    monkeypatch.syspath_prepend(ROOT / "plugins/template")
    from kdbench_example.centred_mse import centred_mse

    (code,) = [c for c in blocks(AUTHORS_GUIDE, "python") if "def golden(" in c]
    space = {"torch": torch, "centred_mse": centred_mse, "Golden": Golden, "Sequence": list}
    exec(compile(code, AUTHORS_GUIDE.name, "exec"), space)
    (golden,) = space["golden"].__func__(None)
    assert float(golden.value()) == pytest.approx(golden.expected, rel=golden.rtol)


def test_the_template_of_the_method_page_is_as_it_says():
    folder = ROOT / "plugins/template"
    assert all((folder / name).is_file() for name in table(sections(AUTHORS_GUIDE)["The template"]))


def test_the_registration_of_the_method_page_works():
    (code,) = [c for c in blocks(AUTHORS_GUIDE, "python") if "MethodEntry(" in c]
    space: dict[str, object] = {}
    exec(compile(code, AUTHORS_GUIDE.name, "exec"), space)
    (entry,) = space["kdbench_methods"]()
    assert entry.name == "last-stage"


def examples_of_matrices() -> list[tuple[str, str]]:
    return [(page.name, text) for page in PAGES for text in blocks(page, "yaml") if text.startswith("name:")]


@pytest.mark.parametrize(("page", "text"), examples_of_matrices())
def test_every_matrix_in_the_pages_is_valid(page, text, tmp_path):
    file = tmp_path / "matrix.yaml"
    file.write_text(text)
    assert len(expand(load_matrix(file)).cells) >= 2


def test_there_are_matrices_in_the_pages():
    assert {page for page, _ in examples_of_matrices()} >= {"README.md", "matrix.md"}


def commands() -> list[str]:
    lines = [line for page in PAGES for text in blocks(page, "") for line in text.splitlines()]
    return sorted({part.strip() for line in lines for part in line.split("&&") if "kdbench " in f"{part} "})


@pytest.mark.parametrize("line", [c for c in commands() if c.startswith("kdbench ")])
def test_every_command_in_the_pages_parses(line, monkeypatch):
    words = shlex.split(line)[1:]
    while words[0].startswith("-"):
        words = words[2 if words[0] == "--disable-plugin" else 1 :]
    module, _, attribute = VERBS[words[0]][0].partition(":")
    command = getattr(importlib.import_module(module), attribute)
    arguments = words[1:]
    if hasattr(command, "commands"):
        command = command.commands[arguments.pop(0)]
    # click raises for an unknown option, a bad value, a missing or a further argument; folders need not exist
    for parameter in command.params:
        if getattr(parameter.type, "exists", False):
            monkeypatch.setattr(parameter.type, "exists", False)
    command.make_context(words[0], arguments)


def test_there_are_commands_in_the_pages():
    verbs = {line.split()[1] for line in commands() if line.startswith("kdbench ")}
    assert verbs >= {"run-matrix", "list", "show", "sync", "ui", "leaderboard", "check-method", "plugins"}


def test_the_two_commands_of_the_first_page_are_there():
    text = (ROOT / "README.md").read_text()
    assert (
        "python3 -m venv .venv && . .venv/bin/activate && pip install -e . && kdbench run-matrix quickstart\n"
        in text
    )
    assert "pip install tox && tox\n" in text


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_link_within_the_project_leads_somewhere(page):
    for target in re.findall(r"\]\(([^)]+)\)", page.read_text()):
        if target.startswith("http"):
            continue
        name, _, anchor = target.partition("#")
        file = page.parent / name if name else page
        assert file.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.+)$", file.read_text(), flags=re.M)
            assert anchor in {re.sub(r"[^\w -]", "", h).lower().replace(" ", "-") for h in headings}, target


def test_every_method_and_matrix_that_is_shipped_is_named():
    from kdbench.matrix.load import matrix_names
    from kdbench.matrix.recipe_files import recipe_names

    page = (ROOT / "docs/reference/matrix.md").read_text()
    assert [n for n in (*matrix_names(), *recipe_names()) if f"`{n}`" not in page] == []


def test_every_file_of_benchmarks_is_in_the_table():
    page = (ROOT / "docs/how-to/run-benchmarks.md").read_text()
    folder = ROOT / "tests/benchmarks"
    files = {p.name for p in (*folder.glob("test_bench_*.py"), *folder.glob("test_losses.py"))}
    assert set(re.findall(r"^\| `(\w+\.py)` \|", page, flags=re.M)) == files

"""The shape of the house: no method known to the core, no torch where there must be none, small modules."""

import ast
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import kdbench
from kdbench.registry import Registry

CORE = Path(kdbench.__file__).parent
REPOSITORY = CORE.parent
MODULES = sorted(CORE.rglob("*.py"))
HEAVY = ("torch", "torchvision", "timm", "mlflow", "pandas", "scipy", "sklearn")
LIGHT = (
    "kdbench.cli.run_matrix",
    "kdbench.launch.session",
    "kdbench.launch.plan",
    "kdbench.launch.local",
    "kdbench.matrix",
    "kdbench.registry",
    "kdbench.results.store",
    "kdbench.results.schema",
    "kdbench.leaderboard",
    "kdbench.stats",
    "kdbench.hooks",
)
#: The one method that the core may name: the default of a matrix's `teacher_method`.
DECLARED = {("matrix/schema.py", "vanilla")}

#: Names of methods that are also words or abbreviations that any code uses.
ORDINARY = {"at", "cc", "dist"}


def words_of_code(tree: ast.AST) -> set[str]:
    """Return the words in identifiers and string literals; docstrings and comments are no code."""
    prose = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            prose.add(id(node.value))
    texts = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in prose:
            texts.append(node.value)
        for field in ("id", "name", "attr", "arg", "asname", "module"):
            value = getattr(node, field, None)
            if isinstance(value, str):
                texts.append(value)
        if isinstance(node, (ast.Global, ast.Nonlocal)):
            texts += node.names
    return {word for text in texts for word in re.findall(r"[a-z0-9]+", text.lower())}


def methods() -> set[str]:
    names = {name.lower() for name in Registry.load().names("methods")}
    assert {"vanilla", "kd", "ab", "rco"} <= names
    return names - ORDINARY


def test_words_of_code_finds_what_it_should():
    source = '"""kd in prose"""\nx = f"use {ab} now"\ndef dkd_loss(): return "a/ofd"  # rco\n'
    words = words_of_code(ast.parse(source))
    assert {"ab", "dkd", "ofd"} <= words
    assert not {"kd", "rco"} & words


def test_core_knows_no_method():
    names = methods()
    found = {
        (str(path.relative_to(CORE)), word)
        for path in MODULES
        for word in words_of_code(ast.parse(path.read_text())) & names
    }
    assert found - DECLARED == set()


@pytest.mark.parametrize("module", LIGHT)
def test_light_rooms_import_nothing_heavy(module):
    code = f"import sys, {module}; print(*[m for m in {HEAVY!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


PLUGINS = ("kdbench_methods", "kdbench_architectures", "kdbench_datasets", "kdbench_tasks")


@pytest.mark.parametrize("package", PLUGINS)
def test_plugin_packages_answer_without_torch(package):
    code = f"import sys, {package}; print(*[m for m in {HEAVY!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_modules_are_small():
    long = {str(p.relative_to(CORE)): n for p in MODULES if (n := len(p.read_text().splitlines())) >= 400}
    assert long == {}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel built from the checkout."""
    if not (REPOSITORY / "pyproject.toml").exists():
        pytest.skip("the tests run against an installed kdbench, without its checkout")
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--outdir", str(out), str(REPOSITORY)]
    try:
        import hatchling  # noqa: F401
    except ImportError:
        pass
    else:
        command.insert(4, "--no-isolation")
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = out.glob("*.whl")
    return path


@pytest.mark.e2e
def test_wheel_holds_the_data_files(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    for path in CORE.rglob("*"):
        if path.suffix in (".yaml", ".j2", ".css", ".js", ".svg", ".py"):
            assert str(path.relative_to(REPOSITORY)) in names
    assert {
        "kdbench_methods/__init__.py",
        "kdbench_tasks/__init__.py",
        "kdbench_datasets/__init__.py",
    } <= names
    assert not [n for n in names if n.startswith(("tests", "leaderboards", "plugins"))]


@pytest.mark.e2e
def test_wheel_works_alone(wheel, tmp_path):
    target = tmp_path / "target"
    command = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--quiet"]
    subprocess.run([*command, "--target", str(target), str(wheel)], check=True)
    # -S leaves out site-packages with its editable install; the dependencies come back as plain folders
    packages = [p for p in sys.path if p.endswith("site-packages")]
    code = (
        "import sys, runpy\n"
        f"sys.path[:0] = [{str(target)!r}]\n"
        f"sys.path += {packages!r}\n"
        "sys.argv = ['kdbench', *sys.argv[1:]]\n"
        "import kdbench\n"
        f"assert kdbench.__file__.startswith({str(target)!r}), kdbench.__file__\n"
        "runpy.run_module('kdbench', run_name='__main__')\n"
    )

    def run(*arguments):
        line = [sys.executable, "-S", "-P", "-c", code, *arguments]
        return subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, check=False)

    listed = run("list", "methods")
    assert listed.returncode == 0, listed.stderr
    for name in methods():
        assert re.search(rf"^{re.escape(name)} ", listed.stdout, re.MULTILINE)
    shown = run("list", "matrices")
    assert shown.returncode == 0, shown.stderr
    assert "quickstart" in shown.stdout
    planned = run("run-matrix", "quickstart", "--dry-run", "--sink", "none")
    assert planned.returncode == 0, planned.stderr
    assert "16 cell(s) would run" in planned.stdout

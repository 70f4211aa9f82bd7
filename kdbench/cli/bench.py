"""``kdbench bench``: run the benchmark suite with pytest-benchmark, keep its results, compare with kept ones."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from kdbench.stats.benchmarks import BenchComparison

_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,99}\Z")


@click.command("bench")
@click.argument("paths", nargs=-1, type=click.Path(path_type=Path))
@click.option("-k", "expression", metavar="EXPR", help="Only benchmarks that match, as in pytest.")
@click.option("--save", metavar="NAME", help="Keep the results as NAME.")
@click.option(
    "--compare",
    "baseline",
    metavar="NAME|FILE.json",
    help="Compare with the results kept as NAME, or with a file of pytest-benchmark.",
)
@click.option(
    "--fail-over",
    default=1.2,
    show_default=True,
    metavar="FACTOR",
    type=click.FloatRange(1),
    help="With --compare: exit code 1 when a benchmark is slower by more.",
)
@click.option(
    "--store",
    default=Path(".benchmarks"),
    show_default=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder of kept results.",
)
def bench(
    paths: tuple[Path, ...],
    expression: str | None,
    save: str | None,
    baseline: str | None,
    fail_over: float,
    store: Path,
) -> None:
    """Run the benchmarks in PATHS, or tests/benchmarks of the checkout, with pytest-benchmark.

    What a benchmark measures against a baseline of the same run (ratio, speedup) is compared on any machine;
    seconds are compared on equal hardware only, for on another machine they say nothing. Exit code 1 when a
    benchmark fails, misses the bound that it states, or is slower than the baseline allows.
    """
    from kdbench.errors import KdbenchError
    from kdbench.results.store import atomic_write_json
    from kdbench.stats.benchmarks import compare_benchmarks

    if save:
        target = _file(store, save)
    old = _kept(store, baseline) if baseline else None
    code, new = _run(list(paths) or [_suite()], expression)
    if new is None:
        raise KdbenchError(
            "no benchmark ran" + (f": nothing matches -k {expression!r}" if expression else "")
        )
    if code == 0 and save:
        store.mkdir(parents=True, exist_ok=True)
        atomic_write_json(target, new)
        click.echo(f"kept as {target}")
    elif save:
        click.echo("not kept: a benchmark failed", err=True)
    slower: list[str] = []
    if old is not None:
        found = compare_benchmarks(old, new)
        slower = [line.name for line in found.lines if line.slower(fail_over)]
        _show(found, slower, fail_over, whole=not (paths or expression))
    sys.exit(1 if code or slower else 0)


def _suite() -> Path:
    """Return tests/benchmarks of the current folder, or of the checkout that kdbench is imported from."""
    import kdbench
    from kdbench.errors import KdbenchError

    for root in (Path(), Path(kdbench.__file__).parents[1]):
        if (root / "tests" / "benchmarks").is_dir():
            return root / "tests" / "benchmarks"
    raise KdbenchError(
        "no tests/benchmarks here: run it in a checkout of kdbench, or give the path of benchmarks"
    )


def _run(paths: list[Path], expression: str | None) -> tuple[int, dict[str, Any] | None]:
    """Run pytest; return its exit code and the results, None where nothing ran. Raises KdbenchError."""
    import json
    import os
    import tempfile

    from kdbench.errors import KdbenchError

    _need_pytest()
    for path in paths:
        if not Path(str(path).partition("::")[0]).exists():
            raise KdbenchError(f"{path}: no such file or folder")
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "results.json"
        # options of a project's own configuration may skip benchmarks
        command = [sys.executable, "-m", "pytest", "-q", "-o", "addopts=", "--benchmark-only"]
        command += ["--benchmark-json", str(out), "--benchmark-columns=median,iqr,rounds"]
        command += ["-k", expression] if expression else []
        # of a pytest that this may be called from, whose options are not meant
        env = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST_")}
        code = _run_told([*command, *map(str, paths)], env, out)
        if code in (2, 3, 4):
            raise KdbenchError(f"pytest ended with code {code}")
        if not out.exists() or not out.stat().st_size:
            return code, None
        results = json.loads(out.read_bytes())
    # the name of somebody's machine says nothing about its speed
    results.get("machine_info", {}).pop("node", None)
    results["kdbench"] = _environment()
    return code, results if results["benchmarks"] else None


def _run_told(command: list[str], env: dict[str, str], out: Path) -> int:
    """Run pytest and return its exit code; its word on `out`, which is gone by then, is left out."""
    import subprocess

    with subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True, errors="replace") as process:
        assert process.stderr is not None
        for line in process.stderr:
            if str(out) not in line:
                sys.stderr.write(line)
                sys.stderr.flush()
    return process.returncode


def _need_pytest() -> None:
    """Raise KdbenchError where the runner is missing: it comes with the development tools only."""
    from importlib.util import find_spec

    from kdbench.errors import KdbenchError

    for module, name in (("pytest", "pytest"), ("pytest_benchmark", "pytest-benchmark")):
        if find_spec(module) is None:
            raise KdbenchError(f"`kdbench bench` needs {name}: pip install {name}")


def _environment() -> dict[str, Any]:
    import platform
    from importlib.metadata import PackageNotFoundError, version

    found: dict[str, Any] = {"python": platform.python_version(), "gpu": _gpu()}
    for name in ("kdbench", "torch", "timm", "numpy"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


def _gpu() -> str | None:
    """Return the GPU's name as its driver tells it: this process does not import torch."""
    import subprocess

    command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    try:
        out = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
        return out.stdout.splitlines()[0].strip()
    except (OSError, subprocess.SubprocessError, IndexError):
        return None


def _file(store: Path, name: str) -> Path:
    from kdbench.errors import KdbenchError

    if not _NAME.match(name):
        raise KdbenchError(
            f"{name!r:.120} is no name for results: expected letters, digits, '.', '_' and '-'"
        )
    return store / f"{name}.json"


def _kept(store: Path, name: str) -> dict[str, Any]:
    """Return kept results. Raises KdbenchError, with the nearest name, where there are none or a broken file."""
    import json

    from kdbench.errors import KdbenchError, did_you_mean

    path = Path(name) if name.endswith(".json") else _file(store, name)
    if not path.exists() and name.endswith(".json"):
        raise KdbenchError(f"--compare {name}: no such file")
    if not path.exists():
        known = sorted(p.stem for p in store.glob("*.json"))
        raise KdbenchError(f"no results {name!r} in {store}{did_you_mean(name, known)}")
    try:
        found = json.loads(path.read_bytes())
        for b in found["benchmarks"]:
            b["fullname"], b["stats"]["median"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise KdbenchError(
            f"{path}: not results of `kdbench bench` ({type(error).__name__}: {error})"
        ) from error
    return dict(found)


def _show(found: BenchComparison, slower: list[str], fail_over: float, *, whole: bool) -> None:
    from kdbench.cli._table import print_table

    rows = []
    for line in found.lines:
        time = "-"
        if line.time is not None:
            mark = "" if line.time.significant else "~ "
            low, high = line.time.low, line.time.high
            interval = "" if low is None or high is None else f" [{low:.3f}, {high:.3f}]"
            time = f"{mark}{line.time.value:.3f}{interval}"
        ratio = "-" if line.ratio is None else f"{line.ratio:.3f}"
        rows.append([line.name, time, ratio, "slower" if line.name in slower else ""])
    print_table(("benchmark", "time / baseline's", "own ratio / baseline's", ""), rows)
    for note in found.notes:
        click.echo(note)
    if found.uncompared:
        click.echo(f"with neither a ratio of its own nor equal hardware: {', '.join(found.uncompared[:5])}")
    if found.missing and whole:
        click.echo(
            f"only in the baseline: {', '.join(found.missing[:5])}{' ...' if found.missing[5:] else ''}"
        )
    click.echo("~: the 95 % interval cannot tell the time from the baseline's, or there are too few rounds")
    click.echo(f"{len(slower)} benchmark(s) slower than {fail_over:g} x the baseline")

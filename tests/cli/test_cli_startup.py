"""Start-up: the command answers at once and never imports a heavy library to list things."""

import json
import resource

import pytest
from fake_distributions import method_plugin

HEAVY = ("torch", "timm", "mlflow", "pandas", "numpy", "scipy", "sklearn")
LIMIT_S = 0.35

#: Runs the command and writes which heavy modules are loaded at its end, and its exit code, to stderr.
WRAPPER = f"""
import json, sys
from kdbench.cli import main
code = main(sys.argv[1:], standalone_mode=False, prog_name="kdbench")
loaded = [m for m in {HEAVY!r} if m in sys.modules]
print(json.dumps({{"loaded": loaded, "code": code or 0}}), file=sys.stderr)
"""


def processor_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [(["--help"], "run-matrix"), (["list", "methods"], "summary of quick-0"), (["plugins"], "fake-quick")],
    ids=["help", "list", "plugins"],
)
def test_fast_and_without_heavy_imports(dists, arguments, expected):
    dists.add("fake-quick", method_plugin(*(f"quick-{i}" for i in range(40))))
    seconds = []
    # Processor time, which is the wall time of an idle machine: the tests run beside others. A loaded machine
    # only ever adds, so the best of a few runs is the command's own.
    while len(seconds) < 3 or (min(seconds) > LIMIT_S and len(seconds) < 10):
        before = processor_seconds()
        run = dists.python("-c", WRAPPER, *arguments)
        seconds.append(processor_seconds() - before)
        assert run.returncode == 0, run.stderr
        assert expected in run.stdout
        assert json.loads(run.stderr.splitlines()[-1]) == {"loaded": [], "code": 0}
    assert min(seconds) <= LIMIT_S


def test_help_imports_no_verb(dists):
    code = (
        "import sys; from kdbench.cli import main; main(['--help'], standalone_mode=False);"
        "own = {m for m in sys.modules if m.startswith('kdbench.cli.')} - {'kdbench.cli._usage'};"
        "print([*own, *(m for m in ('pluggy', 'rich') if m in sys.modules)], file=sys.stderr)"
    )
    assert dists.python("-c", code).stderr.strip() == "[]"

"""`kdbench list` and `kdbench show`, and how the command tells errors."""

import errno
import json
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from fcntl import ioctl

import click
import pytest
from click.testing import CliRunner
from fake_distributions import REPOSITORY, method_plugin, unique_module

import kdbench.cli
from kdbench.cli import VERBS, main
from kdbench.errors import KdbenchError

TARGETS = '''
from dataclasses import dataclass, field
from typing import ClassVar

from pydantic import BaseModel, Field

from kdbench.api import DataError, KdbenchError, Metric


class Target:
    """What the method [does].

    More: ``L = 2·x``.
    """

    fidelity = "paper"
    presets = {"small": {"beta": 8.0}}

    class Params(BaseModel):
        beta: float = Field(2.0, gt=0, description="weight of the thing")


class Squares:
    """Squares in boxes."""

    @dataclass
    class Params:
        side: int = field(default=4, metadata={"description": "pixels"})

    def describe(self):
        from kdbench.api import DataInfo

        return DataInfo("squares", 2, ("a", "b"), 4, (0.5,) * 3, (0.2,) * 3, 1200, 6, "squares-v1")


class Lost(Squares):
    def describe(self):
        raise DataError("nothing here")


class Rooted(Squares):
    class Params(BaseModel):
        root: str


class Sorting:
    variants: ClassVar = ("fast", "slow")

    def metrics(self, variant=""):
        return [Metric("hits", True, primary=True, unit="%"), Metric("misses", False)]


def small(*, num_classes, in_chans, image_size):
    import torch

    return torch.nn.Linear(in_chans * image_size * image_size, num_classes, bias=False)


def zoo(*, model, num_classes, in_chans, image_size):
    import torch

    net = torch.nn.Linear(image_size, num_classes)
    net.scale = float(net.bias.detach().sum()) if model == "needs_values" else 1.0
    if model == "missing":
        raise KdbenchError("no model 'missing'")
    return net


def models():
    return ["antnet18", "needs_values", "antnet50"]
'''

PLUGIN = """
from kdbench.hooks import *
from kdbench.hooks import hookimpl

@hookimpl
def kdbench_methods():
    return [
        MethodEntry(name="wombat", target="{0}:Target", summary="digs [1]", version="3", tags=("earth",),
                    paper="A. Author, 2020", needs=Needs(teachers=2, index=True)),
        MethodEntry(name="twin", target="{0}:Target"),
    ]

@hookimpl
def kdbench_architectures():
    return [
        ArchitectureEntry(name="zoo", target="{0}:zoo", namespace=True, names="{0}:models"),
        ArchitectureEntry(name="counted", target="{0}:small", params_count=1234567),
        ArchitectureEntry(name="small", target="{0}:small"),
    ]

@hookimpl
def kdbench_datasets():
    return [
        DatasetEntry(name="squares", target="{0}:Squares"),
        DatasetEntry(name="lost", target="{0}:Lost"),
        DatasetEntry(name="rooted", target="{0}:Rooted"),
        DatasetEntry(name="twin", target="{0}:Squares"),
    ]

@hookimpl
def kdbench_tasks():
    return [TaskEntry(name="sorting", target="{0}:Sorting", primary="hits", kind="policy")]
"""


@pytest.fixture
def site(dists, monkeypatch):
    targets = unique_module("targets")
    (dists.path / f"{targets}.py").write_text(TARGETS)
    dists.add("fake-outback", PLUGIN.format(targets), version="4.2", entry_point="outback")
    monkeypatch.syspath_prepend(str(dists.path))
    for name in ("KDBENCH_DISABLE_PLUGINS", "KDBENCH_STRICT_PLUGINS"):
        monkeypatch.delenv(name, raising=False)
    return dists


@pytest.fixture
def matrices(tmp_path, monkeypatch):
    """Shipped matrices of the tests' own."""
    (tmp_path / "package" / "matrices").mkdir(parents=True)
    folder = tmp_path / "package" / "matrices"
    (folder / "outing.yaml").write_text("# A day in the bush.\n# More.\nname: outing\n")
    (folder / "bare.yaml").write_text("name: bare\n# not a summary\n")
    monkeypatch.setattr("kdbench.__file__", str(tmp_path / "package" / "__init__.py"))
    return folder


def invoke(*arguments, code=0):
    result = CliRunner().invoke(main, arguments, prog_name="kdbench")
    assert result.exit_code == code, result.output
    return result


def as_json(*arguments):
    return json.loads(invoke(*arguments, "--json").stdout)


def rows_of(text):
    return {line.split()[0]: line for line in text.splitlines() if line.strip()}


@pytest.mark.usefixtures("site")
class TestList:
    def test_methods_have_paper_needs_and_provider(self):
        row = rows_of(invoke("list", "methods").stdout)["wombat"]
        for text in ("digs [1]", "A. Author, 2020", "2 teachers, sample index", "fake-outback"):
            assert text in row

    @pytest.mark.parametrize("word", ["methods", "method"])
    def test_json_has_every_field(self, word):
        row = next(r for r in as_json("list", word) if r["name"] == "wombat")
        assert row["kind"] == "methods"
        assert row["version"] == "3"
        assert row["tags"] == ["earth"]
        assert row["needs"]["teachers"] == 2
        assert row["needs"]["capabilities"] == []
        assert row["needs_text"] == ["2 teachers", "sample index"]
        assert (row["plugin"], row["distribution"]) == ("outback", "fake-outback")

    @pytest.mark.usefixtures("matrices")
    def test_without_a_kind_all_are_listed(self):
        text = invoke("list").stdout
        sections = [
            line for line in text.splitlines() if line in ("methods", "architectures", "tasks", "matrices")
        ]
        assert sections == ["methods", "architectures", "tasks", "matrices"]
        assert {"wombat", "counted", "squares", "sorting", "outing"} <= set(rows_of(text))

    def test_a_task_keeps_its_output_kind(self):
        row = next(r for r in as_json("list", "tasks") if r["name"] == "sorting")
        assert (row["kind"], row["output_kind"]) == ("tasks", "policy")

    def test_namespace_is_one_line(self):
        rows = rows_of(invoke("list", "architectures").stdout)
        assert "any of zoo's 3 models" in rows["zoo:*"]
        assert "zoo:antnet18" not in rows

    @pytest.mark.parametrize("pattern", ["antnet", "ANTNET*", "zoo:antnet??"])
    def test_filter_lists_models(self, pattern):
        rows = as_json("list", "architectures", "--filter", pattern)
        assert [r["name"] for r in rows if r["distribution"] == "fake-outback"] == [
            "zoo:antnet18",
            "zoo:antnet50",
        ]

    def test_filter_looks_at_summary_and_tags(self):
        assert "wombat" in rows_of(invoke("list", "methods", "--filter", "EARTH").stdout)
        assert "wombat" in rows_of(invoke("list", "methods", "--filter", "digs").stdout)

    @pytest.mark.parametrize("word", ["author", "2020", "SAMPLE INDEX", "outback"])
    def test_filter_looks_at_every_column(self, word):
        assert "wombat" in rows_of(invoke("list", "methods", "--filter", word).stdout)

    def test_filter_that_is_nearly_a_name(self):
        result = invoke("list", "methods", "--filter", "Wombats")
        assert result.stderr == "no methods match 'Wombats' (did you mean 'wombat'?)\n"

    def test_nothing_found(self):
        result = invoke("list", "methods", "--filter", "zzzzzz")
        assert result.stdout == ""
        assert result.stderr == "no methods match 'zzzzzz'\n"
        assert as_json("list", "methods", "--filter", "zzzzzz") == []

    def test_unknown_kind(self):
        result = invoke("list", "metods", code=2)
        assert result.stderr.startswith("kdbench: error: unknown kind 'metods': expected one of methods, ")
        assert "did you mean 'methods'" in result.stderr

    def test_matrices(self, matrices):
        assert as_json("list", "matrices") == [
            {"kind": "matrices", "name": "bare", "summary": "", "path": (matrices / "bare.yaml").as_posix()},
            {
                "kind": "matrices",
                "name": "outing",
                "summary": "A day in the bush.",
                "path": (matrices / "outing.yaml").as_posix(),
            },
        ]

    def test_disabled_plugin_is_absent(self):
        text = invoke("--disable-plugin", "outback", "list", "methods").stdout
        assert "wombat" not in text


@pytest.mark.usefixtures("site")
class TestShow:
    @pytest.mark.parametrize("words", [["wombat"], ["method", "wombat"], ["methods", "wombat"]])
    def test_method(self, words):
        text = invoke("show", *words).stdout
        rows = rows_of(text)
        assert rows["summary"].endswith("digs [1]")
        assert "\n\nWhat the method [does].\n\nMore: L = 2·x.\n\nparameters\n" in text
        assert rows["needs"].endswith("2 teachers, sample index")
        assert rows["fidelity"].endswith("paper")
        assert rows["provider"].endswith("fake-outback 4.2 (plug-in outback)")
        assert rows["beta"].split(maxsplit=4) == ["beta", "float,", ">", "0", "2.0      weight of the thing"]
        assert "beta=8.0" in rows["small"]

    def test_method_json(self):
        facts = as_json("show", "wombat")
        assert facts["parameters"] == [
            {
                "name": "beta",
                "type": "float, > 0",
                "default": 2.0,
                "required": False,
                "description": "weight of the thing",
            }
        ]
        assert facts["presets"] == {"small": {"beta": 8.0}}
        assert facts["documentation"] == "What the method [does].\n\nMore: L = 2·x."
        assert facts["distribution_version"] == "4.2"

    def test_architecture_counts(self):
        assert as_json("show", "counted")["params_count"] == 1234567
        assert "1,234,567" in invoke("show", "counted").stdout
        small = as_json("show", "architecture", "small")
        assert (small["params_count"], small["counted_at"]) == (3 * 32 * 32 * 10, "10 classes, 32x32 input")

    @pytest.mark.parametrize("model", ["antnet18", "needs_values"])
    def test_model_of_a_namespace(self, model):
        facts = as_json("show", f"zoo:{model}")
        assert (facts["name"], facts["params_count"]) == (f"zoo:{model}", 224 * 10 + 10)

    def test_model_that_does_not_exist(self):
        assert invoke("show", "zoo:missing", code=2).stderr == "kdbench: error: no model 'missing'\n"
        assert "did you mean 'zoo:antnet18'" in invoke("show", "antnet18", code=2).stderr

    def test_dataset(self):
        facts = as_json("show", "squares")
        assert facts["facts"]["n_train"] == 1200
        assert [p["name"] for p in facts["parameters"]] == ["side"]
        assert "1,200" in rows_of(invoke("show", "squares").stdout)["n_train"]

    def test_dataset_that_cannot_be_described(self):
        assert "facts: not available: nothing here" in invoke("show", "lost").stdout
        assert "facts: depend on the parameters" in invoke("show", "rooted").stdout
        assert "required" in rows_of(invoke("show", "rooted").stdout)["root"]

    def test_task(self):
        facts = as_json("show", "sorting")
        assert [(m["variant"], m["name"], m["primary"]) for m in facts["metrics"]] == [
            ("fast", "hits", True),
            ("fast", "misses", False),
            ("slow", "hits", True),
            ("slow", "misses", False),
        ]
        assert rows_of(invoke("show", "sorting").stdout)["misses"].split() == ["misses", "lower", "slow"]

    def test_matrix(self, matrices):
        text = invoke("show", "outing").stdout
        assert text.startswith("matrix outing: A day in the bush.\n" + (matrices / "outing.yaml").as_posix())
        assert text.endswith("name: outing\n")
        assert "did you mean 'outing'" in invoke("show", "matrix", "outingg", code=2).stderr

    def test_ambiguous_name(self):
        error = invoke("show", "twin", code=2).stderr
        assert "`kdbench show methods twin` or `kdbench show datasets twin`" in error
        assert as_json("show", "dataset", "twin")["kind"] == "datasets"

    def test_suggestions_look_at_case_and_words(self):
        assert "did you mean 'wombat'" in invoke("show", "WOMBAT", code=2).stderr
        for words in ("a. author", "digs [1]", "Earth"):
            assert "(did you mean 'wombat'?)" in invoke("show", words, code=2).stderr
            assert "(did you mean 'wombat'?)" in invoke("show", "method", words, code=2).stderr

    def test_unknown_and_withheld_names(self):
        assert "nothing is named 'wombatt' (did you mean 'wombat'" in invoke("show", "wombatt", code=2).stderr
        error = invoke("--disable-plugin", "fake-outback", "show", "wombat", code=2).stderr
        assert "provides it but is disabled by --disable-plugin" in error

    def test_name_in_conflict(self, site):
        site.add("fake-rival", method_plugin("wombat"))
        error = invoke("show", "wombat", code=2).stderr
        assert "fake-outback 4.2" in error
        assert "fake-rival 1.0" in error

    def test_target_that_does_not_load(self, site):
        site.add("fake-hollow", method_plugin("hollow", module="no_such_module_anywhere"))
        error = invoke("show", "hollow", code=2).stderr
        assert error.startswith(
            "kdbench: error: plug-in 'fake-hollow-ep' (fake-hollow 1.0): method 'hollow': cannot"
        )

    def test_three_words(self):
        assert "expected [KIND] NAME" in invoke("show", "a", "b", "c", code=2).stderr


def on_terminal(columns, *arguments):
    """Return the lines that a command writes to a terminal of so many columns, without colours."""
    ours, theirs = pty.openpty()
    ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    env = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "LINES")} | {"TERM": "xterm"}
    line = [sys.executable, "-m", "kdbench", *arguments]
    process = subprocess.Popen(line, stdout=theirs, stderr=theirs, stdin=theirs, env=env)
    os.close(theirs)
    written = b""
    try:
        while chunk := os.read(ours, 65536):
            written += chunk
    except OSError:  # how a terminal says that its last writer has left
        pass
    os.close(ours)
    assert process.wait() == 0
    return re.sub(r"\x1b\[[0-9;]*m", "", written.decode()).splitlines()


@pytest.mark.parametrize("columns", [80, 120])
def test_the_methods_fit_the_terminal(columns):
    lines = on_terminal(columns, "list", "methods")
    assert max(map(len, lines)) <= columns
    assert "plug-in" not in lines[1]  # all are of one
    text = " ".join(" ".join(lines).split())
    assert "Zagoruyko" in text
    assert "task is" not in text


def test_the_methods_in_a_pipe_are_complete():
    rows = rows_of(invoke("list", "methods").stdout)
    assert rows["name"].split() == ["name", "summary", "paper", "needs", "plug-in"]
    assert "arXiv:1612.03928" in rows["at"]
    assert "task" not in rows["at"].partition("arXiv")[2]  # every task has what it needs
    assert "batch >= 3" in rows["rkd"]


class TestCommand:
    """Errors and options of the group itself, on a verb of the tests' own."""

    @pytest.fixture
    def fail(self, monkeypatch):
        """Return a function that runs a verb which raises the given exception."""

        def run(error, *options):
            @click.command()
            def verb():
                click.echo("before")
                raise error

            monkeypatch.setattr(kdbench.cli, "_test_verb", verb, raising=False)
            monkeypatch.setitem(VERBS, "test-verb", ("kdbench.cli:_test_verb", ""))
            return CliRunner().invoke(main, [*options, "test-verb"])

        return run

    def test_error_is_one_line_with_its_exit_code(self, fail):
        result = fail(KdbenchError("the file is odd"))
        assert (result.exit_code, result.stdout) == (2, "before\n")
        assert result.stderr == "kdbench: error: the file is odd\n"

        class Own(KdbenchError):
            exit_code = 7

        assert fail(Own("x")).exit_code == 7

    def test_verbose_adds_the_traceback(self, fail):
        result = fail(KdbenchError("the file is odd"), "-v")
        assert result.stderr.startswith("Traceback")
        assert result.stderr.endswith("\nkdbench: error: the file is odd\n")

    @pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES])
    def test_full_disk_and_read_only_folder(self, fail, number):
        result = fail(OSError(number, "cannot write", "runs/x"))
        assert (result.exit_code, result.stderr) == (2, "kdbench: error: cannot write: runs/x\n")

    def test_other_exceptions_are_not_hidden(self, fail):
        assert isinstance(fail(ZeroDivisionError()).exception, ZeroDivisionError)
        assert isinstance(fail(OSError(errno.EBADF, "bug")).exception, OSError)

    def test_interrupt(self, fail):
        result = fail(KeyboardInterrupt())
        assert (result.exit_code, result.stderr) == (130, "kdbench: interrupted\n")

    def test_unknown_verb(self):
        result = CliRunner().invoke(main, ["lst"])
        assert result.exit_code == 2
        assert "no such verb 'lst' (did you mean 'list'?)" in result.stderr

    @pytest.mark.parametrize(
        ("arguments", "line"),
        [
            (["schema", "matri"], "schema: .*'matri' is not one of .* \\(did you mean 'matrix'\\?\\); see "),
            (["show"], "show: Missing argument .*; see `kdbench show --help`"),
            (["cell", "/no/such/folder"], "cell: .*Directory '/no/such/folder' does not exist"),
            (["list", "--flter", "x"], r"list: .*--flter.*\(did you mean '--filter'\?\)|list: .*--flter"),
            (["run-matrix", "m.yaml", "--workers", "0"], "run-matrix: .*--workers.*0 is not in the range"),
            (["--frob"], "No such option.*--frob.*; see `kdbench --help`"),
            (["lst"], "no such verb 'lst'"),
            (["leaderboard", "sumbit"], r"leaderboard: No such .* \(did you mean `kdbench submit`\?\); see "),
        ],
    )
    def test_misuse_is_one_line(self, arguments, line):
        result = CliRunner().invoke(main, arguments, prog_name="kdbench")
        assert (result.exit_code, result.stdout) == (2, "")
        assert re.fullmatch(f"kdbench: error: ({line}).*\n", result.stderr)

    def test_the_help_page_of_the_bare_command_stays(self):
        assert "Usage: kdbench" in CliRunner().invoke(main, [], prog_name="kdbench").output

    def test_version_and_help(self):
        assert CliRunner().invoke(main, ["--version"]).output == f"kdbench {kdbench.__version__}\n"
        text = CliRunner().invoke(main, ["-h"]).output
        assert all(verb in text for verb in VERBS)

    def test_settings_reach_the_verb(self, site, monkeypatch):
        seen = []

        @click.command()
        @click.pass_obj
        def verb(settings):
            seen.append((settings, settings.registry(), settings.registry()))

        monkeypatch.setattr(kdbench.cli, "_test_verb", verb, raising=False)
        monkeypatch.setitem(VERBS, "test-verb", ("kdbench.cli:_test_verb", ""))
        CliRunner().invoke(main, ["-v", "--disable-plugin", "outback", "test-verb"], catch_exceptions=False)
        settings, first, second = seen[0]
        assert (settings.disable, settings.verbose) == (("outback",), True)
        assert first is second
        assert next(p for p in first.plugins() if p.name == "outback").status == "disabled"

    def test_reader_that_leaves_early(self, dists):
        dists.add("fake-long", method_plugin(*(f"m{i:04}" for i in range(3000))))
        code = (
            "import subprocess, sys\n"
            "p = subprocess.Popen([sys.executable, '-m', 'kdbench', 'list', 'methods'],"
            " stdout=subprocess.PIPE, stderr=subprocess.PIPE)\n"
            "p.stdout.readline(); p.stdout.close()\n"
            "print(p.stderr.read().decode(), p.wait())\n"
        )
        assert dists.python("-c", code).stdout == " 1\n"

    def test_checkout_without_installation_has_no_plugins(self, tmp_path):
        # Blinds the metadata search, as in a Python where no distribution of this project is installed.
        code = (
            "import sys, importlib.metadata\n"
            "importlib.metadata.MetadataPathFinder.find_distributions = lambda *a, **k: iter(())\n"
            "from kdbench.cli import main\n"
            "main(['list', 'methods'])\n"
        )
        run = subprocess.run(
            [sys.executable, "-c", code],
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert (run.returncode, run.stdout) == (0, "")
        assert "is kdbench installed?" in run.stderr

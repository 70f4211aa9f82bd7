"""Passwords and tokens of the environment stand in nothing that a run writes or prints."""

import gzip
import os
import subprocess
import sys

import pytest
from commands import by_variant
from fake_distributions import Distributions
from matrices import STUDENT

pytestmark = pytest.mark.e2e

SECRETS = {
    "MLFLOW_TRACKING_TOKEN": "planted-mlflow-token-81723",
    "MLFLOW_TRACKING_PASSWORD": "planted/pass word+99",
    "HF_TOKEN": "hf_plantedHuggingFaceToken",
    "AWS_SECRET_ACCESS_KEY": "planted-aws-key-4711",
    "SOME_DATABASE": "postgresql://kd:planted-uri-password@db.example/kd",
}
PLANTED = ("planted", "hf_planted", "pass%20word")

ENTRIES = """
from kdbench.hooks import MethodEntry, Needs, hookimpl


@hookimpl
def kdbench_methods():
    return [MethodEntry(name="teller", target="teller_code:Teller", version="1", needs=Needs(teachers=0))]


@hookimpl
def kdbench_cell_finished(cell, record):
    import os
    raise RuntimeError("in the parent: " + os.environ["HF_TOKEN"])
"""
METHOD = """
import logging
import os
import subprocess
import sys
import warnings

from pydantic import Field

from kdbench.api import Method, MethodParams, Needs


class Teller(Method):
    class Params(MethodParams):
        act: str = Field("print")

    needs = Needs(teachers=0)

    def loss(self, S, T, batch, run):
        text = " ".join(os.environ.get(name, "") for name in %r)
        act = self.hp.act
        if run.global_step == 0 or act != "print":
            print(os.environ)
            print(text, file=sys.stderr)
            warnings.warn(text)
            logging.getLogger("teller").error(text)
            os.write(1, text.encode() + b"\\n")
            subprocess.run([sys.executable, "-c", "import os; print(os.environ)"])
            print("all told")
        if act == "raise":
            raise ValueError("cannot log in with " + text)
        if act == "exit":
            os.write(2, b"last words " + text.encode())
            os._exit(7)
        return {"task": run.task.loss(S, batch)}
"""


def everything(folder):
    """Every file below a folder with its bytes."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and not path.is_symlink()}


def told(text):
    return [word for word in PLANTED if word in text]


def test_a_run_tells_no_secret(kdbench, tiny_matrix, tmp_path):
    site = Distributions(tmp_path / "site")
    (site.path / "teller_code.py").write_text(METHOD % (tuple(SECRETS),))
    site.add("teller", ENTRIES)
    acts = ("print", "raise", "exit")
    matrix = tiny_matrix(
        "secrets",
        methods=[{"name": "teller", "params": {"act": act}} for act in acts],
        pairs=[{"teacher": None, "student": STUDENT}],
    )
    path = os.pathsep.join([str(site.path), os.environ.get("PYTHONPATH", "")])
    env = {**SECRETS, "PYTHONPATH": path, "KDBENCH_CACHE": str(tmp_path / "cache")}
    uri = f"sqlite:///{kdbench.cwd / 'store.db'}"
    done = kdbench("run-matrix", matrix, "--workers", "1", "--sink", "mlflow", "--tracking-uri", uri, env=env)
    assert done.returncode == 1, done.stderr
    found = by_variant(kdbench.cwd / "runs" / "secrets")
    status = {"teller(act=print)": "done", "teller(act=raise)": "failed", "teller(act=exit)": "crashed"}
    assert {v: r["status"] for v, r in found.items()} == status
    assert "cannot log in with ***" in found["teller(act=raise)"]["error"]["message"]
    assert "last words" in found["teller(act=exit)"]["error"]["message"]

    assert not told(done.stdout + done.stderr)
    assert "in the parent: ***" in done.stdout + done.stderr
    files = everything(kdbench.cwd) | everything(tmp_path / "cache")
    logs = [content for path, content in files.items() if path.name == "log.txt"]
    assert [log.count(b"all told") for log in logs] == [1, 1, 1]
    assert any(path.name == "store.db" for path in files)
    for path, content in files.items():
        text = gzip.decompress(content) if path.suffix == ".gz" else content
        assert not told(text.decode(errors="replace")), path


def test_a_store_out_of_reach_tells_no_password(kdbench, tiny_matrix, tmp_path):
    uri = "postgresql://kd:planted-in-the-uri@127.0.0.1:1/kd?token=planted-query"
    for more in (("--tracking-uri", uri), ()):
        for verbose in ((), ("-v",)):
            got = kdbench(*verbose, "sync", "tracked", *more, env={"MLFLOW_TRACKING_URI": uri})
            assert got.returncode != 0
            assert not told(got.stdout + got.stderr)
    run = kdbench(
        "run-matrix", tiny_matrix("tracked"), "--workers", "1", "--set", "seeds=1", "--set", "methods=[vanilla]",
        "--tracking-uri", uri,
    )  # fmt: skip
    assert not told(run.stdout + run.stderr)
    assert not [
        path for path, content in everything(kdbench.cwd).items() if told(content.decode(errors="replace"))
    ]


def test_the_plant_is_found_where_nothing_hides_it():
    """The test above can fail: the same text, printed by a process that knows nothing of kdbench."""
    plain = subprocess.run(
        [sys.executable, "-c", "import os; print(os.environ)"],
        env={**os.environ, **SECRETS}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert told(plain.stdout)

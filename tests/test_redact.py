"""What counts as a secret, and where it is hidden."""

import errno
import os
import subprocess
import sys

import pytest
from click.testing import CliRunner
from factories import make_record

from kdbench import redact
from kdbench.cli import main
from kdbench.errors import KdbenchError, MatrixError
from kdbench.hooks import Job
from kdbench.launch.failure import clean_log, failure_record, log_tail
from kdbench.results.schema import Record
from kdbench.results.store import read_record, write_record
from kdbench_launchers.followed import Followed

TOKEN = "planted-token-77"


@pytest.fixture(autouse=True)
def planted(monkeypatch):
    monkeypatch.setattr(redact, "_learnt", set())
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", TOKEN)


@pytest.mark.parametrize(
    "name",
    [
        "HF_TOKEN",
        "MLFLOW_TRACKING_PASSWORD",
        "AWS_SECRET_ACCESS_KEY",
        "SOME_API_KEY",
        "hf_token",
        "DB_PWD",
        "PGPASSWORD",
        "SLURM_JWT",
        "AZURE_STORAGE_CONNECTION_STRING",
        "KAGGLE_KEY",
        "REDISCLI_AUTH",
    ],
)
def test_variables_that_are_secret(name):
    assert redact.secrets_of({name: "value-of-it"}) == ("value-of-it",)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("TOKENIZERS_PARALLELISM", "false-or-so"),
        ("HF_TOKEN_PATH", "/home/me/token"),
        ("PWD", "/home/me"),
        ("AWS_ACCESS_KEY_ID", "not-secret-id"),
        ("HF_TOKEN", "short"),
        ("MLFLOW_TRACKING_URI", "http://host:5000/path"),
    ],
)
def test_variables_that_are_not(name, value):
    assert redact.secrets_of({name: value}) == ()


def test_passwords_in_addresses_in_every_spelling():
    found = redact.secrets_of({"ANY": "postgresql://me:pass%20word+1@host/db?sslpassword=hidden-too"})
    assert {"pass%20word+1", "pass word+1", "hidden-too"} <= set(found)


def test_learnt_from_an_option():
    assert redact.hide("so: given-by-hand") == "so: given-by-hand"
    redact.learn("mysql://me:given-by-hand@host/db")
    assert redact.hide("so: given-by-hand") == "so: ***"


def test_errors_of_any_kind():
    assert str(KdbenchError(f"cannot log in with {TOKEN}")) == "cannot log in with ***"
    assert str(MatrixError(f"m:1: {TOKEN}\nm:2: http://me:pw@h")) == "m:1: ***\nm:2: http://***@h"


def test_texts_without_a_secret_stay():
    text = "matrix.yaml:3: a://b 'x' token, password: 3"
    assert redact.redact(text) == text
    assert redact.hidden({"a": [text, 1, None, {"b": TOKEN}]}) == {"a": [text, 1, None, {"b": "***"}]}


def test_records_and_what_they_vouch_for(tmp_path):
    made = make_record(
        status="failed", message=f"with {TOKEN}", warnings=[TOKEN], environment={"host": TOKEN}
    )
    write_record(tmp_path, Record.model_validate(made))
    assert TOKEN not in (tmp_path / "result.json").read_text()
    record = read_record(tmp_path / "result.json")
    assert (record.error.message, record.warnings, record.environment["host"]) == ("with ***", ["***"], "***")
    assert record.cell_id == made["cell_id"]


def test_a_secret_across_the_cut_of_a_message(tmp_path):
    record = failure_record(make_record(), "failed", "x" * 3995 + TOKEN, traceback=TOKEN + "y" * 39995)
    assert "plant" not in record.error.message
    assert "token" not in record.error.traceback
    (tmp_path / "log.txt").write_text(TOKEN + "z" * 1995 + "\n")
    assert "token" not in log_tail(tmp_path)


@pytest.mark.parametrize("at", [0, 1, redact._CHUNK - 5, redact._CHUNK, 2 * redact._CHUNK - len(TOKEN)])
def test_scrub_finds_it_anywhere(tmp_path, at):
    path = tmp_path / "log.txt"
    before = b"." * at + TOKEN.encode() + b"." * (2 * redact._CHUNK - at)
    path.write_bytes(before)
    assert redact.scrub(path) == 1
    assert path.read_bytes() == before.replace(TOKEN.encode(), b"*" * len(TOKEN))
    assert redact.scrub(path) == 0


def test_scrub_leaves_other_files_alone(tmp_path):
    assert redact.scrub(tmp_path / "none") == 0
    target = tmp_path / "target"
    target.write_text(TOKEN)
    (tmp_path / "link").symlink_to(target)
    assert redact.scrub(tmp_path / "link") == 0
    os.mkfifo(tmp_path / "pipe")
    assert redact.scrub(tmp_path / "pipe") == 0


@pytest.mark.parametrize("event", ["finished", "found", "died", "interrupted", "released"])
def test_every_log_of_a_cell_that_ended_is_scrubbed(tmp_path, event):
    for name in ("log.txt", "log-1.txt"):
        (tmp_path / name).write_text(TOKEN)
    clean_log(tmp_path, event)
    assert {path.read_text() for path in tmp_path.iterdir()} == {"*" * len(TOKEN)}


def test_a_secret_across_the_cut_of_a_log_elsewhere(tmp_path):
    (tmp_path / "log.txt").write_text(TOKEN + "z" * (8192 - 8) + "\n")
    told = []
    Followed(Job(cell_id="0" * 64, folder=tmp_path, label="")).ended({"code": 9}, told.append, wait=False)
    assert "token" not in redact.redact(told[0]["message"])
    assert "oken-77" not in redact.redact(told[0]["message"])


def test_a_cell_that_ends_by_itself_scrubs_its_log(tmp_path, monkeypatch):
    """As where the command that submitted its Slurm job has left."""

    def run(folder, *others):
        (folder / "log.txt").write_text(TOKEN)  # past Python
        return 1

    monkeypatch.setattr("kdbench.launch.worker.run_folder", run)
    monkeypatch.setattr("kdbench.cli.cell._check_teachers", lambda folder: None)
    monkeypatch.setattr("signal.signal", lambda *_: None)
    CliRunner().invoke(main, ["cell", str(tmp_path)])
    assert (tmp_path / "log.txt").read_text() == "*" * len(TOKEN)


def test_scrub_is_no_reason_not_to_end(tmp_path, monkeypatch):
    def stall(path):
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    monkeypatch.setattr("pathlib.Path.is_symlink", stall)
    assert redact.scrub(tmp_path / "log.txt") == 0


def test_a_fault_of_our_own_tells_no_token():
    code = (
        "import os\nfrom kdbench import cli\nfrom kdbench.cli.schema import schema\n"
        "def fail(*a, **k): raise ValueError('with ' + os.environ['MLFLOW_TRACKING_TOKEN'])\n"
        "schema.callback = fail\ncli.main(['schema', 'matrix'])\n"
    )
    got = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert got.returncode == 1
    assert "ValueError: with ***" in got.stderr
    assert TOKEN not in got.stdout + got.stderr

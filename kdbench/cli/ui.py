"""``kdbench ui``: open MLflow's web page on the store that the runs are in."""

from __future__ import annotations

import os
import sys

import click

from kdbench.cli._options import tracking_option


@click.command("ui")
@tracking_option()
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--port", default=5000, show_default=True, type=click.IntRange(1, 65535), help="Port to listen on."
)
def ui(tracking_uri: str | None, host: str, port: int) -> None:
    """Serve MLflow's web page until Ctrl-C; for a tracking server, say where it is."""
    from kdbench.redact import redact
    from kdbench.results.tracking import resolve_uri

    uri = resolve_uri(tracking_uri)
    if uri.startswith(("http://", "https://", "databricks")):
        click.echo(f"the runs are on a tracking server; open {redact(uri)}")
        return
    command = ui_command(uri, host, port)
    # MLflow's first page is of language models, unless a browser was told otherwise before
    page = f"http://{host}:{port}/#/experiments?workflowType=machine_learning"
    click.echo(f"MLflow on {redact(uri)}: {page} (Ctrl-C ends it)")
    sys.stdout.flush()
    os.execvpe(command[0], command, ui_environment(uri))


def ui_command(uri: str, host: str, port: int) -> list[str]:
    """Return the command that serves a store.

    Raises SinkError when a SQLite file is not there, or another store cannot be reached.
    """
    from kdbench.results.tracking import SinkError, check_store, sqlite_path

    path = sqlite_path(uri)
    if path is not None and not path.exists():
        raise SinkError(f"{path}: no MLflow store here yet; `kdbench run-matrix` or `kdbench sync` makes it")
    check_store(uri)
    command = [sys.executable, "-m", "mlflow", "ui", "--host", host, "--port", str(port)]
    # The credentials of a database would be visible to every user of the machine in the list of processes.
    return command if "@" in uri else [*command, "--backend-store-uri", uri]


def ui_environment(uri: str) -> dict[str, str]:
    """Return the environment of that command."""
    environment = {**os.environ, "MLFLOW_BACKEND_STORE_URI": uri}
    environment.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    # helpers for evaluating language models, in processes of their own
    environment.setdefault("MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "false")
    return environment

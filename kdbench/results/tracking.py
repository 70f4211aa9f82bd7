"""Which MLflow store to use, and errors of a store told in one line without its credentials."""

from __future__ import annotations

import os
import re
from pathlib import Path

from kdbench.errors import KdbenchError
from kdbench.redact import learn, redact

DEFAULT_DB = "mlflow.db"
#: Seconds within which a server that does not answer is given up.
CONNECT_TIMEOUT_S = 10


class SinkError(KdbenchError):
    """A sink that cannot be opened or written; results on disk are unharmed, `kdbench sync` repairs."""


def one_line(error: BaseException, limit: int = 300) -> str:
    """Return the error's text on one line, redacted and cut to `limit` characters."""
    text = " ".join(redact(str(error)).split()) or type(error).__name__
    return text if len(text) <= limit else text[: limit - 3] + "..."


def resolve_uri(uri: str | None = None, *, cwd: Path | None = None) -> str:
    """Return the tracking URI to use.

    That is `uri`, else the environment's ``MLFLOW_TRACKING_URI``, else ``mlflow.db`` in the current folder.
    SQLite paths become absolute. Raises SinkError for a file store, which MLflow no longer takes.
    """
    cwd = (cwd or Path.cwd()).resolve()
    uri = (uri or os.environ.get("MLFLOW_TRACKING_URI") or "").strip()
    learn(uri)
    if not uri:
        return sqlite_uri(cwd / DEFAULT_DB)
    path = sqlite_path(uri)
    if path is not None:
        return sqlite_uri(cwd / path) + _query(uri)
    if uri.startswith("databricks") or ("://" in uri and not uri.startswith("file:")):
        return uri
    if os.environ.get("MLFLOW_ALLOW_FILE_STORE", "").lower() in ("1", "true"):
        return uri
    folder = Path(re.sub(r"^file:(//)?", "", uri))
    database = folder if folder.suffix in (".db", ".sqlite", ".sqlite3") else folder / DEFAULT_DB
    raise SinkError(
        f"tracking URI {redact(uri)!r}: MLflow does not keep runs in plain folders any more; "
        f"expected a database or server, such as {sqlite_uri(cwd / database)}"
    )


def sqlite_uri(path: Path) -> str:
    """Return the URI of an SQLite file given by an absolute path."""
    return f"sqlite:///{path.as_posix()}"


def sqlite_path(uri: str) -> Path | None:
    """Return the file of an SQLite URI (relative where the URI is), or None for other or in-memory stores."""
    match = re.match(r"sqlite(?:\+\w+)?:///([^?]+)", uri)
    if match is None or match[1] == ":memory:":
        return None
    return Path(match[1])


def _query(uri: str) -> str:
    _, mark, query = uri.partition("?")
    return mark + query


def check_store(uri: str) -> None:
    """Find out in seconds whether a store can be reached; MLflow itself would retry for minutes.

    Servers are left to MLflow's own client, whose retries :func:`quiet_mlflow` limits. Raises SinkError.
    """
    path = sqlite_path(uri)
    if path is not None:
        _check_sqlite(uri, path)
    elif re.match(r"(sqlite|postgres\w*|mysql|mssql)(\+\w+)?:", uri):
        _check_database(uri)


def _check_sqlite(uri: str, path: Path) -> None:
    if not path.parent.is_dir():
        raise SinkError(f"tracking URI {redact(uri)!r}: the folder {path.parent} does not exist")
    if path.is_dir():
        raise SinkError(f"tracking URI {redact(uri)!r}: is a folder, expected a database file")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise SinkError(f"tracking URI {redact(uri)!r}: cannot be written")
    if path.exists() and path.stat().st_size:
        with open(path, "rb") as file:
            if file.read(16) != b"SQLite format 3\0":
                raise SinkError(f"tracking URI {redact(uri)!r}: is not an SQLite database")


def _check_database(uri: str) -> None:
    import socket

    import sqlalchemy

    try:
        url = sqlalchemy.make_url(uri)
        if url.host and url.port:
            socket.create_connection((url.host, url.port), timeout=CONNECT_TIMEOUT_S).close()
        engine = sqlalchemy.create_engine(uri, poolclass=sqlalchemy.pool.NullPool)
        engine.connect().close()
    except Exception as error:
        raise SinkError(f"tracking URI {redact(uri)!r}: {one_line(error)}") from error


def quiet_mlflow() -> None:
    """Set what MLflow reads from the environment, where the user has not, and silence its chatter."""
    import logging

    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    # MLflow sets its loggers up when it is imported, by this variable.
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", str(CONNECT_TIMEOUT_S))
    for name in ("alembic", "mlflow"):
        logging.getLogger(name).setLevel(logging.ERROR)

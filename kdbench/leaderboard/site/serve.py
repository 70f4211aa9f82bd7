"""The site on a local address, for browsers that restrict pages opened as files."""

from __future__ import annotations

import functools
import http.server
from collections.abc import Callable
from pathlib import Path

from kdbench.errors import KdbenchError


def serve(folder: Path, port: int, ready: Callable[[str], None]) -> None:
    """Serve a folder on the loopback interface until interrupted; `ready` is called with the address.

    Port 0 takes a free one. Raises KdbenchError when the port is taken.
    """
    with make_server(folder, port) as server:
        ready(f"http://127.0.0.1:{server.server_address[1]}/")
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            return


def make_server(folder: Path, port: int) -> http.server.ThreadingHTTPServer:
    """Return a server of a folder on 127.0.0.1 that is bound and not yet running. Raises KdbenchError."""
    handler = functools.partial(_Quiet, directory=str(folder))
    try:
        return http.server.ThreadingHTTPServer(("127.0.0.1", port), handler)
    except OSError as error:
        raise KdbenchError(f"--port {port}: {error.strerror or error}; give another, or 0") from error


class _Quiet(http.server.SimpleHTTPRequestHandler):
    """Serves files without a line for each."""

    def log_message(self, format: str, *args: object) -> None:
        pass

"""Imported once by the fork server, so that a worker starts in milliseconds instead of seconds."""

import kdbench.engine.cell
import kdbench.engine.probe
import kdbench.launch.worker  # noqa: F401

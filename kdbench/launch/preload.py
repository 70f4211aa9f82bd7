"""Imported once by the fork server, so that a worker starts in milliseconds instead of seconds."""

import atexit
import gc
import os
import signal
import sys

_SERVES = any("multiprocessing.forkserver" in word for word in sys.orig_argv)
# Ctrl-C reaches all processes of a terminal: the server would die of it in the middle of an import, with a
# traceback, while the command still saves; it ends by itself with the command
if _SERVES:
    signal.signal(signal.SIGINT, signal.SIG_IGN)

# a fifth of the time of these imports would go into looking for garbage among what is never thrown away;
# frozen, nobody looks again, in the workers neither
gc.disable()
try:
    import kdbench.engine.cell
    import kdbench.engine.probe
    import kdbench.launch.worker  # noqa: F401
finally:
    gc.freeze()
    gc.enable()

# taking torch down takes the server seconds, and whoever reads the command's output waits for it
if _SERVES:
    atexit.register(os._exit, 0)

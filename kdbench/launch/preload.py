"""Imported once by the fork server, so that a worker starts in milliseconds instead of seconds."""

import atexit
import gc
import os
import sys

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
if any("multiprocessing.forkserver" in word for word in sys.orig_argv):
    atexit.register(os._exit, 0)

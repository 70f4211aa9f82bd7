"""What the fork server imports before it serves."""

import subprocess
import sys

import pytest

#: Sends itself Ctrl-C at the first heavy import and leaves it at that.
SCRIPT = """
import importlib.abc, os, signal, sys

class Interrupted(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.startswith("kdbench.engine"):
            os.kill(os.getpid(), signal.SIGINT)
            raise ImportError("far enough")

sys.meta_path.insert(0, Interrupted())
try:
    import kdbench.launch.preload
except ImportError as error:
    print(error)
"""


@pytest.mark.parametrize(("role", "ends"), [("multiprocessing.forkserver", True), ("other", False)])
def test_ctrl_c_while_the_server_imports_is_for_the_command_only(role, ends):
    done = subprocess.run(
        [sys.executable, "-c", f"# {role}\n{SCRIPT}"], capture_output=True, text=True, timeout=60
    )
    assert (done.stdout == "far enough\n") is ends
    assert ("KeyboardInterrupt" in done.stderr) is not ends

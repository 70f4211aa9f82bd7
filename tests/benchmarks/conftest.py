"""Makes ``tests/factories.py`` importable, however pytest was started; keeps stored results small and public."""

import sys
from pathlib import Path

_TESTS = str(Path(__file__).resolve().parents[1])
if _TESTS not in sys.path:
    sys.path.append(_TESTS)


def pytest_benchmark_update_machine_info(config, machine_info):
    """Name the machine by its processors and what runs on them: a stored result may be committed."""
    import torch

    cpu = machine_info.get("cpu", {})
    seen = {"cpu": cpu.get("brand_raw"), "cores": cpu.get("count"), "torch": torch.__version__}
    if torch.cuda.is_available():
        seen["gpu"] = torch.cuda.get_device_name()
    seen["python"] = machine_info.get("python_version")
    machine_info.clear()
    machine_info.update(seen)


#: What is stored of a benchmark's statistics (seconds), beside its extra_info.
_KEPT = ("min", "median", "iqr", "max", "rounds")


def pytest_benchmark_update_json(config, benchmarks, output_json):
    """Leave out the seconds of each round, reprs of parameters, and the state of the working tree."""
    output_json["commit_info"] = {}
    for one in output_json["benchmarks"]:
        one["stats"] = {key: one["stats"][key] for key in _KEPT}
        one["options"] = {"timer": one["options"]["timer"]}
        one.pop("params", None)

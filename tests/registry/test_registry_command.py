"""`kdbench plugins` through the command, with plug-ins of every status."""

import json

import pytest
from fake_distributions import method_plugin


@pytest.fixture
def site(dists):
    dists.add("fake-good", method_plugin("fine"), version="1.2")
    dists.add("fake-import", "import no_such_module_anywhere\n")
    dists.add("fake-exit", "import sys\nprint('noise')\nsys.exit(0)\n")
    dists.add(
        "fake-hook", "from kdbench.hooks import hookimpl\n\n@hookimpl\ndef kdbench_task():\n    return []\n"
    )
    dists.add("fake-a", method_plugin("shared"))
    dists.add("fake-b", method_plugin("shared"))
    dists.add(
        "fake-new",
        "from kdbench.hooks import MethodEntry, hookimpl\n\n@hookimpl\ndef kdbench_methods():\n"
        "    return [MethodEntry(name='n', target='a:b', api=9)]\n",
    )
    dists.add("fake-off", method_plugin("off"), entry_point="off")
    return dists


EXPECTED = {
    "fake-a": "conflict",
    "fake-b": "conflict",
    "fake-exit": "broken",
    "fake-good": "active",
    "fake-hook": "broken",
    "fake-import": "broken",
    "fake-new": "incompatible",
    "fake-off": "disabled",
}


def test_json(site):
    run = site.run("--disable-plugin", "off", "plugins", "--json")
    assert run.returncode == 0, run.stderr
    rows = {row["distribution"]: row for row in json.loads(run.stdout)}
    assert {name: rows[name]["status"] for name in EXPECTED} == EXPECTED
    assert rows["fake-hook"]["reason"] == "unknown hook 'kdbench_task' (did you mean 'kdbench_tasks'?)"
    assert rows["fake-good"]["entries"] == {"methods": ["fine"]}


def test_table_and_tracebacks(site):
    run = site.run("plugins", KDBENCH_DISABLE_PLUGINS="off")
    assert run.returncode == 0, run.stderr
    lines = {line.split()[1]: line for line in run.stdout.splitlines()}
    assert all(status in lines[name] for name, status in EXPECTED.items())
    assert "1.2" in lines["fake-good"]
    assert "1 method" in lines["fake-good"]
    assert "needs api 9" in lines["fake-new"]
    assert "Traceback" not in run.stdout + run.stderr
    verbose = site.run("plugins", "-v").stdout
    assert "Traceback" in verbose
    assert "no_such_module_anywhere" in verbose


def test_strict_mode_stops_other_verbs_but_not_this_one(site):
    assert site.run("plugins", KDBENCH_STRICT_PLUGINS="1").returncode == 0
    run = site.run("list", "methods", KDBENCH_STRICT_PLUGINS="1")
    assert run.returncode == 2
    assert run.stderr.splitlines()[-1].startswith("kdbench: error: plug-in 'fake-")
    assert run.stdout == ""


def test_a_broken_neighbour_does_not_stop_list(site):
    run = site.run("list", "methods")
    assert run.returncode == 0, run.stderr
    assert "summary of fine" in run.stdout
    assert "shared" not in run.stdout

"""Statuses of plug-ins: whatever one does, its neighbours work."""

import pytest
from fake_distributions import method_plugin

from kdbench.errors import PluginError, UnknownName
from kdbench.registry import Registry


def load_one(name="fake-one", **options):
    return next(p for p in Registry.load(**options).plugins() if p.distribution == name)


def test_good_plugin_is_active_with_its_entries(dists):
    dists.add("fake-one", method_plugin("zeta", "alpha"), version="2.5", entry_point="one")
    plugin = load_one()
    assert (plugin.name, plugin.version, plugin.status, plugin.reason) == ("one", "2.5", "active", "")
    assert [e.name for e in plugin.entries["methods"]] == ["alpha", "zeta"]


BROKEN = {
    "import error": ("import no_such_module_anywhere\n", "ModuleNotFoundError: No module named 'no_such"),
    "syntax error": ("def f(:\n", "SyntaxError: "),
    "exit at import": ("import sys\nsys.exit(3)\n", "SystemExit: 3"),
    "generator exit at import": ("raise GeneratorExit('odd')\n", "GeneratorExit: odd"),
    "no hook": ("x = 1\n", "implements no hook of kdbench"),
    "hook not marked": (
        "def kdbench_methods():\n    return []\n",
        "function 'kdbench_methods' is not marked with @kdbench.hooks.hookimpl",
    ),
    "misspelt hook": (
        "from kdbench.hooks import hookimpl\n\n@hookimpl\ndef kdbench_metods():\n    return []\n",
        "unknown hook 'kdbench_metods' (did you mean 'kdbench_methods'?)",
    ),
    "misspelt argument": (
        "from kdbench.hooks import hookimpl\n\n@hookimpl\ndef kdbench_cell_started(sell):\n    pass\n",
        "sell",
    ),
    "wrapper": (
        "from kdbench.hooks import hookimpl\n\n@hookimpl(wrapper=True)\ndef kdbench_methods():\n"
        "    return (yield)\n",
        "hook 'kdbench_methods' is a wrapper",
    ),
    "hook raises": (
        "from kdbench.hooks import hookimpl\n\n"
        "@hookimpl\ndef kdbench_methods():\n    raise ValueError('no\\nluck')\n",
        "hook 'kdbench_methods': ValueError: no luck",
    ),
    "hook exits": (
        "from kdbench.hooks import hookimpl\n\n@hookimpl\ndef kdbench_methods():\n    raise SystemExit\n",
        "hook 'kdbench_methods': SystemExit",
    ),
    "hook returns None": (
        "from kdbench.hooks import hookimpl\n\n@hookimpl\ndef kdbench_methods():\n    pass\n",
        "hook 'kdbench_methods' must return a list of entries, not NoneType",
    ),
    "hook returns text": (
        "from kdbench.hooks import hookimpl\n\n@hookimpl\ndef kdbench_methods():\n    return 'abc'\n",
        "hook 'kdbench_methods' must return a list of entries, not str",
    ),
    "wrong entry class": (
        "from kdbench.hooks import TaskEntry, hookimpl\n\n@hookimpl\ndef kdbench_methods():\n"
        "    return [TaskEntry(name='a', target='b:c')]\n",
        "hook 'kdbench_methods' must return MethodEntry items, not TaskEntry",
    ),
    "name with a colon": (method_plugin("a:b"), "entry 'a:b': a name has letters"),
    "name as a path": (method_plugin("../up"), "entry '../up': a name has letters"),
    "target without attribute": (
        "from kdbench.hooks import MethodEntry, hookimpl\n\n@hookimpl\ndef kdbench_methods():\n"
        "    return [MethodEntry(name='a', target='b.c')]\n",
        "target must be 'package.module:attribute', not 'b.c'",
    ),
    "name twice": (method_plugin("same", "same"), "gives the name 'same' twice"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_plugin_has_a_reason_and_leaves_its_neighbour_alone(dists, case):
    source, reason = BROKEN[case]
    dists.add("fake-bad", source)
    dists.add("fake-good", method_plugin("good-method"))
    registry = Registry.load()
    bad = next(p for p in registry.plugins() if p.distribution == "fake-bad")
    assert bad.status == "broken"
    assert reason in bad.reason
    assert "\n" not in bad.reason
    assert registry.get("methods", "good-method").plugin.status == "active"
    assert [r.name for r in registry.all("methods") if r.plugin is bad] == []


def test_traceback_is_kept_for_exceptions(dists):
    dists.add("fake-one", "raise RuntimeError('deep inside')\n")
    trace = load_one().traceback
    assert "RuntimeError: deep inside" in trace
    assert "line 1, in <module>" in trace


def test_keyboard_interrupt_passes(dists):
    dists.add("fake-one", "raise KeyboardInterrupt\n")
    with pytest.raises(KeyboardInterrupt):
        Registry.load()


def test_what_a_plugin_prints_stays_out_of_stdout(dists, capsys):
    dists.add("fake-one", method_plugin("a", extra="print('noise')"))
    assert load_one().status == "active"
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "noise\n"


def test_newer_api_is_incompatible(dists):
    dists.add(
        "fake-one",
        """
        from kdbench.hooks import MethodEntry, hookimpl

        @hookimpl
        def kdbench_methods():
            return [
                MethodEntry(name="old", target="a:b"),
                MethodEntry(name="new", target="not yet known", api=2),
            ]
        """,
    )
    plugin = load_one()
    assert (plugin.status, plugin.reason) == ("incompatible", "needs api 2, this kdbench has api 1")
    with pytest.raises(UnknownName, match=r"\(fake-one 1.0\) provides it but is incompatible: needs"):
        Registry.load().get("methods", "old")


def test_a_class_instance_can_be_the_plugin(dists):
    module = dists.add(
        "fake-two",
        """
        from kdbench.hooks import DatasetEntry, hookimpl

        class Plugin:
            @hookimpl
            def kdbench_datasets(self):
                return (DatasetEntry(name="from-instance", target="a:b"),)

        plugin = Plugin()
        """,
    )
    dists.add_metadata("fake-one", {"it": f"{module}:plugin"})
    assert load_one().status == "active"
    assert Registry.load().get("dataset", "from-instance").plugin.distribution == "fake-one"


def test_one_module_under_two_entry_points_is_registered_once(dists):
    module = dists.add("fake-one", method_plugin("only"), entry_point="first")
    dists.add_metadata("fake-one-renamed", {"second": module})
    registry = Registry.load()
    assert registry.get("methods", "only").plugin.distribution == "fake-one"
    renamed = next(p for p in registry.plugins() if p.distribution == "fake-one-renamed")
    assert renamed.status == "broken"
    assert "already registered as 'fake-one:first'" in renamed.reason


def test_conflict_withholds_only_the_shared_name(dists):
    dists.add("fake-a", method_plugin("shared", "mine-a"), version="1.1")
    dists.add("fake-b", method_plugin("shared", "mine-b"), version="2.2")
    registry = Registry.load()
    status = {p.distribution: p for p in registry.plugins()}
    assert status["fake-a"].status == status["fake-b"].status == "conflict"
    assert status["fake-a"].reason == "method 'shared' is also given by plug-in 'fake-b-ep' (fake-b 2.2)"
    names = [r.name for r in registry.all("methods")]
    assert {"mine-a", "mine-b"} <= set(names)
    assert "shared" not in names
    assert "shared" not in registry.names("methods")
    assert registry.get("methods", "mine-a").plugin is status["fake-a"]
    assert registry.conflicts() == {("methods", "shared"): [status["fake-a"], status["fake-b"]]}
    with pytest.raises(PluginError, match=r"'shared' is given by .*fake-a 1\.1\) and .*fake-b 2\.2\)"):
        registry.get("methods", "shared")


def test_disabling_one_side_ends_a_conflict(dists):
    dists.add("fake-a", method_plugin("shared"))
    dists.add("fake-b", method_plugin("shared"))
    registry = Registry.load(disable=["fake-b"])
    assert registry.get("methods", "shared").plugin.distribution == "fake-a"
    assert registry.conflicts() == {}


@pytest.mark.parametrize("name", ["one", "fake-one", "Fake_One"])
def test_disabled_by_entry_point_or_distribution_and_not_imported(dists, name):
    dists.add("fake-one", method_plugin("gone", extra="raise SystemError('imported')"), entry_point="one")
    plugin = load_one(disable=[name])
    assert (plugin.status, plugin.reason) == ("disabled", "by --disable-plugin")
    with pytest.raises(UnknownName, match=r"plug-in 'one' \(fake-one 1.0\) provides it but is disabled by"):
        Registry.load(disable=[name]).get("methods", "gone")


def test_disabled_by_environment(dists, monkeypatch):
    dists.add("fake-one", method_plugin("gone"), entry_point="one")
    dists.add("fake-two", method_plugin("gone-too"), entry_point="two")
    monkeypatch.setenv("KDBENCH_DISABLE_PLUGINS", " one, fake-two ,")
    assert load_one("fake-one").reason == "by KDBENCH_DISABLE_PLUGINS"
    assert load_one("fake-two").status == "disabled"


def test_disabling_an_unknown_plugin_is_an_error(dists, monkeypatch):
    dists.add("fake-one", method_plugin("a"))
    with pytest.raises(UnknownName, match=r"--disable-plugin: no plug-in 'fake-onn' \(did you mean"):
        Registry.load(disable=["fake-onn"])
    monkeypatch.setenv("KDBENCH_DISABLE_PLUGINS", "qqqq")
    with pytest.raises(UnknownName, match=r"_DISABLE_PLUGINS: no plug-in 'qqqq'; installed: .*fake-one-ep"):
        Registry.load()


def test_strict_refuses_broken_incompatible_and_conflict(dists, monkeypatch):
    dists.add("fake-good", method_plugin("fine"))
    assert Registry.load(strict=True).get("methods", "fine")
    dists.add("fake-bad", "import no_such_module_anywhere\n")
    with pytest.raises(PluginError, match=r"'fake-bad-ep' \(fake-bad 1.0\) is broken: ModuleNotFoundError"):
        Registry.load(strict=True)
    assert Registry.load(strict=True, disable=["fake-bad"]).get("methods", "fine")
    monkeypatch.setenv("KDBENCH_STRICT_PLUGINS", "1")
    with pytest.raises(PluginError, match="fake-bad"):
        Registry.load()
    assert Registry.load(strict=False).get("methods", "fine")
    dists.add("fake-worse", method_plugin("fine"))
    with pytest.raises(PluginError, match=r"and 2 more, see `kdbench plugins`"):
        Registry.load()
    monkeypatch.setenv("KDBENCH_STRICT_PLUGINS", "0")
    assert Registry.load().conflicts()

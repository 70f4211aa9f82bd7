"""Look-up by name, namespaces, suggestions, loading of targets, events."""

import pytest
from fake_distributions import method_plugin, unique_module

from kdbench.errors import KdbenchError, PluginError, UnknownName
from kdbench.registry import KINDS, Registry, environment_for_workers, singular, to_kind

ZOO = """
from kdbench.hooks import ArchitectureEntry, hookimpl

@hookimpl
def kdbench_architectures():
    return [
        ArchitectureEntry(name="zoo", target="{0}:build", namespace=True, names="{0}:{1}",
                          pretrained="{0}:check", tags=("big cats",), summary="Animals of Africa"),
        ArchitectureEntry(name="plainnet", target="{0}:build"),
    ]
"""
ZOO_MODELS = """
def build(*, model=None, **args):
    return model

def names():
    return ["zebranet50", "antnet18"]

def check(*, model, **args):
    from kdbench.errors import KdbenchError

    if model != "antnet18" and "file" not in args:
        raise KdbenchError(f"{model} has none")

def fails():
    raise OSError("the list is gone")
"""


@pytest.fixture
def zoo(dists):
    models = unique_module("zoo_models")
    (dists.path / f"{models}.py").write_text(ZOO_MODELS)
    dists.add("fake-zoo", ZOO.format(models, "names"))
    return Registry.load()


def test_kind_words():
    assert [to_kind(singular(k)) for k in KINDS] == list(KINDS) == [to_kind(k) for k in KINDS]
    with pytest.raises(UnknownName, match=r"unknown kind 'metod': .*did you mean 'method'"):
        to_kind("metod")


def test_get_and_all(dists):
    dists.add("fake-one", method_plugin("bbb", "aaa"), version="3.1")
    registry = Registry.load()
    found = registry.get("method", "aaa")
    assert (found.kind, found.name, found.version, found.model) == ("methods", "aaa", "7", None)
    mine = [r.name for r in registry.all("methods") if r.plugin.distribution == "fake-one"]
    assert mine == ["aaa", "bbb"]
    assert set(mine) <= set(registry.names("methods"))


def test_version_of_the_distribution_is_the_default(dists):
    dists.add(
        "fake-one",
        """
        from kdbench.hooks import SinkEntry, hookimpl

        @hookimpl
        def kdbench_sinks():
            return [SinkEntry(name="drain", target="a:b")]
        """,
        version="3.1",
    )
    assert Registry.load().get("sinks", "drain").version == "3.1"


def test_unknown_name_suggests(dists):
    dists.add("fake-one", method_plugin("quokkanet"))
    with pytest.raises(UnknownName, match=r"^unknown method 'quokanet' \(did you mean 'quokkanet'\?\)$"):
        Registry.load().get("methods", "quokanet")
    with pytest.raises(UnknownName, match=r"^unknown method 'x\?\?\?y': see `kdbench list methods`$"):
        Registry.load().get("methods", "x???y")


def test_unknown_name_points_at_a_broken_plugin_that_declares_it(dists):
    dists.add("fake-one", "import no_such_module_anywhere\n" + method_plugin("wanted"))
    registry = Registry.load()
    with pytest.raises(UnknownName, match=r"'wanted': .*\(fake-one 1.0\) provides it but is broken: Module"):
        registry.get("methods", "wanted")
    assert [p.distribution for p in registry.withheld("methods", "wanted")] == ["fake-one"]
    assert registry.withheld("datasets", "wanted") == []
    with pytest.raises(UnknownName, match=r"not loaded: plug-in 'fake-one-ep' \(fake-one 1.0\), see"):
        registry.get("methods", "something-else")


def test_names_declared_in_a_package_are_found_without_importing_it(dists):
    source = "raise RuntimeError('must not run')\n" + method_plugin("deep")
    module = dists.add("fake-one", {"__init__.py": "raise RuntimeError('must not run')\n", "plug.py": source})
    dists.add_metadata("fake-two", {"two": f"{module}.plug"})
    registry = Registry.load(disable=["fake-two"])
    assert [p.distribution for p in registry.withheld("methods", "deep")] == ["fake-two"]


def test_load_returns_the_target(dists):
    models = unique_module("targets")
    (dists.path / f"{models}.py").write_text("class Target:\n    class Inner:\n        value = 5\n")
    dists.add("fake-one", method_plugin("ok", module=models))
    target = Registry.load().get("methods", "ok").load()
    assert target.Inner.value == 5


@pytest.mark.parametrize(
    ("source", "cause"),
    [
        (None, "ModuleNotFoundError"),
        ("x = 1\n", "AttributeError"),
        ("raise SystemExit(4)\n", "SystemExit: 4"),
        ("raise ValueError('first\\nsecond')\n", "ValueError: first second"),
    ],
)
def test_load_failure_names_plugin_target_and_cause(dists, source, cause):
    target = unique_module("targets")
    if source is not None:
        (dists.path / f"{target}.py").write_text(source)
    dists.add("fake-one", method_plugin("sick", module=target))
    with pytest.raises(PluginError) as caught:
        Registry.load().get("methods", "sick").load()
    message = str(caught.value)
    assert message.startswith("plug-in 'fake-one-ep' (fake-one 1.0): method 'sick': cannot load ")
    assert f"'{target}:Target'" in message
    assert cause in message
    assert "\n" not in message


def test_namespace_serves_every_model(zoo):
    found = zoo.get("architectures", "zoo:anything_at_all")
    assert (found.name, found.model, found.entry.name) == ("zoo:anything_at_all", "anything_at_all", "zoo")
    assert found.load()(model=found.model) == "anything_at_all"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("zoo", "'zoo' is a namespace of architectures: expected 'zoo:MODEL'"),
        ("zoo:", "'zoo' is a namespace of architectures: expected 'zoo:MODEL'"),
        ("plainnet:x", "'plainnet' is an architecture, not a namespace"),
        ("zo:antnet18", "did you mean 'zoo:antnet18'"),
        ("antnet18", "did you mean 'zoo:antnet18'"),
        ("plainet", "did you mean 'plainnet'"),
    ],
)
def test_namespace_errors(zoo, name, message):
    with pytest.raises(UnknownName) as caught:
        zoo.get("architectures", name)
    assert message in str(caught.value)


def test_pretrained_weights_are_as_the_entry_says(zoo):
    zoo.check_pretrained("zoo:antnet18", {})
    zoo.check_pretrained("zoo:zebranet50", {"file": "w"})
    with pytest.raises(KdbenchError, match=r"^zebranet50 has none$"):
        zoo.check_pretrained("zoo:zebranet50", {})
    with pytest.raises(KdbenchError, match=r"^'plainnet' has no pretrained weights; these have: .*zoo:\*"):
        zoo.check_pretrained("plainnet", {})


def test_suggestions_look_at_case_and_words(zoo):
    with pytest.raises(UnknownName, match=r"did you mean 'plainnet'"):
        zoo.get("architectures", "PLAINNET")
    for words in ("big cats", "AFRICA"):
        with pytest.raises(UnknownName, match=r"did you mean 'zoo'\?"):
            zoo.get("architectures", words)
    with pytest.raises(UnknownName, match="see `kdbench list architectures`"):
        zoo.get("architectures", "fric")  # part of a word


def test_names_include_the_models_of_namespaces(zoo):
    names = zoo.names("architectures")
    assert {"plainnet", "zoo:antnet18", "zoo:zebranet50"} <= set(names)
    assert "zoo" not in names
    assert names == sorted(names)


def test_a_failing_list_of_models_is_no_error(dists):
    models = unique_module("zoo_models")
    (dists.path / f"{models}.py").write_text(ZOO_MODELS)
    dists.add("fake-zoo", ZOO.format(models, "fails"))
    registry = Registry.load()
    assert "plainnet" in registry.names("architectures")
    assert registry.get("architectures", "zoo:antnet18").model == "antnet18"
    with pytest.raises(PluginError, match="OSError: the list is gone"):
        registry.get("architectures", "zoo:x").models()


def test_namespaces_are_not_asked_for_models_on_load(dists):
    dists.add("fake-zoo", ZOO.format("module_that_does_not_exist", "names"))
    assert Registry.load().get("architectures", "zoo:x").name == "zoo:x"


LISTENER = """
from kdbench.hooks import hookimpl

seen = []

@hookimpl
def kdbench_cell_finished(cell, record):
    seen.append((cell["n"], record["status"]))
    record["status"] = "tampered"
"""


def test_fire_reaches_all_and_turns_exceptions_into_warnings(dists):
    import sys

    first = dists.add("fake-a", LISTENER)
    dists.add(
        "fake-b",
        "from kdbench.hooks import hookimpl\n\n@hookimpl\ndef kdbench_cell_finished(record):\n    1 / 0\n",
    )
    dists.add(
        "fake-c",
        "from kdbench.hooks import hookimpl\n\n"
        "@hookimpl\ndef kdbench_cell_finished():\n    raise SystemExit(1)\n",
    )
    last = dists.add("fake-d", LISTENER)
    registry = Registry.load()
    record = {"status": "done"}
    warnings = registry.fire("kdbench_cell_finished", cell={"n": 4}, record=record)
    assert warnings == [
        "plug-in 'fake-b-ep' (fake-b 1.0): hook 'kdbench_cell_finished': ZeroDivisionError: division by zero",
        "plug-in 'fake-c-ep' (fake-c 1.0): hook 'kdbench_cell_finished': SystemExit: 1",
    ]
    assert sys.modules[first].seen == sys.modules[last].seen == [(4, "done")]
    assert record == {"status": "done"}


def test_fire_skips_plugins_that_are_not_offered(dists):
    import sys

    broken = dists.add("fake-a", LISTENER + "\n@hookimpl\ndef kdbench_methods():\n    return 3\n")
    registry = Registry.load()
    assert registry.fire("kdbench_cell_finished", cell={"n": 1}, record={"status": "done"}) == []
    assert sys.modules[broken].seen == []


def test_fire_order(dists):
    import sys

    log = unique_module("log")
    (dists.path / f"{log}.py").write_text("seen = []\n")
    for name, options in [("c", "tryfirst=True"), ("a", ""), ("b", "trylast=True"), ("d", "")]:
        dists.add(
            f"fake-{name}",
            f"import {log}\nfrom kdbench.hooks import hookimpl\n\n"
            f"@hookimpl({options})\ndef kdbench_matrix_started(plan):\n    {log}.seen.append('{name}')\n",
        )
    assert Registry.load().fire("kdbench_matrix_started", plan={}) == []
    assert sys.modules[log].seen == ["c", "a", "d", "b"]


def test_fire_of_an_unknown_hook_is_a_mistake_of_the_caller(dists):
    with pytest.raises(ValueError, match="kdbench_cell_started"):
        Registry.load().fire("kdbench_cell_start", cell={})


def test_environment_for_workers(monkeypatch):
    assert environment_for_workers([]) == {}
    monkeypatch.setenv("KDBENCH_DISABLE_PLUGINS", "b, c")
    assert environment_for_workers(["a", "b"]) == {"KDBENCH_DISABLE_PLUGINS": "a,b,c"}

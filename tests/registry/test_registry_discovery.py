"""Finding entry points: metadata listed twice, old or malformed."""

from fake_distributions import Distributions, method_plugin

from kdbench.registry import Registry, find_entry_points


def mine(sources):
    return [s for s in sources if s.distribution.lower().startswith("fake")]


def test_sorted_by_distribution_and_name(dists):
    dists.add_metadata("fake-z", {"b": "m", "a": "n"})
    dists.add_metadata("Fake-A", {"z": "m"})
    assert [(s.distribution, s.name) for s in mine(find_entry_points())] == [
        ("Fake-A", "z"),
        ("fake-z", "a"),
        ("fake-z", "b"),
    ]


def test_other_groups_are_left_alone(dists):
    folder = dists.add_metadata("fake-x", {"a": "m"})
    (folder / "entry_points.txt").write_text("[console_scripts]\nkdbench-x = m:f\n[kdbench.other]\na = m\n")
    assert mine(find_entry_points()) == []


def test_duplicate_metadata_counts_once_and_does_not_conflict(dists, tmp_path, monkeypatch):
    module = dists.add("fake-dup", method_plugin("dup-method"), version="2.0", entry_point="dup")
    other = Distributions(tmp_path / "other")
    other.add_metadata("Fake_Dup", {"dup": module}, version="1.0")
    monkeypatch.syspath_prepend(str(other.path))
    monkeypatch.syspath_prepend(str(dists.path))
    dists.add_metadata("fake.dup", {"dup": module}, version="2.0", suffix="egg-info")
    found = mine(find_entry_points())
    assert [(s.name, s.version) for s in found] == [("dup", "2.0")]
    registry = Registry.load()
    assert registry.get("methods", "dup-method").plugin.status == "active"
    assert registry.conflicts() == {}


def test_malformed_metadata_of_one_distribution_hides_no_other(dists):
    dists.add("fake-good", method_plugin("good"))
    folder = dists.add_metadata("fake-bad", {})
    (folder / "entry_points.txt").write_text("[kdbench]\nthis line has no equals sign\n")
    nameless = dists.add_metadata("fake-nameless", {"x": "y"})
    (nameless / "METADATA").write_text("")
    assert [s.distribution for s in mine(find_entry_points())] == ["fake-good"]
    assert Registry.load().get("methods", "good").version == "7"


def test_metadata_that_are_no_text_hide_no_other(dists):
    dists.add("fake-good", method_plugin("good"))
    bad = dists.add_metadata("fake-bytes", {"x": "y"})
    (bad / "METADATA").write_bytes(b"Name: fake-\xff\xfe\nVersion: 1\n")
    url = dists.add_metadata("fake-url", {"a": "m"}, direct_url="x")
    (url / "direct_url.json").write_bytes(b"\xff")
    found = {s.distribution: s for s in mine(find_entry_points())}
    assert {"fake-good", "fake-url"} <= set(found)
    assert found["fake-url"].direct_url is None


def test_versions_fit_into_a_record(dists):
    made = dists.add_metadata("fake-long", {"a": "m"})
    (made / "METADATA").write_text(f"Name: fake-long\nVersion: {'9' * 5000}\n")
    (source,) = mine(find_entry_points())
    assert len(source.version) == 200

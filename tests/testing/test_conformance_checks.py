"""The suite from outside: shipped methods pass, errors of the user are one line, reports say what was seen."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
from click.testing import CliRunner
from mutants import (
    DetachesAll,
    DetachesHintInItsStep,
    ForgetsTheMean,
    LeavesHook,
    MatchesLogits,
    Right,
    TunesTeacher,
)

import kdbench.engine.build
from kdbench.api import KdbenchError, MethodParams, Needs, NotApplicable
from kdbench.cli import main
from kdbench.registry import Registry
from kdbench.testing import Check, Report, check_method
from kdbench.testing.checks import RULES

NAMES = [rule.name for rule in RULES]


class RaisesInSetup(Right):
    def setup(self, run: Any) -> None:
        raise KeyError("layer9")


class Refuses(Right):
    def setup(self, run: Any) -> None:
        raise NotApplicable("needs moonlight")


def test_setup_that_fails_is_one_check(registry: Registry) -> None:
    report = check_method(RaisesInSetup, registry=registry)
    assert [c.name for c in report.checks] == ["setup"]
    assert not report.passed
    assert "KeyError: 'layer9'" in report.failures()[0]


@pytest.mark.parametrize("role", ["teacher", "student"])
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("resnet99", r"^unknown architecture 'resnet99' \(did you mean 'resnet"),
        ("timm:test_resnett", r"has no model 'test_resnett' \(did you mean 'test_resnet'"),
    ],
)
def test_networks_that_cannot_be_built_are_an_error_of_the_user(
    role: str, name: str, words: str, registry: Registry
) -> None:
    networks: dict[str, Any] = {role: name}
    with pytest.raises(KdbenchError, match=words):
        check_method(Right, registry=registry, **networks)


def test_an_error_of_kdbench_in_setup_is_the_fault_of_setup(registry: Registry) -> None:
    class Asks(Right):
        def setup(self, run: Any) -> None:
            raise KdbenchError("no such thing")

    report = check_method(Asks, registry=registry)
    assert "setup() raised KdbenchError: no such thing" in report.failures()[0]


def test_refused_pair_is_an_error_of_the_user(registry: Registry) -> None:
    with pytest.raises(KdbenchError, match=r"'Refuses' does not apply to .*: needs moonlight"):
        check_method(Refuses, registry=registry)


def test_declared_needs_are_honoured(registry: Registry) -> None:
    class Picky(Right):
        needs = Needs(teacher_bn=True)

    with pytest.raises(KdbenchError, match="needs a teacher with BatchNorm statistics"):
        check_method(Picky, teacher="timm:test_convnext", registry=registry)


class Demanding(Right):
    needs = Needs(
        teachers=2,
        route=2,
        teacher_bn=True,
        stage_end_act=True,
        equal_channels=True,
        min_batch=3,
        min_classes=4,
        capabilities=frozenset({"features"}),
    )


REFUSALS = (
    "one teacher too few",
    "no training route",
    "a task that offers nothing",
    "batches of 2",
    "3 classes",
    "a teacher without BatchNorm",
    "a teacher without activations at stage ends",
    "unequal channels",
)


def test_every_declared_need_is_taken_away(registry: Registry) -> None:
    report = check_method(Demanding, only=["needs"], registry=registry)
    assert [c.name for c in report.checks] == ["finite losses", "needs"]
    assert report.failures() == []
    assert report.checks[1].seen == "refused: " + ", ".join(REFUSALS)


def test_a_need_that_nobody_looks_at_is_found(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kdbench.engine.build, "check_needs", lambda needs, run: None)
    report = check_method(Demanding, only=["needs"], registry=registry)
    assert [c.name for c in report.checks if not c.passed] == ["needs"]
    assert report.checks[1].seen == "one teacher too few: the method sets up as if it were there"


def test_an_entry_with_other_needs_is_found(registry: Registry) -> None:
    entry = SimpleNamespace(needs=Needs(min_batch=7))
    found = SimpleNamespace(load=lambda: Right, entry=entry)

    def get(kind: str, name: str) -> Any:
        return found if kind == "methods" else registry.get(kind, name)

    made_up: Any = SimpleNamespace(get=get)
    report = check_method("right", only=["entry"], registry=made_up)
    assert report.failures() == [
        "entry: MethodEntry.needs differs from the class's needs. Give the entry the class's needs."
    ]
    entry.needs = Needs()
    assert check_method("right", only=["entry"], registry=made_up).passed


def test_an_error_of_the_contract_says_what_to_do(registry: Registry) -> None:
    report = check_method(ForgetsTheMean, registry=registry)
    (check,) = report.checks
    assert check.seen.startswith(
        "loss() must return {name: scalar tensor}; 'hint' has shape (8,): take its mean"
    )
    assert "mutants.py:" in check.seen
    assert check.fix == "Return {name: scalar tensor}: a mean over the batch, with its gradient."
    (check,) = check_method(DetachesAll, registry=registry).checks
    assert check.fix.startswith("Do not detach the loss or compute it under torch.no_grad")


def test_a_parameter_without_gradient_may_be_a_detached_loss(registry: Registry) -> None:
    report = check_method(DetachesHintInItsStep, only=["parameters learn"], registry=registry)
    assert report.checks[1].fix.endswith("and do not detach the loss or compute it under torch.no_grad.")


def test_a_resume_that_fails_for_the_teacher_says_so(registry: Registry) -> None:
    report = check_method(TunesTeacher, only=["resume"], registry=registry)
    assert report.checks[1].seen.endswith("a cut and a resume; the teacher changes, see 'teacher untouched'")


class Warm(MatchesLogits):
    """Says what its temperature is."""

    class Params(MethodParams):
        """Temperature."""

        temperature: float = 1.0
        steps: int = 100

    presets = {"check": {"steps": 2, "temperature": 2.0}, "hot": {"temperature": 8.0}}
    seen: ClassVar[list[tuple[float, int]]] = []

    def setup(self, run: Any) -> None:
        self.seen.append((self.hp.temperature, self.hp.steps))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, (2.0, 2)),
        ({"preset": "hot"}, (8.0, 2)),
        ({"preset": "hot", "params": {"temperature": 3.0}}, (3.0, 2)),
        ({"preset": "hot", "params": {"steps": 5}}, (8.0, 5)),
    ],
)
def test_a_preset_lies_under_the_parameters(
    options: dict[str, Any], expected: tuple[float, int], registry: Registry
) -> None:
    Warm.seen.clear()
    assert check_method(Warm, only=["registered state"], registry=registry, **options).passed
    assert Warm.seen[0] == expected


def test_an_unknown_preset(registry: Registry) -> None:
    with pytest.raises(KdbenchError, match=r"^method 'Warm' has no preset 'hott' \(did you mean 'hot'\?\)"):
        check_method(Warm, preset="hott", registry=registry)
    with pytest.raises(KdbenchError, match=r"^method 'kd' has no preset 'cifar10' \(did you mean 'cifar100'"):
        check_method("kd", preset="cifar10", registry=registry)


def test_unknown_names_and_bad_parameters(registry: Registry) -> None:
    with pytest.raises(KdbenchError, match=r"unknown method 'vanila' \(did you mean 'vanilla'"):
        check_method("vanila", registry=registry)
    with pytest.raises(KdbenchError, match=r"^method 'kd': alhpa: unknown.*'alpha'"):
        check_method("kd", params={"alhpa": 1}, registry=registry)
    with pytest.raises(KdbenchError, match=r"unknown check 'memry' \(did you mean 'memory'"):
        check_method("kd", only=["memry"], registry=registry)


def test_fixture_of_the_pytest_plugin(request: pytest.FixtureRequest, registry: Registry) -> None:
    check = request.getfixturevalue("check_method")
    assert check(Right, only=["no hooks left"], registry=registry).passed
    with pytest.raises(pytest.fail.Exception, match="method 'LeavesHook':\nno hooks left: a hook is left"):
        check(LeavesHook, only=["no hooks left"], registry=registry)


def test_a_report_as_data() -> None:
    checks = [Check("a", True, "fine", seconds=0.12345), Check("b", False, "broken [x]", "Mend it.", 1.0)]
    report = Report("m", "t", "s", 1.23456, checks)
    assert not report.passed
    assert report.title() == "m on t -> s: 1 of 2 checks failed in 1.2 s"
    assert report.failures() == ["b: broken [x]. Mend it."]
    assert report.as_dict() == {
        "method": "m",
        "teacher": "t",
        "student": "s",
        "passed": False,
        "seconds": 1.235,
        "checks": [
            {"name": "a", "passed": True, "seen": "fine", "fix": "", "seconds": 0.123},
            {"name": "b", "passed": False, "seen": "broken [x]", "fix": "Mend it.", "seconds": 1.0},
        ],
    }


class TestCommand:
    @pytest.fixture
    def report(self, monkeypatch: pytest.MonkeyPatch) -> Report:
        """What the suite would say."""
        report = Report("kd", "timm:test_resnet", "timm:test_vit", 1.0)
        report.checks = [
            Check("resume", True, "equal"),
            Check("memory", False, "16 [bytes] left", "Free it."),
        ]
        self.options: dict[str, Any] = {}

        def check(name: str, **options: Any) -> Report:
            self.options = {"name": name, **options}
            return report

        monkeypatch.setattr("kdbench.testing.check_method", check)
        return report

    def test_table(self, report: Report) -> None:
        done = CliRunner().invoke(
            main,
            [
                *("check-method", "kd", "--param", "temperature=2"),
                *("--check", "memory", "--preset", "cifar100"),
            ],
        )
        assert done.exit_code == 1
        title, header, first, second = done.stdout.splitlines()
        assert title == "kd on timm:test_resnet -> timm:test_vit: 1 of 2 checks failed in 1.0 s"
        assert header.split() == ["check", "verdict", "seconds", "seen", "how", "to", "fix", "it"]
        assert first.split() == ["resume", "pass", "0.00", "equal"]
        assert second.split() == ["memory", "FAIL", "0.00", "16", "[bytes]", "left", "Free", "it."]
        assert self.options["params"] == {"temperature": 2}
        assert self.options["preset"] == "cifar100"
        assert self.options["only"] == ("memory",)

    def test_json(self, report: Report) -> None:
        report.checks.pop()
        done = CliRunner().invoke(main, ["check-method", "kd", "--json"])
        assert done.exit_code == 0
        assert json.loads(done.stdout) == report.as_dict()
        assert json.loads(done.stdout)["passed"] is True

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            (["kdd"], "unknown method 'kdd' (did you mean 'kd'"),
            (["kd", "--preset", "cifar"], "method 'kd' has no preset 'cifar' (did you mean 'cifar100'?)"),
            (["kd", "--teacher", "resnet99"], "unknown architecture 'resnet99' (did you mean 'resnet"),
            (
                ["kd", "--param", "temprature=2"],
                "method 'kd': temprature: unknown (did you mean 'temperature'",
            ),
            (["kd", "--param", "temperature"], "--param temperature: expected KEY=VALUE"),
            (["kd", "--param", "temperature=["], "--param temperature: '[' is not a YAML value"),
        ],
    )
    def test_errors_are_one_line(self, arguments: list[str], words: str) -> None:
        done = CliRunner().invoke(main, ["check-method", *arguments])
        assert done.exit_code == 2
        assert words in done.stderr
        assert len(done.stderr.splitlines()) == 1

"""The conformance suite: what every method must do right, found out in seconds on the CPU."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from kdbench.engine.contract import ContractError
from kdbench.engine.divergence import Diverged
from kdbench.errors import KdbenchError, did_you_mean
from kdbench.hooks import MethodEntry
from kdbench.protocol.method import Method
from kdbench.protocol.types import NotApplicable
from kdbench.registry import Registry
from kdbench.testing.bench import Bench
from kdbench.testing.checks import ENTRY, FIRST, RULES, Rule
from kdbench.testing.process import untouched
from kdbench.testing.trial import Failed, Subject, raised


@dataclass(frozen=True)
class Check:
    """One verdict: `seen` says what was observed, `fix` how to mend it, `seconds` how long it took."""

    name: str
    passed: bool
    seen: str = ""
    fix: str = ""
    seconds: float = 0.0


@dataclass
class Report:
    """All verdicts on one method, on one pair of networks."""

    method: str
    teacher: str = ""
    student: str = ""
    seconds: float = 0.0
    checks: list[Check] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        return all(c.passed for c in self.checks)

    def failures(self) -> list[str]:
        """Return one line per check that failed."""
        return [f"{c.name}: {c.seen}. {c.fix}" for c in self.checks if not c.passed]

    def title(self) -> str:
        """Return one line on what was checked, how it ended and how long it took."""
        failed = len(self.failures())
        verdict = f"{failed} of {len(self.checks)} checks failed" if failed else "passed"
        return f"{self.method} on {self.teacher} -> {self.student}: {verdict} in {self.seconds:.1f} s"

    def as_dict(self) -> dict[str, Any]:
        """Return the report for JSON; times in seconds, rounded to a millisecond."""
        checks = [asdict(c) | {"seconds": round(c.seconds, 3)} for c in self.checks]
        return {
            "method": self.method,
            "teacher": self.teacher,
            "student": self.student,
            "passed": self.passed,
            "seconds": round(self.seconds, 3),
            "checks": checks,
        }


def check_method(
    method: str | type[Method],
    *,
    params: Mapping[str, Any] | None = None,
    preset: str | None = None,
    teacher: str = "timm:test_resnet",
    student: str | None = None,
    only: Collection[str] = (),
    registry: Registry | None = None,
) -> Report:
    """Run every check on a method.

    Random generators and settings of the process are put back after each check, whatever the method does.

    Args:
        method: a registered name, or a subclass of ``Method``.
        params: hyper-parameters (default: the method's own), over those of the preset.
        preset: one of the method's presets.
        teacher, student: architectures to try it on (default student: the entry's ``check_student``).
        only: names of checks (default: all). The first one, "finite losses", always runs.

    Returns:
        A report; ``report.passed`` is true when every check passed.

    Raises:
        KdbenchError: for an unknown name, preset or check, bad hyper-parameters, networks that cannot be
            built, or a pair that the method refuses.
    """
    began = time.perf_counter()
    registry = registry or Registry.load()
    named = isinstance(method, str)
    rules = _chosen((*RULES, ENTRY) if named else RULES, only)
    entry = registry.get("methods", method) if isinstance(method, str) else None
    cls: type[Method] = method if entry is None else entry.load()  # type: ignore[assignment]
    name = method if isinstance(method, str) else cls.__name__
    of_entry = getattr(None if entry is None else entry.entry, "check_student", MethodEntry.check_student)
    student = student or of_entry
    bench = Bench(registry, cls, params or {}, teacher=teacher, student=student, name=name, preset=preset)
    report = Report(name, teacher, student)
    subject = Subject(bench, name if named else None)
    with untouched():
        # one thread is faster for networks of this size, and sums have one order
        torch.set_num_threads(1)
        setup = _sets_up(bench, name)
        if setup is not None:
            report.checks.append(setup)
        else:
            subject.start_afresh()
            _run(subject, rules, report)
    report.seconds = time.perf_counter() - began
    return report


def _sets_up(bench: Bench, name: str) -> Check | None:
    """Return the verdict when ``setup`` fails, else None.

    Raises KdbenchError for networks that cannot be built, and for a pair that the method refuses.
    """
    try:
        with untouched():
            run = bench.run()
    except NotApplicable as e:  # an architecture that is there, but not for images of this size
        raise KdbenchError(str(e)) from e
    try:
        with untouched():
            bench.method(run).to("cpu")
    except NotApplicable as e:
        pair = f"{bench.teacher} -> {bench.student}"
        raise KdbenchError(f"method '{name}' does not apply to {pair}: {e}") from e
    except Exception as e:
        seen = f"setup() {raised(e)}"
        return Check("setup", False, seen, "setup() must work before any data is seen.")
    return None


def _chosen(rules: tuple[Rule, ...], only: Collection[str]) -> list[Rule]:
    names = [rule.name for rule in rules]
    for name in only:
        if name not in names:
            raise KdbenchError(
                f"unknown check '{name}'{did_you_mean(name, names)}; there are {', '.join(names)}"
            )
    return [rule for rule in rules if not only or rule is FIRST or rule.name in only]


def _run(subject: Subject, rules: list[Rule], report: Report) -> None:
    for rule in rules:
        check = _judge(rule, subject)
        report.checks.append(check)
        if rule is FIRST and not check.passed:
            return  # nothing trains, so the others would only say the same


def _judge(rule: Rule, subject: Subject) -> Check:
    began = time.perf_counter()
    passed, seen, fix = True, "", ""
    with untouched():
        try:
            seen = rule.check(subject)
        except Failed as e:
            passed, seen, fix = False, str(e), rule.fix
        except ContractError as e:
            passed, seen, fix = False, raised(e), e.fix
        except (Exception, SystemExit) as e:
            passed, seen = False, raised(e)
            fix = "Mend the error." if rule is FIRST and not isinstance(e, Diverged) else rule.fix
    return Check(rule.name, passed, seen, fix, time.perf_counter() - began)

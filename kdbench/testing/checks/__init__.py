"""The checks of the conformance suite, in the order in which they run.

A check takes a :class:`~kdbench.testing.trial.Subject` and returns what it saw, or raises
:class:`~kdbench.testing.trial.Failed` (or anything else) with what is wrong.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from kdbench.testing.checks import deploy, independence, needs, numbers, state, teacher, training
from kdbench.testing.trial import Subject


@dataclass(frozen=True)
class Rule:
    """A check by name, and how an author mends what it finds."""

    name: str
    check: Callable[[Subject], str]
    fix: str


#: The first one decides whether the others can run.
FIRST = Rule("finite losses", training.finite, "Return finite scalar losses from every step of every phase.")
#: Of methods with a registered name only.
ENTRY = Rule("entry", needs.entry_agrees, "Give the entry the class's needs.")

RULES: tuple[Rule, ...] = (
    FIRST,
    Rule(
        "parameters learn",
        training.every_parameter_learns,
        "Make modules in setup(), list them in the phase's optimizers, use them in the loss, and do not "
        "detach the loss or compute it under torch.no_grad.",
    ),
    Rule(
        "overfits a batch", training.overfits, "Minimise the sum of what is returned; look for a wrong sign."
    ),
    Rule("golden values", numbers.golden, "Mend the formula, or the value that was worked out."),
    Rule("mean over batch", numbers.mean_over_batch, "Divide by the number of images: use means, not sums."),
    Rule(
        "teacher untouched",
        teacher.untouched,
        "Forward teachers through run.teach(), change neither them nor their mode.",
    ),
    Rule("registered state", state.registered, "Use nn.ModuleList / register_buffer for lists of modules."),
    Rule("no hooks left", state.no_hooks, "Ask for features by taps, or use handle.aux_hook()."),
    Rule("in-place flags", state.inplace_restored, "Leave `inplace` alone; taps copy what is overwritten."),
    Rule(
        "resume",
        state.resumes,
        "Keep all state in parameters and buffers, draw from run.rng or torch's generator.",
    ),
    Rule("deploy", deploy.deploys, "Deploy the trained student alone, or declare deploys_extra = True."),
    Rule("odd batches", training.odd_batches, "Work for any batch size, or declare Needs(min_batch=...)."),
    Rule("smallest batch", training.smallest_batch, "Work for 2 images, or declare Needs(min_batch=...)."),
    Rule(
        "autocast",
        training.autocast,
        "Compute losses in float32: `with run.fp32()` and `.float()` on features.",
    ),
    Rule("needs", needs.refused, "Pass on what run.new_student(), taps and setup() refuse; see Needs."),
    Rule(
        "other networks",
        needs.other_networks,
        "Declare the need, or raise NotApplicable in setup() with the reason.",
    ),
    Rule(
        "undeclared use",
        needs.nothing_undeclared,
        "Declare it in Needs; read data in on_phase_start(), not in setup().",
    ),
    Rule(
        "global RNG", independence.generators_left_alone, "Never seed a global generator; draw from run.rng."
    ),
    Rule(
        "global state", independence.settings_left_alone, "Use context managers: torch.no_grad(), run.amp()."
    ),
    Rule(
        "any position",
        independence.any_position,
        "Keep state in the method, not in its class or module; draw from run.rng.",
    ),
    Rule("memory", independence.memory, "Keep nothing in class attributes, module variables or caches."),
)

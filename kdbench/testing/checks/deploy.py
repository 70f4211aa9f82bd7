"""Checks of what a method deploys."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kdbench.engine.evaluation import deployables
from kdbench.engine.phases import own_parameters
from kdbench.testing.stream import IMAGE_SIZE
from kdbench.testing.trial import Failed, Subject, Trial, weights


def deploys(subject: Subject) -> str:
    """The deployed network is the trained student, or what the method declares; deploying changes nothing."""
    trial = subject.reference
    run, method = trial.run, trial.method
    x = torch.randn(4, 3, IMAGE_SIZE, IMAGE_SIZE, generator=torch.Generator().manual_seed(2))
    before = {name: weights(h.net) for name, h in run.students.items()}
    student = _logits(run.student.net, x)
    nets = deployables(method, run)
    for name, old in before.items():
        now = run.students[name].net.state_dict()
        for key, value in old.items():
            if not torch.equal(value, now[key]):
                raise Failed(f"deploying changes '{key}' of {name}")
    logits = {name: _logits(net, x) for name, net in nets.items()}
    _each_is_sound(trial, nets, logits)
    primary = next(iter(nets))
    if not method.deploys_extra and not torch.equal(logits[primary], student):
        gap = float((logits[primary] - student).abs().max())
        raise Failed(f"deployable '{primary}' gives other logits than the trained student (by {gap:.3g})")
    for name, net in deployables(method, run).items():
        if name not in logits or not torch.equal(_logits(net, x), logits[name]):
            raise Failed(f"deployable '{name}' gives other logits when deployed a second time")
    same = "own modules declared" if method.deploys_extra else "logits of the student, bit for bit"
    return f"{', '.join(nets)}: {same}"


def _each_is_sound(trial: Trial, nets: dict[str, nn.Module], logits: dict[str, Tensor]) -> None:
    own = {id(p) for p in own_parameters(trial.method, trial.run)}
    k = trial.run.data.num_classes
    for name, net in nets.items():
        if any(id(p) in own for p in net.parameters()) and not trial.method.deploys_extra:
            raise Failed(f"deployable '{name}' contains modules of the method")
        shape = tuple(logits[name].shape)
        if shape != (4, k):
            raise Failed(f"deployable '{name}' gives {shape} for 4 images and {k} classes")
        if not bool(torch.isfinite(logits[name]).all()):
            raise Failed(f"deployable '{name}' gives values that are not finite")


def _logits(net: nn.Module, x: Tensor) -> Tensor:
    net.eval()
    with torch.no_grad():
        return net(x)  # type: ignore[no-any-return]

"""Deep mutual learning (Zhang, Xiang, Hospedales, Lu; CVPR 2018, arXiv:1706.00384)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from kdbench.api import Batch, Golden, Handle, Method, MethodParams, Needs, Opt, Out, Phase, Run, Search
from kdbench_methods._golden import BY_FORMULA, fixed_run, student_logits, teacher_logits


class DML(Method):
    """``L_i = L_task(z_i) + kl_weight·mean_{j≠i} D_T(z_j → z_i)``: students of one architecture teach each other.

    D is the task's default divergence (for classes ``T²·KL(p_j ‖ p_i)``, T = 1 in the paper) and no gradient
    reaches its target. ``update="alternating"``: the networks step one after the other, each against the
    renewed predictions of those that have stepped, as in the official code (which also takes a new batch for
    each of them); ``"simultaneous"`` is cheaper by a forward pass of all but the last network. For more than
    two networks the official code sums over the others instead of averaging. Deploys the student and its
    peers.
    """

    class Params(MethodParams):
        """Number of networks, weight, temperature and order of the updates."""

        networks: int = Field(2, ge=2, description="number of networks, the student included")
        kl_weight: float = Field(1.0, ge=0, description="weight of the mean divergence to the others")
        temperature: float = Field(1.0, gt=0, description="T, divides the logits of all networks")
        update: Literal["alternating", "simultaneous"] = Field(
            "alternating", description="whether a network sees the others before or after their step"
        )

    needs = Needs(teachers=0, capabilities=frozenset({"distillable", "supervised"}))
    fidelity = "official-code"
    presets = {"cifar100": {"networks": 2}, "imagenet": {"networks": 2}}
    search = {
        "kl_weight": Search(low=0.1, high=10.0, log=True, source="a decade each way of the authors' value"),
        "temperature": Search(low=1.0, high=8.0, log=True, source="arXiv:1706.00384: 1"),
    }

    @classmethod
    def golden(cls) -> Sequence[Golden]:
        def mutual(networks: int) -> Tensor:
            outs = [Out(student_logits()), Out(teacher_logits()), Out(student_logits())]
            return cls().divergence(0, outs[:networks], fixed_run())

        return [
            Golden("KL to the one peer", lambda: mutual(2), 0.2450895, BY_FORMULA),
            Golden(
                "mean KL to two peers, one of them equal",
                lambda: mutual(3),
                0.2450895 / 2,
                "(0.2450895 + 0)/2",
            ),
        ]

    def setup(self, run: Run) -> None:
        peers = [run.new_student(f"peer{i}", seed=i) for i in range(1, self.hp.networks)]
        self.networks: tuple[Handle, ...] = (run.student, *peers)

    def phases(self, run: Run) -> Sequence[Phase]:
        return [Phase(optimizers={h.name: Opt((h.net,)) for h in self.networks})]

    def divergence(self, i: int, outs: Sequence[Out], run: Run) -> Tensor:
        """Return the mean divergence of the other networks' outputs to network i's, a scalar."""
        others = [Out(out.logits.detach()) for j, out in enumerate(outs) if j != i]
        return sum(
            (run.task.divergence(outs[i], other, self.hp.temperature) for other in others[1:]),
            start=run.task.divergence(outs[i], others[0], self.hp.temperature),
        ) / len(others)

    def step(self, batch: Batch | None, run: Run) -> Mapping[str, Tensor]:
        """One step of every network."""
        assert batch is not None
        alternating, last = self.hp.update == "alternating", len(self.networks) - 1
        with run.amp():
            outs = [network(batch.x, ()) for network in self.networks]
        parts: dict[str, Tensor] = {}
        for i, network in enumerate(self.networks):
            with run.fp32():
                own = {
                    "task": run.task.loss(outs[i], batch),
                    "mutual": self.hp.kl_weight * self.divergence(i, outs, run),
                }
            suffix = f"_{network.name}" if i else ""
            parts |= {name + suffix: part for name, part in own.items()}
            if alternating:
                run.optimize(own["task"] + own["mutual"], network.name)
                if i < last:
                    with torch.no_grad(), run.amp():
                        outs[i] = network(batch.x, ())
        if not alternating:
            run.optimize(sum(parts.values(), start=batch.x.new_zeros(())))
        return {name: part.detach() for name, part in parts.items()}

    def deploy(self, run: Run) -> Mapping[str, nn.Module]:
        return {"student": run.student.net, **{h.name: h.net for h in self.networks[1:]}}

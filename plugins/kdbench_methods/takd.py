"""Teacher assistant (Mirzadeh, Farajtabar, Li, Levine, Matsukawa, Ghasemzadeh; AAAI 2020, arXiv:1902.03393)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from kdbench.api import Batch, Golden, Method, MethodParams, Needs, Opt, Out, Phase, Run, Search
from kdbench_methods._golden import BY_FORMULA, fixed_batch, fixed_run


class TAKD(Method):
    """Teacher -> assistant -> student, each by ``(1 - kd_weight)·L_task + kd_weight·D_T``, one after the other.

    D is the task's default divergence, for classes ``T²·KL``, batch mean (the official code averages over the
    classes too). The assistant's architecture:

    - ``assistant="pair"``: the one that the pair names, of a size between teacher and student.
    - ``assistant="student"``: the student's, for pairs that name none. This is not the paper's setting.

    A reconstruction: the authors searched kd_weight and T for every pair; the defaults here are those of kd. The
    assistant takes its share of the recipe's epochs; the code gives each training all of them, see the preset
    ``full-length``. Deploys the student only.
    """

    class Params(MethodParams):
        """The assistant's architecture, weights, temperature and shares of the epochs."""

        assistant: Literal["pair", "student"] = Field(
            "pair", description="architecture: the pair's assistant, or the student's"
        )
        kd_weight: float = Field(0.9, ge=0, le=1, description="weight of the divergence (lambda)")
        temperature: float = Field(4.0, gt=0, description="T, divides the logits of both networks")
        assistant_share: float = Field(0.5, gt=0, description="assistant's epochs as a share of the recipe's")
        student_share: float = Field(0.5, gt=0, description="student's epochs as a share of the recipe's")

    needs = Needs(reads="logits", assistants=1, capabilities=frozenset({"distillable", "supervised"}))
    fidelity = "reconstruction"
    presets = {
        "cifar100": {"kd_weight": 0.9, "temperature": 4.0},
        "imagenet": {"kd_weight": 0.5, "temperature": 1.0},
        "one-teacher": {"assistant": "student"},
        "full-length": {"assistant_share": 1.0, "student_share": 1.0},
    }
    search = {
        "kd_weight": Search(low=0.05, high=0.99, source="our choice around the default"),
        "temperature": Search(low=1.0, high=20.0, log=True, source="our choice around the default"),
    }

    @classmethod
    def requires(cls, params: Params) -> Needs:
        return replace(cls.needs, assistants=int(params.assistant == "pair"))

    @classmethod
    def golden(cls) -> Sequence[Golden]:
        def value() -> Tensor:
            run = fixed_run()
            parts = cls().descend(run.student.out, run.teacher.out, fixed_batch(), run)
            return torch.stack(list(parts.values())).sum()

        return [
            Golden("0.1·L_task + 0.9·T²·KL at T = 4, one pair of the chain", value, 0.4040801, BY_FORMULA)
        ]

    def setup(self, run: Run) -> None:
        make = run.new_student if self.hp.assistant == "student" else run.new_assistant
        self.assistant = make("assistant", seed=1)

    def phases(self, run: Run) -> Sequence[Phase]:
        hp = self.hp
        first, second = {"main": Opt((self.assistant.net,))}, {"main": Opt((run.student.net,))}
        return [
            Phase(
                "assistant",
                hp.assistant_share,
                optimizers=first,
                step=self.assistant_step,
                evaluate=False,
            ),
            Phase("student", hp.student_share, optimizers=second, step=self.student_step),
        ]

    def assistant_step(self, batch: Batch | None, run: Run) -> Mapping[str, Tensor]:
        """Train the assistant on the task and on the teacher."""
        assert batch is not None
        with run.amp():
            teacher = run.teach(run.teacher, batch.x)
            assistant = self.assistant(batch.x, ())
        return self.descend(assistant, teacher, batch, run)

    def student_step(self, batch: Batch | None, run: Run) -> Mapping[str, Tensor]:
        """Train the student on the task and on the finished assistant, which is in eval mode."""
        assert batch is not None
        if self.assistant.net.training:
            self.assistant.net.eval()
        with run.amp():
            with torch.no_grad():
                assistant = self.assistant(batch.x, ())
            student = run.student(batch.x, ())
        return self.descend(student, assistant, batch, run)

    def descend(self, learner: Out, guide: Out, batch: Batch, run: Run) -> Mapping[str, Tensor]:
        """One optimizer step of the learner; returns its losses."""
        weight = self.hp.kd_weight
        with run.fp32():
            parts = {
                "task": (1 - weight) * run.task.loss(learner, batch),
                "kd": weight * run.task.divergence(learner, guide, self.hp.temperature),
            }
        run.optimize(parts["task"] + parts["kd"])
        return {name: part.detach() for name, part in parts.items()}

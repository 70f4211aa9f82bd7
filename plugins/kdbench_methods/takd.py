"""Teacher assistant (Mirzadeh, Farajtabar, Li, Levine, Matsukawa, Ghasemzadeh; AAAI 2020, arXiv:1902.03393)."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from kdbench.api import Batch, Method, MethodParams, Needs, NotApplicable, Opt, Out, Phase, Run


def fresh_copy(net: nn.Module) -> nn.Module:
    """Return a network of the same architecture with newly drawn weights, trainable.

    Weights are drawn by each module's ``reset_parameters`` and then by the network's own initialisation, where
    it has one (``init_weights`` in timm, ``_init_weights`` here). Raises NotApplicable when a tensor keeps its
    trained values: an assistant must not start from them.
    """
    made = copy.deepcopy(net).requires_grad_(True)
    for module in made.modules():
        reset = getattr(module, "reset_parameters", None)
        if callable(reset):
            reset()
    for name in ("init_weights", "_init_weights"):
        init = getattr(made, name, None)
        if callable(init):
            init()
            break
    old = dict(net.named_parameters())
    for name, new in made.named_parameters():
        constant = bool((new == new.flatten()[0]).all())
        if not constant and torch.equal(new, old[name]):
            raise NotApplicable(f"takd: '{name}' of the second teacher cannot be drawn anew")
    return made


class TAKD(Method):
    """Teacher -> assistant -> student, each by ``(1 - kd_weight)·L_task + kd_weight·D_T``, one after the other.

    D is the task's default divergence, for classes ``T²·KL``, batch mean (the official code averages over the
    classes too). The assistant is of a third, middle-sized architecture:

    - ``assistant="second-teacher"``: that of the pair's second teacher, of which only the architecture is used;
      the assistant's weights are drawn anew (:func:`fresh_copy`).
    - ``assistant="student"``: that of the student, for pairs with one teacher. This is not the paper's setting.

    A reconstruction: the authors searched kd_weight and T for every pair; the defaults here are those of kd. The
    assistant takes its share of the recipe's epochs; the code gives each training all of them, see the preset
    ``full-length``. Deploys the student only.
    """

    class Params(MethodParams):
        """The assistant's architecture, weights, temperature and shares of the epochs."""

        assistant: Literal["second-teacher", "student"] = Field(
            "second-teacher", description="whose architecture the assistant has"
        )
        kd_weight: float = Field(0.9, ge=0, le=1, description="weight of the divergence (lambda)")
        temperature: float = Field(4.0, gt=0, description="T, divides the logits of both networks")
        assistant_share: float = Field(0.5, gt=0, description="assistant's epochs as a share of the recipe's")
        student_share: float = Field(0.5, gt=0, description="student's epochs as a share of the recipe's")

    needs = Needs(teachers=2, capabilities=frozenset({"distillable", "supervised"}))
    fidelity = "reconstruction"
    presets = {
        "cifar100": {"kd_weight": 0.9, "temperature": 4.0},
        "imagenet": {"kd_weight": 0.5, "temperature": 1.0},
        "one-teacher": {"assistant": "student"},
        "full-length": {"assistant_share": 1.0, "student_share": 1.0},
    }

    @classmethod
    def requires(cls, params: Params) -> Needs:
        teachers = 2 if params.assistant == "second-teacher" else 1
        return Needs(teachers=teachers, capabilities=cls.needs.capabilities)

    def setup(self, run: Run) -> None:
        if self.hp.assistant == "student":
            handle = run.new_student("assistant", seed=1)
            self.assistant: nn.Module = handle.net
            self.forward_assistant: Callable[[Tensor], Out] = lambda x: handle(x, ())
        else:
            self.assistant = fresh_copy(run.teachers[1].net)
            self.forward_assistant = lambda x: Out(self.assistant(x))

    def phases(self, run: Run) -> Sequence[Phase]:
        hp = self.hp
        first, second = {"main": Opt((self.assistant,))}, {"main": Opt((run.student.net,))}
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
            assistant = self.forward_assistant(batch.x)
        return self.descend(assistant, teacher, batch, run)

    def student_step(self, batch: Batch | None, run: Run) -> Mapping[str, Tensor]:
        """Train the student on the task and on the finished assistant, which is in eval mode."""
        assert batch is not None
        if self.assistant.training:
            self.assistant.eval()
        with run.amp():
            with torch.no_grad():
                assistant = self.forward_assistant(batch.x)
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

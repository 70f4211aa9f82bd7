"""KD on standardised logits (Sun, Ren, Li, Wang, Cao; CVPR 2024, arXiv:2403.01427)."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field

from kdbench.api import Golden, Needs, Search
from kdbench_methods._golden import BY_FORMULA, TASK_LOSS, total
from kdbench_methods.kd import KD


class KDLS(KD):
    """``L = ce_weight·L_task + alpha·T²·KL(p_T(n(z^t)) ‖ p_T(n(z^s)))``, n the standardisation of each row.

    n takes the mean off a row of logits and divides by its standard deviation plus 1e-7 (see
    :func:`kdbench_methods._common.standardise`), so networks need not agree on the scale of their logits. The
    weight 9 and T = 2 are the official code's for CIFAR-100; per-pair presets hold the exceptions that the
    names of its published logs show.
    """

    class Params(KD.Params):
        """Those of kd, with the values of this paper's code."""

        alpha: float = Field(9.0, ge=0, description="weight of the divergence to the teacher")
        temperature: float = Field(
            2.0, gt=0, description="T, divides the standardised logits of both networks"
        )
        standardise: bool = Field(True, description="standardise the logits of both networks first")

    needs = Needs(reads="logits", min_classes=3, capabilities=frozenset({"distillable", "supervised"}))
    fidelity = "official-code"
    presets = {
        "cifar100": {"alpha": 9.0, "ce_weight": 0.1, "temperature": 2.0},
        "imagenet": {"alpha": 9.0, "ce_weight": 1.0, "temperature": 2.0},
        "vgg13-vgg8": {"alpha": 9.0, "temperature": 3.0},
        "resnet32x4-wrn_16_2": {"alpha": 9.0, "temperature": 3.0},
        "resnet32x4-wrn_40_2": {"alpha": 9.0, "temperature": 3.0},
        "wrn_40_2-mobilenetv2": {"alpha": 9.0, "temperature": 3.0},
        "vgg13-mobilenetv2": {"alpha": 9.0, "temperature": 3.0},
        "resnet50-mobilenetv2": {"alpha": 1.0, "temperature": 3.0},
    }
    search = {
        "alpha": Search(low=0.9, high=36.0, log=True, source="arXiv:2403.01427: 9 for most pairs"),
        "temperature": Search(low=1.0, high=8.0, log=True, source="arXiv:2403.01427: 2 and 3"),
    }

    @classmethod
    def golden(cls) -> Sequence[Golden]:
        return [
            Golden(
                "T²·KL of standardised logits at T = 2",
                total(cls(cls.Params(alpha=1.0, ce_weight=0.0))),
                0.2367355,
                BY_FORMULA,
            ),
            Golden(
                "L with the default weights",
                total(cls()),
                0.1 * TASK_LOSS + 9 * 0.2367355,
                "0.1·L_task + 9·(the value above)",
            ),
        ]

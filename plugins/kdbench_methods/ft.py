"""Factor transfer (Kim, Park, Kwak; NeurIPS 2018, arXiv:1802.04977; Jangho-Kim/Factor-Transfer-pytorch)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from kdbench.api import Batch, Method, MethodParams, Needs, Opt, Out, Phase, Run
from kdbench_methods._common import channels, full, match_size
from kdbench_methods._feature_tools import LAST, require_spatial
from kdbench_methods.feed import Paraphraser, unit_l1


def energy_l1(fs: Tensor, ft: Tensor) -> Tensor:
    """Return ``mean | a(fs)/‖a(fs)‖₂ - a(ft)/‖a(ft)‖₂ |`` with ``a = vec(mean_c f²)``, a scalar.

    RepDistiller's form. `fs`, `ft`: (B, C, H, W) of one height and width; C may differ.
    """
    return unit_l1(full(fs).square().mean(1), full(ft).square().mean(1))


def translator(c_in: int, c_out: int) -> nn.Sequential:
    """Return three 3×3 convolutions c_in -> c_in -> c_out -> c_out with LeakyReLU(0.1), biases, no BatchNorm."""
    layers: list[nn.Module] = []
    for a, b in ((c_in, c_in), (c_in, c_out), (c_out, c_out)):
        layers += [nn.Conv2d(a, b, 3, padding=1), nn.LeakyReLU(0.1)]
    return nn.Sequential(*layers)


class FT(Method):
    """``L = ce_weight·L_task + beta·d(translator(F^s), paraphraser(F^t))`` on the last stages' outputs.

    The paraphraser is an autoencoder of the teacher's map and is trained first, alone, by mean absolute
    error; its encoder then gives the targets and stays as it is. With ``factor="raw"`` d is the mean L1
    distance of the factors as unit vectors (official code); ``"energy"`` compares their channel means of
    squares instead, as RepDistiller does. Of RepDistiller, the preset ``cifar100`` has that distance and
    its weight, not the BatchNorm of its translator.
    """

    class Params(MethodParams):
        """Weights, form of the distance and the paraphraser."""

        beta: float = Field(500.0, gt=0, description="weight of the factors' distance")
        ce_weight: float = Field(1.0, ge=0, description="weight of the task's loss")
        factor: Literal["raw", "energy"] = Field("raw", description="factors, or their mean squares")
        rate: float = Field(0.5, gt=0, description="channels of the factors, relative to the teacher's map")
        paraphrase_share: float = Field(
            0.05, gt=0, lt=1, description="share of the epochs in which the paraphraser is trained"
        )

    needs = Needs(capabilities=frozenset({"features", "supervised"}))
    fidelity = "official-code"
    presets = {
        "cifar10": {"beta": 500.0},
        "cifar100": {"beta": 200.0, "factor": "energy"},
        "imagenet": {"beta": 1000.0},
    }
    taps = {"student": (LAST,), "teacher": (LAST,)}

    def setup(self, run: Run) -> None:
        if self.hp.factor == "energy":
            require_spatial(run, [(LAST, LAST)], "ft with factor 'energy'")
        self.paraphraser = Paraphraser(channels(run.teacher, LAST), self.hp.rate)
        self.translator = translator(channels(run.student, LAST), self.paraphraser.factors)

    def phases(self, run: Run) -> Sequence[Phase]:
        share = self.hp.paraphrase_share
        return [
            Phase(
                "paraphrase",
                share,
                optimizers={"main": Opt((self.paraphraser,))},
                step=self.paraphrase_step,
                evaluate=False,
            ),
            Phase("distil", 1 - share, optimizers={"main": Opt((run.student.net, self.translator))}),
        ]

    def paraphrase_step(self, batch: Batch | None, run: Run) -> Mapping[str, Tensor]:
        """Train the paraphraser to reconstruct the teacher's map, mean absolute error."""
        assert batch is not None
        with run.amp():
            target = run.teach(run.teacher, batch.x).feats[LAST]
            copy = self.paraphraser(target)
        with run.fp32():
            loss = F.l1_loss(full(copy), full(target))
        run.optimize(loss)
        return {"paraphrase": loss.detach()}

    def loss(self, S: Out, T: Sequence[Out], batch: Batch, run: Run) -> Mapping[str, Tensor]:
        with torch.no_grad(), run.amp():
            target = self.paraphraser.encoder(T[0].feats[LAST])
        s, t = match_size(S.feats[LAST], target)
        with run.amp():
            s = self.translator(s)
        distance = unit_l1(s, t) if self.hp.factor == "raw" else energy_l1(s, t)
        return {"task": self.hp.ce_weight * run.task.loss(S, batch), "ft": self.hp.beta * distance}

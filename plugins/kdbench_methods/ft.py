"""Factor transfer (Kim, Park, Kwak; NeurIPS 2018, arXiv:1802.04977; Jangho-Kim/Factor-Transfer-pytorch)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from kdbench.api import Batch, Golden, Method, MethodParams, Needs, Opt, Out, Phase, Run, Search
from kdbench_methods._common import channels, full, match_size
from kdbench_methods._feature_tools import LAST, require_spatial
from kdbench_methods.feed import Paraphraser, unit_l1


def energy_l1(fs: Tensor, ft: Tensor) -> Tensor:
    """Return ``mean | a(fs)/‖a(fs)‖₂ - a(ft)/‖a(ft)‖₂ |`` with ``a = vec(mean_c f²)``, a scalar.

    RepDistiller's form. `fs`, `ft`: (B, C, H, W) of one height and width; C may differ.
    """
    return unit_l1(full(fs).square().mean(1), full(ft).square().mean(1))


def translator(c_in: int, c_out: int, *, bn: bool = False) -> nn.Sequential:
    """Return three 3×3 convolutions c_in -> c_in -> c_out -> c_out, each with LeakyReLU(0.1) and a bias.

    `bn` puts a BatchNorm before each LeakyReLU. (B, c_in, H, W) -> (B, c_out, H, W).
    """
    layers: list[nn.Module] = []
    for a, b in ((c_in, c_in), (c_in, c_out), (c_out, c_out)):
        layers += [nn.Conv2d(a, b, 3, padding=1), *([nn.BatchNorm2d(b)] if bn else []), nn.LeakyReLU(0.1)]
    return nn.Sequential(*layers)


class FT(Method):
    """``L = ce_weight·L_task + beta·d(translator(F^s), paraphraser(F^t))`` on the last stages' outputs.

    The paraphraser is an autoencoder of the teacher's map and is trained first, alone and at a constant
    learning rate; its encoder then gives the targets and stays as it is. With ``factor="raw"`` d is the mean
    L1 distance of the factors, (B, rate·C_t, H, W), as unit vectors; ``"energy"`` compares their channel
    means of squares instead. Factors of different size are pooled to the smaller.

    The defaults and the preset ``cifar10`` follow the official code. ``cifar100`` is RepDistiller's variant
    (its learning rate for ResNets), ``imagenet`` torchdistill's; neither is the authors'. All train the
    paraphraser before the student's epochs, here both share one budget.
    """

    class Params(MethodParams):
        """Weights, form of the distance, translator and paraphraser."""

        beta: float = Field(500.0, gt=0, description="weight of the factors' distance")
        ce_weight: float = Field(1.0, ge=0, description="weight of the task's loss")
        factor: Literal["raw", "energy"] = Field("raw", description="factors, or their mean squares")
        rate: float = Field(0.5, gt=0, le=2, description="channels of the factors over the teacher's")
        translator_bn: bool = Field(False, description="BatchNorm in the translator")
        reconstruction: Literal["l1", "mse"] = Field("l1", description="loss of the paraphraser")
        paraphrase_share: float = Field(
            6 / 170, gt=0, lt=1, description="share of the epochs in which the paraphraser is trained"
        )
        paraphrase_lr: float | None = Field(
            None, gt=0, description="learning rate of the paraphraser; none: the recipe's first"
        )

    needs = Needs(capabilities=frozenset({"features", "supervised"}))
    fidelity = "official-code"
    presets = {
        "cifar10": {"beta": 500.0},
        "cifar100": {
            "beta": 200.0,
            "factor": "energy",
            "translator_bn": True,
            "reconstruction": "mse",
            "paraphrase_share": 30 / 270,
            "paraphrase_lr": 0.01,
        },
        "imagenet": {
            "beta": 1000.0,
            "reconstruction": "mse",
            "paraphrase_share": 1 / 91,
            "paraphrase_lr": 0.01,
        },
    }
    search = {
        "beta": Search(
            low=50.0, high=5000.0, log=True, source="a decade each way of the value in arXiv:1802.04977"
        ),
    }
    taps = {"student": (LAST,), "teacher": (LAST,)}

    @classmethod
    def requires(cls, params: Any) -> Needs:
        # BatchNorm cannot train on one image with a map of one position
        return Needs(min_batch=2 if params.translator_bn else 1, capabilities=cls.needs.capabilities)

    @classmethod
    def golden(cls) -> Sequence[Golden]:
        def factors(*rows: Sequence[float]) -> Tensor:
            return torch.tensor(rows, dtype=torch.float64)

        return [
            Golden(
                "distance of the factors [1, 2, 3, 4] and [2, 2, 1, 0]",
                lambda: unit_l1(factors((1, 2, 3, 4)), factors((2, 2, 1, 0))),
                (abs(1 / 30**0.5 - 2 / 3) + abs(2 / 30**0.5 - 2 / 3) + 3 / 30**0.5 - 1 / 3 + 4 / 30**0.5) / 4,
                "mean |f/‖f‖ - g/‖g‖| by hand, ‖f‖ = √30, ‖g‖ = 3: 0.4325742",
            ),
            Golden(
                "distance of the energies (1, 1) and (1, 0) of two positions",
                lambda: energy_l1(factors((1, 1)).view(1, 1, 1, 2), factors((1, 0)).view(1, 1, 1, 2)),
                0.5,
                "by hand: (|1/√2 - 1| + 1/√2)/2",
            ),
        ]

    def setup(self, run: Run) -> None:
        if self.hp.factor == "energy":
            require_spatial(run, [(LAST, LAST)], "ft with factor 'energy'")
        self.paraphraser = Paraphraser(channels(run.teacher, LAST), self.hp.rate)
        self.translator = translator(
            channels(run.student, LAST), self.paraphraser.factors, bn=self.hp.translator_bn
        )

    def phases(self, run: Run) -> Sequence[Phase]:
        share, lr = self.hp.paraphrase_share, self.hp.paraphrase_lr
        kw = {} if lr is None else {"lr": lr}
        return [
            Phase(
                "paraphrase",
                share,
                optimizers={"main": Opt((self.paraphraser,), kw=kw, schedule="constant")},
                step=self.paraphrase_step,
                evaluate=False,
            ),
            Phase("distil", 1 - share, optimizers={"main": Opt((run.student.net, self.translator))}),
        ]

    def paraphrase_step(self, batch: Batch | None, run: Run) -> Mapping[str, Tensor]:
        """Train the paraphraser to reconstruct the teacher's map."""
        assert batch is not None
        with run.amp():
            target = run.teach(run.teacher, batch.x, head=False).feats[LAST]
            copy = self.paraphraser(target)
        with run.fp32():
            distance = F.l1_loss if self.hp.reconstruction == "l1" else F.mse_loss
            loss = distance(full(copy), full(target))
        run.optimize(loss)
        return {"paraphrase": loss.detach()}

    def loss(self, S: Out, T: Sequence[Out], batch: Batch, run: Run) -> Mapping[str, Tensor]:
        with torch.no_grad(), run.amp():
            target = self.paraphraser.encoder(T[0].feats[LAST])
        with run.amp():
            own = self.translator(S.feats[LAST])
        s, t = match_size(full(own), full(target))
        distance = unit_l1(s, t) if self.hp.factor == "raw" else energy_l1(s, t)
        return {"task": self.hp.ce_weight * run.task.loss(S, batch), "ft": self.hp.beta * distance}

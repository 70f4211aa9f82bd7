"""Reused teacher classifier (Chen, Mei, Zhang, Wang, Feng, Chen; CVPR 2022, arXiv:2203.14001)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from kdbench.api import Batch, Golden, Handle, Method, MethodParams, Needs, Out, Run, Search
from kdbench_methods._common import channels, full, match_size, require_categorical
from kdbench_methods._feature_tools import LAST, pooled, teacher_head
from kdbench_methods._trunk import on, unused_modules, without


def feature_loss(s: Tensor, t: Tensor) -> Tensor:
    """Return ``mean((s - t)²)`` over all elements, a scalar; `s`, `t`: maps or vectors of one shape."""
    return F.mse_loss(full(s), full(t))


def projector(c_in: int, c_out: int, factor: int = 2, *, relu: bool = True) -> nn.Sequential:
    """Return 1×1, 3×3 and 1×1 convolutions, c_in -> w -> w -> c_out with ``w = c_out/factor``.

    Each without bias and with BatchNorm and ReLU; `relu` is about the last one.
    """
    width = max(1, c_out // factor)
    layers: list[nn.Module] = []
    for a, b, kernel in ((c_in, width, 1), (width, width, 3), (width, c_out, 1)):
        conv = nn.Conv2d(a, b, kernel, padding=kernel // 2, bias=False)
        layers += [conv, nn.BatchNorm2d(b), nn.ReLU()]
    return nn.Sequential(*(layers if relu else layers[:-1]))


def pool_above(x: Tensor, limit: tuple[int, int] | None) -> Tensor:
    """Average-pool (B, C, H, W) to `limit` where it is larger."""
    return x if limit is None else match_size(x, x.new_empty(1, 1, *limit))[0]


class Reuse(nn.Module):
    """What is deployed: images -> logits by student, projector, average pooling and teacher's classifier.

    Of the student it holds what the last stage needs. `limit` is the height and width above which the student's
    map is pooled before the projector, or None.
    """

    def __init__(
        self, student: Handle, projector: nn.Module, classifier: nn.Module, limit: tuple[int, int] | None
    ) -> None:
        super().__init__()
        self.student, self.limit = student, limit
        self.network, self.projector, self.classifier = student.net, projector, classifier

    def forward(self, x: Tensor) -> Tensor:
        features = self.projector(pool_above(self.student(x, (LAST,)).feats[LAST], self.limit))
        return self.classifier(features.mean((2, 3)))


class SimKD(Method):
    """``L = weight·mean((P(F^s) - F^t)²)``; the student keeps its projector P and takes the teacher's classifier.

    No labels and no divergence (the authors' scripts set both weights to 0). Maps are compared where the
    teacher's classifier reads the spatial mean of its last map (official code, larger maps pooled to the
    smaller); other teachers (ViT, ...) are compared by the classifier's input with the mean of the projected
    map. P ends in a ReLU only where the target has no negative values.

    What is deployed is the student up to its last stage, P and the classifier: the student's own head and what
    stands before it are left out, of the parameters, the operations and the time. Shapes: P takes
    (B, C_s, H, W) to (B, C_t, H, W).
    """

    class Params(MethodParams):
        """Weight and width of the projector."""

        weight: float = Field(1.0, gt=0, description="weight of the feature distance")
        factor: int = Field(2, ge=1, description="teacher's channels over the projector's inner ones")

    needs = Needs(labels=False, min_batch=2, capabilities=frozenset({"features"}))
    fidelity = "official-code"
    deploys_extra = True
    presets = {"cifar100": {"weight": 1.0, "factor": 2}, "imagenet": {"weight": 1.0, "factor": 2}}
    search = {
        "weight": Search(low=0.1, high=10.0, log=True, source="a decade each way of the authors' value"),
    }
    taps = {"student": (LAST,)}

    @classmethod
    def golden(cls) -> Sequence[Golden]:
        return [
            Golden(
                "distance of the maps [[1, 2], [0, 1], [1, 1]] and [[1, 1], [1, 1], [0, 1]]",
                lambda: feature_loss(
                    torch.tensor([[1, 2], [0, 1], [1, 1]], dtype=torch.float64),
                    torch.tensor([[1, 1], [1, 1], [0, 1]], dtype=torch.float64),
                ),
                0.5,
                "mean square by hand: three differences of 1 in six elements",
            )
        ]

    def setup(self, run: Run) -> None:
        require_categorical(run, "simkd")
        head = teacher_head(run, "simkd")
        self.classifier, self.averages = head.classifier, head.averages
        self.limit: tuple[int, int] | None = None
        if head.averages:
            run.teacher.want(LAST)
            _, _, height, width = run.teacher.shape(LAST)
            self.limit = (height, width)
        self.projector = projector(
            channels(run.student, LAST), head.width, self.hp.factor, relu=head.nonnegative
        )
        self.left_out: list[str] | None = None

    def loss(self, S: Out, T: Sequence[Out], batch: Batch, run: Run) -> Mapping[str, Tensor]:
        with run.amp():
            projected = self.projector(pool_above(S.feats[LAST], self.limit))
        vector = full(projected).mean((2, 3))
        if self.averages:
            s, t = match_size(projected, T[0].feats[LAST])
        else:
            s, t = vector, pooled(T[0])
        with torch.no_grad():
            same = self.classifier(vector).argmax(1) == T[0].logits.argmax(1)
            run.log({"agreement": same.float().mean()})
        return {"simkd": self.hp.weight * feature_loss(s, t)}

    def deploy(self, run: Run) -> Mapping[str, nn.Module]:
        student = run.student
        if self.left_out is None:
            side = run.data.image_size
            generator = torch.Generator().manual_seed(0)
            x = torch.randn((2, run.data.in_chans, side, side), generator=generator)
            self.left_out = unused_modules(student, LAST, x.to(run.device))
        trunk = on(student, without(student.net, self.left_out))
        return {"student": Reuse(trunk, self.projector, self.classifier, self.limit)}

"""Image classification."""

from __future__ import annotations

from collections.abc import Iterable, Sequence, Sized

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdbench.api import (
    Batch,
    DataError,
    KdbenchError,
    Metric,
    Out,
    Task,
    TaskContext,
    TaskData,
    Throughput,
)
from kdbench_tasks.metrics import ClassificationSums
from kdbench_tasks.modes import evaluating


class Classification(Task):
    """One label an image; networks give logits (B, K)."""

    name = "classification"
    kind = "categorical"
    capabilities = frozenset({"supervised", "distillable", "features"})
    label_smoothing = 0.0

    def metrics(self, variant: str = "") -> Sequence[Metric]:
        """Declared metrics; ``top1`` is the primary one."""
        return (
            Metric("top1", True, primary=True, unit="%"),
            Metric("top5", True, unit="%"),
            Metric("nll", False, unit="nats"),
            Metric("ece", False, unit="%"),
        )

    def setup(self, ctx: TaskContext) -> TaskData:
        """Take the streams, the training labels, the test split and, if there is one, the validation split."""
        self.label_smoothing = ctx.label_smoothing
        splits = {"test": ctx.image_split("test")}
        val = ctx.image_split("val")
        if not (isinstance(val, Sized) and len(val) == 0):
            splits["val"] = val
        return TaskData(ctx.image_streams(), splits, ctx.info, labels=ctx.train_labels())

    def loss(self, out: Out, batch: Batch) -> Tensor:
        """Cross-entropy (with the recipe's label smoothing), mean over the batch, in float32.

        Raises:
            KdbenchError: when the batch has no labels.
        """
        if batch.y is None:
            raise KdbenchError("classification: the supervised loss needs labels, the batch has none")
        return F.cross_entropy(out.logits.float(), batch.y, label_smoothing=self.label_smoothing)

    def divergence(self, student: Out, teacher: Out, temperature: float = 1.0) -> Tensor:
        """T² KL(teacher || student) of the distributions at temperature T, mean over the batch, in nats.

        Source: Hinton, Vinyals and Dean, arXiv 1503.02531, section 2. The teacher gets no gradient.
        """
        log_s = F.log_softmax(student.logits.float() / temperature, dim=1)
        log_t = F.log_softmax(teacher.logits.detach().float() / temperature, dim=1)
        return F.kl_div(log_s, log_t, reduction="batchmean", log_target=True) * temperature**2

    def evaluate(self, net: nn.Module, split: Iterable[Batch], data: TaskData) -> dict[str, float]:
        """Every declared metric of `net` on a split.

        Raises:
            DataError: when the split has no images or no labels.
        """
        return self._sums(net, split, data).read()

    def evaluate_classes(
        self, net: nn.Module, split: Iterable[Batch], data: TaskData
    ) -> tuple[dict[str, float], Tensor | None]:
        """What :meth:`evaluate` returns and raises, and the confusion counts (K, K), true class by answer."""
        sums = self._sums(net, split, data, by_class=True)
        return sums.read(), sums.confusion

    def _sums(
        self, net: nn.Module, split: Iterable[Batch], data: TaskData, *, by_class: bool = False
    ) -> ClassificationSums:
        sums: ClassificationSums | None = None
        with evaluating(net):
            for batch in split:
                if batch.y is None:
                    raise DataError(f"{data.info.name}: evaluation needs labels, the split has none")
                if sums is None:
                    sums = ClassificationSums(data.info.num_classes, batch.y.device, by_class=by_class)
                sums.add(net(batch.x), batch.y)
        if sums is None:
            raise DataError(f"{data.info.name}: evaluation of a split without images")
        return sums

    def throughput(self, data: TaskData, device: object) -> Throughput:
        """Images of random pixels, normalised as the data set's are."""
        info = data.info

        def make_inputs(batch_size: int) -> tuple[Tensor, ...]:
            generator = torch.Generator().manual_seed(0)
            shape = (batch_size, info.in_chans, info.image_size, info.image_size)
            pixels = torch.rand(shape, generator=generator)
            mean = torch.tensor(info.mean).view(1, -1, 1, 1)
            std = torch.tensor(info.std).view(1, -1, 1, 1)
            return (((pixels - mean) / std).to(torch.device(str(device))),)

        return Throughput("images", make_inputs)

    def floors(self, data: TaskData) -> dict[str, float]:
        """Top-1 in percent of answering the test split's most frequent class, and of guessing.

        Raises:
            DataError: when the test split has no labels.
        """
        k = data.info.num_classes
        labels = [b.y for b in data.splits["test"] if b.y is not None]
        if not labels:
            raise DataError(f"{data.info.name}: floors need a test split with labels")
        counts = torch.cat([y.cpu() for y in labels]).bincount(minlength=k)
        return {"majority": 100 * counts.max().item() / counts.sum().item(), "uniform": 100 / k}

"""Accumulated classification metrics: sums stay on the device until they are read, once."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from kdbench.api import DataError

#: Bins of the expected calibration error (Guo et al., arXiv 1706.04599, equation 3): equal widths.
ECE_BINS = 15


class ClassificationSums:
    """Sums over the batches of a split.

    Args:
        num_classes: K; top-5 becomes top-K where K is below 5.
        device: where the sums live, in float64 (float32 where the device has no float64).
        by_class: whether to count answers by class, too.

    Attributes:
        confusion: images of each class (row) by answer (column), (K, K) int64; None unless `by_class`.
    """

    def __init__(self, num_classes: int, device: torch.device, *, by_class: bool = False) -> None:
        dtype = torch.float32 if device.type == "mps" else torch.float64
        self._k = min(5, num_classes)
        #: top-1 hits, top-5 hits, sum of negative log-likelihoods
        self._sums = torch.zeros(3, dtype=dtype, device=device)
        #: per bin of confidence: images, sum of confidences, hits
        self._bins = torch.zeros(3, ECE_BINS, dtype=dtype, device=device)
        self._numbers = torch.arange(ECE_BINS, device=device)
        self._count = 0
        self.confusion: Tensor | None = None
        if by_class:
            self.confusion = torch.zeros(num_classes, num_classes, dtype=torch.int64, device=device)

    def add(self, logits: Tensor, y: Tensor) -> None:
        """Add a batch: `logits` (B, K), labels `y` (B,) int64."""
        logits = logits.float()
        dtype = self._sums.dtype
        answers = logits.topk(self._k, dim=1).indices
        top = answers == y[:, None]
        hit = top[:, 0].to(dtype)
        log_p = F.log_softmax(logits.to(dtype), dim=1)
        nll = -log_p.gather(1, y[:, None])
        self._sums += torch.stack([hit.sum(), top.any(dim=1).to(dtype).sum(), nll.sum()])
        confidence = log_p.amax(dim=1).exp()
        # bins are (lower, upper]: a confidence of exactly 1 belongs to the last one
        number = ((confidence * ECE_BINS).ceil() - 1).clamp(0, ECE_BINS - 1)
        # a product with a 0/1 matrix adds in a fixed order, unlike a scatter on a GPU
        member = (number[:, None] == self._numbers).to(dtype)
        self._bins += torch.stack([torch.ones_like(confidence), confidence, hit]) @ member
        self._count += len(y)
        if self.confusion is not None:
            cell = y * len(self.confusion) + answers[:, 0]
            self.confusion += cell.bincount(minlength=self.confusion.numel()).view_as(self.confusion)

    def read(self) -> dict[str, float]:
        """Return ``top1``, ``top5``, ``ece`` in percent and ``nll`` in nats.

        Raises:
            DataError: when nothing was added.
        """
        if self._count == 0:
            raise DataError("evaluation of a split without images")
        gap = (self._bins[1] - self._bins[2]).abs().sum()
        top1, top5, nll, ece = (torch.cat([self._sums, gap[None]]) / self._count).tolist()
        return {"top1": 100 * top1, "top5": 100 * top5, "nll": nll, "ece": 100 * ece}

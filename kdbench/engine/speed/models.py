"""A network under measurement: its forward pass and its training step at a precision and batch size."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdbench.engine.build import builder
from kdbench.engine.cellspec import Arch
from kdbench.engine.seeds import seeded
from kdbench.measure.memory import growth_bytes, tensor_bytes
from kdbench.measure.operations import activations, macs, parameters
from kdbench.measure.rounds import Contender
from kdbench.registry import Registry
from kdbench.results.speed import Mode, Precision, SpeedSettings

_HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Inputs:
    """Random images and labels on the device, made once per batch size and shared by all models."""

    def __init__(self, settings: SpeedSettings, device: torch.device) -> None:
        self._settings, self._device = settings, device
        self._made: dict[int, tuple[Tensor, Tensor]] = {}

    def get(self, batch: int) -> tuple[Tensor, Tensor]:
        """Return images (batch, C, S, S), standard normal, and labels (batch,) int64."""
        if batch not in self._made:
            s = self._settings
            generator = torch.Generator(self._device).manual_seed(batch)
            where: dict[str, Any] = {"device": self._device, "generator": generator}
            x = torch.randn((batch, s.in_chans, s.image_size, s.image_size), **where)
            x = x.contiguous(memory_format=torch.channels_last) if s.channels_last else x
            self._made[batch] = x, torch.randint(s.num_classes, (batch,), **where)
        return self._made[batch]

    def drop(self, batch: int) -> None:
        """Let the images of a batch size go."""
        self._made.pop(batch, None)


class Model:
    """A network on its device. Inference and training share its weights.

    Raises what building raises: KdbenchError, NotApplicable.
    """

    def __init__(self, registry: Registry, name: str, settings: SpeedSettings, inputs: Inputs) -> None:
        self.name, self._inputs = name, inputs
        device = torch.device(settings.device)
        with seeded(0):
            net = builder(registry, Arch(name=name, args=settings.args.get(name, {})))(
                num_classes=settings.num_classes, in_chans=settings.in_chans, image_size=settings.image_size
            )
        layout = torch.channels_last if settings.channels_last else torch.preserve_format
        self.net: nn.Module = net.to(device).to(memory_format=layout)  # type: ignore[call-overload]
        self._device = device
        self._optimizer: torch.optim.Optimizer | None = None

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """SGD with momentum; the rate is so low that weights stay where they are."""
        if self._optimizer is None:
            self._optimizer = torch.optim.SGD(self.net.parameters(), lr=1e-6, momentum=0.9, weight_decay=1e-4)
        return self._optimizer

    def operations(self) -> dict[str, int | None]:
        """Return ``params``, ``macs`` and ``activations`` of one image's forward pass."""
        x = self._inputs.get(1)[:1]
        _full_precision(self._device, tf32=False)
        return {
            "params": parameters(self.net),
            "macs": macs(self.net, x),
            "activations": activations(self.net, x),
        }

    def contender(self, mode: Mode, precision: Precision, batch: int) -> Contender:
        """Return the forward pass, or the training step, on a batch.

        Weights are cast to a lower precision in each call, as a training step does and timm's benchmark does.
        """
        x, y = self._inputs.get(batch)
        autocast = _autocast(precision, self._device)
        if mode == "infer":
            call = _forward(self.net, x, autocast)
        else:
            scaler = torch.amp.GradScaler("cuda", enabled=precision == "fp16")
            call = _training_step(self.net, self.optimizer, scaler, x, y, autocast)

        def enter() -> None:
            self.net.train(mode == "train")
            _full_precision(self._device, tf32=precision == "tf32")

        return Contender(call, enter)

    def peak_bytes(self, contender: Contender, mode: Mode, batch: int) -> int:
        """Return the bytes that a warm contender needs at most, as if its model were alone on the device."""
        contender.enter()
        if self._optimizer is not None:
            self._optimizer.zero_grad(set_to_none=True)
        return self.held_bytes(mode, batch) + growth_bytes(contender.call, self._device)

    def held_bytes(self, mode: Mode, batch: int) -> int:
        """Return the bytes of weights, input and, for training, the optimizer's state."""
        held: list[Any] = [*self.net.parameters(), *self.net.buffers(), *self._inputs.get(batch)]
        if mode == "train":
            held += [value for state in self.optimizer.state.values() for value in state.values()]
        return tensor_bytes(held)

    def rest(self) -> None:
        """Let the gradients go, which only a training step needs."""
        for p in self.net.parameters():
            p.grad = None


def _autocast(precision: Precision, device: torch.device) -> Callable[[], AbstractContextManager[Any]]:
    half = _HALF.get(precision)
    return nullcontext if half is None else lambda: torch.autocast(device.type, dtype=half)


def _full_precision(device: torch.device, *, tf32: bool) -> None:
    """Choose how fp32 products are computed; the flag holds for the whole process."""
    if device.type == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = tf32
        torch.backends.cudnn.allow_tf32 = tf32


def _forward(
    net: nn.Module, x: Tensor, autocast: Callable[[], AbstractContextManager[Any]]
) -> Callable[[], object]:
    def call() -> object:
        with torch.inference_mode(), autocast():
            return net(x)

    return call


def _training_step(
    net: nn.Module,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    x: Tensor,
    y: Tensor,
    autocast: Callable[[], AbstractContextManager[Any]],
) -> Callable[[], object]:
    def call() -> None:
        optimizer.zero_grad(set_to_none=True)
        try:
            with autocast():
                out = net(x)
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            raise ValueError(
                f"BatchNorm has one value per channel to train on (batch size {len(x)}, image size "
                f"{x.shape[-1]}): take batch size 2 or more"
            ) from error
        # several heads: the first is the one that is deployed
        logits = out[0] if isinstance(out, (tuple, list)) else out
        scaler.scale(F.cross_entropy(logits.float(), y)).backward()
        scaler.step(optimizer)
        scaler.update()

    return call

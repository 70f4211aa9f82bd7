"""What a method hands to the engine: named scalars, and a sum that can be minimised. Errors name the term."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from kdbench.protocol.method import Method

SCALARS = "Return {name: scalar tensor}: a mean over the batch, with its gradient."
GRADIENT = "Do not detach the loss or compute it under torch.no_grad; use what learns in it."


class ContractError(TypeError):
    """A method handed over something else than it must; `fix` is how its author mends it."""

    def __init__(self, message: str, fix: str = SCALARS) -> None:
        super().__init__(message)
        self.fix = fix


def check_parts(parts: Any, source: Callable[..., Any]) -> None:
    """Raise ContractError unless `parts`, returned by the function `source`, maps names to scalar tensors.

    Only types and shapes are looked at: nothing waits for the device.
    """
    if not isinstance(parts, Mapping):
        raise _broken(source, f"it returned {_kind(parts)}")
    for name, value in parts.items():
        if not isinstance(value, Tensor):
            raise _broken(source, f"'{name}' is {_kind(value)}")
        if value.numel() != 1:
            raise _broken(source, f"'{name}' has shape {tuple(value.shape)}: take its mean")


def check_total(loss: Any) -> None:
    """Raise ContractError unless `loss`, given to ``run.optimize``, is a scalar tensor with a gradient."""
    if not isinstance(loss, Tensor):
        raise ContractError(f"run.optimize() takes a scalar tensor, it got {_kind(loss)}")
    if loss.numel() != 1:
        raise ContractError(
            f"run.optimize() takes a scalar tensor, it got shape {tuple(loss.shape)}: take the mean"
        )
    if not loss.requires_grad:
        raise ContractError(
            "run.optimize(): the loss does not require grad (detached, or computed under torch.no_grad?)",
            GRADIENT,
        )


@contextmanager
def loss_checked(method: Method) -> Iterator[None]:
    """Check what ``method.loss`` returns, before its terms are summed and an error can no longer name one."""
    original = method.loss

    def loss(*args: Any, **kwargs: Any) -> Mapping[str, Tensor]:
        parts = original(*args, **kwargs)
        check_parts(parts, type(method).loss)
        return parts

    before = vars(method).get("loss")
    method.loss = loss  # type: ignore[method-assign]
    try:
        yield
    finally:
        del method.loss
        if before is not None:
            method.loss = before  # type: ignore[method-assign]


def _broken(source: Callable[..., Any], seen: str) -> ContractError:
    function = inspect.unwrap(getattr(source, "__func__", source))
    code = getattr(function, "__code__", None)
    name = getattr(function, "__name__", "step")
    place = f" ({code.co_filename}:{code.co_firstlineno})" if code is not None else ""
    return ContractError(f"{name}() must return {{name: scalar tensor}}; {seen}{place}")


def _kind(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    return "None" if value is None else f"a {type(value).__name__}"

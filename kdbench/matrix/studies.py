"""``tuned.json`` of a run folder: what every search tried, and what came of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError

from kdbench.errors import MatrixError

#: Name of the file in the folder of a run.
TUNED = "tuned.json"


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Trial(_Part):
    """One trial; `value` is the validation metric, None for one that failed with `status`."""

    number: int = Field(ge=0)
    status: str
    value: FiniteFloat | None = None
    params: dict[str, Any] = Field(default_factory=dict)


class Study(_Part):
    """One search: its method, where it was made and its finished trials in their order.

    Attributes:
        study: digest of everything that its values depend on.
        reason: why it cannot be; None for one that can.
        space: hyper-parameter -> where it is searched; empty: the method has nothing to search.
    """

    variant: str
    method: str
    pair: str
    dataset: str
    study: str
    higher_is_better: bool = True
    reason: str | None = None
    space: dict[str, Any] = Field(default_factory=dict)
    trials: list[Trial] = Field(default_factory=list)

    def best(self, budget: int) -> Trial | None:
        """Return the best of the first `budget` trials, of equal ones the first; None where all failed."""
        sign = 1.0 if self.higher_is_better else -1.0
        good = [(sign * t.value, -t.number, t) for t in self.trials[:budget] if t.value is not None]
        return max(good, key=lambda item: item[:2])[2] if good else None

    def complete(self, budget: int) -> bool:
        """Return whether it had its budget, or needs none."""
        return not self.space or self.reason is not None or len(self.trials) >= budget


class Studies(_Part):
    """The whole file: key of a search, see :mod:`kdbench.matrix.searches`, -> what it found."""

    format: Literal[1] = 1
    studies: dict[str, Study] = Field(default_factory=dict)


def read_studies(folder: Path) -> dict[str, Study]:
    """Return the searches of a run folder, none where no file is there. Raises MatrixError."""
    path = folder / TUNED
    try:
        return Studies.model_validate(json.loads(path.read_bytes())).studies
    except FileNotFoundError:
        return {}
    except ValidationError as e:
        first = e.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise MatrixError(f"{path}: {place}: {first['msg']}; `kdbench tune` writes it anew") from e
    except (OSError, ValueError, RecursionError) as e:
        raise MatrixError(f"{path}: cannot be read: {e}; `kdbench tune` writes it anew") from e

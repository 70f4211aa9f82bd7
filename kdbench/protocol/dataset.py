"""Base class of data sets. No torch at import: the parent process asks a data set for its facts."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import BaseModel, ConfigDict

from kdbench.protocol.types import DataInfo

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image


class DatasetParams(BaseModel):
    """Parameters of a data set; unknown keys are an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Dataset(ABC):
    """Images with labels in the splits ``train``, ``test`` and, where the source has one, ``val``.

    Attributes:
        Params: pydantic model of the arguments that a matrix file may give.
        location: parameters that say where the data lies and not what it is; they stay out of the cell id.
    """

    class Params(DatasetParams):
        """No parameters."""

    location: ClassVar[frozenset[str]] = frozenset()

    def __init__(self, params: Any = None) -> None:
        self.params: Any = params if params is not None else self.Params()

    @abstractmethod
    def describe(self) -> DataInfo:
        """Return the facts. Cheap enough for every start of the command. Raises DataError."""

    def prepare(self) -> None:  # noqa: B027 - most data sets have nothing to fetch
        """Fetch what is missing. Raises DataError."""

    @abstractmethod
    def labels(self, split: str) -> np.ndarray[Any, Any]:
        """Labels of a split, int64 (N,)."""

    @abstractmethod
    def image(self, split: str, index: int) -> Image:
        """One image, RGB. Raises DataError naming the file when it is corrupt."""

    def arrays(self, split: str, indices: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """Images of a split at `indices` as uint8 (N, S, S, 3), S = ``describe().image_size``."""
        import numpy as np
        from PIL import Image as pil

        size = self.describe().image_size
        out = np.empty((len(indices), size, size, 3), np.uint8)
        for row, index in enumerate(indices):
            image = self.image(split, int(index)).convert("RGB")
            if image.size != (size, size):
                image = image.resize((size, size), pil.Resampling.BILINEAR)
            out[row] = np.asarray(image)
        return out

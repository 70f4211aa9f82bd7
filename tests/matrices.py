"""Matrix files whose cells train in about a second."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

TEACHER, STUDENT = "timm:test_resnet", "timm:test_efficientnet"
DIGITS: dict[str, Any] = {"name": "digits", "limit_train": 128, "limit_test": 64}
RECIPE: dict[str, Any] = {"base": "quick", "epochs": 2, "batch_size": 32}


def matrix(**overrides: Any) -> dict[str, Any]:
    """Return a matrix as a mapping; a key that is None in `overrides` is left out."""
    content: dict[str, Any] = {
        "name": "tiny",
        "datasets": [DIGITS],
        "pairs": [{"teacher": TEACHER, "student": STUDENT}],
        "methods": ["kd"],
        "seeds": 1,
        "recipe": RECIPE,
        "throughput": False,
        "evaluators": [],
        **overrides,
    }
    return {key: value for key, value in content.items() if value is not None}


def write_matrix(path: Path, **overrides: Any) -> Path:
    """Write a matrix file and return its path."""
    path.write_text(yaml.safe_dump(matrix(**overrides), sort_keys=False))
    return path

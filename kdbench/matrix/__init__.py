"""Matrix files: schema, loading, expansion into cells, and the identity of a cell. No torch."""

from kdbench.matrix.expand import Expansion, expand
from kdbench.matrix.identity import PROTOCOL, canonical_json, cell_id, derive_seed, identity
from kdbench.matrix.load import LoadedMatrix, load_matrix, matrix_names
from kdbench.matrix.recipe import Recipe
from kdbench.matrix.recipe_files import load_recipe, recipe_names
from kdbench.matrix.schema import Matrix
from kdbench.matrix.spec import (
    ArchSpec,
    CellSpec,
    DatasetSpec,
    MethodSpec,
    TeacherSpec,
    content_key,
    teacher_cell,
    variant_label,
)

__all__ = [
    "PROTOCOL",
    "ArchSpec",
    "CellSpec",
    "DatasetSpec",
    "Expansion",
    "LoadedMatrix",
    "Matrix",
    "MethodSpec",
    "Recipe",
    "TeacherSpec",
    "canonical_json",
    "cell_id",
    "content_key",
    "derive_seed",
    "expand",
    "identity",
    "load_matrix",
    "load_recipe",
    "matrix_names",
    "recipe_names",
    "teacher_cell",
    "variant_label",
]

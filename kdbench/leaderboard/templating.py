"""The one jinja2 environment of boards: every value is escaped, an unknown name is an error."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any


@functools.cache
def template(name: str) -> Any:
    """Return a template of ``templates/`` by its path there."""
    return _environment().get_template(name)


@functools.cache
def _environment() -> Any:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    # ``tojson`` writes <, >, & and ' as escapes, so that no value can end the script element.
    environment.policies["json.dumps_kwargs"] = {"sort_keys": True, "separators": (",", ":")}
    return environment

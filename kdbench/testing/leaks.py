"""What the code of a method keeps outside its objects: variables of classes and modules, caches of functions."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

#: How deep containers inside containers are put back.
DEPTH = 3

Undo = Callable[[], None]


def fresh_start(cls: type) -> Undo:
    """Return a function that puts the variables of a class, its bases and their packages back as they are now.

    Contents of dicts, lists, sets and deques are put back in place, other class attributes and numbers of modules
    by name; caches of ``functools`` are cleared. Objects keep their identity; what is inside others stays.
    """
    undo: list[Undo] = []
    own = [c for c in cls.__mro__ if _is_own(c.__module__)]
    for owner in own:
        undo += _variables(owner, dict(vars(owner)), rebind=True)
    roots = {c.__module__.partition(".")[0] for c in own}
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] in roots and hasattr(module, "__dict__"):
            undo += _variables(module, dict(vars(module)), rebind=False)

    def back() -> None:
        for step in undo:
            step()

    return back


def _is_own(module: str) -> bool:
    return module.partition(".")[0] not in ("kdbench", "torch", "builtins", "abc", "typing")


def _variables(owner: Any, values: dict[str, Any], *, rebind: bool) -> Iterator[Undo]:
    for name, value in values.items():
        if name.startswith("__"):
            continue
        clear = getattr(value, "cache_clear", None)
        if callable(clear):
            yield clear
        elif isinstance(value, (dict, list, set, deque)):
            yield from _contents(value, DEPTH)
            yield _rebinding(owner, name, value)
        elif isinstance(value, (bool, int, float, str, type(None))) or (rebind and not callable(value)):
            yield _rebinding(owner, name, value)


def _rebinding(owner: Any, name: str, value: Any) -> Undo:
    def back() -> None:
        # properties and the like cannot be compared; a class is written to only where something changed
        if vars(owner).get(name) is not value:
            setattr(owner, name, value)

    return back


def _contents(box: Any, depth: int) -> Iterator[Undo]:
    copy = box.copy()

    def back() -> None:
        box.clear()
        if isinstance(box, (dict, set)):
            box.update(copy)
        else:
            box.extend(copy)

    yield back
    if depth > 1:
        for item in copy.values() if isinstance(copy, dict) else copy:
            if isinstance(item, (dict, list, set, deque)):
                yield from _contents(item, depth - 1)

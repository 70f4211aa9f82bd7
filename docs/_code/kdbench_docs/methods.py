"""One page per method, made from the registry."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Mapping
from typing import Any

import yaml

from kdbench.registry import Registered, describe_params
from kdbench_docs.markup import code, docstring, escape, inline, prose, table
from kdbench_docs.measured import Board, measured_table
from kdbench_docs.published import Entry, published_table

_FIDELITY = {
    "paper": "follows the paper.",
    "official-code": "follows the code that the authors published, where it differs from the paper too.",
    "reconstruction": "rebuilt from other sources: no code of the authors was followed, or parts of the paper "
    "could not be checked. The text above says which.",
    "not stated": "the method does not say what its code follows.",
}

_PUBLISHED = """\
Read in the source named, which is often a later benchmark and not the paper of the method itself. Networks,
recipes and the choice of the epoch differ between sources. None of these numbers was measured by kdbench.
"""

_MEASURED = """\
From the boards of this project: mean ± standard deviation over the seeds, after the last epoch. "Against
vanilla" is the difference to the same student trained alone, in points.
"""


def method_page(item: Registered, boards: list[Board], published: list[Entry]) -> str:
    """Return the page of a method as Markdown. Raises PluginError when its class cannot be imported."""
    method = item.load()
    parts = [
        f"# {escape(item.name)}\n",
        inline(item.entry.summary) + "\n",
        _facts(item, method),
        "## Formula\n\n" + docstring(method.__doc__),
        _terms(method),
        "## Run it\n\n" + _how_to_run(item, method),
        "## Hyper-parameters\n\n" + _parameters(method),
        _presets(method),
        _search(method),
    ]
    for title, note, found in (
        ("Published values", _PUBLISHED, published_table(item.name, published)),
        ("Measured values", _MEASURED, measured_table(item.name, boards, "../")),
    ):
        parts.append(f"## {title}\n\n" + (f"{note}\n{found}" if found else "None yet.\n"))
    return "\n".join(part for part in parts if part)


def methods_index(items: list[Registered], boards: list[Board], published: list[Entry]) -> str:
    """Return the page that lists all methods."""
    rows = []
    for item in items:
        method = item.load()
        rows.append(
            [
                f"[{escape(item.name)}]({item.name}.md)",
                inline(item.entry.summary),
                prose(item.entry.paper or "—"),  # type: ignore[attr-defined]
                escape(method.fidelity or "—"),
                ", ".join(
                    word
                    for word, found in (
                        ("published", published_table(item.name, published)),
                        ("measured", measured_table(item.name, boards, "")),
                    )
                    if found
                )
                or "—",
            ]
        )
    head = ("Method", "What it does", "Paper", "Fidelity", "Numbers")
    return (
        "---\nhide: [toc]\n---\n\n# Methods\n\n"
        f"The {len(items)} methods that come with kdbench. Each page is made from the code of the method, the "
        "published values, and the boards of this project. `kdbench list methods` also lists those of further "
        "plug-ins.\n\n" + table(head, rows)
    )


def needs_in_words(needs: Any) -> list[str]:
    """Return all that a cell must give, the ordinary things too."""
    ordinary = []
    if needs.teachers == 1:
        ordinary.append("one teacher")
    if needs.data != "none":
        ordinary.append("training images")
    if needs.labels and "supervised" not in needs.capabilities:
        ordinary.append("labels")
    return [*ordinary, *needs.describe()]


def _facts(item: Registered, method: Any) -> str:
    fidelity = method.fidelity
    needs = needs_in_words(item.entry.needs)  # type: ignore[attr-defined]
    rows = [
        ["Paper", prose(item.entry.paper or "—")],  # type: ignore[attr-defined]
        ["Fidelity", f"{code(fidelity)}: {escape(_FIDELITY.get(fidelity, ''))}" if fidelity else "—"],
        ["Needs", escape(", ".join(needs) or "nothing")],
        ["Tags", escape(", ".join(item.entry.tags) or "—")],
        ["Version", escape(item.version)],
        ["Class", code(item.entry.target)],
    ]
    return table(("", ""), [[f"**{name}**", value] for name, value in rows])


def _terms(method: Any) -> str:
    """Return the public functions beside the class: terms that its docstring names, and their helpers."""
    module = sys.modules[method.__module__]
    functions = [
        (name, thing)
        for name, thing in vars(module).items()
        if inspect.isfunction(thing) and thing.__module__ == module.__name__ and not name.startswith("_")
    ]
    text = ""
    for name, function in functions:
        arguments = ", ".join(_argument(p) for p in inspect.signature(function).parameters.values())
        text += f"### {escape(name)}\n\n{code(f'{name}({arguments})')}\n\n{docstring(function.__doc__)}\n"
    return f"## Functions\n\nTerms of the loss and helpers, from the same file.\n\n{text}" if text else ""


def _argument(parameter: inspect.Parameter) -> str:
    if parameter.default is inspect.Parameter.empty:
        return parameter.name
    return f"{parameter.name}={parameter.default!r}"


def _how_to_run(item: Registered, method: Any) -> str:
    choices: list[Any] = [item.name]
    choices += [{"name": item.name, "preset": preset} for preset in list(method.presets)[:1]]
    needs = item.entry.needs  # type: ignore[attr-defined]
    matrix: dict[str, Any] = {"methods": choices}
    if needs.assistants:
        matrix["pairs"] = [{"teacher": "resnet56", "student": "resnet8x4", "assistant": "resnet20"}]
    lines = yaml.safe_dump(matrix, sort_keys=False, default_flow_style=None).strip()
    remarks = "".join(f"{remark}\n\n" for remark in _remarks(needs))
    return (
        f"In a [matrix file](../reference/matrix.md):\n\n```yaml\n{lines}\n```\n\n{remarks}"
        "What it is on this machine, and whether it is sound:\n\n"
        f"```\nkdbench show method {item.name}\nkdbench check-method {item.name}\n```\n"
    )


def _remarks(needs: Any) -> list[str]:
    """Return what the user must give beside the method's name, a sentence each."""
    out = []
    if needs.assistants:
        out.append(
            "The pair must name an `assistant`, an architecture of a size between teacher and student."
        )
    if needs.route:
        out.append(
            "The teacher must be one that kdbench trains in the same matrix, where it keeps the checkpoints "
            "that the method needs; a teacher from a file has none."
        )
    if needs.teachers > 1:
        out.append(
            f"The teacher must be one that kdbench trains: it does so {needs.teachers} times, with different "
            "seeds. A teacher from a file is only one."
        )
    return out


def _parameters(method: Any) -> str:
    found = describe_params(method.Params)
    if not found:
        return "None.\n"
    rows = []
    for p in found:
        kind, _, bounds = p.type.partition(", ") if not p.type.startswith("Literal") else (p.type, "", "")
        default = "required" if p.required else code(show(p.default))
        rows.append(
            [code(p.name), code(kind), default, code(bounds) if bounds else "—", inline(p.description)]
        )
    return table(("Name", "Type", "Default", "Range", "Meaning"), rows)


def _presets(method: Any) -> str:
    presets: Mapping[str, Mapping[str, Any]] = method.presets
    if not presets:
        return "## Presets\n\nNone: the defaults are the only set.\n"
    names = [p.name for p in describe_params(method.Params)]
    changed = [n for n in names if any(n in overrides for overrides in presets.values())]
    rows = [["(defaults)", *(code(show(getattr(method.Params(), n))) for n in changed)]]
    for name, overrides in presets.items():
        resolved = method.Params(**overrides)
        cells = [code(show(getattr(resolved, n))) for n in changed]
        rows.append(
            [code(name), *(f"**{c}**" if n in overrides else c for n, c in zip(changed, cells, strict=True))]
        )
    note = "What a preset names is bold. All other hyper-parameters keep their defaults.\n"
    return f"## Presets\n\n{note}\n" + table(["Preset", *(code(n) for n in changed)], rows)


def _search(method: Any) -> str:
    if not method.search:
        return "## Search\n\n`kdbench tune` has nothing to search here: the method runs as it is.\n"
    rows = []
    for name, where in method.search.items():
        values = [show(v) for v in where.choices] or [show(where.low), "to", show(where.high)]
        rows.append([code(name), " ".join(values), "yes" if where.log else "no", prose(where.source)])
    note = "Where [`kdbench tune`](../how-to/tune-fairly.md) searches.\n"
    return f"## Search\n\n{note}\n" + table(("Name", "Range", "Logarithmic", "Source"), rows)


def show(value: Any) -> str:
    """Return a value as a matrix file would have it; numbers with six digits at most."""
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    return f"{value:.6g}" if isinstance(value, float) else str(value)

"""What was measured, for people and as JSON."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from typing import Any

from rich.table import Table
from rich.text import Text

from .contenders import REFERENCE
from .rounds import Measured
from .spec import Spec

#: Processors busy with something else, from which on figures are not to be used.
BUSY = 0.25


def row_of(one: Measured, spec: Spec, reference: Measured | None) -> dict[str, Any]:
    """Return the figures of a contender; times in milliseconds and seconds, memory in MiB, top-1 in percent."""
    if one.missing is not None:
        return {"contender": one.name, "missing": one.missing}
    steps = sorted(1e3 * seconds for round_ in one.steps for seconds in round_)
    # two steps an epoch give one time a round
    quarters = statistics.quantiles(steps, n=4) if len(steps) > 1 else None
    out: dict[str, Any] = {
        "contender": one.name,
        "step_ms": 1e3 * one.step_s,
        "step_iqr_ms": None if quarters is None else quarters[2] - quarters[0],
        "steps": len(steps),
        "epoch_s": one.epoch_s,
        "images_per_s": spec.batch_size * one.steps_per_epoch / one.epoch_s,
        "peak_mb": one.peak_mb,
        "loaders_mb": one.loaders_mb,
        "others": max(one.others),
        "top1": one.top1,
    }
    if reference is not None and reference.missing is None:
        ratios = one.faster_than(reference)
        out |= {
            "ratio": statistics.median(ratios),
            "ratio_min": min(ratios),
            "ratio_max": max(ratios),
            "epoch_ratio": one.epochs_faster_than(reference),
        }
    return out


def reference_of(measured: Mapping[str, Measured]) -> Measured | None:
    """Return whom ratios refer to: torchdistill, or the plain loop where that did not run."""
    for name in (REFERENCE, "plain"):
        if name in measured and measured[name].missing is None:
            return measured[name]
    return None


def rows_of(measured: Mapping[str, Measured], spec: Spec) -> list[dict[str, Any]]:
    """Return the figures of all contenders of a pair."""
    return [row_of(one, spec, reference_of(measured)) for one in measured.values()]


def table_of(rows: list[dict[str, Any]], title: str, reference: str | None, *, accuracy: bool) -> Table:
    """Return the table of one pair."""
    notes = [f"{row['contender']}: {row['missing']}" for row in rows if "missing" in row]
    busy = max((row["others"] for row in rows if "others" in row), default=0.0)
    if busy > BUSY:
        notes.append(f"not to be published: other processes kept up to {busy:.1f} processors busy")
    # a Text, since brackets in a string are markup
    caption = Text("\n".join(notes)) if notes else None
    table = Table(title=title, title_justify="left", caption=caption, caption_justify="left")
    table.add_column("contender")
    versus = f"x {reference}" if reference else "ratio"
    numbers = ["step, ms", "IQR", versus, "of epochs", "epoch, s", "images/s", "peak, MiB", "loaders"]
    for head in [*numbers, *(["top-1, %"] if accuracy else [])]:
        table.add_column(head, justify="right", no_wrap=True)
    for row in rows:
        if "missing" in row:
            table.add_row(row["contender"], "-")
            continue
        ratio = (
            f"{row['ratio']:.2f} ({row['ratio_min']:.2f}-{row['ratio_max']:.2f})" if "ratio" in row else ""
        )
        cells = [
            f"{row['step_ms']:.1f}",
            "-" if row["step_iqr_ms"] is None else f"{row['step_iqr_ms']:.1f}",
            ratio,
            f"{row['epoch_ratio']:.2f}" if "ratio" in row else "",
            f"{row['epoch_s']:.2f}",
            f"{row['images_per_s']:,.0f}",
            f"{row['peak_mb']:,.0f}",
            f"{row['loaders_mb']:,.0f}",
        ]
        if accuracy:
            spread = f" ± {statistics.stdev(row['top1']):.2f}" if len(row["top1"]) > 1 else ""
            cells.append(f"{statistics.mean(row['top1']):.2f}{spread}")
        table.add_row(row["contender"], *cells)
    return table

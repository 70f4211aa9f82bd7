"""The command. Run it on a machine that does nothing else."""

from __future__ import annotations

import json
import math
import tempfile
from pathlib import Path
from typing import Any

import click
import torch
from rich.console import Console

from kdbench.errors import did_you_mean
from kdbench.measure.environment import capture

from .contenders import CONTENDERS
from .rounds import ContenderFailed, measure
from .spec import PAIRS, Spec, spec_of
from .table import reference_of, rows_of, table_of

#: Columns that the table needs; a pipe has 80.
WIDTH = 130


def _chosen(context: click.Context, option: click.Parameter, value: str) -> list[str]:
    known = list(PAIRS if option.name == "pairs" else CONTENDERS)
    groups = {pair.tier: [p.name for p in PAIRS.values() if p.tier == pair.tier] for pair in PAIRS.values()}
    names: list[str] = []
    for name in value.split(","):
        if option.name == "pairs" and name in groups:
            names += groups[name]
        elif name in known:
            names.append(name)
        else:
            near = did_you_mean(name, [*known, *(groups if option.name == "pairs" else ())])
            raise click.BadParameter(f"no '{name}'{near}; there are {', '.join(known)}")
    return list(dict.fromkeys(names))


@click.command()
@click.option("--pairs", default="digits", show_default=True, callback=_chosen, metavar="LIST",
              help=f"Pairs, or 'digits' or 'cifar' for all of a size: {', '.join(PAIRS)}.")  # fmt: skip
@click.option("--harness", "names", default="kdbench,plain,torchdistill,timm", show_default=True, metavar="LIST",
              callback=_chosen, help=f"Contenders: {', '.join(CONTENDERS)}.")  # fmt: skip
@click.option(
    "--images", type=click.IntRange(min=64), help="Training images; default: the pair's own number."
)
@click.option(
    "--epochs", type=click.IntRange(min=1), help="Epochs that are timed, after one to warm up.  [1]"
)
@click.option("--steps", type=click.IntRange(min=1), help="Instead: as many epochs as have so many steps.")
@click.option("--rounds", default=3, show_default=True, type=click.IntRange(min=1),
              help="How often all contenders train, one after the other.")  # fmt: skip
@click.option("--batch-size", default=64, show_default=True, type=click.IntRange(min=2))
@click.option(
    "--threads", default=1, show_default=True, type=click.IntRange(min=1), help="Of each training process."
)
@click.option("--workers", default=2, show_default=True, type=click.IntRange(min=0),
              help="Loader processes of those that have some.")  # fmt: skip
@click.option("--device", default="cpu", show_default=True, type=click.Choice(["cpu", "cuda"]))
@click.option("--image-folder", type=click.Path(exists=True, file_okay=False, resolve_path=True),
              help="Images for the pairs of CIFAR's size; default: made up, 100 classes, 32 px.")  # fmt: skip
@click.option("--accuracy", is_flag=True,
              help="Train the teacher, then all contenders to the end (12 epochs), once a seed.")  # fmt: skip
@click.option("--seeds", default=3, show_default=True, type=click.IntRange(min=1), help="For --accuracy.")
@click.option(
    "--json", "json_path", type=click.Path(dir_okay=False, path_type=Path), help="Write the figures."
)
def main(
    pairs: list[str],
    names: list[str],
    images: int | None,
    epochs: int | None,
    steps: int | None,
    rounds: int,
    batch_size: int,
    threads: int,
    workers: int,
    device: str,
    image_folder: str | None,
    accuracy: bool,
    seeds: int,
    json_path: Path | None,
) -> None:
    """Train the same distillation cell with kdbench and with others, and compare time, memory and accuracy.

    A step is the time between the ends of two optimizer steps; an epoch lasts from before its loader starts to
    its last step. Evaluation is in neither. Ratios are taken round by round; the median is shown, with the
    smallest and the largest.
    """
    if epochs is not None and steps is not None:
        raise click.UsageError("--epochs and --steps exclude each other")
    err = Console(stderr=True)
    console = Console(width=max(Console().width, WIDTH))
    environment = capture(torch.device(device), precision="fp32", deterministic=True, compiled="none")
    environment["threads"] = threads
    results: list[dict[str, Any]] = []
    for name in pairs:
        more = {"batch_size": batch_size, "threads": threads, "workers": workers, "device": device}
        spec = spec_of(PAIRS[name], images=images, folder=image_folder, **more)
        if spec.images is not None and spec.images < 2 * batch_size:
            raise click.UsageError(
                f"{name}: {spec.images} images with --batch-size {batch_size}: expected {2 * batch_size} or more, "
                "since a step is timed from the one before it"
            )
        timed = epochs or (math.ceil(steps / (spec.images // batch_size)) if steps and spec.images else 1)
        if accuracy:
            total = epochs or 12
            spec = _to_the_end(spec, total, whole=images is None)
        else:
            spec = spec.model_copy(update={"epochs": 1 + timed})
        with tempfile.TemporaryDirectory(prefix="kdbench-peers-") as folder:
            try:
                measured = measure(
                    spec,
                    names,
                    Path(folder),
                    seeds=range(seeds) if accuracy else [0] * rounds,
                    teacher_epochs=spec.epochs if accuracy else None,
                    tell=err.print,
                )
            except ContenderFailed as e:
                raise click.ClickException(str(e)) from e
        rows, reference = rows_of(measured, spec), reference_of(measured)
        results.append({"spec": spec.model_dump(), "reference": reference and reference.name, "rows": rows})
        title = f"{spec.pair}: {spec.dataset}, batch {batch_size}, {threads} thread(s), {workers} loader(s)"
        console.print(table_of(rows, title, reference and reference.name, accuracy=accuracy))
    if json_path is not None:
        json_path.write_text(json.dumps({"environment": environment, "pairs": results}, indent=1) + "\n")


def _to_the_end(spec: Spec, epochs: int, *, whole: bool) -> Spec:
    """Return the cell with a schedule, on all images of a small data set; there must be an epoch to time."""
    decays = tuple(sorted({max(1, round(epochs * share)) for share in (0.6, 0.85)} - {epochs}))
    data = {"images": None} if whole and spec.dataset == "digits" else {}
    return spec.model_copy(update={"epochs": max(2, epochs), "milestones": decays, **data})


if __name__ == "__main__":
    main(prog_name="python -m tests.benchmarks.peers")

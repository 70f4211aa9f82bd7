"""``kdbench throughput``: speed, latency and memory of networks by themselves."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import click

from kdbench.cli import Settings
from kdbench.cli._options import device_option, tracking_option

if TYPE_CHECKING:
    from kdbench.registry import Registry
    from kdbench.results.speed import SpeedRow, SpeedSettings, SpeedSheet

FORMATS = ("table", "json", "timm-csv")
COLUMNS = (
    "model", "mode", "precision", "batch", "images/s", "IQR %", "p50 ms", "p95 ms", "memory MB", "params M",
    "GMACs",
)  # fmt: skip


@click.command("throughput")
@click.argument("models", nargs=-1, required=True, metavar="MODEL...")
@click.option(
    "--batch-sizes",
    default="1,64",
    show_default=True,
    metavar="N,N,auto",
    help="auto doubles until memory ends or images/s rise by less than 5 %.",
)
@click.option(
    "--precision",
    default="fp32",
    show_default=True,
    metavar="P,P",
    help="Any of fp32, tf32, bf16, fp16; the lower ones by autocast.",
)
@click.option("--train/--no-train", default=False, help="Also measure training steps.  [default: no-train]")
@click.option("--infer/--no-infer", default=True, help="Measure inference.  [default: infer]")
@click.option("--image-size", default=224, show_default=True, type=click.IntRange(1), help="Side in pixels.")
@click.option(
    "--num-classes",
    default=1000,
    show_default=True,
    type=click.IntRange(2),
    help="Classes of the networks' last layer.",
)
@click.option("--channels-last", is_flag=True, help="Memory layout NHWC.")
@device_option("Where networks run; auto: on the GPU if there is one.")
@click.option("--threads", default=1, show_default=True, type=click.IntRange(1), help="Threads on a CPU.")
@click.option("--rounds", default=20, show_default=True, type=click.IntRange(1), help="Interleaved rounds.")
@click.option(
    "--max-seconds",
    default=10.0,
    show_default=True,
    type=click.FloatRange(0, min_open=True),
    help="A row gets no round after these, but three at least.",
)
@click.option(
    "--format",
    "form",
    default="table",
    show_default=True,
    type=click.Choice(FORMATS),
    help="What is printed; timm-csv: the columns of timm's benchmark tables, in a .csv file too.",
)
@click.option(
    "--out", type=click.Path(dir_okay=False, path_type=Path), help="Write a .json or .csv file too."
)
@click.option(
    "--records",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="FOLDER",
    help="Add a record for each model to this run folder, for boards.",
)
@click.option(
    "--sink",
    default="none",
    show_default=True,
    type=click.Choice(["mlflow", "none"]),
    help="Where the sheet goes beside the screen and the file.",
)
@tracking_option()
@click.pass_obj
def throughput(
    settings: Settings,
    models: tuple[str, ...],
    form: str,
    out: Path | None,
    records: Path | None,
    sink: str,
    **options: Any,
) -> None:
    """Measure MODEL..., architectures as in matrix files; patterns such as "timm:resnet1*" are allowed.

    Inference is a forward pass without gradient; training is forward, backward and a step of SGD on the
    cross-entropy. Exit code 1 when a row could not be measured.
    """
    tracking_uri = options.pop("tracking_uri")
    _check_out(out)
    registry = settings.registry()
    wanted = _settings(_resolve(registry, models), options)
    from kdbench.launch.speed import measure_in_process

    with _progress() as told:
        sheet = measure_in_process(wanted, settings.disable, told)
    if out is not None:
        _write(sheet, out, form)
    if records is not None:
        from kdbench.results.speed_record import write_records

        click.echo(f"{write_records(sheet, records, registry)} record(s) in {records}", err=True)
    _print(sheet, form)
    for warning in sheet.warnings:
        click.echo(f"warning: {warning}", err=True)
    if sink == "mlflow":
        from kdbench.results.speed_mlflow import log_sheet

        click.echo(f"mlflow: {log_sheet(sheet, uri=tracking_uri)}", err=True)
    sys.exit(0 if all(row.status == "done" for row in sheet.rows) else 1)


def _resolve(registry: Registry, words: tuple[str, ...]) -> list[str]:
    """Return the names of architectures, patterns expanded, each once. Raises UnknownName."""
    from fnmatch import fnmatchcase

    from kdbench.errors import UnknownName
    from kdbench.registry import suggestion

    found: dict[str, None] = {}
    for word in words:
        if any(c in word for c in "*?["):
            names = [name for name in registry.names("architectures") if fnmatchcase(name, word)]
            if not names:
                raise UnknownName(f"no architecture matches {word!r}: see `kdbench list architectures`")
            found |= dict.fromkeys(names)
            continue
        item = registry.get("architectures", word)
        known = item.models()
        # timm's names may end in a tag of weights, which has no part in speed
        if known and word not in known and word.partition(".")[0] not in known:
            raise UnknownName(f"unknown architecture {word!r}{suggestion(word, known)}")
        found[word] = None
    return list(found)


def _settings(models: list[str], options: dict[str, Any]) -> SpeedSettings:
    """Return the checked settings. Raises KdbenchError naming the option."""
    from kdbench.errors import KdbenchError, did_you_mean
    from kdbench.results.speed import Precision, SpeedSettings

    known = get_args(Precision)
    precisions = _words("--precision", options.pop("precision"), ", ".join(known))
    for name in precisions:
        if name not in known:
            hint = did_you_mean(name, known)
            raise KdbenchError(f"--precision {name}: expected {', '.join(known)}{hint}")
    sizes: list[Any] = []
    expected = "a number of images, or auto"
    for word in _words("--batch-sizes", options.pop("batch_sizes"), expected):
        if word != "auto" and not (word.isdecimal() and int(word) > 0):
            raise KdbenchError(f"--batch-sizes {word}: expected {expected}")
        sizes.append(word if word == "auto" else int(word))
    modes = [mode for mode in ("infer", "train") if options.pop(mode)]
    if not modes:
        raise KdbenchError("nothing to measure: give --infer or --train")
    return SpeedSettings(
        models=models,
        modes=modes,
        batch_sizes=sizes,
        precisions=precisions,
        **options,  # type: ignore[arg-type]
    )


def _words(option: str, text: str, expected: str) -> list[str]:
    """Return the items of a list, each once. Raises KdbenchError for an empty one."""
    from kdbench.errors import KdbenchError

    words = [word.strip() for word in text.split(",")]
    if not all(words):
        raise KdbenchError(f"{option} {text!r}: an item is empty, expected {expected}")
    return list(dict.fromkeys(words))


def _check_out(out: Path | None) -> None:
    """Refuse before the measurement what could not be written after it. Raises KdbenchError."""
    from kdbench.errors import KdbenchError

    if out is None:
        return
    if out.suffix not in (".json", ".csv"):
        raise KdbenchError(f"--out {out}: expected a name that ends in .json or .csv")
    if not out.parent.is_dir():
        raise KdbenchError(f"--out {out}: the folder {out.parent} does not exist")


@contextmanager
def _progress() -> Iterator[Callable[[str], None]]:
    """Show what is done on a line that is overwritten; nothing where the output is no terminal."""
    if not sys.stderr.isatty():
        yield lambda line: None
        return
    from rich.console import Console

    with Console(stderr=True).status("starting") as status:
        yield status.update


def _write(sheet: SpeedSheet, out: Path, form: str) -> None:
    from kdbench.results.speed import flat_rows
    from kdbench.results.store import atomic_write_bytes, atomic_write_json

    if out.suffix == ".json":
        atomic_write_json(out, sheet.model_dump(mode="json"))
        return
    if form == "timm-csv":
        text = _timm(sheet)
    else:
        rows = flat_rows(sheet)
        text = _csv(list(rows[0]), rows)
    atomic_write_bytes(out, text.encode())


def _print(sheet: SpeedSheet, form: str) -> None:
    if form == "json":
        click.echo(sheet.model_dump_json(indent=2))
    elif form == "timm-csv":
        click.echo(_timm(sheet), nl=False)
    else:
        _print_sheet(sheet)


def _timm(sheet: SpeedSheet) -> str:
    from kdbench.results.timm_csv import timm_columns, timm_rows

    return _csv(timm_columns(sheet), timm_rows(sheet))


def _csv(columns: list[str], rows: list[dict[str, Any]]) -> str:
    import csv
    import io

    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _print_sheet(sheet: SpeedSheet) -> None:
    from kdbench.cli._table import print_table

    where, settings = sheet.environment, sheet.settings
    threads = f", {where['threads']} thread(s)" if where.get("device") == "cpu" else ""
    layout = ", channels last" if settings.channels_last else ""
    title = (
        f"{where.get('device_name')}{threads}, {settings.image_size} px{layout}, torch {where.get('torch')}, "
        f"timm {where.get('timm')}"
    )
    print_table(COLUMNS, [speed_cells(row) for row in sheet.rows], title=title)
    for row in sheet.rows:
        if row.status != "done":
            batch = "" if row.batch_size is None else f", batch {row.batch_size}"
            click.echo(f"{row.status}: {row.model}, {row.mode}, {row.precision}{batch}: {row.message}")
    if sheet.drift_percent is not None:
        click.echo(f"drift of the machine: {sheet.drift_percent:.1f} % (median of the rows)")
    click.echo(f"memory: {sheet.memory}")


def speed_cells(row: SpeedRow) -> list[str]:
    """Return a row of the table under :data:`COLUMNS`."""

    def show(value: float | None, digits: int = 1, unit: float = 1.0) -> str:
        return "-" if value is None else f"{value / unit:,.{digits}f}"

    batch = "-" if row.batch_size is None else f"{row.batch_size}{' (found)' if row.found_by else ''}"
    spread = None if row.iqr_ratio is None else 100 * row.iqr_ratio
    speed = show(row.images_per_s) if row.status == "done" else row.status
    return [
        *(row.model, row.mode, row.precision, batch, speed, show(spread)),
        *(show(row.latency_ms_p50, 2), show(row.latency_ms_p95, 2), show(row.peak_memory_mb)),
        *(show(row.params, 2, 1e6), show(row.macs, 3, 1e9)),
    ]

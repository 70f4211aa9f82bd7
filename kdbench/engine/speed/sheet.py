"""From settings to a speed sheet."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from kdbench.engine.cell import now
from kdbench.engine.progress import Interrupted
from kdbench.engine.speed.batch import empty, find_batch
from kdbench.engine.speed.models import Inputs, Model
from kdbench.measure.environment import capture
from kdbench.measure.memory import free_bytes, out_of_memory
from kdbench.measure.rounds import Contender, play, warm_up
from kdbench.registry import Registry
from kdbench.results.speed import (
    DRIFT_LIMIT,
    MEMORY_NOTES,
    Mode,
    Precision,
    SpeedRow,
    SpeedSettings,
    SpeedSheet,
)
from kdbench.results.speed_row import median_drift

Told = Callable[[str], None]


@dataclass
class _Entry:
    row: SpeedRow
    contender: Contender | None = None


def measure_speed(registry: Registry, settings: SpeedSettings, told: Told = lambda line: None) -> SpeedSheet:
    """Measure every model in every mode at every precision and batch size, in interleaved rounds.

    `told` gets a line before each thing that may take long, and may raise Interrupted. A model that cannot be
    built or run, or a batch that does not fit, is a row that says so; a batch is never made smaller.
    """
    started = now()
    device = torch.device(settings.device)
    if device.type == "cpu":
        torch.set_num_threads(settings.threads)
    torch.backends.cudnn.benchmark = True
    inputs = Inputs(settings, device)
    entries: list[_Entry] = []
    for name in settings.models:
        told(f"building {name}")
        entries += _entries(registry, name, settings, inputs, device, told)
    playing = [e.contender for e in entries if e.contender is not None]
    told(f"round 1 of {settings.rounds}")
    play(
        playing,
        rounds=settings.rounds,
        max_seconds=settings.max_seconds,
        device=device,
        told=lambda n: told(
            f"round {n + 1} of {settings.rounds}" if n < settings.rounds else "checking for drift"
        ),
    )
    for entry in entries:
        _complete(entry)
    rows = [e.row for e in entries]
    environment = capture(device, precision="", deterministic=False, compiled="none")
    del environment["precision"]  # the rows have it
    sheet = SpeedSheet(
        settings=settings,
        environment=environment,
        memory=MEMORY_NOTES[device.type],
        drift_percent=median_drift(rows),
        rows=rows,
        started_at=started,
        finished_at=now(),
    )
    sheet.warnings = warnings_of(sheet)
    return sheet


def warnings_of(sheet: SpeedSheet) -> list[str]:
    """Return what a reader must know before comparing the rows."""
    found = []
    if sheet.drift_percent is not None and abs(sheet.drift_percent) > DRIFT_LIMIT:
        found.append(
            f"the machine drifted by {abs(sheet.drift_percent):.1f} % from the first rounds to their repetition "
            f"at the end (median of the rows, limit {DRIFT_LIMIT:g} %): measure again on a machine that does "
            f"nothing else"
        )
    return found


def _entries(
    registry: Registry, name: str, settings: SpeedSettings, inputs: Inputs, device: torch.device, told: Told
) -> Iterator[_Entry]:
    wanted = [(m, p, b) for m in settings.modes for p in settings.precisions for b in settings.batch_sizes]
    try:
        model = Model(registry, name, settings, inputs)
        facts = model.operations()
    except Exception as error:
        for mode, precision, size in wanted:
            batch = None if size == "auto" else size
            row = SpeedRow(model=name, mode=mode, precision=precision, batch_size=batch)
            yield _fail(_Entry(row), error)
        empty(device)
        return
    for mode, precision, size in wanted:
        row = SpeedRow(model=name, mode=mode, precision=precision, **facts)
        entry = _Entry(row)
        try:
            if size == "auto":
                told(f"finding a batch size for {name}, {mode}, {precision}")
                _find(entry, model, mode, precision, inputs, device)
            else:
                row.batch_size = size
            if row.batch_size is not None:
                told(f"warming up {name}, {mode}, {precision}, batch {row.batch_size}")
                entry.contender = model.contender(mode, precision, row.batch_size)
                warm_up(entry.contender, device)
                row.peak_memory_mb = model.peak_bytes(entry.contender, mode, row.batch_size) / 2**20
        except Interrupted:
            raise
        except Exception as error:
            _fail(entry, error)
            empty(device)
        model.rest()
        yield entry


def _find(
    entry: _Entry, model: Model, mode: Mode, precision: Precision, inputs: Inputs, device: torch.device
) -> None:
    found = find_batch(
        lambda batch: model.contender(mode, precision, batch),
        lambda contender, batch: model.peak_bytes(contender, mode, batch),
        lambda: free_bytes(device),
        device,
        # BatchNorm over one value per channel is an error
        start=2 if mode == "train" else 1,
        drop=inputs.drop,
    )
    entry.row.batch_size, entry.row.found_by = found.batch, found.why
    if found.batch is None:
        entry.row.status, entry.row.message = "oom", "out of memory at the smallest batch size"


def _fail(entry: _Entry, error: Exception) -> _Entry:
    entry.contender = None
    entry.row.status = "oom" if out_of_memory(error) else "failed"
    text = " ".join(str(error).split()) or "no message"
    entry.row.message = f"{type(error).__name__}: {text}"[:300]
    return entry


def _complete(entry: _Entry) -> None:
    one, row = entry.contender, entry.row
    if one is None or row.batch_size is None:
        return
    if one.error is not None:
        _fail(entry, one.error)
        return
    step = statistics.median(one.blocks)
    low, _, high = _quantiles(one.blocks, 4)
    row.images_per_s = row.batch_size / step
    row.step_ms, row.iqr_ratio = 1e3 * step, (high - low) / step
    row.latency_ms_p50 = 1e3 * statistics.median(one.singles)
    row.latency_ms_p95 = 1e3 * _quantiles(one.singles, 20)[18]
    row.rounds, row.calls = len(one.blocks), one.calls
    row.drift_percent = None if one.drift is None else 100 * one.drift
    row.samples_ms = [1e3 * s for s in one.blocks]


def _quantiles(values: list[float], n: int) -> list[float]:
    if len(values) == 1:
        return values * (n - 1)
    return statistics.quantiles(values, n=n, method="inclusive")

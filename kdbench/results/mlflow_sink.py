"""The MLflow sink: one run per cell, under one parent run per matrix invocation.

Only the parent process writes, with an explicit client and run ids, never MLflow's global state.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdbench.results import mlflow_fields as fields
from kdbench.results.digest import record_sha256
from kdbench.results.store import CURVES, RESULT, read_curves
from kdbench.results.tracking import (
    SinkError,
    check_store,
    one_line,
    quiet_mlflow,
    redact,
    resolve_uri,
    sqlite_path,
)

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

log = logging.getLogger(__name__)

#: MLflow takes 1,000 entities, 1,000 metrics, 100 params and 100 tags in one batch.
_METRICS_PER_BATCH = 800
_PARAMS_PER_BATCH = 100
#: For what fails when another writer does the same at the same time.
_ATTEMPTS = 3
_TERMINATED = frozenset({"FINISHED", "FAILED", "KILLED"})
_PARENT_STATUS = {
    "done": "FINISHED",
    "finished": "FINISHED",
    "ok": "FINISHED",
    "interrupted": "KILLED",
    "killed": "KILLED",
}


@dataclass(frozen=True)
class _Known:
    run_id: str
    sha256: str
    complete: bool


class MlflowSink:
    """Follows :class:`kdbench.hooks.Sink`. Writing a record that the store holds already does nothing.

    Attributes:
        uri: the tracking URI in use, after :meth:`open`.
        artifact_warnings: one line per artifact that could not be stored; the run itself is complete.
    """

    def __init__(self) -> None:
        self.uri = ""
        self.artifact_warnings: list[str] = []
        self._client: MlflowClient | None = None
        self._experiment_id = ""
        self._matrix: Mapping[str, Any] = {}
        self._parent: str | None = None
        self._known: dict[str, list[_Known]] = {}
        self._counts: dict[str, int] = {}
        #: sha256 of the records that were stored, by cell id
        self._written: dict[str, str] = {}

    @staticmethod
    def prepare() -> None:
        """Import MLflow, which takes seconds; :meth:`open` needs it."""
        quiet_mlflow()
        import mlflow.tracking  # noqa: F401

    def open(self, matrix: Mapping[str, Any], *, uri: str | None = None) -> None:
        """Connect, make the experiment ``kdbench/<matrix name>`` if needed and read which cells it has.

        Raises SinkError within seconds when the store cannot be used.
        """
        self.uri = resolve_uri(uri)
        self._matrix = matrix
        quiet_mlflow()
        check_store(self.uri)
        with self._told(), _creation_lock(self.uri):
            from mlflow.tracking import MlflowClient

            # A registry of its own URI would otherwise come from MLflow's global state.
            self._client = MlflowClient(tracking_uri=self.uri, registry_uri=self.uri)
            self._experiment_id = self._experiment(f"kdbench/{matrix['name']}")
        with self._told():
            self._known = self._read_known()
        self._parent, self._counts, self._written, self.artifact_warnings = None, {}, {}, []

    def write(self, record: Mapping[str, Any], folder: Path) -> None:
        """Store one record with the curves and files in its folder; an older run of the cell is deleted.

        Raises SinkError; a run that was begun is deleted again.
        """
        self.put(record, folder)

    def put(self, record: Mapping[str, Any], folder: Path) -> bool:
        """Like :meth:`write`; return whether anything was written."""
        client = self._ready()
        cell_id, sha256 = record["cell_id"], record_sha256(record)
        known = self._known.get(cell_id, [])
        same = next((k for k in known if k.complete and k.sha256 == sha256), None)
        with self._told():
            if same is None:
                run_id = self._write_run(client, record, Path(folder))
                same = _Known(run_id, sha256, True)
                written = True
            else:
                written = False
            for old in known:
                if old.run_id != same.run_id:
                    client.delete_run(old.run_id)
        self._known[cell_id] = [same]
        if written:
            self._written[cell_id] = sha256
            self._counts[record["status"]] = self._counts.get(record["status"], 0) + 1
        return written

    def annotate(self, cell_id: str, metrics: Mapping[str, float]) -> None:
        """Add metrics to a cell's run that only the whole matrix can tell, such as the gap closed.

        Nothing happens when the store has no run of the cell, or has these values already. Raises SinkError.
        """
        from mlflow.entities import Metric

        client = self._ready()
        with self._told():
            for known in self._known.get(cell_id, []):
                have = client.get_run(known.run_id).data.metrics
                now = _now_ms()
                fresh = [Metric(k, v, now, 0) for k, v in metrics.items() if have.get(k) != v]
                if fresh:
                    client.log_batch(known.run_id, metrics=fresh)

    def close(self, status: str) -> None:
        """End the parent run (``done``, ``interrupted``, else failed) and let the client go."""
        if self._client is not None and self._written:
            with self._told():
                self._drop_twins()
        if self._client is not None and self._parent is not None:
            from mlflow.entities import Metric

            with self._told():
                now = _now_ms()
                counts = [Metric(f"cells/{k}", float(v), now, 0) for k, v in sorted(self._counts.items())]
                self._client.log_batch(self._parent, metrics=counts)
                self._client.set_terminated(self._parent, _PARENT_STATUS.get(status.lower(), "FAILED"))
        self._client = self._parent = None

    def _drop_twins(self) -> None:
        """Delete all but one run of cells that other writers stored at the same time; all choose the same one."""
        client = self._ready()
        for cell_id, runs in self._read_known().items():
            sha256 = self._written.get(cell_id)
            same = sorted(k.run_id for k in runs if k.complete and k.sha256 == sha256)
            for run_id in same[1:] if sha256 is not None else ():
                with contextlib.suppress(Exception):  # another writer may have deleted it already
                    client.delete_run(run_id)

    def _ready(self) -> MlflowClient:
        if self._client is None:
            raise SinkError("the MLflow sink is not open")
        return self._client

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        """Turn whatever MLflow, SQLAlchemy or requests raise into one line without credentials."""
        try:
            yield
        except SinkError:
            raise
        except Exception as error:
            text = one_line(error)
            hint = ""
            if "duplicate column" in text or ("alembic" in text and "already exists" in text):
                hint = "; its creation was cut off: move the database away, then run `kdbench sync`"
            raise SinkError(f"MLflow store {redact(self.uri)!r}: {text}{hint}") from error

    def _experiment(self, name: str) -> str:
        client = self._ready()
        found = client.get_experiment_by_name(name)
        if found is None:
            path = sqlite_path(self.uri)
            location = None
            if path is not None:
                location = (path.parent / "mlartifacts" / fields.key(name).replace("/", "-")).as_uri()
            try:
                return str(client.create_experiment(name, artifact_location=location))
            except Exception:
                # another writer may have made it meanwhile
                found = client.get_experiment_by_name(name)
                if found is None:
                    raise
        if found.lifecycle_stage == "deleted":
            raise SinkError(
                f"MLflow store {redact(self.uri)!r}: the experiment {name!r} was deleted; restore it with "
                f"`mlflow experiments restore --experiment-id {found.experiment_id}`"
            )
        return str(found.experiment_id)

    def _read_known(self) -> dict[str, list[_Known]]:
        client, token = self._ready(), None
        known: dict[str, list[_Known]] = {}
        while True:
            page = client.search_runs([self._experiment_id], max_results=1000, page_token=token)
            for run in page:
                cell_id = run.data.tags.get("kdbench.cell_id")
                if cell_id:
                    sha256 = run.data.tags.get("kdbench.record_sha256", "")
                    complete = run.info.status in _TERMINATED
                    known.setdefault(cell_id, []).append(_Known(run.info.run_id, sha256, complete))
            token = page.token
            if not token:
                return known

    def _parent_run(self, client: MlflowClient) -> str:
        """The parent is made with the first cell, so that an invocation without news leaves no run."""
        if self._parent is None:
            name = str(self._matrix["name"])
            tags = {"kdbench.matrix": name, "kdbench.role": "matrix"}
            for key in ("title", "protocol"):
                if self._matrix.get(key) is not None:
                    tags[f"kdbench.{key}"] = str(self._matrix[key])[: fields.MAX_TAG_VALUE]
            run = client.create_run(self._experiment_id, run_name=name, tags=tags)
            self._parent = str(run.info.run_id)
        return self._parent

    def _write_run(self, client: MlflowClient, record: Mapping[str, Any], folder: Path) -> str:
        tags = fields.tags(record, self._parent_run(client))
        first = dict(list(tags.items())[:100])
        begun = fields.epoch_ms(record.get("started_at"))
        run = client.create_run(
            self._experiment_id, start_time=begun, tags=first, run_name=fields.run_name(record)
        )
        run_id = str(run.info.run_id)
        try:
            rest = dict(list(tags.items())[100:])
            self._log_numbers(client, run_id, record, folder, rest)
            self._log_dataset(client, run_id, record)
            self._log_artifacts(client, run_id, folder)
            ended = fields.epoch_ms(record.get("finished_at"))
            # A run counts as complete by its ended status alone, so this comes last.
            client.set_terminated(run_id, fields.run_status(record["status"]), end_time=ended)
        except BaseException:
            with contextlib.suppress(Exception):
                client.delete_run(run_id)
            raise
        return run_id

    def _log_numbers(
        self,
        client: MlflowClient,
        run_id: str,
        record: Mapping[str, Any],
        folder: Path,
        tags: Mapping[str, str],
    ) -> None:
        from mlflow.entities import Metric, Param, RunTag

        when = fields.epoch_ms(record.get("finished_at")) or _now_ms()
        metrics = [Metric(k, v, when, 0) for k, v in fields.final_metrics(record).items()]
        curves = fields.curve_metrics(read_curves(folder), fields.primary_deployable(record))
        metrics += [Metric(k, v, when, epoch) for k, v, epoch in curves]
        params = [Param(k, v) for k, v in fields.params(record).items()]
        more = [RunTag(k, v) for k, v in tags.items()]
        while metrics or params or more:
            client.log_batch(
                run_id,
                metrics=metrics[:_METRICS_PER_BATCH],
                params=params[:_PARAMS_PER_BATCH],
                tags=more[:_PARAMS_PER_BATCH],
            )
            del metrics[:_METRICS_PER_BATCH], params[:_PARAMS_PER_BATCH], more[:_PARAMS_PER_BATCH]

    def _log_dataset(self, client: MlflowClient, run_id: str, record: Mapping[str, Any]) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag

        name, digest, source = fields.dataset_input(record)
        dataset = Dataset(name=name, digest=digest, source_type="code", source=source)
        context = [InputTag("mlflow.data.context", "training")]
        inputs = [DatasetInput(dataset, context)]
        for attempt in range(_ATTEMPTS):
            try:
                client.log_inputs(run_id, datasets=inputs)
                return
            except Exception:
                # MLflow looks for the data set, then inserts it: of writers that come first together one fails
                if attempt + 1 == _ATTEMPTS:
                    raise

    def _log_artifacts(self, client: MlflowClient, run_id: str, folder: Path) -> None:
        for name in (RESULT, CURVES):
            if not (folder / name).is_file():
                continue
            try:
                client.log_artifact(run_id, str(folder / name))
            except Exception as error:
                warning = f"MLflow: {name} of run {run_id} was not stored: {one_line(error)}"
                self.artifact_warnings.append(warning)
                log.warning("%s", warning)


def _now_ms() -> int:
    import time

    return time.time_ns() // 1_000_000


def _creation_lock(uri: str) -> contextlib.AbstractContextManager[Any]:
    """Two processes that open a fresh SQLite store together leave it half-migrated."""
    path = sqlite_path(uri)
    if path is None:
        return contextlib.nullcontext()
    from filelock import FileLock

    return FileLock(f"{path}.lock", timeout=120)

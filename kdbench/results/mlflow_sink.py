"""The MLflow sink: one run per cell, per row of seeds, and per invocation of a matrix.

They stand side by side: MLflow's page hides what is nested below a run, from its lists and from its charts, until
somebody opens it. Only the parent process writes, by an explicit client and run ids, never MLflow's global state.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdbench.errors import KdbenchError
from kdbench.results import mlflow_fields as fields
from kdbench.results.digest import record_sha256
from kdbench.results.mlflow_content import LAYOUT, RunContent, cell_content, summary_content, summary_sha256
from kdbench.results.mlflow_run import IDENTITY, log_metrics, now_ms, write_run
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
    """A run that the store holds; `metrics` are the last values."""

    run_id: str
    digest: str
    complete: bool
    metrics: Mapping[str, float]


class MlflowSink:
    """Follows :class:`kdbench.hooks.Sink`. Writing a record that the store holds already does nothing.

    `synced`: records are written again after their run, so an invocation's run is made only where the store has
    none, and says so.

    Attributes:
        uri: the tracking URI in use, after :meth:`open`.
        artifact_warnings: one line per artifact that could not be stored; the run itself is complete.
    """

    def __init__(self, *, synced: bool = False) -> None:
        self.uri = ""
        self._synced, self._invoked = synced, False
        self.artifact_warnings: list[str] = []
        self._client: MlflowClient | None = None
        self._experiment_id = ""
        self._matrix: Mapping[str, Any] = {}
        self._invocation: str | None = None
        self._known: dict[tuple[str, str], list[_Known]] = {}
        self._counts: dict[str, int] = {}
        #: digests of what was stored, by what identifies its run
        self._written: dict[tuple[str, str], str] = {}

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
        self._invocation, self._counts, self._written, self.artifact_warnings = None, {}, {}, []

    def write(self, record: Mapping[str, Any], folder: Path) -> None:
        """Store one record with the curves and files in its folder; an older run of the cell is deleted.

        Raises SinkError; a run that was begun is deleted again.
        """
        self.put(record, folder)

    def put(self, record: Mapping[str, Any], folder: Path) -> bool:
        """Like :meth:`write`; return whether anything was written."""
        self._ready()
        made = partial(cell_content, record, Path(folder))
        written = self._put("cell", record["cell_id"], record_sha256(record), made)
        if written:
            self._counts[record["status"]] = self._counts.get(record["status"], 0) + 1
        return written

    def summarise(self, rows: Sequence[Mapping[str, Any]]) -> int:
        """Store a summary run for each row; one whose seeds or numbers changed is replaced.

        Returns how many were written. Raises SinkError.
        """
        return sum(
            self._put("summary", row["row_id"], summary_sha256(row), partial(summary_content, row))
            for row in rows
        )

    def annotate(self, cell_id: str, metrics: Mapping[str, float]) -> None:
        """Add metrics to a cell's run that only the whole matrix can tell, such as the gap closed.

        Nothing happens when the store has no run of the cell, or has these values already. Raises SinkError.
        """
        client, now = self._ready(), now_ms()
        for known in self._known.get(("cell", cell_id), []):
            # nan takes back what an earlier, smaller matrix seemed to tell: MLflow forgets no metric
            fresh = {k: v for k, v in metrics.items() if not _equal(known.metrics.get(k, math.nan), v)}
            with self._told():
                log_metrics(client, known.run_id, [(k, v, 0, now) for k, v in fresh.items()])

    def observe(self, samples: Sequence[Mapping[str, float]]) -> None:
        """Add ``system/*`` metrics to the invocation's run, a step for each sample, if there is such a run.

        Raises SinkError.
        """
        client = self._ready()
        if self._invocation is not None:
            metrics = fields.system_metrics(samples)
            with self._told():
                log_metrics(client, self._invocation, metrics)

    def close(self, status: str) -> None:
        """End the invocation's run (``done``, ``interrupted``, else failed) and let the client go."""
        if self._client is not None and self._written:
            with self._told():
                self._drop_twins()
        if self._client is not None and self._invocation is not None:
            now = now_ms()
            counts = [(f"cells/{k}", float(v), 0, now) for k, v in sorted(self._counts.items())]
            with self._told():
                log_metrics(self._client, self._invocation, counts)
                self._client.set_terminated(self._invocation, _PARENT_STATUS.get(status.lower(), "FAILED"))
        self._client = self._invocation = None

    def _drop_twins(self) -> None:
        """Delete all but one run of what other writers stored at the same time; all choose the same one."""
        client = self._ready()
        for which, runs in self._read_known().items():
            digest = self._written.get(which)
            same = sorted(k.run_id for k in runs if k.complete and k.digest == digest)
            for run_id in same[1:] if digest is not None else ():
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
        except KdbenchError:
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
            # MLflow would open its pages for language models
            kind = {"mlflow.experimentKind": "custom_model_development"}
            try:
                return str(client.create_experiment(name, artifact_location=location, tags=kind))
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

    def _read_known(self) -> dict[tuple[str, str], list[_Known]]:
        client, token = self._ready(), None
        known: dict[tuple[str, str], list[_Known]] = {}
        self._invoked = False
        while True:
            page = client.search_runs([self._experiment_id], max_results=1000, page_token=token)
            for run in page:
                tags = run.data.tags
                self._invoked = self._invoked or tags.get("kdbench.kind") == "matrix"
                kind = next((k for k, names in IDENTITY.items() if names[0] in tags), None)
                if kind is None:
                    continue
                key, digest = IDENTITY[kind]
                one = _Known(
                    run_id=str(run.info.run_id),
                    digest=tags.get(digest, ""),
                    complete=run.info.status in _TERMINATED and tags.get("kdbench.layout") == str(LAYOUT),
                    metrics=run.data.metrics,
                )
                known.setdefault((kind, tags[key]), []).append(one)
            token = page.token
            if not token:
                return known

    def _put(self, kind: str, key: str, digest: str, make: Callable[[], RunContent]) -> bool:
        """Have the store hold exactly one run of what is identified so; return whether it was written."""
        client, known = self._ready(), self._known.get((kind, key), [])
        same = next((k for k in known if k.complete and k.digest == digest), None)
        written = same is None
        with self._told():
            if same is None:
                content = make()
                self._begin(client)
                run_id, warnings = write_run(client, self.uri, self._experiment_id, content)
                self.artifact_warnings += warnings
                values = {name: value for name, value, _ in content.metrics}
                same = _Known(run_id, digest, True, values)
                self._written[kind, key] = digest
            for old in known:
                if old.run_id != same.run_id:
                    client.delete_run(old.run_id)
        self._known[kind, key] = [same]
        return written

    def _begin(self, client: MlflowClient) -> None:
        """Make the invocation's run, with the first run that is written: one without news leaves none."""
        if self._invocation is None and not (self._synced and self._invoked):
            name = str(self._matrix["name"])
            tags = {"kdbench.matrix": name, "kdbench.kind": "matrix", "kdbench.role": "matrix"}
            if self._synced:
                tags["kdbench.made_by"] = "sync"
            for key in ("title", "protocol"):
                if self._matrix.get(key) is not None:
                    tags[f"kdbench.{key}"] = str(self._matrix[key])[: fields.MAX_TAG_VALUE]
            run = client.create_run(self._experiment_id, run_name=name, tags=tags)
            self._invocation = str(run.info.run_id)


def _creation_lock(uri: str) -> contextlib.AbstractContextManager[Any]:
    """Two processes that open a fresh SQLite store together leave it half-migrated."""
    path = sqlite_path(uri)
    if path is None:
        return contextlib.nullcontext()
    from filelock import FileLock

    return FileLock(f"{path}.lock", timeout=120)


def _equal(a: float, b: float) -> bool:
    return a == b or (math.isnan(a) and math.isnan(b))

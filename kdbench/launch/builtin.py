"""What the core itself provides through the hooks: the local launcher and the MLflow sink."""

from __future__ import annotations

from kdbench.hooks import LauncherEntry, SinkEntry, hookimpl


@hookimpl
def kdbench_launchers() -> list[LauncherEntry]:
    return [
        LauncherEntry(
            name="local",
            target="kdbench.launch.local:LocalLauncher",
            summary="worker processes on this machine, one per core or GPU",
            version="1",
        )
    ]


@hookimpl
def kdbench_sinks() -> list[SinkEntry]:
    return [
        SinkEntry(
            name="mlflow",
            target="kdbench.results.mlflow_sink:MlflowSink",
            summary="MLflow runs: one per matrix invocation, one child per cell",
            version="1",
        )
    ]

"""The launcher for Ray: cells as tasks of a cluster, or of this machine.

The parent hands out a cell when its teachers are done, takes it back when its node or Ray's worker dies, and reads
the files of the run folder; :mod:`~kdbench_launchers.ray.task` is what runs on a node. Only
:mod:`~kdbench_launchers.ray.cluster` imports Ray, when a run begins.
"""

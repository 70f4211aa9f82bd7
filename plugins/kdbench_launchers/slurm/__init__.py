"""The launcher for Slurm clusters, over submitit.

The parent process on the login node submits job arrays and reads files; :mod:`~kdbench_launchers.slurm.group` is
what runs on a node. All that the parent knows of its jobs is in the folder ``slurm`` of the run folder, so it may
leave and come back.
"""

"""`kdbench plugins`: what is installed and how it fared."""

from __future__ import annotations

import click

from kdbench.cli import Settings


@click.command("plugins")
@click.option("-v", "--verbose", is_flag=True, help="Show the traceback of each broken plug-in.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_obj
def plugins(settings: Settings, verbose: bool, as_json: bool) -> None:
    """List plug-ins with distribution, version and status.

    Statuses: active; disabled (by --disable-plugin or KDBENCH_DISABLE_PLUGINS); broken; incompatible (made
    for a newer kdbench); conflict (two plug-ins give one name, which neither gets).
    """
    from kdbench.cli._table import print_json, print_table
    from kdbench.registry import singular

    # Not strict: this is where a user looks when strict mode refused to start.
    found = settings.registry(strict=False).plugins()
    if as_json:
        rows = []
        for plugin in found:
            row = {k: getattr(plugin, k) for k in ("name", "distribution", "version", "status", "reason")}
            row["git"] = plugin.git
            row["entries"] = {kind: [e.name for e in entries] for kind, entries in plugin.entries.items()}
            row["traceback"] = plugin.traceback
            rows.append(row)
        print_json(rows)
        return
    if not found:
        click.echo("no plug-ins: is kdbench installed? (`pip install -e .` in a checkout)", err=True)
        return
    table = []
    for p in found:
        counts = [
            f"{len(e)} {kind if len(e) > 1 else singular(kind)}"
            for kind, e in p.entries.items()
            if p.offered and e
        ]
        table.append((p.name, p.distribution, p.version, p.status, ", ".join(counts) or "-", p.reason))
    print_table(("plug-in", "distribution", "version", "status", "provides", "reason"), table)
    for plugin in found:
        if plugin.traceback and (verbose or settings.verbose):
            click.echo(f"\n{plugin.label} is {plugin.status}:\n{plugin.traceback.rstrip()}")

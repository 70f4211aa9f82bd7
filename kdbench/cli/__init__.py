"""The command `kdbench`: one verb a module, imported only when it is asked for."""

from __future__ import annotations

import errno
import importlib
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import click

from kdbench import __version__
from kdbench.cli._usage import in_one_line
from kdbench.errors import KdbenchError, did_you_mean
from kdbench.redact import hide, redact

if TYPE_CHECKING:
    from kdbench.registry import Registry

__all__ = ["Settings", "main"]

#: verb -> (where its command is, its line in `kdbench --help`)
VERBS: dict[str, tuple[str, str]] = {
    "run-matrix": ("kdbench.cli.run_matrix:run_matrix", "Run the cells of a matrix file."),
    "list": ("kdbench.cli.list_:list_", "List methods, architectures, data sets, matrices ..."),
    "show": ("kdbench.cli.show:show", "Show one of them: parameters, needs, source."),
    "throughput": ("kdbench.cli.throughput:throughput", "Measure speed and memory of networks."),
    "compare": ("kdbench.cli.compare:compare", "Compare two sets of results."),
    "bench": ("kdbench.cli.bench:bench", "Run the benchmark suite, keep and compare its results."),
    "leaderboard": ("kdbench.cli.leaderboard:leaderboard", "Build or check leaderboards from records."),
    "submit": ("kdbench.cli.submit:submit", "Bring the records of a run to a leaderboard."),
    "reproduce": ("kdbench.cli.reproduce:reproduce", "Run one cell again from its record, and compare."),
    "tune": ("kdbench.cli.tune:tune", "Search hyper-parameters, with one budget for all methods."),
    "prepare": ("kdbench.cli.prepare:prepare", "Fetch data, train teachers, try each method of a matrix."),
    "status": ("kdbench.cli.status:status", "Show how far a run is, from any machine."),
    "sync": ("kdbench.cli.sync:sync", "Replay records into a tracking store."),
    "ui": ("kdbench.cli.ui:ui", "Open the tracking store's web page."),
    "plugins": ("kdbench.cli.plugins:plugins", "List plug-ins with their statuses."),
    "check-method": ("kdbench.cli.check_method:check_method", "Run the conformance suite on a method."),
    "schema": ("kdbench.cli.schema:schema", "Print the JSON schema of a file format."),
    "cell": ("kdbench.cli.cell:cell", "Run one cell from its folder, as launchers do."),
}

#: Failures of the machine or of permissions, not of kdbench: told in one line.
_PLAIN_OS_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM)


@dataclass
class Settings:
    """Global options, in ``ctx.obj`` of every verb.

    Attributes:
        disable: plug-ins given by ``--disable-plugin``.
        verbose: whether ``-v`` was given: errors come with a traceback.
    """

    disable: tuple[str, ...] = ()
    verbose: bool = False
    _registries: dict[bool | None, Registry] = field(default_factory=dict, init=False, repr=False)

    def registry(self, *, strict: bool | None = None) -> Registry:
        """Return the registry, loaded once. Raises what :meth:`kdbench.registry.Registry.load` raises."""
        if strict not in self._registries:
            from kdbench.registry import Registry

            self._registries[strict] = Registry.load(disable=self.disable, strict=strict)
        return self._registries[strict]


class LazyGroup(click.Group):
    """A group that imports a verb's module when the verb runs, and tells errors in one line."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the verbs in the order of the help page."""
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a verb."""
        if cmd_name not in VERBS:
            return None
        module, _, attribute = VERBS[cmd_name][0].partition(":")
        command = getattr(importlib.import_module(module), attribute)
        assert isinstance(command, click.Command), f"{module}:{attribute} is not a click command"
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the verb, or suggest the nearest one."""
        verb = str(args[0])
        if verb not in VERBS and not verb.startswith("-") and not ctx.resilient_parsing:
            raise click.UsageError(f"no such verb {verb!r}{did_you_mean(verb, VERBS)}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the verbs from the table, without importing them."""
        with formatter.section("Verbs"):
            formatter.write_dl([(verb, text) for verb, (_, text) in VERBS.items()])

    def make_context(self, *args: Any, **kwargs: Any) -> click.Context:
        """Read the group's own options."""
        with in_one_line():
            return super().make_context(*args, **kwargs)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the verb; errors that a user is meant to read become one line and an exit code."""
        try:
            with in_one_line():
                return super().invoke(ctx)
        except KdbenchError as error:
            self._fail(ctx, str(error), error.exit_code)
        except OSError as error:
            if error.errno not in _PLAIN_OS_ERRORS:
                raise
            where = f": {error.filename}" if error.filename else ""
            self._fail(ctx, f"{error.strerror}{where}", KdbenchError.exit_code)
        except KeyboardInterrupt:
            click.echo("kdbench: interrupted", err=True)
            ctx.exit(130)
        except (click.exceptions.Exit, click.Abort, click.ClickException):
            raise
        except Exception:
            # a fault of kdbench's own, with its traceback, unless that would tell a password
            import traceback

            text = traceback.format_exc()
            if (told := hide(text)) == text:
                raise
            click.echo(told, err=True, nl=False)
            ctx.exit(1)

    def _fail(self, ctx: click.Context, message: str, code: int) -> None:
        # The group's own parameters are read, because parsing may fail before the settings exist.
        if ctx.params.get("verbose"):
            import traceback

            click.echo(redact(traceback.format_exc()), err=True, nl=False)
        sys.stdout.flush()
        click.echo(f"kdbench: error: {message}", err=True)
        ctx.exit(code)


@click.group(
    name="kdbench",
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"]},
    subcommand_metavar="VERB [ARGS]...",
)
@click.version_option(__version__, prog_name="kdbench", message="%(prog)s %(version)s")
@click.option(
    "--disable-plugin",
    "disable",
    metavar="NAME",
    multiple=True,
    help="Leave out a plug-in, named by its entry point or distribution. Repeatable.",
)
@click.option("-v", "--verbose", is_flag=True, help="Show the traceback of an error.")
@click.pass_context
def main(ctx: click.Context, disable: tuple[str, ...], verbose: bool) -> None:
    """Benchmark knowledge-distillation methods under one protocol."""
    ctx.obj = Settings(disable=disable, verbose=verbose)

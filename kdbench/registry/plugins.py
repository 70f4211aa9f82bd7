"""Load one plug-in and find its status; whatever it does, its neighbours and the command go on."""

from __future__ import annotations

import contextlib
import inspect
import re
import sys
import traceback as tb
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import pluggy

from kdbench.errors import did_you_mean, visible
from kdbench.hooks import API_VERSION, ArchitectureEntry, Entry, KdbenchSpec
from kdbench.redact import redact
from kdbench.registry.discovery import EntryPointSource
from kdbench.registry.kinds import ENTRY_CLASS, KINDS, PROVIDER_HOOK, Kind
from kdbench.registry.provenance import git_revision

Status = Literal["active", "disabled", "broken", "incompatible", "conflict"]

#: Names of all hooks that exist.
HOOKS: tuple[str, ...] = tuple(name for name in vars(KdbenchSpec) if name.startswith("kdbench_"))

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,99}")
_TARGET = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")
_REASON_CHARS = 300


@dataclass(frozen=True, eq=False, kw_only=True)
class PluginInfo:
    """A plug-in and how it fared.

    Attributes:
        name: name of its entry point.
        distribution: name of the distribution that provides it.
        version: version of that distribution.
        status: ``active``; ``disabled`` by the user; ``broken`` (import, hooks or entries fail);
            ``incompatible`` (made for a newer plug-in interface); ``conflict`` (another plug-in gives one of
            its names; its other names work).
        reason: one line on a status other than active.
        traceback: of the exception that broke it, or None.
        entries: what it provides, as far as it came to tell; offered only while active or in conflict.
        source: the entry point.
    """

    name: str
    distribution: str
    version: str
    status: Status = "active"
    reason: str = ""
    traceback: str | None = field(default=None, repr=False)
    entries: Mapping[Kind, tuple[Entry, ...]] = field(default_factory=dict, repr=False)
    source: EntryPointSource | None = field(default=None, repr=False)

    @cached_property
    def git(self) -> str | None:
        """Short hash of the commit that the plug-in was installed from, where one is known."""
        return git_revision(self.source.direct_url) if self.source else None

    @property
    def label(self) -> str:
        """Plug-in, distribution and version for messages."""
        return f"plug-in {self.name!r} ({self.distribution} {self.version})"

    @property
    def offered(self) -> bool:
        """Whether its entries can be looked up and its event hooks are called."""
        return self.status in ("active", "conflict")


class _Rejected(Exception):
    """A plug-in that breaks a rule; carries the status."""

    def __init__(self, reason: str, status: Status = "broken") -> None:
        super().__init__(reason)
        self.status = status


def one_line(error: BaseException) -> str:
    """Return type and message of an exception on one line of bounded length."""
    text = visible(redact(" ".join(str(error).split())))
    line = f"{type(error).__name__}: {text}" if text else type(error).__name__
    return line if len(line) <= _REASON_CHARS else line[: _REASON_CHARS - 3] + "..."


def load_plugin(manager: pluggy.PluginManager, source: EntryPointSource) -> PluginInfo:
    """Import a plug-in, register it with `manager` and ask it for its entries.

    Never raises, KeyboardInterrupt apart. A plug-in that is not usable is left unregistered.
    """
    entries: dict[Kind, tuple[Entry, ...]] = {}
    status: Status = "active"
    reason, trace = "", None
    try:
        # What a plug-in prints must not get into the output of `--json`.
        with contextlib.redirect_stdout(sys.stderr):
            plugin = source.entry_point.load()
            _register(manager, plugin, source)
            for kind in KINDS:
                entries[kind] = _ask(manager, plugin, kind)
        _check_api(entries)
    except KeyboardInterrupt:
        raise
    except _Rejected as rejected:
        status, reason, cause = rejected.status, str(rejected), rejected.__cause__
        trace = redact("".join(tb.format_exception(cause))) if cause else None
    except BaseException as error:  # a plug-in may even call sys.exit while it is imported
        status, reason = "broken", one_line(error)
        trace = redact("".join(tb.format_exception(error)))
    if status != "active" and manager.has_plugin(_plugin_id(source)):
        manager.unregister(name=_plugin_id(source))
    return PluginInfo(
        name=source.name,
        distribution=source.distribution,
        version=source.version,
        status=status,
        reason=reason,
        traceback=trace,
        entries={kind: found for kind, found in entries.items() if found},
        source=source,
    )


def _plugin_id(source: EntryPointSource) -> str:
    return f"{source.distribution}:{source.name}"


def _register(manager: pluggy.PluginManager, plugin: Any, source: EntryPointSource) -> None:
    owner = manager.get_name(plugin)
    if owner is not None:
        raise _Rejected(f"{source.entry_point.value!r} is already registered as {owner!r}")
    manager.register(plugin, name=_plugin_id(source))
    for hook in manager.get_hookcallers(plugin) or ():
        if hook.spec is None:
            raise _Rejected(f"unknown hook {hook.name!r}{did_you_mean(hook.name, HOOKS, limit=1)}")
        if any(impl.wrapper or impl.hookwrapper for impl in _implementations(hook, plugin)):
            raise _Rejected(f"hook {hook.name!r} is a wrapper, but plug-ins are called one by one")
    implemented = {hook.name for hook in manager.get_hookcallers(plugin) or ()}
    for name in HOOKS:
        if name not in implemented and inspect.isroutine(getattr(plugin, name, None)):
            raise _Rejected(f"function {name!r} is not marked with @kdbench.hooks.hookimpl")
    if not implemented:
        raise _Rejected(f"{source.entry_point.value!r} implements no hook of kdbench")


def _implementations(hook: pluggy.HookCaller, plugin: Any) -> list[pluggy.HookImpl]:
    return [impl for impl in hook.get_hookimpls() if impl.plugin is plugin]


def _ask(manager: pluggy.PluginManager, plugin: Any, kind: Kind) -> tuple[Entry, ...]:
    """Return the plug-in's entries of a kind, checked and sorted by name."""
    name = PROVIDER_HOOK[kind]
    found: dict[str, Entry] = {}
    for impl in _implementations(getattr(manager.hook, name), plugin):
        try:
            answer = impl.function()
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            raise _Rejected(f"hook {name!r}: {one_line(error)}") from error
        if isinstance(answer, (str, bytes)) or not isinstance(answer, Sequence):
            raise _Rejected(f"hook {name!r} must return a list of entries, not {type(answer).__name__}")
        for entry in answer:
            _check_entry(entry, kind, name)
            if entry.name in found:
                raise _Rejected(f"hook {name!r} gives the name {entry.name!r} twice")
            found[entry.name] = entry
    return tuple(found[n] for n in sorted(found))


def _check_entry(entry: object, kind: Kind, hook: str) -> None:
    expected = ENTRY_CLASS[kind]
    if not isinstance(entry, expected):
        raise _Rejected(f"hook {hook!r} must return {expected.__name__} items, not {type(entry).__name__}")
    where = f"hook {hook!r}: entry {entry.name!r}"
    if not isinstance(entry.name, str) or not _NAME.fullmatch(entry.name):
        raise _Rejected(f"{where}: a name has letters, digits and . _ + -, and starts with a letter or digit")
    if not isinstance(entry.api, int):
        raise _Rejected(f"{where}: api must be an int, not {entry.api!r}")
    if entry.api > API_VERSION:
        return  # what else a newer interface allows is not known here
    targets = [entry.target]
    if isinstance(entry, ArchitectureEntry) and entry.names:
        targets.append(entry.names)
    for target in targets:
        if not isinstance(target, str) or not _TARGET.fullmatch(target):
            raise _Rejected(f"{where}: target must be 'package.module:attribute', not {target!r}")
    for key in ("summary", "version"):
        if not isinstance(getattr(entry, key), str):
            raise _Rejected(f"{where}: {key} must be a str, not {getattr(entry, key)!r}")


def _check_api(entries: Mapping[Kind, tuple[Entry, ...]]) -> None:
    newest = max((e.api for found in entries.values() for e in found), default=API_VERSION)
    if newest > API_VERSION:
        raise _Rejected(f"needs api {newest}, this kdbench has api {API_VERSION}", "incompatible")

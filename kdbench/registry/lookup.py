"""The registry: what all plug-ins provide, by kind and name."""

from __future__ import annotations

import copy
import importlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import pluggy

from kdbench.errors import KdbenchError, PluginError, UnknownName, did_you_mean
from kdbench.hooks import GROUP, ArchitectureEntry, Entry, KdbenchSpec
from kdbench.registry.declared import declared_names
from kdbench.registry.discovery import find_entry_points
from kdbench.registry.kinds import KINDS, Kind, singular, to_kind
from kdbench.registry.plugins import HOOKS, PluginInfo, load_plugin, one_line
from kdbench.registry.suggest import mentioned, suggestion
from kdbench.registry.switches import disabled_plugins, strict_from_environment


@dataclass(frozen=True)
class Registered:
    """An entry with its provider; of a namespace of architectures, one model.

    Attributes:
        kind: one of :data:`KINDS`.
        entry: what the plug-in said.
        plugin: the plug-in.
        model: the part after ``":"`` for an architecture of a namespace, else None.
    """

    kind: Kind
    entry: Entry
    plugin: PluginInfo
    model: str | None = None

    @property
    def name(self) -> str:
        """Full name, as in matrix files: ``"abc"``, or ``"namespace:model"``."""
        return self.entry.name if self.model is None else f"{self.entry.name}:{self.model}"

    @property
    def version(self) -> str:
        """Version that enters the cell id: the entry's, or the distribution's where the entry has none."""
        return self.entry.version or self.plugin.version

    def load(self) -> Any:
        """Import and return the target. Raises PluginError when that fails."""
        return self._load(self.entry.target)

    def models(self) -> list[str]:
        """Full names of all models of a namespace, sorted; empty for any other entry. Raises PluginError."""
        if not isinstance(self.entry, ArchitectureEntry) or not (self.entry.namespace and self.entry.names):
            return []
        lister = self._load(self.entry.names)
        try:
            return sorted(f"{self.entry.name}:{model}" for model in lister())
        except Exception as error:
            raise PluginError(f"{self._where}: {self.entry.names!r} failed: {one_line(error)}") from error

    @property
    def _where(self) -> str:
        return f"{self.plugin.label}: {singular(self.kind)} {self.entry.name!r}"

    def _load(self, target: str) -> Any:
        module, _, attribute = target.partition(":")
        try:
            loaded = importlib.import_module(module)
            for part in attribute.split("."):
                loaded = getattr(loaded, part)
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            raise PluginError(f"{self._where}: cannot load {target!r}: {one_line(error)}") from error
        return loaded


class Registry:
    """What the plug-ins provide. Make one with :meth:`load`."""

    def __init__(self, plugins: Iterable[PluginInfo], manager: pluggy.PluginManager) -> None:
        self._manager = manager
        self._plugins = _mark_conflicts(list(plugins))
        self._providers = _providers(self._plugins)

    @classmethod
    def load(cls, *, disable: Iterable[str] = (), strict: bool | None = None) -> Registry:
        """Find and load all plug-ins.

        Args:
            disable: plug-ins to leave out, by entry-point name or distribution; the comma-separated list in
                ``KDBENCH_DISABLE_PLUGINS`` is added.
            strict: raise PluginError when any plug-in is broken, incompatible or in conflict. None: as
                ``KDBENCH_STRICT_PLUGINS`` says.

        Raises:
            UnknownName: a plug-in to disable does not exist.
            PluginError: in strict mode.
        """
        manager = pluggy.PluginManager(GROUP)
        manager.add_hookspecs(KdbenchSpec)
        plugins = []
        sources = find_entry_points()
        disabled = disabled_plugins([(s.name, s.distribution) for s in sources], disable)
        for source in sources:
            why = disabled.get((source.name, source.distribution))
            if why is None:
                plugins.append(load_plugin(manager, source))
            else:
                plugins.append(
                    PluginInfo(
                        name=source.name,
                        distribution=source.distribution,
                        version=source.version,
                        status="disabled",
                        reason=f"by {why}",
                        source=source,
                    )
                )
        registry = cls(plugins, manager)
        if strict_from_environment() if strict is None else strict:
            registry._refuse_faults()
        return registry

    def get(self, kind: str, name: str) -> Registered:
        """Return the entry of a kind with this name; of a namespace, the model is not looked up.

        Raises:
            UnknownName: no active plug-in provides it; the message has the nearest names, or the plug-in that
                would provide it where one is known.
            PluginError: several plug-ins provide it.
        """
        kind = to_kind(kind)
        prefix, colon, model = name.partition(":")
        key = prefix if colon and kind == "architectures" else name
        providers = self._providers.get((kind, key), [])
        if len(providers) > 1:
            who = " and ".join(p.plugin.label for p in providers)
            raise PluginError(
                f"{singular(kind)} {key!r} is given by {who}: disable one of them with --disable-plugin"
            )
        if not providers:
            raise UnknownName(self._why_unknown(kind, name, key))
        found = providers[0]
        if isinstance(found.entry, ArchitectureEntry) and found.entry.namespace:
            if not model:
                raise UnknownName(f"{key!r} is a namespace of architectures: expected '{key}:MODEL'")
            return replace(found, model=model)
        if key != name:
            raise UnknownName(
                f"unknown architecture {name!r}: {key!r} is an architecture, not a namespace; "
                f"did you mean {key!r}?"
            )
        return found

    def all(self, kind: str) -> list[Registered]:
        """Return the entries of a kind, sorted by name, without names in conflict."""
        kind = to_kind(kind)
        return [p[0] for (k, _), p in sorted(self._providers.items()) if k == kind and len(p) == 1]

    def names(self, kind: str) -> list[str]:
        """Return all full names of a kind, sorted, with the models of namespaces; for suggestions.

        A namespace is asked for its models here, which may take a moment; one that fails adds no names.
        """
        names: list[str] = []
        for item in self.all(kind):
            if isinstance(item.entry, ArchitectureEntry) and item.entry.namespace:
                try:
                    names += item.models()
                except PluginError:
                    continue
            else:
                names.append(item.name)
        return sorted(names)

    def check_pretrained(self, name: str, args: Mapping[str, Any]) -> None:
        """Raise KdbenchError unless an architecture, with these arguments, has pretrained weights to load."""
        found = self.get("architectures", name)
        check = getattr(found.entry, "pretrained", "")
        if check:
            found._load(check)(**({} if found.model is None else {"model": found.model}), **args)
            return
        entries = [r.entry for r in self.all("architectures")]
        have = [e for e in entries if isinstance(e, ArchitectureEntry) and e.pretrained]
        names = ", ".join(f"{e.name}:*" if e.namespace else e.name for e in have)
        raise KdbenchError(
            f"{name!r} has no pretrained weights" + (f"; these have: {names}" if names else "")
        )

    def plugins(self) -> list[PluginInfo]:
        """Return all plug-ins, whatever their status, sorted by distribution and name."""
        return list(self._plugins)

    def conflicts(self) -> dict[tuple[str, str], list[PluginInfo]]:
        """Return the plug-ins that give one name, per (kind, name) in conflict."""
        return {key: [r.plugin for r in p] for key, p in sorted(self._providers.items()) if len(p) > 1}

    def fire(self, hook: str, **kwargs: Any) -> list[str]:
        """Call an event hook of every active plug-in.

        Each plug-in gets its own copy of the arguments. Returns one line for each plug-in that raised; the
        others are called all the same. Raises ValueError for a hook that does not exist.
        """
        if hook not in HOOKS:
            raise ValueError(f"unknown hook {hook!r}{did_you_mean(hook, HOOKS)}")
        warnings = []
        by_name = {f"{p.distribution}:{p.name}": p for p in self._plugins if p.offered}
        order = {name: i for i, name in enumerate(by_name)}
        impls = [i for i in getattr(self._manager.hook, hook).get_hookimpls() if i.plugin_name in by_name]
        for impl in sorted(impls, key=lambda i: (i.trylast - i.tryfirst, order[i.plugin_name])):
            try:
                impl.function(*[copy.deepcopy(kwargs[name]) for name in impl.argnames])
            except KeyboardInterrupt:
                raise
            except BaseException as error:
                warnings.append(f"{by_name[impl.plugin_name].label}: hook {hook!r}: {one_line(error)}")
        return warnings

    def withheld(self, kind: str, name: str) -> list[PluginInfo]:
        """Return the plug-ins known to provide `name` that are disabled, broken or incompatible.

        A plug-in that could not be asked is known by the literals in its source.
        """
        kind = to_kind(kind)
        return [p for p in self._plugins if not p.offered and name in _known_names(p, kind)]

    def _refuse_faults(self) -> None:
        faults = [p for p in self._plugins if p.status not in ("active", "disabled")]
        if faults:
            first = faults[0]
            more = f" (and {len(faults) - 1} more, see `kdbench plugins`)" if len(faults) > 1 else ""
            raise PluginError(f"{first.label} is {_state(first)}{more}; strict mode allows no such plug-in")

    def _why_unknown(self, kind: Kind, name: str, key: str) -> str:
        message = f"unknown {singular(kind)} {name!r}"
        would = self.withheld(kind, key)
        if would:
            return message + ": " + "; ".join(f"{p.label} provides it but is {_state(p)}" for p in would)
        names = self.names(kind)
        hint = suggestion(name, names) or mentioned(name, (r.entry for r in self.all(kind)))
        if not hint and not names:
            hint = f": no active plug-in provides {kind}"
        elif not hint:
            hint = f": see `kdbench list {kind}`"
        broken = [p.label for p in self._plugins if p.status in ("broken", "incompatible")]
        if broken:
            hint += f"; not loaded: {', '.join(broken)}, see `kdbench plugins`"
        return message + hint


def _state(plugin: PluginInfo) -> str:
    if plugin.status == "conflict":
        return f"in conflict: {plugin.reason}"
    if plugin.status == "disabled":
        return f"disabled {plugin.reason}"
    return f"{plugin.status}: {plugin.reason}"


def _known_names(plugin: PluginInfo, kind: Kind) -> set[str]:
    names = {e.name for e in plugin.entries.get(kind, ())}
    if plugin.source is not None:
        names.update(declared_names(plugin.source.entry_point.module).get(kind, ()))
    return names


def _providers(plugins: Iterable[PluginInfo]) -> dict[tuple[Kind, str], list[Registered]]:
    providers: dict[tuple[Kind, str], list[Registered]] = {}
    for plugin in plugins:
        if plugin.offered:
            for kind in KINDS:
                for entry in plugin.entries.get(kind, ()):
                    providers.setdefault((kind, entry.name), []).append(Registered(kind, entry, plugin))
    return providers


def _mark_conflicts(plugins: list[PluginInfo]) -> list[PluginInfo]:
    reasons: dict[PluginInfo, list[str]] = {}
    for (kind, name), found in sorted(_providers(plugins).items()):
        for mine in found if len(found) > 1 else ():
            others = " and ".join(r.plugin.label for r in found if r.plugin is not mine.plugin)
            line = f"{singular(kind)} {name!r} is also given by {others}"
            reasons.setdefault(mine.plugin, []).append(line)
    return [
        replace(p, status="conflict", reason="; ".join(reasons[p])) if p in reasons else p for p in plugins
    ]

"""The plug-in host: discovery, statuses and look-up of what plug-ins provide. No torch.

Plug-ins of kdbench itself and of third parties take the same way in: an entry point of the group ``kdbench``.
"""

from kdbench.registry.describe import Parameter, describe_params, documentation
from kdbench.registry.discovery import EntryPointSource, find_entry_points
from kdbench.registry.kinds import KINDS, Kind, singular, to_kind
from kdbench.registry.lookup import Registered, Registry
from kdbench.registry.plugins import PluginInfo, Status
from kdbench.registry.provenance import code_digest
from kdbench.registry.suggest import mentioned, suggestion
from kdbench.registry.switches import environment_for_workers

__all__ = [
    "KINDS",
    "EntryPointSource",
    "Kind",
    "Parameter",
    "PluginInfo",
    "Registered",
    "Registry",
    "Status",
    "code_digest",
    "describe_params",
    "documentation",
    "environment_for_workers",
    "find_entry_points",
    "mentioned",
    "singular",
    "suggestion",
    "to_kind",
]

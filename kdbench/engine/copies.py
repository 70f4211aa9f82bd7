"""Networks built once and copied: a plan probes many cells with few networks, and drawing weights takes time."""

from __future__ import annotations

import copy
import json
from collections import OrderedDict
from typing import Any

from torch import nn

from kdbench.engine.build import builder
from kdbench.engine.cellspec import Arch
from kdbench.protocol.types import Build
from kdbench.registry import Registry


class Copies:
    """Stands in for :func:`kdbench.engine.build.builder` where weights do not matter.

    Networks of one architecture and size have equal weights, and only the `keep` used last are held.
    """

    def __init__(self, keep: int = 4) -> None:
        self._keep = keep
        self._nets: OrderedDict[str, nn.Module] = OrderedDict()

    def __call__(self, registry: Registry, arch: Arch) -> Build:
        """Return ``build(num_classes=, in_chans=, image_size=)``; it raises what the builder raises."""
        build = builder(registry, arch)

        def make(**facts: Any) -> nn.Module:
            key = json.dumps([arch.name, arch.args, facts], sort_keys=True, default=str)
            if key not in self._nets:
                self._nets[key] = build(**facts)
                if len(self._nets) > self._keep:
                    self._nets.popitem(last=False)
            self._nets.move_to_end(key)
            try:
                return copy.deepcopy(self._nets[key])
            except Exception:  # whatever a module of a plug-in raises: it can still be built
                return build(**facts)

        return make

"""First-party distillation methods. One method a file; this module only lists them and imports no torch."""

from __future__ import annotations

from kdbench.hooks import MethodEntry, Needs, hookimpl
from kdbench_methods._entries_boundary import METHODS as _BOUNDARY_METHODS
from kdbench_methods._entries_features import METHODS as _FEATURE_METHODS
from kdbench_methods._entries_logits import METHODS as _LOGIT_METHODS

_LOGITS = frozenset({"distillable", "supervised"})
_FEATURES = frozenset({"features", "supervised"})

_CORE_METHODS = (
    MethodEntry(
        name="vanilla",
        target="kdbench_methods.vanilla:Vanilla",
        summary="The student alone, trained with the task's loss: the reference of every gain.",
        version="1",
        tags=("baseline",),
        needs=Needs(teachers=0, capabilities=frozenset({"supervised"})),
    ),
    MethodEntry(
        name="kd",
        target="kdbench_methods.kd:KD",
        summary="Softened teacher outputs as targets.",
        paper="Hinton, Vinyals, Dean, NeurIPS workshop 2014, arXiv:1503.02531",
        version="1",
        tags=("baseline", "logits"),
        needs=Needs(reads="logits", capabilities=_LOGITS),
    ),
    MethodEntry(
        name="dkd",
        target="kdbench_methods.dkd:DKD",
        summary="Target-class and non-target-class parts of KD, weighted apart.",
        paper="Zhao, Cui, Song, Qiu, Liang, CVPR 2022, arXiv:2203.08679",
        version="1",
        tags=("logits",),
        needs=Needs(reads="logits", min_classes=3, capabilities=_LOGITS),
    ),
    MethodEntry(
        name="fitnet",
        target="kdbench_methods.fitnet:FitNet",
        summary="FitNets: regression from a student stage to a teacher stage (the hint).",
        paper="Romero, Ballas, Kahou, Chassang, Gatta, Bengio, ICLR 2015, arXiv:1412.6550",
        version="1",
        tags=("features",),
        needs=Needs(min_batch=2, capabilities=_FEATURES),
    ),
    MethodEntry(
        name="ab",
        target="kdbench_methods.ab:AB",
        summary="Activation boundaries: the student first learns which teacher neurons are on.",
        paper="Heo, Lee, Yun, Choi, AAAI 2019, arXiv:1811.03233",
        version="1",
        tags=("features", "two-phase"),
        needs=Needs(stage_end_act=True, min_batch=2, capabilities=_FEATURES),
    ),
    MethodEntry(
        name="ofd",
        target="kdbench_methods.ofd:OFD",
        summary="Overhaul of feature distillation: margin ReLU and partial L2 before stage-end activations.",
        paper="Heo, Kim, Yun, Park, Kwak, Choi, ICCV 2019, arXiv:1904.01866",
        version="1",
        tags=("features",),
        needs=Needs(reads="taps", stage_end_act=True, min_batch=2, capabilities=_FEATURES),
    ),
    MethodEntry(
        name="feed",
        target="kdbench_methods.feed:FEED",
        summary="Feature-level ensemble of several teachers, in parallel or generation after generation.",
        paper="Park, Kwak, ECAI 2020, arXiv:1909.10754",
        version="1",
        tags=("features", "ensemble"),
        needs=Needs(teachers=2, min_batch=2, capabilities=_FEATURES),
    ),
    MethodEntry(
        name="ffl",
        target="kdbench_methods.ffl:FFL",
        summary="Feature fusion learning: two students and their fused classifier teach each other.",
        paper="Kim, Hyun, Chung, Kwak, arXiv 2019, arXiv:1904.09058",
        version="1",
        tags=("online", "features"),
        needs=Needs(teachers=0, min_batch=2, capabilities=_FEATURES),
    ),
    MethodEntry(
        name="dfad",
        target="kdbench_methods.dfad:DFAD",
        summary="Data-free: a generator looks for images on which student and teacher differ.",
        paper="Fang et al., arXiv 2019, arXiv:1912.11006",
        version="1",
        tags=("data-free", "adversarial"),
        needs=Needs(data="none", labels=False, capabilities=frozenset({"distillable"})),
    ),
    MethodEntry(
        name="rco",
        target="kdbench_methods.rco:RCO",
        summary="Route constrained optimization: checkpoints of the teacher's training, one after another.",
        paper="Jin et al., ICCV 2019, arXiv:1904.09149",
        version="1",
        tags=("logits", "curriculum"),
        needs=Needs(route=4, capabilities=_LOGITS),
    ),
)

METHODS = (*_CORE_METHODS, *_LOGIT_METHODS, *_FEATURE_METHODS, *_BOUNDARY_METHODS)


@hookimpl
def kdbench_methods() -> list[MethodEntry]:
    """Return the first-party methods."""
    return list(METHODS)

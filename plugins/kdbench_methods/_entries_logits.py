"""Entries of the further logit methods; imports no torch."""

from __future__ import annotations

from kdbench.hooks import MethodEntry, Needs

_LOGITS = frozenset({"distillable", "supervised"})
_FEATURES = frozenset({"features", "supervised"})

METHODS = (
    MethodEntry(
        name="kd-ls",
        target="kdbench_methods.kd_ls:KDLS",
        summary="KD on logits of mean 0 and standard deviation 1.",
        paper="Sun, Ren, Li, Wang, Cao, CVPR 2024, arXiv:2403.01427",
        version="1",
        tags=("logits",),
        needs=Needs(reads="logits", min_classes=3, capabilities=_LOGITS),
    ),
    MethodEntry(
        name="dist",
        target="kdbench_methods.dist:DIST",
        summary="Correlations between and within classes instead of divergences.",
        paper="Huang, You, Wang, Qian, Xu, NeurIPS 2022, arXiv:2205.10536",
        version="1",
        tags=("logits",),
        needs=Needs(reads="logits", min_batch=3, min_classes=3, capabilities=_LOGITS),
    ),
    MethodEntry(
        name="mlkd",
        target="kdbench_methods.mlkd:MLKD",
        summary="Logits aligned per instance, batch and class, on a weak and a strong view.",
        paper="Jin, Wang, Lin, CVPR 2023",
        version="1",
        tags=("logits", "views"),
        needs=Needs(reads="logits", views=("strong",), min_batch=2, capabilities=_LOGITS),
    ),
    MethodEntry(
        name="wsld",
        target="kdbench_methods.wsld:WSLD",
        summary="Soft labels weighted by how much better the teacher knows the sample.",
        paper="Zhou, Song, Chen, Zhou, Wang, Yuan, Zhang, ICLR 2021, arXiv:2102.00650",
        version="1",
        tags=("logits",),
        needs=Needs(reads="logits", capabilities=_LOGITS),
    ),
    MethodEntry(
        name="ctkd",
        target="kdbench_methods.ctkd:CTKD",
        summary="KD with a learned temperature that rises against the student.",
        paper="Li, Li, Yang, Zhao, Song, Luo, Li, Yang, AAAI 2023, arXiv:2211.16231",
        version="1",
        tags=("logits", "curriculum"),
        needs=Needs(reads="logits", capabilities=_LOGITS),
    ),
    MethodEntry(
        name="takd",
        target="kdbench_methods.takd:TAKD",
        summary="A middle-sized assistant learns from the teacher, then teaches the student.",
        paper="Mirzadeh, Farajtabar, Li, Levine, Matsukawa, Ghasemzadeh, AAAI 2020, arXiv:1902.03393",
        version="1",
        tags=("logits", "two-phase"),
        needs=Needs(reads="logits", assistants=1, capabilities=_LOGITS),
    ),
    MethodEntry(
        name="dml",
        target="kdbench_methods.dml:DML",
        summary="Students of one architecture teach each other from the start.",
        paper="Zhang, Xiang, Hospedales, Lu, CVPR 2018, arXiv:1706.00384",
        version="1",
        tags=("online", "logits"),
        needs=Needs(teachers=0, capabilities=_LOGITS),
    ),
    MethodEntry(
        name="tfkd",
        target="kdbench_methods.tfkd:TfKD",
        summary="Teacher-free: the student's own earlier self, or a hand-made teacher.",
        paper="Yuan, Tay, Li, Wang, Feng, CVPR 2020, arXiv:1909.11723",
        version="1",
        tags=("self", "logits", "two-phase"),
        needs=Needs(teachers=0, capabilities=_LOGITS),
    ),
    MethodEntry(
        name="timm-logit",
        target="kdbench_methods.timm_logit:TimmLogit",
        summary="timm's own logit distillation task.",
        paper="timm.task.LogitDistillationTask, after Hinton et al., arXiv:1503.02531",
        version="1",
        tags=("logits", "timm"),
        needs=Needs(reads="logits", capabilities=_LOGITS),
    ),
    MethodEntry(
        name="timm-feature",
        target="kdbench_methods.timm_feature:TimmFeature",
        summary="timm's own feature distillation task: regression of what enters the classifier.",
        paper="timm.task.FeatureDistillationTask, after Romero et al., arXiv:1412.6550",
        version="1",
        tags=("features", "timm"),
        needs=Needs(reads="pooled", capabilities=_FEATURES),
    ),
    MethodEntry(
        name="timm-token",
        target="kdbench_methods.timm_token:TimmToken",
        summary="timm's own token distillation task, for students with a distillation head.",
        paper="timm.task.TokenDistillationTask, after Touvron et al., ICML 2021, arXiv:2012.12877",
        version="1",
        tags=("logits", "timm", "transformer"),
        needs=Needs(reads="logits", capabilities=_LOGITS),
        check_student="timm:deit_tiny_distilled_patch16_224",
    ),
)

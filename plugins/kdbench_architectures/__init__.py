"""Architectures: every timm model under ``timm:``, and the CIFAR networks that timm does not have.

Parameter counts are those for 100 classes and three channels, the form in which the CIFAR-100 distillation
literature publishes them.
"""

from __future__ import annotations

from collections.abc import Sequence

from kdbench.hooks import ArchitectureEntry, hookimpl

_RESNETS = {
    "resnet8": 83_892,
    "resnet14": 181_108,
    "resnet20": 278_324,
    "resnet32": 472_756,
    "resnet44": 667_188,
    "resnet56": 861_620,
    "resnet110": 1_736_564,
    "resnet8x4": 1_233_540,
    "resnet32x4": 7_433_860,
}
_WRNS = {
    "wrn_16_1": 180_916,
    "wrn_16_2": 703_284,
    "wrn_40_1": 569_780,
    "wrn_40_2": 2_255_156,
}
#: module, family, parameters at 100 classes, what it is
_OTHERS = {
    "vgg8": ("vgg_cifar", "vgg", 3_965_028, "VGG-8 with BatchNorm for CIFAR"),
    "vgg13": ("vgg_cifar", "vgg", 9_462_180, "VGG-13 with BatchNorm for CIFAR"),
    "resnet50_cifar": ("resnet50_cifar", "resnet", 23_705_252, "ResNet-50 (bottleneck) for CIFAR"),
    "mobilenetv2_half": ("mobilenetv2_cifar", "mobilenet", 812_836, "MobileNetV2 of width 0.5 for CIFAR"),
    "shufflenetv1": ("shufflenet_cifar", "shufflenet", 949_258, "ShuffleNet V1 (three groups) for CIFAR"),
    "shufflenetv2": ("shufflenet_cifar", "shufflenet", 1_355_528, "ShuffleNet V2 (width 1) for CIFAR"),
}


@hookimpl
def kdbench_architectures() -> Sequence[ArchitectureEntry]:
    """Return the timm namespace and the CIFAR networks."""
    timm = ArchitectureEntry(
        name="timm",
        target="kdbench_architectures.timm_provider:build",
        names="kdbench_architectures.timm_provider:names",
        pretrained="kdbench_architectures.timm_provider:check_pretrained",
        namespace=True,
        version="1",
        summary="any model of timm, with its constructor arguments",
        tags=("imagenet",),
    )
    resnets = [
        ArchitectureEntry(
            name=name,
            target=f"kdbench_architectures.resnet_cifar:{name}",
            version="1",
            params_count=count,
            summary=f"CIFAR ResNet, {count:,} parameters at 100 classes",
            tags=("cifar", "resnet"),
        )
        for name, count in _RESNETS.items()
    ]
    wrns = [
        ArchitectureEntry(
            name=name,
            target=f"kdbench_architectures.wrn_cifar:{name}",
            version="1",
            params_count=count,
            summary=f"wide ResNet (pre-activation), {count:,} parameters at 100 classes",
            tags=("cifar", "wrn"),
        )
        for name, count in _WRNS.items()
    ]
    others = [
        ArchitectureEntry(
            name=name,
            target=f"kdbench_architectures.{module}:{name}",
            version="1",
            params_count=count,
            summary=f"{what}, {count:,} parameters at 100 classes",
            tags=("cifar", family),
        )
        for name, (module, family, count, what) in _OTHERS.items()
    ]
    return [timm, *resnets, *wrns, *others]

"""torchdistill (Matsubara, arXiv 2011.12913) by its own interface: a box made from a configuration.

The configuration has the form of its sample configurations, and an epoch is driven as its example
``examples/torchvision/image_classification.py`` drives it, with its own meters.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import RandomSampler

from .clock import Clock
from .material import Material, Outcome, weights_of
from .spec import Spec
from .views import to_normalised


def train(spec: Spec, folder: Path, clock: Clock) -> Outcome:
    """Train the cell. Raises ModuleNotFoundError where torchdistill is not installed."""
    from torchdistill.common.main_util import set_seed
    from torchdistill.core.distillation import get_distillation_box

    set_seed(spec.seed)
    material, device = Material(spec, folder), torch.device(spec.device)
    teacher, student = material.nets()
    data = {"train": material.pictures("train", to_normalised(spec, material.info))}
    box = get_distillation_box(
        teacher, student, data, configuration(spec, teacher, student), device, None, False, 1
    )
    losses = []
    for epoch in range(box.num_epochs):
        clock.epoch()
        box.pre_epoch_process(epoch=epoch)
        losses.append(_epoch(box, device, epoch))
        box.post_epoch_process()
    box.clean_modules()
    return Outcome(losses, material.top1(student), weights_of(student))


def configuration(spec: Spec, teacher: nn.Module, student: nn.Module) -> dict[str, Any]:
    """Return the section ``train`` of a configuration. Logits are read by forward hooks on the classifiers."""
    heads = {"teacher": _classifier(teacher), "student": _classifier(student)}
    loss = {
        "key": "KDLoss",
        "kwargs": {
            **{f"{role}_module_path": path for role, path in heads.items()},
            **{f"{role}_module_io": "output" for role in heads},
            "temperature": spec.temperature,
            # its alpha weights the cross-entropy, elsewhere in the field it weights the other term
            "alpha": spec.ce_weight,
            "beta": spec.kd_weight,
            "reduction": "batchmean",
        },
    }
    config: dict[str, Any] = {
        "log_freq": 100,
        "num_epochs": spec.epochs,
        "train_data_loader": {
            "dataset_id": "train",
            "sampler": {"class_or_func": RandomSampler, "kwargs": {}},
            "kwargs": {
                "batch_size": spec.batch_size,
                "num_workers": spec.workers,
                "pin_memory": spec.device != "cpu",
                "drop_last": True,
            },
        },
        "optimizer": {
            "key": "SGD",
            "kwargs": {"lr": spec.lr, "momentum": spec.momentum, "weight_decay": spec.weight_decay},
        },
        "scheduler": {
            "key": "MultiStepLR",
            "kwargs": {"milestones": list(spec.milestones), "gamma": spec.gamma},
        },
        "criterion": {
            "key": "WeightedSumLoss",
            "kwargs": {"sub_terms": {"kd": {"criterion": loss, "weight": 1.0}}},
        },
    }
    for role, path in heads.items():
        config[role] = {
            "forward_proc": "forward_batch_only",
            "sequential": [],
            "forward_hook": {"input": [], "output": [path]},
            "requires_grad": role == "student",
        }
    return config


def _epoch(box: Any, device: torch.device, epoch: int) -> float:
    from torchdistill.misc.log import MetricLogger, SmoothedValue

    meters = MetricLogger(delimiter="  ")
    meters.add_meter("lr", SmoothedValue(window_size=1, fmt="{value}"))
    meters.add_meter("img/s", SmoothedValue(window_size=10, fmt="{value}"))
    for x, y, supplement in meters.log_every(box.train_data_loader, 100, f"Epoch: [{epoch}]"):
        began = time.time()
        x, y = x.to(device), y.to(device)
        loss = box.forward_process(x, y, supplement)
        box.post_forward_process(loss=loss)
        meters.update(loss=loss.item(), lr=box.optimizer.param_groups[0]["lr"])
        meters.meters["img/s"].update(len(x) / (time.time() - began))
        if torch.isnan(loss) or torch.isinf(loss):
            raise ValueError(f"torchdistill: the loss is {loss}")
    return float(meters.loss.global_avg)


def _classifier(net: Any) -> str:
    """Return the path of the module that gives the logits."""
    head = net.get_classifier()
    return next(path for path, module in net.named_modules() if module is head)

"""The matrices of the distillation literature: pairs, learning rates, rows of the table."""

from __future__ import annotations

import pytest

from kdbench.matrix import expand, load_matrix
from kdbench.matrix.load import FOLDER
from kdbench.matrix.spec import variant_label
from kdbench.registry import Registry
from kdbench_methods import kdbench_methods

SAME = {
    ("wrn_40_2", "wrn_16_2"),
    ("wrn_40_2", "wrn_40_1"),
    ("resnet56", "resnet20"),
    ("resnet110", "resnet20"),
    ("resnet110", "resnet32"),
    ("resnet32x4", "resnet8x4"),
    ("vgg13", "vgg8"),
}
CROSS = {
    ("vgg13", "mobilenetv2_half"),
    ("resnet50_cifar", "mobilenetv2_half"),
    ("resnet50_cifar", "vgg8"),
    ("resnet32x4", "shufflenetv1"),
    ("resnet32x4", "shufflenetv2"),
    ("wrn_40_2", "shufflenetv1"),
}


def test_cifar100_has_the_usual_pairs_and_learning_rates():
    cells = expand(load_matrix("cifar100-standard")).cells
    assert {(c.teacher.name, c.student.name) for c in cells} == SAME | CROSS
    assert {c.seed for c in cells} == set(range(5))
    rows = {variant_label(c.method) for c in cells}
    assert len(cells) == 13 * 5 * len(rows)
    light = ("mobilenetv2_half", "shufflenetv1", "shufflenetv2")
    for c in cells:
        assert c.recipe.optimizer.lr == (0.01 if c.student.name in light else 0.05)
        assert c.teacher.recipe.optimizer.lr == 0.05
        assert (c.recipe.epochs, c.recipe.batch_size) == (240, 64)
    # every method has a label: one row, whatever the learning rate
    assert all(c.method.label for c in cells)
    assert {c.method.name for c in cells} | {"dkd-ls", "mlkd-ls"} == rows
    assert (
        len(expand(load_matrix("cifar100-standard"), only=["pair=resnet32x4->resnet8x4"]).cells)
        == len(cells) // 13
    )


def test_cifar100_has_every_method_but_those_that_its_comment_names():
    cells = expand(load_matrix("cifar100-standard")).cells
    shipped = {e.name for e in kdbench_methods()}
    assert shipped - {c.method.name for c in cells} == {"timm-logit", "timm-feature", "timm-token"}
    comment = (FOLDER / "cifar100-standard.yaml").read_text()
    assert all(name in comment for name in ("timm-logit", "timm-feature", "timm-token"))
    for c in cells:
        assert c.method.preset or c.method.name in ("vanilla", "rco", "srrl")


def test_cifar100_assistants_are_of_a_size_between():
    torch = pytest.importorskip("torch")
    from kdbench.measure.operations import macs

    registry, image, known = Registry.load(), (torch.zeros(1, 3, 32, 32),), {}

    def size(name: str) -> int:
        if name not in known:
            net = registry.get("architectures", name).load()(num_classes=100, in_chans=3, image_size=32)
            known[name] = macs(net.eval(), image)
        return known[name]

    pairs = {
        (c.teacher.name, c.assistant.name, c.student.name)
        for c in expand(load_matrix("cifar100-standard")).cells
    }
    assert len(pairs) == 13
    for teacher, assistant, student in pairs:
        assert size(teacher) > size(assistant) > size(student), (teacher, assistant, student)


def test_imagenet_takes_the_teacher_from_the_hub():
    cells = expand(load_matrix("imagenet-r34-r18")).cells
    assert {(c.teacher.name, c.student.name) for c in cells} == {("timm:resnet34", "timm:resnet18")}
    assert all(c.teacher.pretrained for c in cells)
    assert cells[0].dataset.args == {"root": "~/.cache/kdbench/imagenet", "image_size": 224}
    methods = {c.method.name: c.method.preset for c in cells}
    assert not {"rco", "feed", "takd"} & methods.keys()
    assert {name for name, preset in methods.items() if preset is None} == {"vanilla", "fitnet", "ab"}

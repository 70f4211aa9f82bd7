"""The matrices of the distillation literature: pairs, learning rates, rows of the table."""

from __future__ import annotations

from kdbench.matrix import expand, load_matrix
from kdbench.matrix.spec import variant_label

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
    methods = {c.method.name for c in cells}
    assert len(cells) == 13 * 5 * len(methods)
    light = ("mobilenetv2_half", "shufflenetv1", "shufflenetv2")
    for c in cells:
        assert c.recipe.optimizer.lr == (0.01 if c.student.name in light else 0.05)
        assert c.teacher.recipe.optimizer.lr == 0.05
        assert (c.recipe.epochs, c.recipe.batch_size) == (240, 64)
    # one row a method, whatever the learning rate
    assert {variant_label(c.method) for c in cells} == methods
    assert (
        len(expand(load_matrix("cifar100-standard"), only=["pair=resnet32x4->resnet8x4"]).cells)
        == len(cells) // 13
    )


def test_imagenet_takes_the_teacher_from_the_hub():
    cells = expand(load_matrix("imagenet-r34-r18")).cells
    assert {(c.teacher.name, c.student.name) for c in cells} == {("timm:resnet34", "timm:resnet18")}
    assert all(c.teacher.pretrained for c in cells)
    assert cells[0].dataset.args == {"root": "~/.cache/kdbench/imagenet", "image_size": 224}

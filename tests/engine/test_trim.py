"""Convolutions on images that are smaller than their kernels."""

import itertools

import pytest
import timm
import torch
from torch import nn

from kdbench.engine.frozen import Frozen
from kdbench.engine.trim import Trimmed, conv_sizes, trimmed

SIZES = ((1, 1), (2, 2), (1, 3), (4, 2), (7, 7))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_trimmed_convolution_gives_the_same(layout):
    parts = 0
    for k, s, p, d, groups in itertools.product((1, 2, 3, 5), (1, 2, 3), (0, 1, 2), (1, 2), (1, 2)):
        conv = nn.Conv2d(4, 6, k, s, p, d, groups).to(memory_format=layout)
        for size in SIZES:
            if min(size) + 2 * p < d * (k - 1) + 1:
                continue
            found = trimmed(conv, size)
            if found is None:
                continue
            parts += 1
            assert found.part.weight.numel() < conv.weight.numel() or found.part.padding != conv.padding
            x = torch.randn(3, 4, *size)
            torch.testing.assert_close(found(x), conv(x))
            torch.testing.assert_close(found.part(x), conv(x))
    assert parts > 50


@pytest.mark.parametrize(
    ("size", "stride", "kernel", "padding"),
    [((1, 1), 1, (1, 1), (0, 0)), ((2, 2), 2, (2, 2), (0, 0)), ((1, 5), 1, (1, 3), (0, 1))],
)
def test_what_meets_only_padding_is_left_out(size, stride, kernel, padding):
    found = trimmed(nn.Conv2d(2, 2, 3, stride, 1), size)
    assert (found.part.kernel_size, found.part.padding) == (kernel, padding)
    assert found.part.weight.shape[-2:] == kernel


def test_whole_kernels_and_other_paddings_stay():
    assert trimmed(nn.Conv2d(2, 2, 3, 1, 1), (2, 2)) is None
    assert trimmed(nn.Conv2d(2, 2, 1), (1, 1)) is None
    assert trimmed(nn.Conv2d(2, 2, 3, padding="same"), (1, 1)) is None
    assert trimmed(nn.Conv2d(2, 2, 3, padding=1, padding_mode="circular"), (1, 1)) is None


def test_images_of_another_size_meet_the_whole_kernel():
    conv = nn.Conv2d(2, 2, 3, 1, 1)
    x = torch.randn(2, 2, 5, 5)
    assert torch.equal(trimmed(conv, (1, 1))(x), conv(x))


def test_a_convolution_that_gets_two_sizes_is_not_listed():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.once, self.twice = nn.Conv2d(2, 2, 1), nn.Conv2d(2, 2, 1)

        def forward(self, x):
            return self.twice(self.once(x)).sum() + self.twice(x[..., 1:]).sum()

    assert conv_sizes(Twice(), torch.randn(1, 2, 4, 6)) == {"once": (4, 6)}


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_a_teacher_of_small_images_is_trimmed(dtype):
    torch.manual_seed(0)
    net = timm.create_model("resnet10t", num_classes=10).eval().requires_grad_(False)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype is not None):
        copy = Frozen(net, (3, 32, 32), torch.device("cpu")).net()
        x = torch.randn(4, 3, 32, 32)
        torch.testing.assert_close(
            copy(x), net(x), rtol=0.02 if dtype else 1e-4, atol=0.02 if dtype else 1e-4
        )
    found = {path: m.part.kernel_size for path, m in copy.named_modules() if isinstance(m, Trimmed)}
    assert found == {"layer4.0.conv1": (2, 2), "layer4.0.conv2": (1, 1)}
    assert {m.part.weight.dtype for m in copy.modules() if isinstance(m, Trimmed)} == {dtype or torch.float32}

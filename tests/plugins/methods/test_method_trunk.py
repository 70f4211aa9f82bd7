"""What a network does not need for a feature is left out, on timm models of several families."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import nn

from kdbench.api import Tap
from kdbench.engine.handle import NetHandle
from kdbench.measure.operations import macs, parameters
from kdbench_methods._trunk import on, unused_modules, without

LAST = Tap(-1)


@pytest.mark.parametrize(
    ("name", "gone"),
    [
        ("test_resnet", {"fc"}),
        ("test_efficientnet", {"conv_head", "bn2", "classifier"}),
        ("test_vit", {"norm", "head"}),
        ("test_convnext", {"norm_pre", "head"}),
        ("test_byobnet", {"final_conv", "head"}),
    ],
)
def test_only_what_the_last_stage_needs_is_left(name, gone):
    size = {"img_size": 64} if "vit" in name else {}
    torch.manual_seed(0)
    net = timm.create_model(name, num_classes=7, **size)
    student = NetHandle("student", net, image_size=64, in_chans=3, device=torch.device("cpu"))
    x = torch.randn(2, 3, 64, 64)
    net.train()
    state = {k: v.clone() for k, v in net.state_dict().items()}
    left_out = set(unused_modules(student, LAST, x))
    assert left_out <= gone
    assert {m for m in gone if any(True for _ in net.get_submodule(m).parameters())} <= left_out
    assert all(m.training for m in net.modules())
    assert all(torch.equal(v, state[k]) for k, v in net.state_dict().items())
    net.eval()
    trunk = without(net, left_out)
    torch.testing.assert_close(
        on(student, trunk)(x, (LAST,)).feats[LAST], student(x, (LAST,)).feats[LAST], rtol=0, atol=0
    )
    dropped = sum(p.numel() for m in left_out for p in net.get_submodule(m).parameters())
    assert dropped > 0
    assert parameters(trunk) == parameters(net) - dropped
    assert macs(trunk, (x[:1],)) < macs(net, (x[:1],))


def test_the_network_is_shared_and_not_changed():
    net = nn.Sequential(nn.Linear(2, 3), nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 5)))
    out = without(net, ["1.1"])
    assert out[0] is net[0]
    assert out[1][0] is net[1][0]
    assert isinstance(out[1][1], nn.Identity)
    assert isinstance(net[1][1], nn.Linear)
    assert out(torch.zeros(1, 2)).shape == (1, 4)
    assert isinstance(without(net, ["1", "1.0"])[1], nn.Identity)


def test_what_the_forward_pass_needs_stays():
    class Needy(nn.Module):
        """Reads an attribute of its head, which Identity does not have."""

        def __init__(self):
            super().__init__()
            self.feature_info = [{"module": "body", "num_chs": 4, "reduction": 1}]
            self.body, self.head = nn.Conv2d(3, 4, 1), nn.Linear(4, 2)

        def forward(self, x):
            x = self.body(x).mean((2, 3))
            return self.head(x)[:, : self.head.out_features]

    net = Needy()
    student = NetHandle("student", net, image_size=8, in_chans=3, device=torch.device("cpu"))
    assert unused_modules(student, LAST, torch.randn(2, 3, 8, 8)) == []

"""boundary-similarity, activation-similarity and reconstruction-error."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

import kdbench_tasks
from kdbench.api import Batch, DataError, DataInfo, KdbenchError
from kdbench.engine.handle import NetHandle
from kdbench_architectures.resnet_cifar import resnet8
from kdbench_architectures.shufflenet_cifar import shufflenetv2
from kdbench_architectures.vgg_cifar import vgg8
from kdbench_tasks import activation, boundary, reconstruction

CLASSES, SIZE = 3, 16
INFO = DataInfo("d", CLASSES, tuple("abc"), SIZE, (0.5,) * 3, (0.25,) * 3, 9, 9, "1")


def make(builder, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return builder(num_classes=CLASSES, in_chans=3, image_size=SIZE)


def handle(net: nn.Module) -> NetHandle:
    return NetHandle("n", net, image_size=SIZE, in_chans=3, device=torch.device("cpu"))


def run_of(student: nn.Module, *teachers: nn.Module, val: bool = True) -> SimpleNamespace:
    splits = {"val": [images(6, 1), images(5, 2), images(1, 3)]} if val else {}
    return SimpleNamespace(
        student=handle(student),
        teachers=[handle(t) for t in teachers],
        data=INFO,
        task=SimpleNamespace(kind="categorical"),
        device=torch.device("cpu"),
        split=splits.__getitem__,
    )


def images(n: int, seed: int) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    return Batch(torch.randn(n, 3, SIZE, SIZE, generator=generator), torch.arange(n) % CLASSES)


class Linear(nn.Module):
    """Logits are linear in the first pixels of the channels; `turn` rotates the first two."""

    def __init__(self, turn: float = 0.0, scale: float = 1.0, push: float = 0.0) -> None:
        super().__init__()
        angle = torch.tensor(turn)
        self.rows = scale * torch.tensor(
            [[angle.cos(), angle.sin()], [-angle.sin(), angle.cos()], [-1.0, -1.0]]
        )
        self.push = torch.tensor([0.0, 0.0, push])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x[:, :2, 0, 0] @ self.rows.T + self.push


class TestBoundary:
    # points of class 0, 1 and 2, well inside the bounds of ±2
    X = torch.tensor([[0.5, 0.1], [0.1, 0.5], [-0.4, -0.3]])

    def split(self):
        x = torch.zeros(3, 3, SIZE, SIZE)
        x[:, :2, 0, 0] = self.X
        return [Batch(x, torch.arange(3))]

    def run(self, teacher):
        return SimpleNamespace(
            teachers=[SimpleNamespace(net=teacher)], data=INFO, task=SimpleNamespace(kind="categorical")
        )

    def test_golden(self):
        v_t, v_s = torch.tensor([[3.0, 4], [1, 0]]), torch.tensor([[0.0, 4], [2, 2]])
        ratio, cosine = boundary.similarities(v_t, v_s)
        assert float(ratio.mean()) == pytest.approx(0.576777, abs=1e-6)
        assert float(cosine.mean()) == pytest.approx(0.753553, abs=1e-6)

    def test_a_network_equals_itself(self):
        net = Linear(scale=3.0)
        got = boundary.evaluate(self.run(net), net, self.split())
        assert got["magsim"] == pytest.approx(1)
        assert got["angsim"] == pytest.approx(1)
        assert got["boundary_coverage"] == 1

    def test_the_scale_of_the_logits_does_not_matter(self):
        got = boundary.evaluate(self.run(Linear(scale=0.5)), Linear(scale=20.0), self.split())
        assert got["boundary_coverage"] == 1
        assert got["magsim"] == pytest.approx(1, abs=2e-3)
        assert got["angsim"] == pytest.approx(1, abs=1e-4)

    def test_a_turned_boundary_is_seen(self):
        got = [
            boundary.evaluate(self.run(Linear(scale=3.0)), Linear(turn, 3.0), self.split())
            for turn in (0.05, 0.3)
        ]
        assert 0.9 < got[1]["angsim"] < got[0]["angsim"] < 1
        assert all(0 < g["magsim"] <= 1 for g in got)

    def test_no_attack_arrives(self, monkeypatch):
        monkeypatch.setattr(boundary, "STEP_SIZE", 1e-3)
        got = boundary.evaluate(self.run(Linear()), Linear(), self.split())
        assert got == {"boundary_coverage": 0}

    def test_an_equal_quota_of_each_class(self, monkeypatch):
        monkeypatch.setattr(boundary, "IMAGES", 6)
        labels = torch.tensor([0] * 10 + [1] * 3 + [2])
        x = torch.zeros(len(labels), 3, SIZE, SIZE)
        x[:, :2, 0, 0] = self.X[labels]
        net = Linear()
        with torch.no_grad():
            chosen, y, rivals = boundary._select(
                net, net, [Batch(x[:4], labels[:4]), Batch(x[4:], labels[4:])], 3
            )
        assert y.bincount().tolist() == [2, 2, 1]
        assert len(chosen) == 5
        assert rivals.shape == (5, 2)
        assert not (rivals == y[:, None]).any()

    def test_errors(self):
        run = self.run(Linear())
        with pytest.raises(DataError, match="without images"):
            boundary.evaluate(run, Linear(), [])
        wrong = [Batch(b.x, (b.y + 1) % 3) for b in self.split()]
        with pytest.raises(DataError, match="both networks"):
            boundary.evaluate(run, Linear(), wrong)
        with pytest.raises(DataError, match="no labels"):
            boundary.evaluate(run, Linear(), [Batch(self.split()[0].x)])
        run.task.kind = "continuous"
        with pytest.raises(KdbenchError, match="continuous"):
            boundary.evaluate(run, Linear(), self.split())

    def test_convolutional_networks_keep_their_state(self):
        student, teacher = make(resnet8, 0).train(), make(resnet8, 1)
        x = images(60, 0).x
        with torch.no_grad():
            y = teacher.eval()(x).argmax(1)
        before = {k: v.clone() for k, v in student.state_dict().items()}
        teacher.load_state_dict(student.state_dict())
        with torch.no_grad():
            y = teacher(x).argmax(1)
        got = boundary.evaluate(run_of(student, teacher), student, [Batch(x, y)])
        assert got.get("magsim", 1) == pytest.approx(1)
        assert student.training
        assert all(torch.equal(v, before[k]) for k, v in student.state_dict().items())
        assert all(p.grad is None for n in (student, teacher) for p in n.parameters())


class TestActivation:
    def test_against_the_formula(self):
        student, teacher = make(resnet8, 0).eval(), make(resnet8, 1).eval()
        run, split = run_of(student, teacher), [images(4, 0), images(3, 1)]
        seen: list[dict[str, torch.Tensor]] = [{}, {}]
        x = torch.cat([b.x for b in split])
        for net, store in zip((student, teacher), seen, strict=True):
            for layer in (1, 2, 3):
                block = net.get_submodule(f"layer{layer}")[-1]
                block.act2.register_forward_pre_hook(
                    lambda _m, args, store=store, layer=layer: store.__setitem__(layer, args[0] > 0)
                )
            with torch.no_grad():
                net(x)
        differ = [(seen[0][k] != seen[1][k]).double().mean() for k in (1, 2, 3)]
        got = activation.evaluate(run, student, split)
        assert got["activation_similarity"] == pytest.approx(1 - float(sum(differ)) / 3, abs=1e-9)
        assert got["activation_stages"] == 3

    def test_a_network_equals_itself(self):
        net = make(resnet8, 0).train()
        got = activation.evaluate(run_of(net, net), net, [images(4, 0)])
        assert got == {"activation_similarity": 1, "activation_stages": 3}
        assert net.training

    @pytest.mark.parametrize("teacher", [vgg8, shufflenetv2], ids=lambda b: b.name)
    def test_other_shapes_and_missing_activations_are_left_out(self, teacher):
        student = make(resnet8, 0)
        got = activation.evaluate(run_of(student, make(teacher, 1)), student, [images(4, 0)])
        assert got == {"activation_stages": 0}

    def test_other_deployables_and_errors(self):
        net = make(resnet8, 0)
        assert activation.evaluate(run_of(net, net), make(resnet8, 1), [images(4, 0)]) == {}
        with pytest.raises(KdbenchError, match="no teacher"):
            activation.evaluate(run_of(net), net, [images(4, 0)])
        with pytest.raises(DataError, match="without images"):
            activation.evaluate(run_of(net, net), net, [])


class TestReconstruction:
    @pytest.fixture(autouse=True)
    def _few_steps(self, monkeypatch):
        monkeypatch.setattr(reconstruction, "STEPS", 12)

    def test_one_and_several_teachers(self):
        student, a, b = make(resnet8, 0), make(resnet8, 1), make(vgg8, 2)
        one = reconstruction.evaluate(run_of(student, a), student, [images(4, 5)])
        assert set(one) == {"reconstruction_error"}
        assert 0 < one["reconstruction_error"] < 1
        two = reconstruction.evaluate(run_of(student, a, b), student, [images(4, 5)])
        assert set(two) == {"reconstruction_error", "reconstruction_error_0", "reconstruction_error_1"}
        parts = two["reconstruction_error_0"], two["reconstruction_error_1"]
        assert two["reconstruction_error"] == pytest.approx(sum(parts) / 2)
        assert parts[0] == pytest.approx(one["reconstruction_error"], rel=1e-4)

    def test_training_lowers_the_error(self, monkeypatch):
        student, teacher = make(resnet8, 0), make(resnet8, 1)
        split = run_of(student, teacher).split("val")
        errors = []
        for steps in (1, 60):
            monkeypatch.setattr(reconstruction, "STEPS", steps)
            errors.append(reconstruction.evaluate(run_of(student, teacher), student, split))
        assert errors[1]["reconstruction_error"] < 0.9 * errors[0]["reconstruction_error"]

    def test_leaves_no_trace_and_repeats(self):
        student, teacher = make(resnet8, 0).train(), make(resnet8, 1)
        before = [{k: v.clone() for k, v in n.state_dict().items()} for n in (student, teacher)]
        torch.manual_seed(3)
        state = torch.get_rng_state()
        got = [reconstruction.evaluate(run_of(student, teacher), student, [images(4, 5)]) for _ in range(2)]
        assert got[0] == got[1]
        assert torch.equal(torch.get_rng_state(), state)
        for net, old in zip((student, teacher), before, strict=True):
            assert all(torch.equal(v, old[k]) for k, v in net.state_dict().items())
            assert all(p.grad is None for p in net.parameters())
        assert student.training

    def test_other_deployables_and_errors(self):
        net, split = make(resnet8, 0), [images(4, 5)]
        assert reconstruction.evaluate(run_of(net, net), make(resnet8, 1), split) == {}
        with pytest.raises(KdbenchError, match="no teacher"):
            reconstruction.evaluate(run_of(net), net, split)
        with pytest.raises(KdbenchError, match="val_fraction"):
            reconstruction.evaluate(run_of(net, net, val=False), net, split)
        with pytest.raises(DataError, match="without images"):
            reconstruction.evaluate(run_of(net, net), net, [])
        empty = run_of(net, net)
        empty.split = lambda name: [images(1, 0)]
        with pytest.raises(DataError, match="validation split without images"):
            reconstruction.evaluate(empty, net, split)


def test_entries_need_a_teacher_and_point_at_the_functions():
    entries = {e.name: e for e in kdbench_tasks.kdbench_evaluators()}
    for name, module in (
        ("boundary-similarity", boundary),
        ("activation-similarity", activation),
        ("reconstruction-error", reconstruction),
    ):
        assert entries[name].needs_teacher
        assert entries[name].target == f"{module.__name__}:evaluate"

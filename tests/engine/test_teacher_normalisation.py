"""A teacher whose weights expect another mean and std sees what it would see with images of its own kind."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from kdbench.engine.build import make_run
from kdbench.engine.cell import CellTrainer, read_cell
from kdbench.engine.cellspec import Arch, CellFile, TeacherSource
from kdbench.engine.handle import NetHandle
from kdbench.engine.normalise import Normalisation, Renormalise, renormalise
from kdbench.engine.probe import probe
from kdbench.engine.teachers import load_checkpoint
from kdbench.errors import KdbenchError
from kdbench.launch.plan import Planner
from kdbench.matrix import load_matrix
from kdbench.protocol.types import DataInfo, NotApplicable, Tap, TaskData
from kdbench.registry import Registry
from kdbench.results.schema import Record
from kdbench.results.store import RunFolder, atomic_write_bytes
from kdbench_datasets.digits import Digits
from kdbench_tasks.classification import Classification

CPU = torch.device("cpu")
OURS = Normalisation((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762))
THEIRS = Normalisation((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
TAPS = (Tap(0), Tap(-1, when="pre"))


def info(normalisation: Normalisation = OURS, size: int = 32, classes: int = 10, chans: int = 3) -> DataInfo:
    names = tuple(str(k) for k in range(classes))
    return DataInfo(
        "d", classes, names, size, normalisation.mean, normalisation.std, 9, 9, "1", in_chans=chans
    )


def pixels(n: int = 4, size: int = 32) -> Tensor:
    return torch.rand(n, 3, size, size, generator=torch.Generator().manual_seed(0))


def normalised(x: Tensor, by: Normalisation) -> Tensor:
    mean, std = (torch.tensor(v).view(1, -1, 1, 1) for v in (by.mean, by.std))
    return (x - mean) / std


def net_of(name: str = "test_resnet", **kw: Any) -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model(name, num_classes=10, **kw).eval()


def handles() -> tuple[NetHandle, NetHandle]:
    """A teacher as it is, and the same teacher adapted to our images."""
    plain, adapted = net_of(), net_of()
    renormalise(adapted, info(), THEIRS, "teacher0", CPU)
    where = {"image_size": 32, "in_chans": 3, "device": CPU}
    pair = NetHandle("plain", plain, **where), NetHandle("adapted", adapted, **where)
    for handle in pair:
        handle.net.requires_grad_(False)
    return pair


def close(a: Tensor, b: Tensor) -> None:
    assert not torch.equal(a, torch.zeros_like(a))
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("bn", ["eval", "batch"])
def test_outputs_and_taps_are_those_of_its_own_images(run: Any, bn: Any) -> None:
    plain, adapted = handles()
    taps = TAPS
    expected = run.teach(plain, normalised(pixels(), THEIRS), bn=bn, taps=taps)
    got = run.teach(adapted, normalised(pixels(), OURS), bn=bn, taps=taps)
    wrong = run.teach(plain, normalised(pixels(), OURS), bn=bn, taps=taps)
    close(got.logits, expected.logits)
    close(got.pooled, expected.pooled)
    for tap in taps:
        close(got.feats[tap], expected.feats[tap])
    assert (wrong.logits - expected.logits).abs().max() > 100 * (got.logits - expected.logits).abs().max()


def test_a_gradient_reaches_the_image_by_the_chain_rule(run: Any) -> None:
    plain, adapted = handles()
    ours = normalised(pixels(), OURS).requires_grad_()
    theirs = normalised(pixels(), THEIRS).requires_grad_()
    run.teach(adapted, ours, grad=True).logits.square().sum().backward()
    run.teach(plain, theirs, grad=True).logits.square().sum().backward()
    scale = torch.tensor(OURS.std).view(1, -1, 1, 1) / torch.tensor(THEIRS.std).view(1, -1, 1, 1)
    close(ours.grad, theirs.grad * scale)
    assert run.teach(adapted, ours).logits.requires_grad is False


def test_it_is_done_in_float32_under_autocast() -> None:
    _, adapted = handles()
    seen: list[Tensor] = []
    adapted.net.conv1.register_forward_pre_hook(lambda m, args: seen.append(args[0]))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        adapted(normalised(pixels(), OURS))
        adapted(normalised(pixels(), OURS).bfloat16())
    assert [x.dtype for x in seen] == [torch.float32] * 2
    close(seen[0], normalised(pixels(), THEIRS))


def test_memory_format_stays() -> None:
    x = normalised(pixels(), OURS).contiguous(memory_format=torch.channels_last)
    (out,) = Renormalise(OURS, THEIRS, CPU)(nn.Identity(), (x,))
    assert out.is_contiguous(memory_format=torch.channels_last)


def test_equal_normalisation_leaves_the_network_alone() -> None:
    near = Normalisation(tuple(m + 5e-7 for m in OURS.mean), OURS.std)
    for expected in (None, OURS, near):
        net = net_of()
        assert renormalise(net, info(), expected, "teacher0", CPU) is None
        assert not net._forward_pre_hooks
    far = Normalisation(tuple(m + 5e-6 for m in OURS.mean), OURS.std)
    assert renormalise(net_of(), info(), far, "teacher0", CPU) == far


def test_whoever_calls_the_network_and_its_copies() -> None:
    plain, adapted = handles()
    x = normalised(pixels(), OURS)
    expected = plain.net(normalised(pixels(), THEIRS))
    with torch.inference_mode():
        close(adapted.net(x), expected)
    close(copy.deepcopy(adapted.net)(x), expected)
    assert list(adapted.net.state_dict()) == list(plain.net.state_dict())
    with pytest.raises(TypeError, match="first positional argument"):
        adapted.net(x=x)


def test_another_number_of_channels_is_not_applicable() -> None:
    grey = info(Normalisation((0.3,), (0.3,)), chans=1)
    message = "teacher0: its weights expect images of 3 channels, the data set has 1"
    with pytest.raises(NotApplicable, match=message):
        renormalise(net_of(), grey, THEIRS, "teacher0", CPU)


# hub weights, without a hub: timm reads them from a file that its configuration names


def hub(
    path: Path, name: str = "test_resnet", classes: int = 10, size: int = 32, **cfg: Any
) -> tuple[Arch, Any]:
    """Return an architecture with "published" weights in a file, and the network they are of."""
    torch.manual_seed(7)
    kw = {"img_size": size} if "vit" in name else {}
    net = timm.create_model(name, num_classes=classes, **kw).eval()
    save_file(net.state_dict(), path)
    cfg = {"file": str(path), "num_classes": classes, "input_size": [3, size, size], "hf_hub_id": None, **cfg}
    return Arch(name=f"timm:{name}", args={"pretrained_cfg_overlay": cfg}), net


def cell_with(teacher: TeacherSource, tmp_path: Path) -> CellFile:
    (tmp_path / "m.yaml").write_text(
        """
name: tiny
datasets: [{name: digits, limit_train: 64, limit_test: 40}]
pairs: [{teacher: "timm:test_resnet", student: "timm:test_resnet"}]
methods: [kd]
seeds: [0]
evaluators: [teacher-agreement]
recipe: {epochs: 1, batch_size: 32, eval_batch_size: 40, optimizer: {name: momentum, lr: 0.01}}
throughput: false
"""
    )
    loaded = load_matrix(tmp_path / "m.yaml")
    plan = Planner(Registry.load(), loaded, RunFolder(tmp_path / "runs"), []).plan()
    cell = next(c for c in plan.cells if c.file.method == "kd").file
    return cell.model_copy(update={"teachers": [teacher]})


def run_with(teacher: TeacherSource, tmp_path: Path, facts: DataInfo, *, probing: bool = False) -> Any:
    cell = cell_with(teacher, tmp_path)
    data = TaskData({}, {}, facts)
    return make_run(Registry.load(), cell, facts, Classification(), data, CPU, tmp_path, probing=probing)


def test_hub_weights_say_what_they_expect(tmp_path: Path) -> None:
    arch, net = hub(tmp_path / "w.safetensors", mean=list(THEIRS.mean), std=list(THEIRS.std))
    source = TeacherSource(architecture=arch, source="pretrained", ref=arch.name)
    run = run_with(source, tmp_path, info())
    assert run.teacher.normalisation == THEIRS
    close(run.teach(run.teacher, normalised(pixels(), OURS)).logits, net(normalised(pixels(), THEIRS)))
    assert run.student.normalisation is None
    assert not run.student.net._forward_pre_hooks


def test_what_the_matrix_says_comes_first(tmp_path: Path) -> None:
    arch, _ = hub(tmp_path / "w.safetensors", mean=list(THEIRS.mean), std=list(THEIRS.std))
    source = TeacherSource(
        architecture=arch, source="pretrained", ref=arch.name, mean=OURS.mean, std=OURS.std
    )
    assert run_with(source, tmp_path, info()).teacher.normalisation is None


def test_hub_weights_of_a_fixed_size_are_resampled(tmp_path: Path) -> None:
    """A vision transformer published for 64 px takes 32 px; timm resamples its position embeddings."""
    arch, net = hub(tmp_path / "w.safetensors", "test_vit", size=64)
    source = TeacherSource(architecture=arch, source="pretrained", ref=arch.name)
    run = run_with(source, tmp_path, info())
    made = run.teacher.net
    assert made.pos_embed.shape[1] < net.pos_embed.shape[1]
    assert torch.equal(made.blocks[0].attn.qkv.weight, net.blocks[0].attn.qkv.weight)
    assert run.teach(run.teacher, normalised(pixels(), OURS)).logits.shape == (4, 10)


class OneSize(nn.Module):
    """A network that takes 64 px and nothing else."""

    pretrained_cfg = {"fixed_input_size": True, "input_size": (3, 64, 64)}

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.fc = nn.Linear(3 * 64 * 64, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x.flatten(1))


def test_a_network_for_one_size_is_refused_before_training(tmp_path: Path) -> None:
    def fake(registry: Any, arch: Arch) -> Callable[..., nn.Module]:
        return lambda num_classes, **facts: OneSize(num_classes) if arch.name == "one" else net_of()

    source = TeacherSource(architecture=Arch(name="one"), source="cell", ref="0" * 64)
    verdict = probe(Registry.load(), cell_with(source, tmp_path), fake)
    assert verdict.reason is not None
    assert verdict.reason.startswith("teacher0 cannot take 32x32 images: ")


@pytest.mark.parametrize("name", ["test_vit", "test_coatnet", "test_maxvit"])
def test_a_checkpoint_for_images_of_another_size(tmp_path: Path, name: str) -> None:
    path = tmp_path / "big.safetensors"
    save_file(net_of(name, img_size=128).state_dict(), path)
    net = net_of(name, img_size=64)
    shapes = {k: v.shape for k, v in net.state_dict().items()}
    message = r"big\.safetensors: its weights hold for images of another size: '[\w.]+' has shape"
    with pytest.raises(NotApplicable, match=message):
        load_checkpoint(net, path, None)
    assert {k: v.shape for k, v in net.state_dict().items()} == shapes


@pytest.mark.parametrize(("name", "kw"), [("test_vit", {"embed_dim": 32}), ("test_vit", {"num_classes": 7})])
def test_other_misfits_are_bad_input(tmp_path: Path, name: str, kw: dict[str, Any]) -> None:
    path = tmp_path / "w.safetensors"
    save_file(timm.create_model(name, img_size=64, **{"num_classes": 10, **kw}).state_dict(), path)
    with pytest.raises(KdbenchError, match="the architecture needs"):
        load_checkpoint(net_of(name, img_size=64), path, None)


# a whole cell


def trained(tmp_path: Path, source: TeacherSource) -> Record:
    cell = cell_with(source, tmp_path)
    folder = tmp_path / "runs" / "cells" / cell.cell_id
    folder.mkdir(parents=True)
    atomic_write_bytes(folder / "cell.json", cell.model_dump_json().encode())
    assert read_cell(folder) == cell
    return CellTrainer(folder, Registry.load()).run()


def images() -> tuple[Tensor, Tensor]:
    from kdbench.engine.data.splits import make_splits

    digits = Digits()
    split = make_splits(digits, digits.describe(), val_fraction=0.1, limit_train=64, limit_test=40)["test"]
    x = torch.from_numpy(digits.arrays("test", split.indices)).permute(0, 3, 1, 2).float() / 255
    return x, torch.from_numpy(np.asarray(split.labels))


def test_every_use_of_the_teacher_in_a_cell(tmp_path: Path) -> None:
    """Accuracy on record and the evaluator's agreement are those of a teacher with images of its own kind."""
    path = tmp_path / "teacher.safetensors"
    torch.manual_seed(3)
    net = timm.create_model("test_resnet", num_classes=10).eval()
    odd = Normalisation((0.9, 0.1, 0.5), (0.05, 0.9, 0.3))
    x, y = images()
    with torch.no_grad():
        # a head that is right about images of its own kind only
        features = net.forward_head(net.forward_features(normalised(x, odd)), pre_logits=True)
        net.fc.weight.copy_(
            torch.linalg.lstsq(features, 10 * F.one_hot(y, 10).float(), driver="gelsd").solution.T
        )
        net.fc.bias.zero_()
        own, foreign = net(normalised(x, odd)), net(normalised(x, Normalisation(*_digits())))
    save_file(net.state_dict(), path)
    source = TeacherSource(
        architecture=Arch(name="timm:test_resnet"),
        source="checkpoint",
        ref=str(path),
        mean=odd.mean,
        std=odd.std,
    )
    record = trained(tmp_path, source)
    (ref,) = record.teachers
    assert ref.normalization == {"mean": list(odd.mean), "std": list(odd.std)}
    top1 = [100 * (z.argmax(1) == y).float().mean().item() for z in (own, foreign)]
    assert top1[0] > top1[1] + 20
    assert ref.top1 == pytest.approx(top1[0])
    student = timm.create_model("test_resnet", num_classes=10).eval()
    folder = next((tmp_path / "runs" / "cells").iterdir())
    load_checkpoint(student, folder / "model.safetensors", None)
    with torch.no_grad():
        z = student(normalised(x, Normalisation(*_digits())))
    last = record.deployables["student"].last
    assert last["top1"] == pytest.approx(100 * (z.argmax(1) == y).float().mean().item())
    kl = F.kl_div(z.log_softmax(1), own.log_softmax(1), reduction="batchmean", log_target=True)
    assert last["kl_to_teacher"] == pytest.approx(kl.item(), rel=1e-3)
    assert record.cost is not None
    assert record.cost.teacher_share is not None
    assert record.warnings == []


def _digits() -> tuple[tuple[float, ...], tuple[float, ...]]:
    facts = Digits().describe()
    return facts.mean, facts.std


def test_hub_weights_of_other_classes_keep_all_but_the_classifier(tmp_path: Path) -> None:
    arch, net = hub(tmp_path / "w.safetensors", classes=12)
    source = TeacherSource(architecture=arch, source="pretrained", ref=arch.name)
    one, two = (run_with(source, tmp_path, info()).teacher.net for _ in range(2))
    theirs, head = net.state_dict(), tuple(f"fc.{k}" for k in ("weight", "bias"))
    for key, value in one.state_dict().items():
        assert torch.equal(value, two.state_dict()[key])  # random weights are those of every cell
        assert key in head or torch.equal(value, theirs[key])
    assert one.fc.weight.shape[0] == 10


def test_doubts_are_on_record(tmp_path: Path) -> None:
    arch, _ = hub(tmp_path / "w.safetensors", classes=12, mean=None, std=None)
    source = TeacherSource(architecture=arch, source="pretrained", ref=arch.name)
    record = trained(tmp_path, source)
    assert record.teachers[0].normalization is None
    assert record.warnings == [
        "teacher0: its weights do not say how their input is normalised; the data set's way was used",
        "teacher0: its weights have 12 classes and the data set 10, so its classifier has random weights",
    ]

"""The classification task: hand-computed metrics, losses, floors, flags."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import kdbench_tasks
from kdbench.api import Batch, DataError, DataInfo, KdbenchError, Out, TaskData
from kdbench_tasks.classification import Classification
from kdbench_tasks.metrics import ClassificationSums

TASK = Classification()


def info(k: int = 4, **kw: object) -> DataInfo:
    facts = {
        "name": "toy",
        "num_classes": k,
        "class_names": tuple(str(i) for i in range(k)),
        "image_size": 8,
        "mean": (0.5, 0.4, 0.3),
        "std": (0.2, 0.3, 0.4),
        "n_train": 8,
        "n_test": 8,
        "revision": "toy-1",
    }
    return DataInfo(**(facts | kw))


class Table(nn.Module):
    """Returns the input, so that a test writes the logits of every image."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def evaluate(logits: torch.Tensor, y: list[int], k: int, batch: int = 3) -> dict[str, float]:
    labels = torch.tensor(y)
    split = [Batch(a, b) for a, b in zip(logits.split(batch), labels.split(batch), strict=True)]
    return TASK.evaluate(Table(), split, TaskData({}, {"test": split}, info(k)))


def test_metrics_by_hand():
    p = torch.tensor(
        [[0.7, 0.1, 0.1, 0.1], [0.4, 0.3, 0.2, 0.1], [0.05, 0.9, 0.03, 0.02], [0.3, 0.2, 0.1, 0.4]]
    )
    y = [0, 1, 1, 0]
    got = evaluate(p.log(), y, 4)
    assert got["top1"] == pytest.approx(50)
    assert got["top5"] == pytest.approx(100)
    assert got["nll"] == pytest.approx(-(math.log(0.7) + math.log(0.3) + math.log(0.9) + math.log(0.3)) / 4)
    # images 2 and 4 (confidence 0.4 each, both wrong) share the sixth bin, (1/3, 2/5]; the others are alone
    assert got["ece"] == pytest.approx(100 * (abs(0.7 - 1) + abs(0.8 - 0) + abs(0.9 - 1)) / 4, abs=1e-4)


def test_top5_counts_five_of_many_classes():
    logits = torch.arange(8.0).flip(0).repeat(8, 1)
    got = evaluate(logits, list(range(8)), 8)
    assert got["top1"] == pytest.approx(100 / 8)
    assert got["top5"] == pytest.approx(100 * 5 / 8)


def test_top5_of_three_classes_is_top3():
    assert evaluate(torch.randn(6, 3), [0, 1, 2, 0, 1, 2], 3)["top5"] == 100


def test_calibration_error_against_a_plain_loop():
    torch.manual_seed(0)
    logits, y = 3 * torch.randn(500, 10), torch.randint(10, (500,))
    p = logits.double().softmax(1)
    confidence, guess = p.max(1)
    expected = 0.0
    for m in range(15):
        inside = (confidence > m / 15) & (confidence <= (m + 1) / 15)
        if inside.any():
            gap = (guess[inside] == y[inside]).double().mean() - confidence[inside].mean()
            expected += inside.double().mean().item() * abs(gap.item())
    got = evaluate(logits, y.tolist(), 10, batch=64)
    assert got["ece"] == pytest.approx(100 * expected, rel=1e-9)
    assert got["nll"] == pytest.approx(F.cross_entropy(logits.double(), y).item(), rel=1e-9)
    assert got["top5"] == pytest.approx(
        100 * (logits.topk(5).indices == y[:, None]).any(1).double().mean().item()
    )


def test_the_batching_does_not_matter():
    torch.manual_seed(1)
    logits, y = torch.randn(50, 6), torch.randint(6, (50,)).tolist()
    assert evaluate(logits, y, 6, batch=1) == pytest.approx(evaluate(logits, y, 6, batch=50), rel=1e-12)


def test_a_perfect_network_is_best_and_a_random_one_worse():
    torch.manual_seed(2)
    y = torch.randint(10, (400,))
    perfect = evaluate(100 * F.one_hot(y, 10).float(), y.tolist(), 10)
    random = evaluate(torch.randn(400, 10), y.tolist(), 10)
    assert perfect == pytest.approx({"top1": 100, "top5": 100, "nll": 0, "ece": 0}, abs=1e-9)
    for metric in TASK.metrics():
        sign = 1 if metric.higher_is_better else -1
        assert sign * perfect[metric.name] > sign * random[metric.name]
    assert 2 < random["top1"] < 18


def test_answers_by_class_are_counted_in_the_same_pass():
    torch.manual_seed(3)
    logits, y = torch.randn(50, 6), torch.randint(6, (50,))
    batches = [Batch(a, b) for a, b in zip(logits.split(8), y.split(8), strict=True)]
    net = Table()
    calls = []
    net.register_forward_hook(lambda *a: calls.append(a))
    data = TaskData({}, {"test": batches}, info(6))
    metrics, counts = TASK.evaluate_classes(net, batches, data)
    assert len(calls) == len(batches)
    assert metrics == TASK.evaluate(net, batches, data)
    assert counts.tolist() == [
        [sum((y == t) & (logits.argmax(1) == p)).item() for p in range(6)] for t in range(6)
    ]


def test_half_precision_logits_are_measured_in_full():
    logits = torch.tensor([[300.0, 0.0]] * 4096)
    got = evaluate(logits.half(), [1] * 4096, 2, batch=512)
    assert got["nll"] == pytest.approx(300)


def test_metrics_declared_and_given_are_the_same():
    metrics = TASK.metrics()
    assert [m.name for m in metrics if m.primary] == ["top1"]
    assert set(evaluate(torch.randn(4, 4), [0, 1, 2, 3], 4)) == {m.name for m in metrics}
    (entry,) = kdbench_tasks.kdbench_tasks()
    assert (entry.name, entry.kind, entry.capabilities) == (TASK.name, TASK.kind, TASK.capabilities)
    assert entry.primary == "top1"


def test_empty_and_unlabelled_splits():
    data = TaskData({}, {"test": []}, info())
    with pytest.raises(DataError, match=r"toy: .*without images"):
        TASK.evaluate(Table(), [], data)
    with pytest.raises(DataError, match=r"toy: .*needs labels"):
        TASK.evaluate(Table(), [Batch(torch.randn(2, 4))], data)
    with pytest.raises(DataError, match="toy: floors"):
        TASK.floors(data)
    with pytest.raises(DataError, match="without images"):
        ClassificationSums(3, torch.device("cpu")).read()


def test_training_flags_come_back_module_by_module():
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.9), nn.Flatten(), nn.Linear(144, 4)
    )
    net.train()
    net[1].eval()
    before = [m.training for m in net.modules()]
    mean = net[1].running_mean.clone()
    seen = []
    net[2].register_forward_hook(lambda m, _i, _o: seen.append((m.training, torch.is_grad_enabled())))
    split = [Batch(torch.randn(4, 3, 8, 8), torch.tensor([0, 1, 2, 3]))]
    data = TaskData({}, {"test": split}, info())
    first = TASK.evaluate(net, split, data)
    assert seen == [(False, False)]
    assert [m.training for m in net.modules()] == before
    assert torch.equal(net[1].running_mean, mean)
    assert TASK.evaluate(net, split, data) == first

    def broken():
        yield split[0]
        raise RuntimeError("the disk went away")

    with pytest.raises(RuntimeError, match="went away"):
        TASK.evaluate(net, broken(), data)
    assert [m.training for m in net.modules()] == before
    assert torch.is_grad_enabled()


def test_loss_is_plain_cross_entropy_in_float32():
    logits = torch.randn(5, 4, dtype=torch.bfloat16, requires_grad=True)
    y = torch.tensor([0, 1, 2, 3, 0])
    loss = TASK.loss(Out(logits), Batch(torch.zeros(5), y))
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, F.cross_entropy(logits.float(), y))
    loss.backward()
    assert logits.grad is not None
    with pytest.raises(KdbenchError, match="labels"):
        TASK.loss(Out(logits), Batch(torch.zeros(5)))


@pytest.mark.parametrize("t", [1.0, 4.0])
def test_divergence_by_its_definition(t):
    torch.manual_seed(0)
    s = torch.randn(6, 5, requires_grad=True)
    q = torch.randn(6, 5, requires_grad=True)
    got = TASK.divergence(Out(s), Out(q), t)
    p_t, p_s = (q / t).softmax(1), (s / t).softmax(1)
    expected = t * t * (p_t * (p_t / p_s).log()).sum(1).mean()
    torch.testing.assert_close(got, expected)
    got.backward()
    torch.testing.assert_close(s.grad, t * (p_s - p_t).detach() / 6)
    assert q.grad is None


def test_divergence_of_equal_outputs_is_zero_and_finite_at_the_extremes():
    s = torch.tensor([[1e4, -1e4, 0.0]])
    assert TASK.divergence(Out(s), Out(s)).item() == pytest.approx(0)
    assert math.isfinite(TASK.divergence(Out(-s), Out(s), 2.0).item())


class Context:
    info = info()
    batch_size = 4
    device = torch.device("cpu")
    label_smoothing = 0.1

    def __init__(self, val):
        self.val = val

    def image_streams(self):
        return {"train": "a stream"}

    def train_labels(self):
        return torch.tensor([1, 0])

    def image_split(self, name):
        return {"test": [Batch(torch.zeros(2, 4), torch.tensor([1, 1]))], "val": self.val}[name]


@pytest.mark.parametrize(("val", "names"), [((), {"test"}), ([Batch(torch.zeros(1, 4))], {"test", "val"})])
def test_setup_takes_what_the_engine_has(val, names):
    data = TASK.setup(Context(val))
    assert set(data.splits) == names
    assert set(data.streams) == {"train"}
    assert data.info is Context.info
    assert data.labels.tolist() == [1, 0]


def test_floors():
    split = [
        Batch(torch.zeros(3, 4), torch.tensor([0, 2, 2])),
        Batch(torch.zeros(2, 4), torch.tensor([2, 1])),
    ]
    floors = TASK.floors(TaskData({}, {"test": split}, info()))
    assert floors == pytest.approx({"majority": 60, "uniform": 25})


def test_throughput_inputs_are_normalised_images():
    facts = info(image_size=16)
    throughput = TASK.throughput(TaskData({}, {}, facts), torch.device("cpu"))
    (x,) = throughput.make_inputs(64)
    assert throughput.unit == "images"
    assert x.shape == (64, 3, 16, 16)
    assert x.dtype == torch.float32
    low, high = facts.bounds
    for c in range(3):
        assert low[c] <= x[:, c].min() < low[c] + 0.1
        assert high[c] - 0.1 < x[:, c].max() <= high[c]
    assert torch.equal(x, throughput.make_inputs(64)[0])


def test_build_passes_the_facts_on():
    seen = {}
    TASK.build("student", lambda **kw: seen.update(kw) or nn.Identity(), TaskData({}, {}, info(7)))
    assert seen == {"num_classes": 7, "in_chans": 3, "image_size": 8}

"""All contenders of the comparison train the same: equal losses and equal weights, epoch by epoch.

Each trains a whole cell by its own means. The training set is one batch and is not augmented, so that an order
of its own makes no difference to any, and the rate decays on the way.
"""

import pytest
import torch
from peers import clock as clocks
from peers.clock import Clock
from peers.contenders import CONTENDERS
from peers.material import Material
from peers.spec import PAIRS, spec_of
from safetensors.torch import load_file

#: A net that kdbench builds and timm does not know: what is asked of timm's nets must do for it.
PAIR = "resnet20->resnet8"
EPOCHS = 3
#: Contenders that compute what the others do; a lower precision does not.
SAME = [name for name, contender in CONTENDERS.items() if not contender.recipe]
#: How far apart reordered sums may bring losses, relatively, and weights, in units of the way that they went.
LOSSES, WEIGHTS = 1e-5, 1e-3


@pytest.fixture(scope="module", autouse=True)
def process_state():
    """Put back what training sets for the whole process."""
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    state, benchmark = torch.get_rng_state(), torch.backends.cudnn.benchmark
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(deterministic)
    torch.set_rng_state(state)
    torch.backends.cudnn.benchmark = benchmark


@pytest.fixture(scope="module")
def train(tmp_path_factory):
    """Return a function that trains the cell with a contender: outcome, times, and the student's first weights."""
    recipe = {"epochs": EPOCHS, "milestones": (2,), "weight_decay": 0.01}
    one_batch = {"images": 100, "batch_size": 100, "padding": 0, "workers": 0}
    spec = spec_of(PAIRS[PAIR], **recipe, **one_batch).model_copy(update={"flip": False})

    def run(name, **changes):
        folder, changed = tmp_path_factory.mktemp(name), spec.model_copy(update=changes)
        material = Material(changed, folder)
        material.write_student()
        material.write_teacher()
        with Clock() as clock:
            outcome = CONTENDERS[name].load()(changed, folder, clock)
        return outcome, clock.times(), load_file(folder / "student.safetensors")

    return run


@pytest.fixture(scope="module")
def plain(train):
    """The plain loop's training."""
    return train("plain")[0]


def apart(a, b, first):
    """Return how far apart two state dicts are, in units of the way from the first weights to the second of them.

    Parameters and BatchNorm statistics each have their own way; the larger of the two quotients counts.
    """
    assert a.keys() == b.keys() == first.keys()
    quotients = []
    for statistics in (True, False):
        keys = [k for k in b if b[k].is_floating_point() and ("running_" in k) == statistics]
        off = torch.cat([(a[k] - b[k]).flatten() for k in keys]).norm()
        quotients.append(float(off / torch.cat([(b[k] - first[k]).flatten() for k in keys]).norm()))
    return max(quotients)


@pytest.mark.parametrize("name", [name for name in SAME if name != "plain"])
def test_same_losses_and_weights_as_the_plain_loop(train, plain, name):
    if CONTENDERS[name].missing:
        pytest.skip(CONTENDERS[name].missing)
    other, times, first = train(name)
    assert other.losses == pytest.approx(plain.losses, rel=LOSSES)
    assert apart(other.weights, plain.weights, first) < WEIGHTS
    assert other.top1 == pytest.approx(plain.top1, abs=1.0)
    assert [epoch["steps"] for epoch in times] == [1] * EPOCHS


@pytest.mark.parametrize(
    "change",
    [
        {"kd_weight": 0.85},
        {"temperature": 5.0},
        {"weight_decay": 5e-4},
        {"milestones": ()},
        {"momentum": 0.8},
    ],
    ids=lambda change: next(iter(change)),
)
def test_another_recipe_is_told_apart(train, plain, change):
    other, _, first = train("plain", **change)
    assert apart(other.weights, plain.weights, first) > 10 * WEIGHTS


def test_clock_sees_every_step_and_no_evaluation(train):
    _, times, _ = train("plain", batch_size=20, epochs=2, milestones=())
    assert [epoch["steps"] for epoch in times] == [5, 5]
    for epoch in times:
        assert len(epoch["between"]) == 4
        assert 0 < sum(epoch["between"]) < epoch["seconds"]


def test_clock_tells_own_work_from_that_of_others(monkeypatch):
    # processor seconds of the machine and of this process, at the second epoch and at the end
    busy, own, now = iter([100.0, 106.0]), iter([10.0, 12.0]), iter([0.0, 1.0, 1.0, 3.0])
    monkeypatch.setattr(clocks, "busy_s", lambda: next(busy))
    monkeypatch.setattr(clocks, "own_cpu_s", lambda: next(own))
    monkeypatch.setattr(clocks.time, "perf_counter", lambda: next(now))
    with Clock() as clock:
        clock.epoch()
        clock._epochs[-1].append(0.5)
        clock.epoch()
    assert clock.others == pytest.approx((6.0 - 2.0) / (3.0 - 1.0))


def test_own_work_counts_as_own():
    before = clocks.busy_s(), clocks.own_cpu_s()
    while clocks.own_cpu_s() < before[1] + 0.3:
        sum(range(100_000))
    # the kernel counts the machine's time in hundredths of a second
    assert clocks.busy_s() - before[0] > 0.2

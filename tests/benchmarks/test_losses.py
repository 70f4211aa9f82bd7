"""Forward and backward pass of every loss against a straight-line torch version of its formula.

``pytest --benchmark-only tests/benchmarks/test_losses.py [--benchmark-json FILE]``; results of a run on a CPU are
in ``results/``. The table's times are those of the method; ``extra_info`` has the ratio to the formula (goal: at
most 2), taken in turn with it in one process, and the peak memory of both in bytes. The method is measured from
the networks' outputs to the gradients at them: taps, connectors and loss, as a step of a cell runs them.

The formula's version shares nothing with the method but the modules that it trains, and must give the same
value and the same gradients before anything is timed.
"""

from __future__ import annotations

import time

import pytest
import torch
from losses.cases import CASES, Comparison
from losses.measure import in_turns, peak_bytes, synchronised
from losses.steps import Stepper
from losses.world import SIZES

from kdbench.registry import Registry
from kdbench_methods import METHODS

#: Processor time where one thread does the work: what other processes take does not count.
TIMERS = {"cpu": time.process_time, "cuda": time.perf_counter}
DEVICES = [
    pytest.param("cpu", marks=pytest.mark.benchmark(timer=TIMERS["cpu"])),
    pytest.param(
        "cuda",
        marks=[
            pytest.mark.benchmark(timer=TIMERS["cuda"]),
            pytest.mark.gpu,
            pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
        ],
    ),
]
#: Largest ratio of a method's time to its formula's.
BOUND = 2.0


@pytest.fixture(scope="module")
def registry():
    return Registry.load()


@pytest.fixture(autouse=True)
def one_thread():
    """As a worker process on a CPU has it."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def same_formula(pair, device):
    """Check values and gradients of a comparison against each other; return the peak bytes of both."""
    ours, ours_bytes = peak_bytes(pair.ours, device)
    ours_at = [None if g is None else g.clone() for g in pair.gradients()]
    plain, plain_bytes = peak_bytes(pair.plain, device)
    plain_at = pair.gradients()
    torch.testing.assert_close(ours, plain.reshape(()), rtol=1e-4, atol=1e-6)
    assert any(g is not None for g in plain_at)
    for a, b in zip(ours_at, plain_at, strict=True):
        assert (a is None) == (b is None)
        if a is not None and b is not None:
            assert float((a - b).norm()) <= 1e-3 * float(b.norm()) + 1e-5
    return ours_bytes, plain_bytes


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_loss(benchmark, case, size, device, registry):
    where, benchmark.group = torch.device(device), f"{size} {device}"
    pair = Comparison(registry, case, SIZES[size], device)
    ours, plain = synchronised(pair.ours, where), synchronised(pair.plain, where)
    ours_bytes, plain_bytes = same_formula(pair, where)
    turns = in_turns(benchmark, ours, plain, TIMERS[device])
    benchmark.extra_info |= {
        "ratio": round(turns.ratio, 3),
        "fastest_ratio": round(turns.fastest_ratio, 3),
        "plain_s": min(turns.plain),
        "peak_bytes": ours_bytes,
        "plain_peak_bytes": plain_bytes,
    }
    assert turns.ratio <= BOUND


@pytest.mark.parametrize("device", DEVICES)
def test_step_of_crd(benchmark, device, registry):
    """CRD with 16,384 negatives of 50,000 images against FitNets, whole steps. Goal: less than 1.5 times.

    The networks are the thinnest pair of the CIFAR tables, which leaves CRD the least to hide behind.
    """
    where, benchmark.group = torch.device(device), f"steps {device}"
    crd, fitnet = (Stepper(registry, name, "resnet56", "resnet20", device) for name in ("crd", "fitnet"))
    assert (crd.method.k, crd.method.n_data) == (16_384, 50_000)
    ours, other = synchronised(crd.step, where), synchronised(fitnet.step, where)
    ours()
    turns = in_turns(benchmark, ours, other, TIMERS[device])
    benchmark.extra_info |= {
        "ratio": round(turns.ratio, 3),
        "fastest_ratio": round(turns.fastest_ratio, 3),
        "fitnet_s": min(turns.plain),
    }
    assert turns.ratio < 1.5


def test_every_method_is_here():
    # no benchmark fixture: this runs with the ordinary tests
    assert {case.method or case.name for case in CASES} == {entry.name for entry in METHODS}

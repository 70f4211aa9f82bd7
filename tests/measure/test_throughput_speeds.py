"""Speeds by hand, rounds, warnings, flags."""

from __future__ import annotations

import time

import pytest
import torch
from torch import Tensor, nn

from kdbench.measure.throughput import measure, median_seconds, summarise

CPU = torch.device("cpu")


def test_summary_by_hand() -> None:
    """Rounds of 10, 20, ... 50 ms: quartiles 20 and 40, 95th percentile 48 (linear interpolation)."""
    speed = summarise([0.05, 0.01, 0.04, 0.02, 0.03], 6, 12.5)
    assert speed.images_per_s == pytest.approx(200.0)
    assert speed.latency_ms_p50 == pytest.approx(30.0)
    assert speed.latency_ms_p95 == pytest.approx(48.0)
    assert speed.iqr_ratio == pytest.approx(20 / 30)
    assert speed.rounds == 5
    assert speed.peak_memory_mb == 12.5


def test_summary_of_equal_rounds_has_no_spread() -> None:
    speed = summarise([0.25] * 4, 1)
    assert speed.iqr_ratio == 0
    assert speed.latency_ms_p50 == speed.latency_ms_p95 == 250
    assert speed.images_per_s == 4
    assert speed.peak_memory_mb is None


def test_summary_of_one_round() -> None:
    speed = summarise([0.5], 2)
    assert (speed.images_per_s, speed.latency_ms_p95, speed.iqr_ratio, speed.rounds) == (4, 500, 0, 1)


def test_median_resists_an_outlier() -> None:
    assert summarise([0.01] * 9 + [5.0], 1).images_per_s == pytest.approx(100)


class Sleeper(nn.Module):
    """Takes a known time and says who called it."""

    def __init__(self, seconds: float, log: list[tuple[str, int]], name: str) -> None:
        super().__init__()
        self.seconds, self.log, self.name = seconds, log, name

    def forward(self, x: Tensor) -> Tensor:
        assert not self.training
        assert torch.is_inference_mode_enabled()
        self.log.append((self.name, len(x)))
        time.sleep(self.seconds)
        return x


def inputs(batch: int) -> tuple[Tensor, ...]:
    return (torch.zeros(batch, 3, 2, 2),)


def test_rounds_are_interleaved_after_the_warm_up() -> None:
    log: list[tuple[str, int]] = []
    nets = {name: Sleeper(0.002, log, name) for name in ("a", "b")}
    speeds, warnings = measure(nets, inputs, batch_sizes=[1, 8], rounds=4, device=CPU)
    contenders = [("a", 1), ("a", 8), ("b", 1), ("b", 8)]
    assert log == [c for c in contenders for _ in range(3)] + contenders * 4
    assert warnings == []
    assert list(speeds) == ["a", "b"]
    for speed in speeds.values():
        assert list(speed) == ["1", "8"]
        assert speed["1"].rounds == speed["8"].rounds == 4
        assert speed["1"].latency_ms_p50 >= 2
        assert speed["8"].images_per_s == pytest.approx(8e3 / speed["8"].latency_ms_p50)
    assert all(net.training for net in nets.values())


def test_training_flags_come_back_one_by_one() -> None:
    net = nn.Sequential(nn.BatchNorm2d(3), nn.Dropout())
    net[1].eval()
    before = net[0].running_mean.clone()  # type: ignore[union-attr, operator]
    measure({"n": net}, inputs, batch_sizes=[2], rounds=2, device=CPU)
    assert [m.training for m in net.modules()] == [True, True, False]
    assert torch.equal(net[0].running_mean, before)  # type: ignore[arg-type]


def test_slow_contender_stops_early_and_fast_one_does_not() -> None:
    log: list[tuple[str, int]] = []
    nets = {"slow": Sleeper(0.02, log, "slow"), "fast": Sleeper(0.0, log, "fast")}
    speeds, _ = measure(nets, inputs, batch_sizes=[1], rounds=20, device=CPU, max_seconds=0.05)
    assert speeds["slow"]["1"].rounds == 3
    assert speeds["fast"]["1"].rounds == 20


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, MemoryError])
def test_out_of_memory_is_a_warning_for_that_batch_only(error: type[Exception]) -> None:
    class Hungry(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            if len(x) > 4:
                raise error("no")
            return x

    net = Hungry()
    speeds, warnings = measure({"net": net}, inputs, batch_sizes=[1, 4, 8], rounds=2, device=CPU)
    assert list(speeds["net"]) == ["1", "4"]
    assert warnings == ["throughput of 'net' at batch 8: out of memory"]
    assert net.training


def test_flags_come_back_after_an_error() -> None:
    class Broken(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise ValueError("broken")

    net = Broken()
    with pytest.raises(ValueError, match="broken"):
        measure({"net": net}, inputs, batch_sizes=[1], rounds=2, device=CPU)
    assert net.training


def test_autocast_is_used() -> None:
    seen: list[torch.dtype] = []

    class Linear(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            out = super().forward(x.flatten(1))
            seen.append(out.dtype)
            return out

    cast = lambda: torch.autocast("cpu", dtype=torch.bfloat16)  # noqa: E731
    measure({"n": Linear(12, 2)}, inputs, batch_sizes=[1], rounds=1, device=CPU, autocast=cast)
    assert set(seen) == {torch.bfloat16}


def test_median_seconds_leaves_the_first_call_out() -> None:
    waits = iter([0.2, 0.0, 0.01, 0.01, 0.01, 0.0])
    calls: list[int] = []

    def call() -> None:
        calls.append(1)
        time.sleep(next(waits))

    assert 0.01 <= median_seconds(call, CPU) < 0.1
    assert len(calls) == 6


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_events_time_the_kernels_and_not_their_launch() -> None:
    device = torch.device("cuda")
    net = nn.Conv2d(64, 64, 7, padding=3).to(device)

    def large(batch: int) -> tuple[Tensor, ...]:
        return (torch.randn(batch, 64, 112, 112, device=device),)

    speeds, _ = measure({"n": net}, large, batch_sizes=[1, 64], rounds=10, device=device)
    one, many = speeds["n"]["1"], speeds["n"]["64"]
    assert many.latency_ms_p50 > 5 * one.latency_ms_p50
    assert one.peak_memory_mb is not None
    assert many.peak_memory_mb is not None
    assert many.peak_memory_mb > one.peak_memory_mb + 64 * 64 * 112 * 112 * 4 / 2**20 * 0.9
    start = time.perf_counter()
    with torch.inference_mode():
        net(*large(64))
    torch.cuda.synchronize()
    assert many.latency_ms_p50 <= 1e3 * (time.perf_counter() - start)

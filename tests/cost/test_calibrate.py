"""Measuring a CPU takes seconds, however long the rows are."""

import time

import pytest
import torch

from longred.cost import calibrate
from longred.cost.shape import named_config, shape_of

CPU = torch.device("cpu")


def test_long_rows_are_not_measured_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    measured = []

    def attention(shape: object, length: int, *_: object) -> tuple[float, float]:
        measured.append(length)
        return 1e9, 1e9

    monkeypatch.setattr(calibrate, "_attention", attention)
    monkeypatch.setattr(calibrate, "product_seconds", lambda *_: 1.0)
    monkeypatch.setattr(calibrate, "call_seconds", lambda *_, **__: 1.0)
    shape = shape_of(named_config("meta-llama/Meta-Llama-3-8B"))
    lengths = [1024, 32768, 131072]
    speeds = calibrate.calibrate(shape, lengths, tokens=32768, device=CPU, dtype=torch.float32)
    assert measured == [1024, 8192]
    assert speeds.attention(131072) == speeds.attention_flops[8192]


@pytest.mark.parametrize(("seconds", "num_calls"), [(0.6, 2), (0.12, 4)])
def test_a_slow_call_is_timed_twice(seconds: float, num_calls: int) -> None:
    calls = []

    def work() -> None:
        calls.append(seconds)
        time.sleep(seconds)

    assert seconds <= calibrate.call_seconds(work, CPU) < seconds + 0.3
    assert len(calls) == num_calls

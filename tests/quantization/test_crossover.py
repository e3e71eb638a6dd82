"""Choosing the faster of two ways: decided by what was measured, the same result whichever is taken."""

import time

import pytest
import torch
from torch import Tensor

from playground.quantization import crossover
from playground.quantization.crossover import Trial, known_crossovers, measured_crossover
from playground.quantization.linear import QuantizedLinear
from tests.quantization.weights import random_weight


class Fake:
    """Packed products that take a time for every row, against one of a fixed time."""

    name = "fake"

    @classmethod
    def random(cls, outputs: int, inputs: int) -> "Fake":
        return cls()

    def packed(self, x: Tensor) -> None:
        time.sleep(len(x) * 4e-4)

    def written(self, x: Tensor) -> None:
        time.sleep(2.4e-3)


def test_the_last_row_count_at_which_the_packed_product_wins_is_found_and_remembered() -> None:
    found = measured_crossover(Fake, 4096, 64)
    assert found.rows == 4 and found.outputs == 512 and list(found.packed_us) == [1, 2, 4, 8]
    assert found in known_crossovers() and "packed up to 4 rows" in str(found)
    assert measured_crossover(Fake, 1024, 64) is found, "wide matrices are one class"


def test_a_packed_product_that_never_wins_is_never_used(monkeypatch: pytest.MonkeyPatch) -> None:
    class Slow(Fake):
        def packed(self, x: Tensor) -> None:
            time.sleep(6e-3)

    assert measured_crossover(Slow, 64, 64).rows == 0


def test_rows_decide_which_way_a_layer_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    linear = QuantizedLinear(random_weight(64, 64), None, dtype=torch.bfloat16, device="cpu")
    went: list[str] = []
    layout = linear.layout
    monkeypatch.setattr(layout, "_crossover", crossover.Crossover("x", 64, 64, 1, 3, {}, {}), raising=False)
    packed, written = layout.packed, layout.written  # type: ignore[attr-defined]
    monkeypatch.setattr(layout, "packed", lambda x: (went.append("packed"), packed(x))[1])
    monkeypatch.setattr(layout, "written", lambda x: (went.append("written"), written(x))[1])
    for rows in (1, 3, 4):
        linear(torch.ones(rows, 64, dtype=torch.bfloat16))
    assert went == ["packed", "packed", "written"]


def test_a_trial_takes_turns_and_then_the_faster_way() -> None:
    went: list[str] = []

    def way(name: str, seconds: float):
        def run(x: Tensor) -> Tensor:
            went.append(name)
            time.sleep(seconds)
            return x

        return run

    for slow, fast in (("first", "second"), ("second", "first")):
        went.clear()
        trial = Trial("sleeping", calls=3)
        ways = {slow: way(slow, 4e-3), fast: way(fast, 1e-4)}
        for _ in range(10):
            trial.run(ways["first"], ways["second"], torch.zeros(1))
        assert went == ["first", "second"] * 3 + [fast] * 4
        assert trial.second_is_faster == (fast == "second")

"""What a report should show of a well-trained model, and whether it does. Pure: numbers in, verdicts out.

No threshold is bent: where a model does not show what is published, the verdict says so and whether the difference is
larger than its error.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from torch import Tensor

from playground.compression.perplexity import paired_difference

Rows = Mapping[str, Mapping[str, Any]]
NOISE = 2.0
"""Differences of fewer standard errors than this say nothing."""


@dataclass(frozen=True)
class Goal:
    """One promise."""

    what: str
    reach: str
    measured: str
    reached: bool
    why: str
    """Empty where it is reached."""


@dataclass(frozen=True)
class _Context:
    rows: Rows
    nlls: Mapping[str, Tensor]
    """Differences to the unchanged model, token by token."""

    def has(self, *keys: str) -> bool:
        return all(key in self.rows for key in keys)

    def change(self, key: str) -> float:
        return float(self.rows[key]["change"])

    def z(self, worse: str, better: str) -> float:
        """Standard errors by which one row's loss exceeds another's on the same tokens."""
        return paired_difference(self.nlls[worse], self.nlls[better]).z

    def excess(self, part: str, whole: str, most: float) -> float:
        """Standard errors by which one row's loss exceeds so much of another's on the same tokens."""
        return paired_difference(self.nlls[part], most * self.nlls[whole]).z


def check_goals(rows: Rows, nlls: Mapping[str, Tensor]) -> list[Goal]:
    """Verdicts on everything that the rows at hand tell; `nlls` are differences to the unchanged model."""
    context = _Context(rows, nlls)
    found: list[Goal] = []
    for check in (_small, _halves, _orders, _double_quantization, _two_bits, _layers, _kv_bytes):
        found += check(context)
    return found


def percent(value: float) -> str:
    """A relative change with sign and three significant digits, or thousandths where it is smaller."""
    return f"{100 * value:+.3g} %" if abs(value) >= 1e-5 else f"{100 * value:+.3f} %"


def _small(context: _Context) -> list[Goal]:
    limits = {"int8": 0.001, "kv-int8": 0.0005, "kv-fp8": 0.001}
    goals = []
    for key, limit in limits.items():
        if context.has(key):
            change, z = context.change(key), float(context.rows[key]["z"])
            why = "" if abs(change) <= limit else _size_of(z)
            label = str(context.rows[key]["label"])
            goals.append(Goal(label, f"within {100 * limit:g} %", percent(change), abs(change) <= limit, why))
    return goals


def _halves(context: _Context) -> list[Goal]:
    pairs = [("gptq4", "rtn4-128", 0.5, "int4 in groups of 128: GPTQ's loss over that of rounding to nearest")]
    pairs += [("layers-healed", "layers", 0.6, "a quarter of the layers removed: loss after healing over before")]
    goals = []
    for part, whole, most, what in pairs:
        if context.has(part, whole):
            share = _share(context, part, whole)
            why = "" if share <= most else _size_of(context.excess(part, whole, most)) + _tried(context, part, whole)
            goals.append(Goal(what, f"at most {most:g}", f"{share:.3g}", share <= most, why))
    return goals


VARIATIONS = {
    "gptq4": {"gptq4-range": "scales from the range", "gptq4-order": "largest inputs first"},
    "gptq2-32": {"gptq2-32-range": "scales from the range"},
}
"""Rows that do the same in other ways, which a goal that is not reached names."""


def _share(context: _Context, part: str, whole: str) -> float:
    """What is left of a row's loss in another one; infinite where it has none."""
    return context.change(part) / context.change(whole) if context.change(whole) > 0 else float("inf")


def _tried(context: _Context, part: str, whole: str) -> str:
    """The share of the loss that is left in other ways to do the same."""
    found = [
        f"{name} {_share(context, key, whole):.3g}"
        for key, name in VARIATIONS.get(part, {}).items()
        if context.has(key)
    ]
    return f"; of the loss stay {_share(context, part, whole):.3g}, with {', '.join(found)}" if found else ""


ORDERS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("int4 to nearest: smaller groups lose less", ("rtn4-32", "rtn4-64", "rtn4-128", "rtn4--1")),
    ("to nearest: more bits lose less", ("int8", "rtn4-128", "rtn3", "rtn2")),
    ("nf4 loses less than symmetric int4, both in groups of 64", ("nf4", "rtn4-sym-64")),
    ("int3: GPTQ loses less than rounding to nearest", ("gptq3", "rtn3")),
    ("int3: AWQ loses less than rounding to nearest", ("awq3", "rtn3")),
    ("half of the weights zero: SparseGPT, then Wanda, then the smallest", ("sparsegpt", "wanda", "magnitude")),
    ("layers chosen by perplexity lose no more than by influence", ("layers", "layers-influence")),
    ("fewer KV heads: mean, then first, then random", ("heads-mean", "heads-first", "heads-random")),
    ("the same, trained on", ("heads-mean-healed", "heads-first-healed", "heads-random-healed")),
)
"""Rows whose loss should ascend."""


def _orders(context: _Context) -> list[Goal]:
    goals = []
    for what, keys in ORDERS:
        if not context.has(*keys):
            continue
        changes = [context.change(key) for key in keys]
        wrong = [pair for pair in pairwise(keys) if context.change(pair[0]) > context.change(pair[1])]
        why = "; ".join(f"{better} against {worse}: {_size_of(context.z(worse, better))}" for better, worse in wrong)
        goals.append(Goal(what, "ascending", ", ".join(map(percent, changes)), not wrong, why))
    return goals


def _double_quantization(context: _Context) -> list[Goal]:
    if not context.has("nf4", "nf4-double"):
        return []
    more = context.change("nf4-double") - context.change("nf4")
    why = "" if more <= 0.0002 else _size_of(context.z("nf4-double", "nf4"))
    return [Goal("nf4: what scales in 8 bits cost more", "at most 0.02 %", percent(more), more <= 0.0002, why)]


def _two_bits(context: _Context) -> list[Goal]:
    goals = []
    if context.has("rtn2", "rtn4-128"):
        times = context.change("rtn2") / context.change("rtn4-128") if context.change("rtn4-128") > 0 else float("inf")
        z = float(context.rows["rtn2"]["z"])
        goals.append(
            Goal(
                "int2 to nearest is visibly broken",
                "at least 10 times the loss of int4",
                f"{percent(context.change('rtn2'))}, {times:.3g} times",
                times >= 10,
                "" if times >= 10 else _size_of(z),
            )
        )
    if context.has("rtn2-32", "gptq2-32"):
        won = 1 - _share(context, "gptq2-32", "rtn2-32")
        why = _size_of(context.excess("gptq2-32", "rtn2-32", 0.4)) + _tried(context, "gptq2-32", "rtn2-32")
        why = "" if won >= 0.6 else why
        goals.append(
            Goal("int2 in groups of 32: the share of the loss that GPTQ wins back", "at least 0.6", f"{won:.3g}",
                 won >= 0.6, why)
        )  # fmt: skip
    return goals


def _layers(context: _Context) -> list[Goal]:
    if not context.has("layers"):
        return []
    row = context.rows["layers"]
    removed = 1 - float(row["parameters_share"])
    goals = [
        Goal(
            "a quarter of the layers removed: parameters",
            "20 to 25 % fewer",
            f"{100 * removed:.3g} % fewer",
            0.20 <= removed <= 0.25,
            "" if 0.20 <= removed <= 0.25 else "the embedding has another share of this model",
        )
    ]
    if (speed := row.get("speedup_1")) is not None:
        low, high = row["speedup_1_range"]
        goals.append(
            Goal("a quarter of the layers removed: decode, one request", "at least 1.2 times", f"{speed:.3g} times",
                 speed >= 1.2, "" if speed >= 1.2 else f"measured from {low:.3g} to {high:.3g}")
        )  # fmt: skip
    return goals


def _kv_bytes(context: _Context) -> list[Goal]:
    if not context.has("heads-mean"):
        return []
    share = float(context.rows["heads-mean"]["kv_share"])
    return [
        Goal("half of the KV heads: bytes of KV a token", "exactly half", f"{share:g}", share == 0.5,
             "" if share == 0.5 else "the number of heads was odd")
    ]  # fmt: skip


def _size_of(z: float) -> str:
    """In words, whether a difference is one."""
    if abs(z) < NOISE:
        return f"the difference is {abs(z):.2g} standard errors, no more than noise"
    return f"the difference is real ({abs(z):.3g} standard errors): this model does not show what larger ones do"

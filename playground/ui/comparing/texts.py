"""Why two texts part, in words: what the difference between two configurations allows and what it does not. Pure."""

from dataclasses import dataclass

from playground.config import EngineConfig


@dataclass(frozen=True, slots=True)
class Reason:
    """A half sentence, and whether coupled verification would make the texts the same."""

    text: str
    offer_coupled: bool = False


_TIE = 0.05
"""Natural-log probabilities this close are decided by rounding."""


def why_different(one: EngineConfig, other: EngineConfig, *, greedy: bool, gap: float | None) -> Reason:
    """What made two texts part. `gap` is by how much the first side preferred its own token, where that is known."""
    if (one.model, one.revision, one.load_format) != (other.model, other.revision, other.load_format):
        return Reason("two models, two texts")
    if one.quantization != other.quantization:
        return Reason("rounded weights shift every probability a little, and one such decision is enough")
    if one.kv_cache_dtype != other.kv_cache_dtype:
        return Reason("rounded keys and values shift probabilities a little, and one such decision is enough")
    if one.sliding_window != other.sliding_window:
        return Reason("another window is another model")
    if one.seed != other.seed and one.load_format == "dummy":
        return Reason("other random weights")
    if not greedy and _redraws(one) != _redraws(other):
        return Reason("sampled text may differ, its distribution does not", offer_coupled=True)
    if one.dtype != other.dtype:
        return Reason("another number type rounds otherwise, and one such decision is enough")
    if gap is not None and abs(gap) < _TIE:
        return Reason("a near tie that rounding decides: the same sums in another order")
    return Reason("the same sums in another order round otherwise")


def _redraws(config: EngineConfig) -> bool:
    """Whether speculation draws tokens of its own: the same distribution, but not the same text."""
    method = config.speculation
    if method is None:
        return config.draft_model is not None
    return method.verification == "rejection"

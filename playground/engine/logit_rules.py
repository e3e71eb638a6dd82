"""What request parameters do to logits: masks, bias, penalties, and the numbers that rows are drawn with.

Owns the definitions. Never draws a token and never lets one row's result depend on another row.

Penalties: repetition as in CTRL (Keskar et al. 2019, section 4.1), over prompt and output: a positive logit is divided
by it, a negative one multiplied. Presence and frequency as in OpenAI's API reference, over the output only: the logit
loses `presence_penalty` once if the token occurred, and `frequency_penalty` for each time it did.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from kernels.host import to_device
from kernels.sampling import LogitEdits, RowParameters, edit_logits
from playground.sampling_params import SamplingParams

MINUS_INF = float("-inf")


@dataclass(frozen=True, slots=True)
class SamplingRow:
    """One row of logits to draw from: the request's parameters and the tokens so far."""

    params: SamplingParams
    seed: int
    position: int
    """Where in the sequence the drawn token will stand; with the seed it decides the noise."""
    prompt_token_ids: Sequence[int]
    output_token_ids: Sequence[int]
    eos_token_ids: frozenset[int] = frozenset()

    @property
    def ending_token_ids(self) -> frozenset[int]:
        """Tokens that would end the request, which min_tokens forbids at first."""
        return self.params.ending_token_ids(self.eos_token_ids)

    @property
    def too_short_to_end(self) -> bool:
        return len(self.output_token_ids) < self.params.min_tokens

    @property
    def changes_logits(self) -> bool:
        p = self.params
        penalised = p.repetition_penalty != 1 or p.presence_penalty != 0 or p.frequency_penalty != 0
        return penalised or bool(p.logit_bias) or p.allowed_token_ids is not None or self.too_short_to_end


def apply_token_rules(logits: Tensor, rows: Sequence[SamplingRow]) -> Tensor:
    """Logits [R, V] after masks, bias and penalties of each row: a copy, or the same tensor where no row has any.

    Ids outside the vocabulary have no effect.
    """
    entries = [_entries(row, logits.shape[1]) if row.changes_logits else None for row in rows]
    listed = [(i, found) for i, found in enumerate(entries) if found is not None]
    if not listed:
        return logits
    row_ids = np.concatenate([np.full(len(found.ids), i) for i, found in listed])
    numbers = np.stack([np.concatenate([getattr(found, name) for _, found in listed]) for name in _NUMBERS])
    ids = np.concatenate([found.ids for _, found in listed])
    masked = [i for i, _ in listed if rows[i].params.allowed_token_ids is not None]
    words = [to_device(torch.from_numpy(array), logits.device) for array in (row_ids, ids)]
    bias, penalty, minus = to_device(torch.from_numpy(numbers), logits.device)
    only_listed = to_device(torch.tensor(masked, dtype=torch.int64), logits.device)
    return edit_logits(logits, LogitEdits(words[0], words[1], bias, penalty, minus, only_listed))


_NUMBERS = ("bias", "penalty", "minus")


@dataclass(frozen=True, slots=True)
class _Entries:
    """What happens to single tokens of a row: see `LogitEdits`."""

    ids: np.ndarray
    bias: np.ndarray
    penalty: np.ndarray
    minus: np.ndarray


def _entries(row: SamplingRow, vocab_size: int) -> _Entries:
    params = row.params
    penalised = params.presence_penalty != 0 or params.frequency_penalty != 0
    said, counts = np.unique(_ids(row.output_token_ids if penalised else (), vocab_size), return_counts=True)
    history = (*row.prompt_token_ids, *row.output_token_ids) if params.repetition_penalty != 1 else ()
    seen = np.unique(_ids(history, vocab_size))
    ending = _ids(row.ending_token_ids if row.too_short_to_end else (), vocab_size)
    known = {token: bias for token, bias in params.logit_bias.items() if token < vocab_size}
    biased = _ids(known, vocab_size)
    allowed = _ids(params.allowed_token_ids or (), vocab_size)
    ids = np.unique(np.concatenate([said, seen, ending, biased, allowed]))

    bias, penalty, minus = np.zeros(len(ids)), np.ones(len(ids)), np.zeros(len(ids))
    bias[np.searchsorted(ids, biased)] = list(known.values())
    bias[np.searchsorted(ids, ending)] = MINUS_INF
    if params.allowed_token_ids is not None:
        bias[~np.isin(ids, allowed)] = MINUS_INF
    penalty[np.searchsorted(ids, seen)] = params.repetition_penalty
    minus[np.searchsorted(ids, said)] = params.presence_penalty + params.frequency_penalty * counts
    return _Entries(ids, bias, penalty, minus)


def _ids(tokens: Iterable[int], vocab_size: int) -> np.ndarray:
    ids = np.fromiter(tokens, dtype=np.int64)
    return ids[ids < vocab_size]


def row_parameters(rows: Sequence[SamplingRow], device: torch.device) -> RowParameters:
    """Temperature, filters, seed and position of each row, as the sampling kernels take them."""
    params = [row.params for row in rows]
    return RowParameters.of(
        [p.temperature for p in params],
        [row.seed for row in rows],
        [row.position for row in rows],
        min_p=[p.min_p for p in params],
        top_k=[p.top_k for p in params],
        top_p=[p.top_p for p in params],
        device=device,
    )

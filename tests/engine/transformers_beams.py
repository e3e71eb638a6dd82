"""Beam search by `transformers.generate` in float64: the oracle of the engine's own.

transformers keeps the scores of a search in float32 whatever the model's type. Here its generation module sees a torch
whose float32 is float64, so that scores can be compared to the last digits and no near tie is decided by rounding.
"""

import functools
from typing import Any
from unittest import mock

import torch
from transformers.generation import utils

from tests.checkpoints import reference_model

STOP_IDS = tuple(range(4, 259, 3))


class _Float64Torch:
    float = float32 = torch.float64

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)


@functools.cache
def _double(variant: str) -> Any:
    import copy

    return copy.deepcopy(reference_model(variant)).double()


@functools.cache
def beam_search(
    variant: str, prompt: tuple[int, ...], width: int, max_new_tokens: int, end: Any = None, **options: Any
) -> list[tuple[list[int], float]]:
    """(output token ids, score) of the `width` best sequences. `end` is None or the ids that end a sequence.

    `options` are those of `generate`.
    """
    with mock.patch.object(utils, "torch", _Float64Torch()):
        found = _double(variant).generate(
            torch.tensor([prompt]),
            num_beams=width,
            num_return_sequences=width,
            do_sample=False,
            max_new_tokens=max_new_tokens,
            eos_token_id=list(end) if end else None,
            pad_token_id=0,
            return_dict_in_generate=True,
            output_scores=True,
            output_logits=True,  # or there are no beam indices, whose -1 tell padding from tokens
            **options,
        )
    lengths = (found.beam_indices >= 0).sum(-1)
    outputs = [ids[len(prompt) :][:size].tolist() for ids, size in zip(found.sequences, lengths, strict=True)]
    return list(zip(outputs, found.sequences_scores.tolist(), strict=True))

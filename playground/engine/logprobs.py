"""Log-probabilities of tokens under the model's own distribution, before any bias, penalty, temperature or filter.

Owns ranks and the top-k lists. Never changes logits.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from playground.engine.outputs import TokenLogprob

_ROWS_AT_A_TIME = 64
"""Bounds the extra memory: 64 rows of a 150,000 vocabulary are 38 MB in float32."""


def token_logprobs(logits: Tensor, token_ids: Sequence[int], top_k: Sequence[int]) -> list[TokenLogprob]:
    """For each row of logits [R, V]: the given token's logprob and rank, and the row's `top_k` best tokens.

    Equal logits share a rank; in the list the smaller token id comes first, and tokens of probability 0 are left out.
    """
    found: list[TokenLogprob] = []
    for first in range(0, len(token_ids), _ROWS_AT_A_TIME):
        part = slice(first, first + _ROWS_AT_A_TIME)
        found += _of_rows(logits[part], token_ids[part], top_k[part])
    return found


def _of_rows(logits: Tensor, token_ids: Sequence[int], top_k: Sequence[int]) -> list[TokenLogprob]:
    chosen = torch.tensor(token_ids, device=logits.device)[:, None]
    logprobs = logits.log_softmax(dim=-1)
    ranks = 1 + (logits > logits.gather(1, chosen)).sum(-1)
    of_chosen = logprobs.gather(1, chosen).squeeze(1).tolist()
    tops = most_probable(logprobs, top_k)
    return [
        TokenLogprob(token, logprob, rank, top)
        for token, logprob, rank, top in zip(token_ids, of_chosen, ranks.tolist(), tops, strict=True)
    ]


def most_probable(logprobs: Tensor, top_k: Sequence[int]) -> list[tuple[tuple[int, float], ...]]:
    """The `top_k[i]` best `(token_id, logprob)` of each row of [R, V], best first; on a tie the smaller id.

    Tokens of probability 0 are left out.
    """
    size = min(max(top_k), logprobs.shape[1])
    if size == 0:
        return [()] * len(logprobs)
    values, ids = logprobs.topk(size, dim=-1)
    last = torch.tensor([min(max(k, 1), size) - 1 for k in top_k], device=logprobs.device)[:, None]
    reaching = (logprobs >= values.gather(1, last)).sum(-1).tolist()
    tops: list[tuple[tuple[int, float], ...]] = []
    for row, row_values, row_ids, k, count in zip(logprobs, values, ids, top_k, reaching, strict=True):
        if 0 < k < len(row) and count > k:
            # Tokens outside tie with the last one inside, and topk takes any of those: take the smallest ids.
            row_ids = (row >= row_values[k - 1]).nonzero().squeeze(1)
            row_values, order = row[row_ids].sort(descending=True, stable=True)
            row_ids = row_ids[order]
        best = zip(row_ids[:k].tolist(), row_values[:k].tolist(), strict=True)
        tops.append(tuple(sorted((tp for tp in best if tp[1] > float("-inf")), key=lambda tp: (-tp[1], tp[0]))))
    return tops

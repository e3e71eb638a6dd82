"""What beams may go on with, against log-softmax and the token rules written out."""

import pytest
import torch

from playground import SamplingParams
from playground.engine.candidates import draw_candidates
from playground.engine.logit_rules import SamplingRow

VOCABULARY = 23
EOS = frozenset({4})


def row(**fields) -> SamplingRow:
    params = SamplingParams(beam_width=3, max_tokens=20, **fields)
    return SamplingRow(params, 0, 7, (1, 2, 3), (5, 6, 5), EOS)


def logits(num_rows: int, dtype=torch.float64) -> torch.Tensor:
    return torch.randn(num_rows, VOCABULARY, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype)


def test_the_best_tokens_are_scored_by_their_log_probability():
    values = logits(2)
    for own, found in zip(values, draw_candidates(values, [row(), row(stop_token_ids=(9, 11))]).resolve(), strict=True):
        assert (found.token_id, found.error) == (-1, None)
        logprobs = own.log_softmax(-1)
        best = logprobs.topk(len(found.candidates))
        assert [c.token_id for c in found.candidates] == best.indices.tolist()
        assert [c.score for c in found.candidates] == best.values.tolist() == [c.logprob for c in found.candidates]
        assert {c.entry for c in found.candidates} == {None}


def test_so_many_are_named_that_enough_do_not_end():
    counts = [len(one.candidates) for one in draw_candidates(logits(4), [
        row(), row(ignore_eos=True), row(stop_token_ids=(9, 11)), row(allowed_token_ids=(7,)),
    ]).resolve()]  # fmt: skip
    assert counts == [4, 3, 6, 1], "the width, one more for each ending token; what cannot come is not named"


def test_rules_change_the_score_and_not_the_models_own_log_probability():
    values = logits(1)
    rules = row(logit_bias={7: 3.0}, repetition_penalty=1.5, frequency_penalty=0.5, presence_penalty=0.25, min_tokens=9)
    (found,) = draw_candidates(values, [rules]).resolve()
    logprobs = values[0].log_softmax(-1)
    scores = logprobs.clone()
    scores[7] += 3.0
    for token in (1, 2, 3, 5, 6):
        scores[token] *= 1.5
    scores[5] -= 0.25 + 2 * 0.5
    scores[6] -= 0.25 + 0.5
    scores[4] = -torch.inf  # too short to end
    expected = scores.sort(descending=True).indices.tolist()[:4]
    assert [c.token_id for c in found.candidates] == expected
    assert [c.score for c in found.candidates] == pytest.approx(scores[expected].tolist(), abs=1e-12)
    assert [c.logprob for c in found.candidates] == logprobs[expected].tolist()


def test_entries_come_with_rank_and_rivals_where_they_are_wanted():
    values = logits(2)
    plain, told = draw_candidates(values, [row(), row(logprobs=2, logit_bias={8: 4.0})]).resolve()
    assert plain.candidates[0].entry is None
    logprobs = values[1].log_softmax(-1)
    order = logprobs.sort(descending=True).indices.tolist()
    for candidate in told.candidates:
        assert (candidate.entry.token_id, candidate.entry.logprob) == (candidate.token_id, candidate.logprob)
        assert candidate.entry.rank == order.index(candidate.token_id) + 1
        assert [token for token, _ in candidate.entry.top] == order[:2]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_logits_are_scored_in_float32(dtype):
    """Sums of many tokens would be lost in the eight bits of a bfloat16."""
    values = logits(1, dtype)
    (found,) = draw_candidates(values, [row()]).resolve()
    exact = values[0].double().log_softmax(-1)
    assert [c.score for c in found.candidates] == pytest.approx([exact[c.token_id].item() for c in found.candidates])


def test_ties_are_broken_by_the_smaller_token():
    (found,) = draw_candidates(torch.zeros(1, VOCABULARY, dtype=torch.float64), [row()]).resolve()
    assert [c.token_id for c in found.candidates] == [0, 1, 2, 3]


def test_a_row_depends_on_no_other_row():
    values = logits(5)
    rows = [row(), row(logprobs=1), row(stop_token_ids=tuple(range(8, 20))), row(min_tokens=9), row(ignore_eos=True)]
    together = draw_candidates(values, rows).resolve()
    assert together == [draw_candidates(values[i : i + 1], rows[i : i + 1]).resolve()[0] for i in range(5)]


def test_rows_without_a_token_say_why_and_leave_the_others_alone():
    values = logits(4)
    values[0, 3], values[1] = torch.nan, -torch.inf
    nan, nothing, forbidden, fine = draw_candidates(
        values, [row(), row(), row(allowed_token_ids=(4,), min_tokens=9), row()]
    ).resolve()
    assert "NaN" in nan.error and "all -infinity" in nothing.error and "leave no token" in forbidden.error
    assert fine.error is None and len(fine.candidates) == 4


def test_the_logits_may_be_overwritten_before_the_candidates_are_read():
    values = logits(2)
    expected = draw_candidates(values, [row(logprobs=1), row(min_tokens=9)]).resolve()
    drawn = draw_candidates(values, [row(logprobs=1), row(min_tokens=9)])
    values.fill_(torch.nan)
    assert drawn.resolve() == expected == drawn.resolve()
    assert drawn.token_ids.tolist() == [-1, -1]

"""The selection alone: against the enumeration of all sequences, and its rules one by one."""

import functools
import itertools
import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from playground.engine.beam_search import Beam, BeamSearch, Candidate, num_candidates
from playground.engine.outputs import TokenLogprob


def candidates(scores: dict[int, float]) -> list[Candidate]:
    return [Candidate(token_id, score, score) for token_id, score in scores.items()]


def random_model(seed: int, vocabulary: int):
    """`scores(prefix)`: log-probabilities of the next token, a function of the prefix alone."""

    @functools.cache
    def scores(prefix: tuple[int, ...]) -> dict[int, float]:
        rng = random.Random(f"{seed} {prefix}")
        weights = [rng.random() + 0.01 for _ in range(vocabulary)]
        return {token_id: math.log(weight / sum(weights)) for token_id, weight in enumerate(weights)}

    return scores


def run(search: BeamSearch, scores, cut: int | None = None) -> BeamSearch:
    """Play a search to its end; with `cut`, each beam names only so many of its candidates."""
    while not search.done:
        named = [
            sorted(candidates(scores(beam.token_ids)), key=lambda c: (-c.score, c.token_id)) for beam in search.beams
        ]
        search.advance([own[:cut] for own in named])
    return search


def found(search: BeamSearch) -> list[tuple[tuple[int, ...], float, str]]:
    return [(one.beam.token_ids, one.score, one.finish_reason) for one in search.hypotheses]


def all_sequences(scores, vocabulary: int, max_tokens: int, ending: frozenset[int], penalty: float):
    """Every sequence that can be generated, best first."""
    ended = []
    for length in range(1, max_tokens + 1):
        for token_ids in itertools.product(range(vocabulary), repeat=length):
            if ending & set(token_ids[:-1]) or (length < max_tokens and token_ids[-1] not in ending):
                continue
            total = sum(scores(token_ids[:i])[token_ids[i]] for i in range(length))
            ended.append((token_ids, total / length**penalty, "stop" if token_ids[-1] in ending else "length"))
    return sorted(ended, key=lambda one: -one[1])


@pytest.mark.parametrize("penalty", [0.0, 0.7, 1.0, 2.0, -1.0])
@pytest.mark.parametrize("ending", [frozenset(), frozenset({0}), frozenset({1, 2})])
def test_with_beams_for_everything_the_search_finds_the_best_of_all_sequences(ending, penalty):
    scores = random_model(3, vocabulary=3)
    everything = all_sequences(scores, 3, 4, ending, penalty)
    search = BeamSearch(100, 4, ending_token_ids=ending, length_penalty=penalty, early_stopping="never")
    assert [(ids, reason) for ids, _, reason in found(run(search, scores))] == [
        (ids, reason) for ids, _, reason in everything
    ]
    assert [one.score for one in search.hypotheses] == pytest.approx([score for _, score, _ in everything])


@settings(max_examples=150)
@given(
    st.integers(0, 10_000),
    st.integers(2, 6),
    st.integers(1, 7),
    st.frozensets(st.integers(0, 7), max_size=3),
    st.sampled_from([0.0, 1.0, 2.0, -1.0]),
    st.sampled_from([False, True, "never"]),
)
def test_a_beam_need_not_name_more_than_num_candidates(seed, width, max_tokens, ending, penalty, early_stopping):
    scores = random_model(seed, vocabulary=8)

    def search() -> BeamSearch:
        options = {"length_penalty": penalty, "early_stopping": early_stopping}
        return BeamSearch(width, max_tokens, ending_token_ids=ending, **options)

    whole = run(search(), scores)
    assert found(run(search(), scores, num_candidates(width, len(ending)))) == found(whole)
    assert len(whole.hypotheses) == min(width, len(all_sequences_count(max_tokens, ending)))
    assert len({one.beam.token_ids for one in whole.hypotheses}) == len(whole.hypotheses)


def all_sequences_count(max_tokens: int, ending: frozenset[int]) -> range:
    """As many sequences as there are of eight tokens."""
    live, ended = 1, 0
    for _ in range(max_tokens):
        ended += live * len(ending)
        live *= 8 - len(ending)
    return range(ended + live)


def test_a_beam_adds_up_scores_and_keeps_the_models_own_sum_apart():
    entry = TokenLogprob(7, -1.0, 1)
    beam = Beam().extended(Candidate(7, -2.0, -1.0, entry)).extended(Candidate(8, -0.5, -0.25, entry))
    assert (beam.token_ids, beam.total, beam.cumulative_logprob) == ((7, 8), -2.5, -1.25)
    assert beam.entries == (entry, entry)


def test_only_the_best_of_all_candidates_may_end():
    """An end that ranks behind `width` candidates is forgotten, even if nothing else ends."""
    search = BeamSearch(2, 5, ending_token_ids=frozenset({9}))
    search.advance([candidates({1: -1.0, 2: -2.0, 9: -3.0})])
    assert search.hypotheses == [] and [beam.token_ids for beam in search.beams] == [(1,), (2,)]
    assert search.advance([candidates({9: -0.1, 3: -4.0}), candidates({9: -0.2, 4: -0.3})]) == [1, 0]
    assert [one.beam.token_ids for one in search.hypotheses] == [(1, 9), (2, 9)]
    assert [beam.token_ids for beam in search.beams] == [(2, 4), (1, 3)]


def test_the_length_counts_the_token_that_ended_the_sequence():
    search = BeamSearch(2, 9, ending_token_ids=frozenset({9}), length_penalty=2.0)
    search.advance([candidates({1: -1.0, 2: -2.0})])
    search.advance([candidates({9: -1.0, 3: -5.0}), candidates({3: -5.0})])
    assert search.hypotheses[0].score == -2.0 / 2**2


def is_over(early_stopping, length_penalty: float, next_score: float) -> bool:
    """Whether a search over 8 tokens is over with two hypotheses, the worse of score -3, and a beam of two tokens.

    The beam's total is `next_score` - 1.
    """
    options = {"early_stopping": early_stopping, "length_penalty": length_penalty}
    search = BeamSearch(2, 8, ending_token_ids=frozenset({9}), **options)
    search.advance([candidates({1: -1.0, 9: -3.0, 2: -40.0})])
    search.advance([candidates({9: -0.45, 3: next_score}), candidates({3: -1.0})])
    assert len(search.hypotheses) == 2 and search.hypotheses[1].score == -3.0
    return search.done


@pytest.mark.parametrize("penalty", [0.0, 1.0, -1.0])
def test_early_stopping_ends_with_as_many_hypotheses_as_beams(penalty):
    assert is_over(True, penalty, next_score=-0.5)


@pytest.mark.parametrize(("penalty", "enough"), [(0.0, -2.0), (1.0, -5.0), (-1.0, -0.5)])
def test_without_early_stopping_the_search_ends_when_the_best_beam_would_not_do_if_it_ended_now(penalty, enough):
    assert not is_over(False, penalty, next_score=enough + 0.01)
    assert is_over(False, penalty, next_score=enough), "as good is not better"


@pytest.mark.parametrize(("penalty", "enough"), [(0.0, -2.0), (1.0, -23.0), (-1.0, -0.5)])
def test_never_hopes_for_all_the_length_that_is_left_where_length_pays(penalty, enough):
    assert not is_over("never", penalty, next_score=enough + 0.01)
    assert is_over("never", penalty, next_score=enough)


def test_the_best_hypotheses_are_kept_best_first():
    search = BeamSearch(2, 2, ending_token_ids=frozenset({9}), length_penalty=0.0)
    search.advance([candidates({9: -1.0, 1: -2.0, 2: -3.0})])
    search.advance([candidates({9: -0.5, 1: -0.1}), candidates({9: -0.1})])
    assert search.done
    assert found(search) == [((9,), -1.0, "stop"), ((1, 1), -2.1, "length")]


def test_equal_totals_are_ranked_by_beam_and_then_by_token():
    search = BeamSearch(3, 5)
    search.advance([candidates({5: -1.0, 3: -1.0, 4: -1.0})])
    assert [beam.token_ids for beam in search.beams] == [(3,), (4,), (5,)]
    assert search.advance([candidates({2: -1.0}), candidates({1: -1.0}), candidates({0: -1.0})]) == [0, 1, 2]


def test_a_search_without_enough_candidates_goes_on_with_fewer_beams():
    search = BeamSearch(4, 3, ending_token_ids=frozenset({9}))
    search.advance([candidates({1: -1.0, 2: -2.0})])
    assert len(search.beams) == 2 and not search.done
    search.advance([candidates({9: -1.0}), candidates({9: -1.0})])
    assert search.done and len(search.hypotheses) == 2


def test_an_interrupted_search_gives_finished_and_live_beams_together():
    search = BeamSearch(2, 9, ending_token_ids=frozenset({9}))
    assert [one.beam.token_ids for one in search.interrupted("abort")] == [()]
    search.advance([candidates({9: -1.5, 1: -1.0, 2: -3.0})])
    assert [(one.beam.token_ids, one.score, one.finish_reason) for one in search.interrupted("abort")] == [
        ((1,), -1.0, "abort"),
        ((9,), -1.5, "abort"),
    ]


@pytest.mark.parametrize("penalty", [50, -50])
def test_the_strongest_length_penalty_of_the_longest_output_is_still_a_number(penalty):
    search = BeamSearch(2, 1_000_000, length_penalty=penalty)
    score = search._score(Beam(tuple(range(1_000_000)), total=-1e7))
    assert math.isfinite(score)

"""The n-gram proposer against a search through the whole text, and what it costs."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from playground.engine.speculation import ngram
from playground.engine.speculation.ngram import NgramProposer
from playground.errors import ConfigError
from tests.engine.speculation.texts import TEXTS, CountingList, count_lines, make_request, repetitive_text


def searched_draft(text: list[int], min_n: int, max_n: int, num_tokens: int) -> list[int]:
    """The definition: try every length and every earlier place; keep copying, from the draft itself after the text."""
    for n in range(min(max_n, len(text) - 1), min_n - 1, -1):
        for start in range(len(text) - 1, n - 1, -1):
            if text[start - n : start] == text[len(text) - n :]:
                held = n
                while held < num_tokens and start > held and text[start - held - 1] == text[len(text) - held - 1]:
                    held += 1
                longer = list(text)
                for i in range(min(num_tokens, 2 * held)):
                    longer.append(longer[start + i])
                return longer[len(text) :]
    return []


@given(
    prompt=TEXTS,
    outputs=st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=5), max_size=12),
    sizes=st.tuples(st.integers(1, 4), st.integers(1, 4)).map(sorted),
    num_tokens=st.integers(1, 9),
    temperature=st.sampled_from([0.0, 0.7]),
)
def test_drafts_are_those_of_a_search_through_the_whole_text(prompt, outputs, sizes, num_tokens, temperature):
    min_n, max_n = sizes
    proposer = NgramProposer(min_n, max_n)
    request = make_request(1, prompt, temperature=temperature)
    for output in [[], *outputs]:
        request.token_ids += output
        expected = searched_draft(request.token_ids, max(min_n, 2 if temperature else 1), max_n, num_tokens)
        assert proposer.propose(request, num_tokens) == expected


def test_a_periodic_text_is_continued_past_its_end():
    proposer = NgramProposer(1, 3)
    assert proposer.propose(make_request(1, [7, 8, 9] * 3), 8) == [7, 8, 9, 7, 8, 9, 7, 8]
    assert proposer.propose(make_request(2, [5] * 12), 4) == [5] * 4


def test_the_most_recent_occurrence_counts():
    assert NgramProposer(1, 2).propose(make_request(1, [1, 2, 3, 1, 2, 4, 1, 2]), 1) == [4]


def test_the_longest_ngram_counts_before_the_most_recent():
    assert NgramProposer(1, 3).propose(make_request(1, [1, 2, 3, 9, 0, 2, 3, 8, 1, 2, 3]), 1) == [9]


def test_a_longer_match_is_followed_further():
    drafts = {
        n: len(NgramProposer(1, 3).propose(make_request(n, [*range(n), *range(50, 80), *range(n)]), 20))
        for n in range(1, 12)
    }
    assert drafts == {n: min(20, 2 * n) for n in range(1, 12)}


def test_sampled_text_is_not_drafted_after_a_single_token():
    prompt = [1, 2, 3, 1]
    assert NgramProposer(1, 3).propose(make_request(1, prompt, temperature=0.0), 4) == [2, 3]
    assert NgramProposer(1, 3).propose(make_request(1, prompt, temperature=1.0), 4) == []
    assert NgramProposer(1, 1).propose(make_request(1, prompt, temperature=1.0), 4) == []


def test_requests_do_not_see_one_another_and_a_forgotten_one_starts_anew():
    proposer = NgramProposer(1, 3)
    first, second = make_request(1, [1, 2, 3, 1]), make_request(2, [1])
    assert proposer.propose(first, 2) == [2, 3]
    assert proposer.propose(second, 2) == []
    proposer.forget(first)
    proposer.forget(first)
    assert proposer.propose(make_request(1, [2, 9, 2]), 1) == [9]


@pytest.mark.parametrize("text", [repetitive_text(1, 4000), [3] * 4000, [1, 2, 3] * 1333])
def test_work_grows_with_the_new_tokens_only(text):
    def drive(num_tokens: int) -> tuple[int, int]:
        proposer = NgramProposer(1, 3)
        request = make_request(1, text[:1])
        request.token_ids = CountingList(text[:1])

        def grow() -> None:
            for token in text[1:num_tokens]:
                request.token_ids.append(token)
                proposer.propose(request, 4)

        return count_lines(grow, ngram), request.token_ids.num_read

    (few_lines, few_reads), (many_lines, many_reads) = drive(1000), drive(4000)
    assert many_lines <= 4.4 * few_lines and many_lines <= 60 * 4000
    assert many_reads <= 4.4 * few_reads and many_reads <= 40 * 4000


@pytest.mark.parametrize(("min_n", "max_n"), [(0, 3), (3, 2), (-1, -1)])
def test_sizes_that_do_not_exist_are_refused(min_n, max_n):
    with pytest.raises(ConfigError, match=f"min_n={min_n} to max_n={max_n}"):
        NgramProposer(min_n, max_n)

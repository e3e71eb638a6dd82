"""The suffix automaton against the definition of a context's statistics, and its cost."""

from collections import Counter
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from playground.engine.speculation import suffix_automaton
from playground.engine.speculation.suffix_automaton import NONE, ROOT, SuffixAutomaton
from tests.engine.speculation.texts import TEXTS, count_lines, repetitive_text


class ContextCounts:
    """The definition, by brute force: what followed each context, counted in the longest contexts that knew it."""

    def __init__(self) -> None:
        self.texts: list[list[int]] = []
        self.counts: dict[tuple[int, ...], Counter[int]] = {}
        self.favourite: dict[tuple[int, ...], int] = {}
        """The most frequent follower of each context; of equals the one whose count got there last."""

    def append(self, token: int) -> None:
        text = self.texts[-1]
        suffixes = [tuple(text[i:]) for i in range(len(text) + 1)]  # longest first
        done_at = None
        for context in suffixes:
            ends = self.ends(context)
            if done_at is not None and ends != done_at:
                break
            counts = self.counts.setdefault(context, Counter())
            if token in counts:
                done_at = ends  # contexts that end in the same places are one context
            counts[token] += 1
            if counts[token] == max(counts.values()):
                self.favourite[context] = token
        text.append(token)

    def longest(self, context: tuple[int, ...]) -> tuple[int, ...]:
        """The longest context that ends in the same places."""
        while True:
            before = {
                self.texts[t][end - len(context) - 1] if end > len(context) else None for t, end in self.ends(context)
            }
            if len(before) != 1 or before == {None}:
                return context
            context = (*before, *context)

    def ends(self, context: tuple[int, ...]) -> list[tuple[int, int]]:
        return [
            (t, end)
            for t, text in enumerate(self.texts)
            for end in range(len(context), len(text) + 1)
            if tuple(text[end - len(context) : end]) == context
        ]


def find(automaton: SuffixAutomaton, context: tuple[int, ...]) -> int:
    state = ROOT
    for token in context:
        state = automaton.follow(state, token)
        if state == NONE:
            break
    return state


def substrings(text: list[int]) -> set[tuple[int, ...]]:
    return {tuple(text[i:j]) for i in range(len(text) + 1) for j in range(i, len(text) + 1)}


@given(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=12), min_size=1, max_size=4))
def test_every_context_knows_what_followed_it_and_how_often(texts):
    automaton, expected = SuffixAutomaton(), ContextCounts()
    for text in texts:
        automaton.start_text()
        expected.texts.append([])
        for token in text:
            automaton.append(token)
            expected.append(token)
            for context in set().union(*map(substrings, expected.texts)):
                state = find(automaton, context)
                counts = expected.counts.get(context, Counter())
                assert automaton.counts(state) == counts
                assert automaton.total_count[state] == counts.total()
                assert automaton.next_token[state] == expected.favourite.get(context, NONE)
                assert automaton.next_count[state] == max(counts.values(), default=0)
                assert automaton.length[state] == len(expected.longest(context))


@given(st.lists(TEXTS, min_size=1, max_size=4))
def test_it_recognises_substrings_and_nothing_else(texts):
    automaton = SuffixAutomaton()
    for text in texts:
        automaton.start_text()
        automaton.extend(text)
    known = set().union(*map(substrings, texts))
    for context in known:
        assert find(automaton, context) != NONE
        for token in range(4):
            longer = (*context, token)
            assert (find(automaton, longer) != NONE) == (longer in known)


@given(TEXTS)
def test_the_link_of_the_end_is_the_longest_suffix_that_occurred_before(text):
    automaton = SuffixAutomaton()
    automaton.extend(text)
    longest = max(
        n for n in range(len(text)) if any(text[i : i + n] == text[len(text) - n :] for i in range(len(text) - n))
    )
    assert automaton.length[automaton.link[automaton.end]] == longest


def test_of_equally_frequent_continuations_the_latest_is_first():
    automaton = SuffixAutomaton()
    automaton.extend([1, 2, 1, 3, 1])
    assert automaton.next_token[find(automaton, (1,))] == 3
    automaton.extend([2, 1])
    assert automaton.next_token[find(automaton, (1,))] == 2


def test_copies_of_a_state_do_not_share_counts():
    automaton = SuffixAutomaton()
    automaton.extend([0, 1, 2, 0, 1, 3, 1, 2, 1])
    before = automaton.counts(find(automaton, (0, 1)))
    automaton.extend([4])  # follows 1, never 0 1
    assert automaton.counts(find(automaton, (0, 1))) == before
    assert 4 in automaton.counts(find(automaton, (1,)))


TEXTS_TO_INDEX = {
    "phrases": lambda n: repetitive_text(5, n),
    "one token": lambda n: [3] * n,
    "a loop": lambda n: [1, 2, 3, 4, 5, 6, 7] * (n // 7),
    "all different": lambda n: list(range(n)),
    "most states": lambda n: [1, *[2] * (n - 1)],
    "two halves": lambda n: [*[1] * (n // 2), *[2] * (n // 2)],
    "many followers": lambda n: [token for i in range(n // 2) for token in (1, 2 + i)],
}


@pytest.mark.parametrize("name", TEXTS_TO_INDEX)
def test_time_and_space_grow_with_the_text_and_no_faster(name):
    lines = []
    for length in (2000, 8000):
        text, automaton = TEXTS_TO_INDEX[name](length), SuffixAutomaton()
        lines.append(count_lines(partial(automaton.extend, text), suffix_automaton))
        assert automaton.num_states <= 2 * length
        assert automaton.num_continuations <= 3 * length
    assert lines[1] <= 100 * 8000
    assert lines[1] <= 4.4 * lines[0]

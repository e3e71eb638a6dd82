"""Suffix proposals against brute force over the same texts; who may see what; what stays in memory."""

from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from playground.engine.speculation import suffix, suffix_automaton
from playground.engine.speculation.suffix import NUM_LEAD_IN_TOKENS, OutputStore, SuffixProposer
from playground.errors import ConfigError
from tests.engine.speculation.test_suffix_automaton import ContextCounts
from tests.engine.speculation.texts import CountingList, count_lines, make_request, repetitive_text


@dataclass
class Source:
    """One body of text with its statistics, and how much of the request's end it has matched so far."""

    counts: ContextCounts = field(default_factory=ContextCounts)
    matched: int = 0

    def knows(self, context: list[int]) -> bool:
        return bool(self.counts.ends(tuple(context)))

    def follow(self, text: list[int], new: list[int]) -> None:
        for i in range(len(text) - len(new), len(text)):
            self.matched = next(n for n in range(self.matched + 1, -1, -1) if self.knows(text[i + 1 - n : i + 1]))


def add_text(source: ContextCounts, text: list[int]) -> None:
    source.texts.append([])
    for token in text:
        source.append(token)


def searched_draft(source: Source, text: list[int], num_tokens: int, min_match: int) -> list[int]:
    """The definition: from the longest known context on, the favourite follower, while that is likely enough."""
    contexts, draft, frequency = source.counts, [], 1.0
    context = tuple(text[len(text) - source.matched :])
    if source.matched < min_match:
        return []
    while len(draft) < num_tokens and frequency * source.matched / (source.matched + len(draft)) >= 1 / 3:
        while context not in contexts.favourite and len(contexts.longest(context)) >= min_match:
            shorter = contexts.ends(context)
            while contexts.ends(context) == shorter:
                context = context[1:]
        if len(contexts.longest(context)) < min_match:
            break
        followers = contexts.counts[context]
        draft.append(contexts.favourite[context])
        frequency *= followers[draft[-1]] / followers.total()
        context = (*context, draft[-1])
    return draft


SHORT_TEXTS = st.lists(st.integers(0, 2), min_size=1, max_size=10)


@given(
    finished=st.lists(SHORT_TEXTS, max_size=3),
    prompt=SHORT_TEXTS,
    outputs=st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=4), max_size=5),
    later=SHORT_TEXTS,
    temperature=st.sampled_from([0.0, 1.0]),
)
def test_drafts_follow_the_longest_known_context_to_its_most_frequent_continuations(
    finished, prompt, outputs, later, temperature
):
    proposer, own, stored = SuffixProposer(), Source(), Source()

    def finish(request_id: int, output: list[int]) -> None:
        proposer.forget(make_request(request_id, [0], output=output))
        add_text(stored.counts, [0, *output])

    for i, output in enumerate(finished):
        finish(100 + i, output)
    request = make_request(1, prompt, temperature=temperature)
    own.counts.texts.append([])
    for step, new in enumerate([prompt, *outputs]):
        request.token_ids += new if step else []
        text = request.token_ids
        for token in new:
            own.counts.append(token)
        own.matched = next(
            n for n in range(len(text) - 1, -1, -1) if len(own.counts.ends(tuple(text[len(text) - n :]))) > 1
        )
        if stored.counts.texts:
            stored.follow(text, new)
        source = own if own.matched >= stored.matched else stored
        assert proposer.propose(request, 4) == searched_draft(source, text, 4, 2 if temperature else 1)
        if step == 1:
            finish(200, later)


def test_a_periodic_text_is_continued_past_its_end():
    assert SuffixProposer().propose(make_request(1, [7, 8, 9] * 3), 8) == [7, 8, 9, 7, 8, 9, 7, 8]


def test_the_more_frequent_continuation_counts_before_the_more_recent():
    text = [1, 2, 3, 0, 1, 2, 3, 5, 1, 2, 4, 6, 1, 2]
    assert SuffixProposer().propose(make_request(1, text), 1) == [3]


def test_a_draft_ends_after_the_token_at_which_it_has_become_unlikely():
    seen = [token for last in range(10, 20) for token in (1, 2, 3, last)]  # ten different tokens follow 1 2 3
    assert SuffixProposer().propose(make_request(1, [*seen, 1, 2]), 8) == [3, 19]


def test_the_repetition_of_an_answer_is_drafted_from_its_first_token():
    proposer = SuffixProposer()
    answer = list(range(100, 140))
    proposer.forget(make_request(1, [1, 2, 3, 4, 5], output=answer))
    again = make_request(2, [1, 2, 3, 4, 5])
    for i in range(0, 40, 4):
        assert proposer.propose(again, 4) == answer[i : i + 4]
        again.token_ids += answer[i : i + 4]


def test_of_a_prompt_only_the_end_is_kept():
    proposer = SuffixProposer()
    prompt = list(range(200, 200 + 2 * NUM_LEAD_IN_TOKENS))
    proposer.forget(make_request(1, prompt, output=[1]))
    assert proposer.propose(make_request(2, prompt[:NUM_LEAD_IN_TOKENS]), 4) == []
    assert proposer.propose(make_request(3, prompt), 4) == [1]


@pytest.mark.parametrize(("writer", "reader"), [("a", "b"), ("a", None), (None, "a"), ("", None)])
def test_text_never_crosses_salts(writer, reader):
    proposer = SuffixProposer()
    proposer.forget(make_request(1, [5, 6], salt=writer, output=[7, 8, 9]))
    stranger, friend = make_request(2, [5, 6], salt=reader), make_request(3, [5, 6], salt=writer)
    assert proposer.propose(stranger, 3) == []
    assert proposer.propose(friend, 3) == [7, 8, 9]
    stranger.token_ids += [7]
    assert proposer.propose(stranger, 3) == []


def test_text_of_running_requests_is_not_shared():
    proposer = SuffixProposer()
    proposer.propose(make_request(1, [5, 6, 7, 8]), 3)
    assert proposer.propose(make_request(2, [5, 6]), 3) == []


def test_a_request_that_ends_without_output_leaves_nothing():
    proposer = SuffixProposer()
    proposer.forget(make_request(1, [5, 6, 7, 8]))
    assert proposer.propose(make_request(2, [5, 6]), 3) == []


def test_the_output_of_a_request_that_asks_for_no_drafts_is_not_stored():
    proposer = SuffixProposer()
    apart = make_request(1, [5, 6], output=[7, 8, 9])
    apart.params = apart.params.replace(speculate=False)
    proposer.forget(apart)
    assert proposer.propose(make_request(2, [5, 6]), 3) == []


def test_stored_text_is_found_by_requests_that_run_already_from_their_next_tokens_on():
    proposer = SuffixProposer()
    running = make_request(1, [50])
    assert proposer.propose(running, 2) == []
    proposer.forget(make_request(2, [0], output=[1, 2, 3, 4]))
    running.token_ids += [1, 2]
    assert proposer.propose(running, 2) == [3, 4]


@given(st.lists(st.tuples(st.sampled_from(["a", "b", None]), st.integers(0, 30)), max_size=40), st.integers(0, 40))
def test_the_store_stays_bounded_and_the_latest_text_is_always_there(additions, max_tokens):
    store, half = OutputStore(max_tokens), max_tokens // 2
    for number, (salt, length) in enumerate(additions):
        text = range(1000 * number, 1000 * number + length)
        store.add(salt, text)
        stored = store._young | {f"old {salt}": a for salt, a in store._old.items()}
        assert sum(automaton.num_states - 1 for automaton in stored.values()) <= max_tokens  # no token occurs twice
        kept = text[max(0, length - half) :]
        if kept:
            newest = store.automata(salt)[0]
            assert newest.length[newest.end] == len(kept)
            assert newest.follow(0, kept[0]) != -1


def test_the_oldest_outputs_leave_first():
    proposer = SuffixProposer(max_stored_tokens=40)
    for i in range(12):
        proposer.forget(make_request(i, [1000 + i], output=list(range(10 * i, 10 * i + 4))))
    found = [i for i in range(12) if proposer.propose(make_request(100 + i, [1000 + i]), 1)]
    assert found == [4, 5, 6, 7, 8, 9, 10, 11]  # four texts of five tokens are half of the limit


def test_a_match_lives_on_in_the_old_generation():
    proposer = SuffixProposer(max_stored_tokens=40)
    proposer.forget(make_request(1, [9], output=[1, 2, 3, 4, 5, 6, 7, 8]))
    running = make_request(2, [9, 1, 2])
    assert proposer.propose(running, 2) == [3, 4]
    proposer.forget(make_request(3, [90], output=list(range(100, 114))))  # does not fit beside it
    running.token_ids += [3, 4]
    assert proposer.propose(running, 2) == [5, 6]
    proposer.forget(make_request(4, [91], output=list(range(200, 214))))
    running.token_ids += [5]
    assert proposer.propose(running, 2) == []


def test_a_match_moves_to_the_shorter_context_that_later_outputs_split_off():
    proposer = SuffixProposer()
    proposer.forget(make_request(1, [90], output=[1, 2, 3, 4]))
    running = make_request(2, [91, 3])
    assert proposer.propose(running, 1) == [4]
    for request_id in (3, 4):
        proposer.forget(make_request(request_id, [92], output=[2, 3, 5]))
    assert proposer.propose(running, 1) == [5]  # 4 stays first after 1 2 3, which is not how this text ends


def test_without_a_store_the_request_finds_its_own_text_only():
    proposer = SuffixProposer(max_stored_tokens=0)
    proposer.forget(make_request(1, [9], output=[1, 2, 3]))
    assert proposer.propose(make_request(2, [9, 1]), 1) == []
    assert proposer.propose(make_request(3, [9, 1, 9]), 1) == [1]
    with pytest.raises(ConfigError, match="max_stored_tokens=-1"):
        SuffixProposer(max_stored_tokens=-1)


def test_forgetting_frees_what_belongs_to_the_request():
    proposer = SuffixProposer()
    for i in range(50):
        request = make_request(i, [1, 2, 3])
        proposer.propose(request, 2)
        proposer.forget(request)
    assert proposer._requests == {}


@pytest.mark.parametrize("text", [repetitive_text(1, 4000), [3] * 4000, [1, 2, 3] * 1333])
def test_work_grows_with_the_new_tokens_only(text):
    def drive(num_tokens: int) -> tuple[int, int]:
        proposer = SuffixProposer(max_stored_tokens=1000)
        request = make_request(1, text[:1])
        request.token_ids = CountingList(text[:1])

        def grow() -> None:
            for position, token in enumerate(text[1:num_tokens]):
                request.token_ids.append(token)
                proposer.propose(request, 4)
                if position % 100 == 0:
                    proposer.forget(make_request(1000 + position, [7], output=text[position : position + 90]))

        return count_lines(grow, suffix, suffix_automaton), request.token_ids.num_read

    (few_lines, few_reads), (many_lines, many_reads) = drive(1000), drive(4000)
    assert many_lines <= 4.5 * few_lines and many_lines <= 600 * 4000
    assert many_reads <= 4.5 * few_reads and many_reads <= 10 * 4000

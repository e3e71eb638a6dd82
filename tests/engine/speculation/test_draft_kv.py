"""What the draft model is believed to have seen, after hits, preemption and blocks that changed hands."""

import pytest

from playground.engine.block_tables import BlockTables
from playground.engine.request import Request
from playground.engine.speculation.draft_kv import DraftKV
from playground.sampling_params import SamplingParams

SIZE = 4


@pytest.fixture
def tables() -> BlockTables:
    return BlockTables(6, SIZE)


@pytest.fixture
def draft_kv(tables: BlockTables) -> DraftKV:
    return DraftKV(tables.pool, SIZE)


def admitted(tables: BlockTables, prompt: list[int], request_id: int = 1) -> Request:
    """A request whose prompt the target has computed, all but the last token, starting from a prefix hit."""
    request = Request(request_id, prompt, SamplingParams(), 0, 100)
    tables.take(request, tables.find_prefix(request))
    assert tables.grow(request, len(prompt) - request.num_computed_tokens) == []
    request.num_computed_tokens = len(prompt) - 1
    tables.register(request, len(prompt) - 1)
    return request


def drafted(draft_kv: DraftKV, request: Request, end: int) -> None:
    draft_kv.wrote(request, end)
    draft_kv.keep(request, end)


def test_nothing_is_there_at_first(tables, draft_kv):
    assert draft_kv.num_computed(admitted(tables, list(range(10)))) == 0


def test_rejected_drafts_are_forgotten_and_accepted_ones_kept(tables, draft_kv):
    request = admitted(tables, list(range(10)))
    draft_kv.wrote(request, 13)
    draft_kv.keep(request, 11)
    assert draft_kv.num_computed(request) == 11
    draft_kv.keep(request, 20)  # tokens that came without drafts were never seen by it
    assert draft_kv.num_computed(request) == 11


def test_a_hit_counts_as_far_as_the_draft_computed_these_very_blocks(tables, draft_kv):
    first = admitted(tables, list(range(14)))
    drafted(draft_kv, first, 9)  # two full blocks of three
    tables.free(first)
    assert draft_kv.num_computed(admitted(tables, list(range(14)), request_id=2)) == 8


def test_after_a_preemption_only_what_a_hit_brings_back_counts(tables, draft_kv):
    request = admitted(tables, list(range(14)))
    drafted(draft_kv, request, 13)
    tables.free(request)
    request.num_preemptions += 1
    other = admitted(tables, list(range(100, 118)), request_id=2)  # takes five of the six blocks
    tables.free(other)
    tables.take(request, tables.find_prefix(request))
    assert draft_kv.num_computed(request) == request.num_computed_tokens == 4


def test_a_block_overwritten_by_the_draft_is_not_taken_for_what_it_held():
    tables = BlockTables(1, SIZE)
    draft_kv = DraftKV(tables.pool, SIZE)

    def in_the_only_block(request_id: int, token_ids: list[int]) -> Request:
        request = Request(request_id, token_ids, SamplingParams(), 0, 100)
        assert tables.grow(request, SIZE) == []
        request.num_computed_tokens = SIZE
        tables.register(request, SIZE)
        return request

    first = in_the_only_block(1, [0, 1, 2, 3])
    drafted(draft_kv, first, SIZE)
    tables.free(first)
    second = in_the_only_block(2, [5, 6, 7, 8])
    draft_kv.wrote(second, SIZE - 1)  # not to its end, so that there is nothing to remember of it
    tables.free(second)
    third = in_the_only_block(3, [0, 1, 2, 3])  # the target computes the first content once more, without drafting
    assert draft_kv.num_computed(third) == 0


def test_a_copy_brings_along_what_the_draft_computed_and_overwrites_what_was_there(tables, draft_kv):
    first = admitted(tables, list(range(10)))
    drafted(draft_kv, first, 9)
    full, other = first.block_table[0], 6
    held = draft_kv._content[full]
    draft_kv.copied([(full, other)])
    assert draft_kv._content[other] == held
    draft_kv.copied([(5, full), (full, 4)])  # read before any is written
    assert draft_kv._content[4] == held and full not in draft_kv._content
    tables.free(first)
    assert draft_kv.num_computed(admitted(tables, list(range(14)), request_id=2)) == 0


def test_blocks_that_were_overwritten_are_drafted_in_anew(tables, draft_kv):
    first = admitted(tables, list(range(10)))
    drafted(draft_kv, first, 9)
    draft_kv.lost([first.block_table[1]])
    tables.free(first)
    assert draft_kv.num_computed(admitted(tables, list(range(14)), request_id=2)) == SIZE


def test_a_request_that_ended_is_forgotten(tables, draft_kv):
    request = admitted(tables, list(range(10)))
    draft_kv.wrote(request, 9)
    draft_kv.forget(request.request_id)
    assert draft_kv.num_computed(request) == 0


def test_a_window_leaves_nothing_to_start_from(draft_kv):
    tables = BlockTables(6, SIZE, window=4)
    draft_kv = DraftKV(tables.pool, SIZE)
    first = admitted(tables, list(range(14)))
    drafted(draft_kv, first, 13)
    tables.free(first)
    second = Request(2, list(range(14)), SamplingParams(), 0, 100)
    tables.take(second, tables.find_prefix(second))
    assert second.block_table[0] == 0 and draft_kv.num_computed(second) == 0

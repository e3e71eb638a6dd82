"""Ratios, decode rates and step splits from numbers worked out by hand."""

import pytest

from playground.bench.engine import Row
from playground.bench.progress import counted
from playground.bench.stats import compare, decode_rate, tokens_after
from playground.bench.steps import split
from playground.bench.workload import full_plan, mixed, quick_plan, random_prompt
from playground.engine.events import StepEvent


def test_a_smaller_time_is_a_ratio_above_one() -> None:
    found = compare(ours=[1.0, 2.0, 4.0], peer=[2.0, 2.0, 12.0], smaller_is_better=True)
    assert (found.ratio, found.ratio_min, found.ratio_max) == (2.0, 1.0, 3.0)


def test_a_larger_rate_is_a_ratio_above_one() -> None:
    found = compare(ours=[30.0, 10.0], peer=[10.0, 20.0], smaller_is_better=False)
    assert (found.ratio, found.ratio_min, found.ratio_max) == (1.75, 0.5, 3.0)


def test_the_ratio_is_of_pairs_and_not_of_medians() -> None:
    # The machine slowed down threefold for the last pair: medians alone would mix fast runs with slow ones.
    assert compare(ours=[1.0, 3.0], peer=[2.0, 6.0], smaller_is_better=True).ratio == 2.0


@pytest.mark.parametrize(("ours", "peer"), [([], []), ([1.0], []), ([1.0], [1.0, 2.0])])
def test_measurements_that_do_not_pair_are_refused(ours: list[float], peer: list[float]) -> None:
    with pytest.raises(ValueError, match="do not pair"):
        compare(ours, peer, smaller_is_better=True)


def test_decode_counts_from_the_last_first_token() -> None:
    # The second request's first token comes at 2.0; after it come 3.0 and 4.0 of the first, 2.5 and 3.0 of the second.
    times = [[1.0, 1.5, 3.0, 4.0], [2.0, 2.5, 3.0]]
    assert tokens_after(2.0, times) == 4
    assert decode_rate(times) == 4 / 2.0


def test_decode_of_one_request_leaves_its_first_token_out() -> None:
    assert decode_rate([[10.0, 10.5, 11.0]]) == 2.0


def test_decode_without_a_second_token_is_refused() -> None:
    with pytest.raises(ValueError, match="more tokens"):
        decode_rate([[1.0], [2.0]])


def test_a_row_reports_medians_ratio_spread_and_whether_it_reached() -> None:
    row = Row("m", "float32", "decode", "1", "tokens/s", ours=[30.0, 60.0, 20.0], peer=[20.0, 20.0, 20.0], reach=1.4)
    data = row.to_dict()
    assert (data["ours_median"], data["peer_median"]) == (30.0, 20.0)
    assert (data["ratio"], data["ratio_min"], data["ratio_max"], data["reached"]) == (1.5, 1.0, 3.0, True)
    assert Row("m", "d", "ttft", "8", "s", ours=[2.0], peer=[1.9], reach=1.0).to_dict()["reached"] is False


def test_a_row_without_a_peer_has_no_ratio() -> None:
    data = Row("m", "d", "decode", "1", "tokens/s", ours=[3.0, 5.0], reach=1.4).to_dict()
    assert (data["ours_median"], data["peer_median"], data["ratio"], data["reached"]) == (4.0, None, None, None)


def step(number: int, time_ns: int, decode: int, prefill: int = 0, forward_ns: int = 700) -> StepEvent:
    return StepEvent(
        step=number, time_ns=time_ns, schedule_ns=10, draft_ns=0, prepare_ns=20, forward_ns=forward_ns, sample_ns=200,
        post_ns=30, num_prefill_tokens=prefill, num_decode_tokens=decode, num_draft_tokens=0,
        num_accepted_tokens=0, num_emitted_tokens=decode, num_running=decode, num_waiting=0, num_preempted=0,
        kv_blocks_in_use=0, kv_blocks_cached=0, kv_blocks_empty=0, kv_slots_in_use=0, requests=(),
    )  # fmt: skip


def test_the_split_takes_only_whole_decode_steps_and_counts_the_time_between_them() -> None:
    events = [
        step(1, 0, decode=2, prefill=64, forward_ns=9000),  # not a pure decode step
        step(2, 10_000, decode=2),  # takes 960, the next starts after 1000: 40 between
        step(3, 11_000, decode=2),
        step(4, 12_000, decode=1),  # too few
        step(9, 99_000, decode=2),  # the last one: nothing follows
    ]
    found = split(events, num_running=2)
    assert found.num_steps == 2
    assert found.part_ns == {"schedule": 10, "prepare": 20, "forward": 700, "sample": 200, "post": 30, "between": 40}
    assert found.total_ns == 1000
    assert found.overhead_share == pytest.approx(0.1)


def test_a_split_without_a_fitting_step_is_refused() -> None:
    with pytest.raises(ValueError, match="none of 1 steps decoded 2 requests alone"):
        split([step(1, 0, decode=1)], num_running=2)


def test_mixed_batches_are_the_same_in_every_run_and_really_mixed() -> None:
    batch = mixed(16)
    assert batch == mixed(16)
    assert len(set(batch.prompt_lens)) == len(set(batch.output_lens)) == 16
    assert min(batch.prompt_lens) >= 16 and max(batch.prompt_lens) <= 256
    assert min(batch.output_lens) >= 32 and max(batch.output_lens) <= 128


def test_the_full_plan_measures_what_is_to_be_reached() -> None:
    plan = full_plan()
    assert plan.models == ("dummy-135m", "bundled") and plan.dtypes == ("bfloat16", "float32")
    assert plan.first_token_prompts == (128, 1024)
    assert [(b.size, b.reach) for b in plan.batches] == [(1, 1.4), (4, None), (16, 2.0), (16, None)]
    assert plan.max_tokens == 1025 and plan.max_batch == 16
    assert quick_plan().max_tokens < 64


def test_random_prompts_stay_within_the_vocabulary() -> None:
    import random

    ids = random_prompt(1000, 100, random.Random(0))
    assert min(ids) >= 50 and max(ids) < 100


def test_progress_counts_the_pieces_and_never_beyond_them() -> None:
    said: list[str] = []
    say = counted(said.append, 2)
    for text in ("one", "two", "and another"):
        say(text)
    assert said == ["1 of 2: one", "2 of 2: two", "2 of 2: and another"]

"""The speculation benchmark's arithmetic and choice of cases, from numbers worked out by hand."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from playground.bench.speculation.figures import Pass, agreement, figures, mean_over_rows, total
from playground.bench.speculation.plan import ADAPTIVE_FACTOR, Choice, make_plan
from playground.bench.speculation.published import published
from playground.bench.speculation.reaches import case_name, reaches
from playground.bench.speculation.runner import read_batch
from playground.bench.speculation.workloads import questions
from playground.bench.stats import decode_span
from playground.bench.steps import histogram
from playground.engine.events import ScheduledSlice, StepEvent
from playground.errors import ConfigError


def one_pass(**changes: Any) -> Pass:
    """Ten steps of 8 ms, 3 of them drafting; two drafts each, except for one step with none."""
    usual = Pass(
        decode_tokens=25, decode_seconds=0.1, num_steps=10, step_seconds=0.08, draft_seconds=0.03,
        rows_by_drafts=(1, 0, 9), rows_by_room=(1, 0, 9), num_emitted=25, drafts_reached=(9, 8), drafts_accepted=(8, 4),
    )  # fmt: skip
    return replace(usual, **changes)


def plain_pass(**changes: Any) -> Pass:
    usual = Pass(24, 0.12, 24, 0.12, 0.0, (24,), (24,), 24, (), ())
    return replace(usual, **changes)


def test_acceptance_is_of_what_was_reached_and_not_of_what_was_drafted() -> None:
    found = figures([one_pass()], [plain_pass()])
    assert found.acceptance_by_position == (8 / 9, 4 / 8)
    assert found.acceptance == 12 / 17
    assert found.acceptance_rate == 12 / 18
    assert (found.drafts_per_row, found.drafting_share) == (1.8, 0.9)


def test_tokens_per_step_stand_beside_both_forms_of_the_formula() -> None:
    found = figures([one_pass()], [plain_pass()])
    assert found.tokens_per_step == 2.5
    assert found.tokens_per_step_by_position == pytest.approx((1 + 9 * (1 + 8 / 9 + 8 / 9 * 4 / 8)) / 10)
    alpha = 12 / 17
    assert found.tokens_per_step_one_alpha == pytest.approx((1 + 9 * (1 - alpha**3) / (1 - alpha)) / 10)


def test_drafts_without_room_before_the_end_count_in_the_cost_but_not_in_the_formula() -> None:
    cut = figures([one_pass(rows_by_room=(2, 0, 8))], [plain_pass()])
    assert cut.drafts_per_row == 1.8
    assert cut.tokens_per_step_by_position == pytest.approx((2 + 8 * (1 + 8 / 9 + 4 / 9)) / 10)


def test_costs_are_in_steps_of_the_same_pair_and_make_the_expected_speedup() -> None:
    found = figures([one_pass()], [plain_pass()])
    assert found.plain_step_seconds == pytest.approx(0.005)
    assert (found.draft_seconds, found.verify_seconds) == (pytest.approx(0.003), pytest.approx(0.005))
    assert found.verify_cost == pytest.approx(1.0)
    assert found.draft_cost == pytest.approx(0.6 / 1.8)
    assert found.expected_speedup == pytest.approx(found.tokens_per_step_one_alpha / 1.6)


def test_the_measured_speedup_is_of_tokens_per_second_of_pairs() -> None:
    ours = [one_pass(decode_seconds=0.1), one_pass(decode_seconds=0.05), one_pass(decode_seconds=0.2)]
    plain = [plain_pass(), plain_pass(), plain_pass(decode_seconds=0.24)]
    found = figures(ours, plain)
    assert found.tokens_per_second == (250.0, 500.0, 125.0)
    assert found.plain_tokens_per_second == pytest.approx((200.0, 200.0, 100.0))
    assert (found.speedup, found.speedup_min, found.speedup_max) == pytest.approx((1.25, 1.25, 2.5))


def test_counts_are_pooled_over_pairs_with_chains_of_different_length() -> None:
    longer = one_pass(rows_by_drafts=(0, 0, 0, 10), rows_by_room=(0, 0, 0, 10), drafts_reached=(10, 5, 1),
                      drafts_accepted=(5, 1, 1))  # fmt: skip
    found = figures([one_pass(), longer], [plain_pass(), plain_pass()])
    assert found.drafts_reached == (19, 13, 1) and found.drafts_accepted == (13, 5, 1)
    assert total([one_pass(), longer]).rows_by_drafts == (1, 0, 9, 10)


def test_a_proposer_that_found_nothing_has_no_acceptance_and_no_draft_cost() -> None:
    nothing = one_pass(rows_by_drafts=(10,), rows_by_room=(10,), num_emitted=10, drafts_reached=(), drafts_accepted=())
    found = figures([nothing], [plain_pass()])
    assert found.acceptance is None and found.acceptance_rate is None and found.draft_cost is None
    assert found.acceptance_by_position == ()
    assert found.tokens_per_step_one_alpha == found.tokens_per_step_by_position == found.tokens_per_step == 1


def test_a_position_that_was_never_reached_is_missing_and_not_zero() -> None:
    found = figures([one_pass(drafts_reached=(9, 0), drafts_accepted=(0, 0))], [plain_pass()])
    assert found.acceptance_by_position == (0.0, None)
    assert found.tokens_per_step_by_position == 1


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=40))
def test_by_position_the_formula_is_exact_where_every_row_has_all_its_drafts(rows: list[tuple[int, int]]) -> None:
    # Fixed K and nothing cut: counted tokens and the sum of products are the same number, whatever was accepted.
    accepted = [min(one, 4) for one, _ in rows]
    reached = tuple(sum(a >= i for a in accepted) for i in range(4))
    kept = tuple(sum(a > i for a in accepted) for i in range(4))
    by_k = (0, 0, 0, 0, len(rows))
    found = figures(
        [one_pass(rows_by_drafts=by_k, rows_by_room=by_k, num_emitted=len(rows) + sum(accepted),
                  drafts_reached=reached, drafts_accepted=kept)],
        [plain_pass()],
    )  # fmt: skip
    assert found.tokens_per_step_by_position == pytest.approx(found.tokens_per_step)


def test_nothing_cannot_be_added_up() -> None:
    with pytest.raises(ValueError, match="nothing"):
        total([])


def test_means_weigh_by_rows() -> None:
    assert mean_over_rows([1, 0, 3], [1.0, 50.0, 3.0]) == 2.5


def test_agreement_counts_whole_texts_and_the_way_to_the_first_difference() -> None:
    found = agreement([[1, 2, 3], [1, 9, 3], [1, 2]], [[1, 2, 3], [1, 2, 3], [1, 2, 3]])
    assert found == {"requests": 3, "identical": 1, "same_tokens_before_first_difference": 6, "tokens": 9}


def test_decode_spans_of_several_requests() -> None:
    assert decode_span([[1.0, 1.5, 3.0, 4.0], [2.0, 2.5, 3.0]]) == (4, 2.0)


# Step events


def event(step: int, start: int, slices: list[ScheduledSlice], *, prefill: int = 0, draft_ns: int = 0) -> StepEvent:
    return StepEvent(
        step=step, time_ns=start, schedule_ns=0, draft_ns=draft_ns, prepare_ns=0, forward_ns=500, sample_ns=0,
        post_ns=0, num_prefill_tokens=prefill, num_decode_tokens=0, num_draft_tokens=0, num_accepted_tokens=0,
        num_emitted_tokens=0, num_running=1, num_waiting=0, num_preempted=0, kv_blocks_in_use=0, kv_blocks_cached=0,
        kv_blocks_empty=0, kv_slots_in_use=0, requests=tuple(slices),
    )  # fmt: skip


def row(emitted: int, drafts: int = 0, request: int = 7) -> ScheduledSlice:
    return ScheduledSlice(request, 0, drafts + 1, emitted, tuple(range(drafts)))


def test_a_batch_is_read_from_its_events() -> None:
    events = [
        event(1, 0, [row(1)], prefill=9),  # the first token
        event(2, 1000, [row(3, drafts=4)], draft_ns=200),  # 7 tokens left: room for all
        event(3, 3000, [row(1)]),
        event(4, 4000, [row(3, drafts=4)], draft_ns=300),  # 3 left: room for 2
    ]
    metrics = SimpleNamespace(
        time_to_first_token=1.0, inter_token_latencies=(0.5, 0.25, 0.25), drafts_reached=(2, 2, 2, 0),
        drafts_accepted=(2, 2, 1, 0),
    )  # fmt: skip
    found = read_batch(events, [SimpleNamespace(request_id=7, metrics=metrics)], [10.0])  # type: ignore[list-item]
    assert (found.decode_tokens, found.decode_seconds) == (7, 1.0)
    assert found.num_steps == 3
    assert found.step_seconds == pytest.approx((2000 + 1000 + 800) * 1e-9)  # the last one: its own duration
    assert found.draft_seconds == pytest.approx(500e-9)
    assert found.rows_by_drafts == (1, 0, 0, 0, 2)
    assert found.rows_by_room == (1, 0, 1, 0, 1)
    assert found.num_emitted == 7
    assert (found.drafts_reached, found.drafts_accepted) == ((2, 2, 2, 0), (2, 2, 1, 0))


def test_a_reply_of_one_token_cannot_be_measured() -> None:
    metrics = SimpleNamespace(time_to_first_token=1.0, inter_token_latencies=(), drafts_reached=(), drafts_accepted=())
    with pytest.raises(ValueError, match="first token"):
        read_batch(
            [event(1, 0, [row(1)], prefill=3)],
            [SimpleNamespace(request_id=7, metrics=metrics)],  # type: ignore[list-item]
            [0.0],
        )


def test_histograms_have_a_place_for_every_value() -> None:
    assert histogram([3, 0, 3]) == (1, 0, 0, 2)


# Cases


def test_the_full_plan_covers_what_is_asked() -> None:
    plan = make_plan(Choice())
    drafts = {(c.workload, c.num_tokens) for c in plan.cases if c.proposer == "draft" and c.batch_size == 1}
    assert drafts == {(w, k) for w in ("chat", "story") for k in (*range(1, 9), "auto")} | {
        (w, k) for w in ("story-0.7", "story-1.0", "copy") for k in (1, 2, 4, 8, "auto")
    }
    assert {c.proposer for c in plan.cases} == {"draft", "ngram", "suffix", "layer_skip"}
    assert {c.batch_size for c in plan.cases if c.workload == "story"} == {1, 4, 16} and plan.max_batch == 16
    coupled = {c.workload for c in plan.cases if c.verification == "coupled"}
    assert coupled == {"story-0.7", "story-1.0"}
    assert len(set(plan.cases)) == len(plan.cases)


def test_options_replace_the_usual_cases() -> None:
    choice = Choice(("story-1.0",), ("ngram",), ("3", "auto"), ("2",), ("coupled",), repeats=2)
    plan = make_plan(choice)
    assert [(c.proposer, c.num_tokens, c.batch_size, c.verification) for c in plan.cases] == [
        ("ngram", 3, 2, "coupled"),
        ("ngram", "auto", 2, "coupled"),
    ]
    fixed, adaptive = plan.cases
    assert (plan.num_pairs(fixed), plan.num_pairs(adaptive)) == (2, 2 * ADAPTIVE_FACTOR)
    assert plan.num_prompts("story-1.0") == (1 + 2 * ADAPTIVE_FACTOR) * 2


def test_a_pass_is_whole_batches() -> None:
    plan = make_plan(Choice(("chat",), batch_sizes=("1", "4", "16")))
    assert {c.batch_size: plan.requests_per_pass(c) for c in plan.cases} == {1: 6, 4: 4, 16: 16}


@pytest.mark.parametrize(
    ("choice", "words"),
    [
        (Choice(workloads=("poem",)), "--workloads 'poem' is not known: give some of chat"),
        (Choice(proposers=("eagle",)), "--proposers 'eagle' is not known: give some of draft"),
        (Choice(num_tokens=("0",)), "--k '0' is not allowed: give whole numbers from 1 to 64, or auto."),
        (Choice(num_tokens=("many",)), "--k 'many' is not allowed"),
        (Choice(batch_sizes=("-1",)), "--batch-sizes '-1' is not allowed: give whole numbers from 1 to 64."),
        (Choice(verifications=("typical",)), "--verification 'typical' is not known: give some of rejection, coupled."),
        (Choice(dtype="int8"), "--dtype 'int8' is not known"),
        (Choice(repeats=1000), "--repeats 1000 is too many"),
    ],
)
def test_a_bad_choice_gets_one_sentence(choice: Choice, words: str) -> None:
    with pytest.raises(ConfigError) as refused:
        make_plan(choice)
    assert str(refused.value).startswith(words) and "\n" not in str(refused.value)


def test_prompts_are_all_different_and_the_same_in_every_run() -> None:
    for kind, most in (("chat", 241), ("story", 312)):
        found = questions(kind, most)  # type: ignore[arg-type]
        assert len(set(found)) == most and found[:5] == questions(kind, 5)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="there are"):
            questions(kind, most + 1)  # type: ignore[arg-type]


# Reaches and published figures


def measured(workload: str, proposer: str, k: int | str, speedup: float, **changes: Any) -> dict[str, Any]:
    return {
        "workload": workload, "proposer": proposer, "num_tokens": k, "verification": "rejection", "batch_size": 1,
        "temperature": 0, "error": None, "acceptance": 0.8, "tokens_per_step": 3.0, "tokens_per_step_by_position": 3.0,
        "tokens_per_step_one_alpha": 3.2, "draft_cost": 0.2, "verify_cost": 1.1, "expected_speedup": 1.6,
        "speedup": speedup, "speculation": {"state": "active", "reason": None, "num_tokens": 4}, **changes,
    }  # fmt: skip


def verdicts(rows: list[dict[str, Any]]) -> dict[tuple[str, str], tuple[Any, bool]]:
    return {(one["workload"], one["what"]): (one["value"], one["reached"]) for one in reaches(rows)}


def test_reaches_take_the_best_and_the_worst_case() -> None:
    rows = [
        measured("chat", "draft", 4, 1.29),
        measured("chat", "draft", "auto", 1.31),
        measured("story", "draft", 4, 1.2, tokens_per_step=3.6),
        measured("story", "ngram", "auto", 0.96, batch_size=16),
        measured("copy", "draft", 4, 5.0),
        measured("copy", "ngram", 4, 1.79),
        measured("chat", "draft", 8, 9.9, error="failed"),
    ]
    found = verdicts(rows)
    assert found["chat", "best speed-up"] == (1.31, True)
    assert found["story", "best speed-up"] == (1.2, False)
    assert found["copy", "best speed-up of prompt lookup"] == (1.79, False)
    assert found["story", "adaptive, the worst case"] == (0.96, False)
    assert found["chat", "adaptive, the worst case"] == (1.31, True)
    assert found["story", "tokens per step off the formula by position"] == (pytest.approx(0.2), False)
    assert found["chat", "tokens per step off the formula with one α"] == (pytest.approx(0.0625), True)


def test_a_run_that_cannot_answer_is_asked_nothing() -> None:
    assert reaches([]) == []
    assert verdicts([measured("story", "draft", 4, 2.0, batch_size=4)]) == {}


@pytest.mark.parametrize(("state", "reached"), [("active", False), ("off", True), ("disabled", True)])
def test_lookups_in_drawn_text_must_be_given_up(state: str, reached: bool) -> None:
    useless = measured("story-1.0", "ngram", "auto", 1.0, temperature=1.0, speculation={"state": state})
    found = verdicts([useless])
    assert found["story-1.0", "n-gram at temperature 1 is found useless"] == (state, reached)


def test_a_case_is_named_by_what_is_unusual_about_it() -> None:
    assert case_name(measured("story", "draft", 4, 1)) == "draft, K 4"
    drawn = measured("story-0.7", "draft", "auto", 1, temperature=0.7, verification="coupled", batch_size=16)
    assert case_name(drawn) == "draft, K auto, coupled, batch 16"


def test_the_published_table_is_the_formula_at_its_six_places() -> None:
    rows = [measured("chat", "draft", k, 1.5) for k in (3, 4, 8, "auto")] + [measured("chat", "ngram", 4, 1.1)]
    found = published(rows)
    assert [(one["num_tokens"], one["acceptance"]) for one in found["formula"]] == [
        (k, a) for k in (4, 8) for a in (0.7, 0.8, 0.9)
    ]
    tokens = [round(one["tokens_per_step"], 2) for one in found["formula"]]
    assert tokens == [2.77, 3.36, 4.1, 3.2, 4.33, 6.13]
    free, *_, dear = found["formula"][0]["speedups"]
    assert free == {"draft_cost": 0, "speedup": found["formula"][0]["tokens_per_step"]}
    assert dear["speedup"] == pytest.approx(2.7731 / (4 * 0.2 + 1))
    assert [one["num_tokens"] for one in found["ours"]] == [4, 8]
    # The papers' own speed-ups are what their milliseconds a token say, as far as they print digits.
    for one in found["chen"]:
        assert one["plain_ms"] / one["speculative_ms"] == pytest.approx(one["speedup"], rel=0.03)

"""The drafts of an EAGLE head in the engine are those of the head run over everything, from the start, each time."""

import torch

from playground import SamplingParams
from playground.engine.batches import BatchSlice, build_batch
from playground.engine.events import StepEvent
from playground.models.eagle import load_eagle_head
from playground.models.loader import load_model
from tests.engine.speculation.test_equality import some_prompts
from tests.engine.told import told

FEW = SamplingParams(temperature=0, max_tokens=20, ignore_eos=True, allowed_token_ids=(40, 50, 60))


def drafts_from_scratch(target, head, token_ids, count):
    """Greedy drafts after `token_ids`, without any cache."""
    cpu = torch.device("cpu")
    _, features = target.forward_with_hidden(build_batch([BatchSlice(token_ids, 0, [], 1)], 0, cpu), None)
    features, drafts = features[:-1], []
    for _ in range(count):
        following = [*token_ids[1:], *drafts]
        logits, ahead = head.forward(build_batch([BatchSlice(following, 0, [], 1)], 0, cpu), features, None)
        allowed = list(FEW.allowed_token_ids)
        drafts.append(allowed[int(logits[-1, allowed].argmax())])
        features = torch.cat((features, ahead[-1:]))
    return drafts


def check_drafts(engine, prompts, tiny_model, eagle_head):
    target = load_model(tiny_model, dtype=torch.float64).model
    head = load_eagle_head(eagle_head, target)
    subscription = engine.events.subscribe()
    results = engine.generate(prompts, FEW)
    events = [event for event in told(engine, subscription) if isinstance(event, StepEvent)]
    num_drafts = num_rejected = 0
    for prompt, result in zip(prompts, results, strict=True):
        token_ids = list(prompt)
        for one in (o for event in events for o in event.requests if o.request_id == result.request_id):
            if one.draft_ids:
                expected = drafts_from_scratch(target, head, token_ids, len(one.draft_ids))
                assert list(one.draft_ids) == expected
                num_drafts += len(expected)
                num_rejected += len(expected) - len(one.accepted_drafts)
            token_ids += one.token_ids
    assert 0 < num_rejected < num_drafts
    return results


def test_drafts_are_those_of_a_head_without_a_cache(make_speculative, tiny_model, eagle_head):
    engine = make_speculative({"method": "eagle", "num_tokens": 3})
    check_drafts(engine, some_prompts(9), tiny_model, eagle_head)


def test_so_they_are_in_chunks_and_after_preemption(make_speculative, tiny_model, eagle_head):
    for fields in ({"max_num_batched_tokens": 5, "max_num_seqs": 3}, {"num_kv_blocks": 20, "prefix_caching": False}):
        engine = make_speculative({"method": "eagle", "num_tokens": 3}, **fields)
        check_drafts(engine, some_prompts(9), tiny_model, eagle_head)


def test_a_prompt_from_the_cache_is_drafted_for_where_the_head_knows_it(make_speculative):
    engine = make_speculative({"method": "eagle", "num_tokens": 3, "max_batch_size": 1})
    prompt = list(range(30, 60))
    first = engine.generate([prompt], FEW)[0]
    second = engine.generate([prompt], FEW)[0]
    assert second.metrics.num_cached_tokens == 28 and second.metrics.num_draft_tokens > 0
    assert second.token_ids == first.token_ids
    other = [*range(100, 130)]
    pair = engine.generate([other, [7, 8]], FEW)  # two at a time are not drafted for
    assert pair[0].metrics.num_draft_tokens == 0
    third = engine.generate([other], FEW)[0]
    assert third.metrics.num_cached_tokens == 28 and third.metrics.num_draft_tokens == 0
    assert third.metrics.speculation.state == "off" and "prefix cache" in third.metrics.speculation.reason

"""Trees of draft tokens through the decoder: every draft gets the logits that its branch would get as plain text."""

import pytest
import torch
from torch import Tensor

from playground.models import attention
from playground.models.attention import why_no_trees
from playground.models.batch import tree_masks
from playground.models.loader import LoadedModel
from tests.checkpoints import VARIANTS, checkpoint, reference_model
from tests.kernels.triton.oracle import DEVICE
from tests.models.driver import Driver, Sequence, Tree, load, prompt, put_trees, whole_batch

TOLERANCE = 1e-4
VARIANTS_WITH_TREES = [name for name, (_, changes) in VARIANTS.items() if "sliding_window" not in changes]
#        -1
#    0      1
#  2   3      4
#             5
SMALL = [-1, -1, 0, 0, 1, 4]


def tree(parents: list[int], vocabulary: int, seed: int = 0) -> Tree:
    return Tree(prompt(len(parents), vocabulary, seed=seed + 50), parents)


def random_parents(count: int, seed: int) -> list[int]:
    numbers = torch.rand(count, generator=torch.Generator().manual_seed(seed)).tolist()
    return [int(number * (i + 1)) - 1 for i, number in enumerate(numbers)]


def wanted(variant: str, context: list[int], one: Tree) -> Tensor:
    """Logits of transformers after the context and after each draft's branch."""
    rows = []
    for draft in range(-1, len(one.drafts)):
        ids = context + [one.drafts[i] for i in one.branch(draft)]
        with torch.inference_mode():
            rows.append(reference_model(variant)(torch.tensor([ids])).logits[0, -1])
    return torch.stack(rows)


def assert_close(logits: Tensor, exact: Tensor) -> None:
    assert logits.shape == exact.shape
    assert (logits.cpu() - exact).abs().max().item() < TOLERANCE


def run(driver: Driver, work: list[tuple[Sequence, int]], trees: dict[int, Tree]) -> list[Tensor]:
    logits = driver.model.forward(driver.batch(work, trees=trees), driver.cache)
    return list(logits.split([count for _, count in work]))


def loaded(variant: str, kind: str) -> LoadedModel:
    device = DEVICE if kind == "triton" else torch.device("cpu")
    return load(checkpoint(variant), attention=kind, device=device)


@pytest.mark.parametrize("variant", VARIANTS_WITH_TREES)
def test_every_draft_gets_the_logits_of_its_branch(variant: str) -> None:
    model = loaded(variant, "sdpa")
    ids, one = prompt(21, model.config.vocab_size), tree(SMALL, model.config.vocab_size)
    driver, sequence = Driver(model), Sequence(ids)
    driver.step([(sequence, 20)])
    assert_close(run(driver, [(sequence, 7)], {0: one})[0], wanted(variant, ids, one))


@pytest.mark.parametrize("kind", ["sdpa", "naive", "triton"])
def test_trees_beside_decodes_and_prompts(kind: str) -> None:
    model = loaded("llama-3", kind)
    vocabulary = model.config.vocab_size
    lengths = (6, 9, 5, 12) if kind == "triton" else (12, 30, 9, 14, 70)  # the interpreter takes its time
    sequences = [Sequence(prompt(n, vocabulary, seed=n)) for n in lengths]
    driver = Driver(model)
    driver.step([(s, len(s.token_ids) - 1) for s in sequences[:3]] + [(sequences[3], 3)])
    trees = {1: tree(SMALL, vocabulary), 2: tree([-1, 0, 0, -1, 3, 2], vocabulary, 1)}
    counts = [1, 7, 7, *(len(s.token_ids) - s.num_computed for s in sequences[3:])]
    got = run(driver, list(zip(sequences, counts, strict=True)), trees)
    for number, (sequence, logits) in enumerate(zip(sequences, got, strict=True)):
        if number in trees:
            assert_close(logits, wanted("llama-3", sequence.token_ids, trees[number]))
            continue
        with torch.inference_mode():
            exact = reference_model("llama-3")(torch.tensor([sequence.token_ids])).logits[0]
        assert_close(logits, exact[-len(logits) :])


def test_a_long_prompt_beside_trees_runs_in_triton_without_their_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    model, masked = loaded("smollm2", "triton"), []
    whole = attention.paged_attention

    def watched(q: Tensor, k: Tensor, v: Tensor, table: Tensor, *rest: Tensor, **options: object) -> object:
        masked.append((len(table), options.get("tree_mask") is not None))
        return whole(q, k, v, table, *rest, **options)  # type: ignore[arg-type]

    driver, sequences = Driver(model), [Sequence(prompt(n, 60, seed=n)) for n in (3, 23)]
    driver.step([(sequences[0], 2)])
    one = tree([-1, -1, 0], 60)
    monkeypatch.setattr(attention, "paged_attention", watched)
    got = run(driver, [(sequences[0], 4), (sequences[1], 23)], {0: one})
    assert masked == [(1, True), (1, False)] * 3
    assert_close(got[0], wanted("smollm2", sequences[0].token_ids, one))
    with torch.inference_mode():
        assert_close(got[1], reference_model("smollm2")(torch.tensor([sequences[1].token_ids])).logits[0])


@pytest.mark.parametrize(("count", "kind"), [(20, "sdpa"), (63, "sdpa"), (63, "naive"), (20, "triton")])
def test_large_trees(count: int, kind: str) -> None:
    model = loaded("smollm2", kind)
    ids, one = prompt(10, model.config.vocab_size), tree(random_parents(count, 3), model.config.vocab_size)
    driver, sequence = Driver(model), Sequence(ids)
    driver.step([(sequence, 9)])
    assert_close(run(driver, [(sequence, count + 1)], {0: one})[0], wanted("smollm2", ids, one))


@pytest.mark.parametrize("kind", ["sdpa", "naive", "triton"])
def test_without_a_cache_the_tree_stands_behind_the_whole_sequence(kind: str) -> None:
    model = loaded("qwen3", kind)
    vocabulary = model.config.vocab_size
    prompts, trees = [prompt(n, vocabulary, seed=n) for n in (80, 5, 1)], {}
    whole = [list(ids) for ids in prompts]
    for number in (0, 2):
        trees[number] = tree(SMALL, vocabulary, seed=number)
        whole[number] += trees[number].drafts
    batch = whole_batch(whole, DEVICE if kind == "triton" else None)
    put_trees(batch, trees)
    starts = [0, 86, 91]
    for number, one in trees.items():
        depths = torch.tensor(one.depths(), device=batch.positions.device)
        end = starts[number] + len(whole[number])
        batch.positions[end - 7 : end] = len(prompts[number]) - 1 + depths
    logits = model.model.forward(batch, None).split([86, 5, 7])
    for number, one in trees.items():
        assert_close(logits[number][-7:], wanted("qwen3", prompts[number], one))
    for number in (0, 1):
        with torch.inference_mode():
            exact = reference_model("qwen3")(torch.tensor([prompts[number]])).logits[0]
        assert_close(logits[number][: len(exact)], exact)


def test_windows_count_depth() -> None:
    model = load(checkpoint("llama-3"), sliding_window=64)
    vocabulary = model.config.vocab_size
    ids, one = prompt(90, vocabulary), tree([-1] * 5 + [4], vocabulary)
    driver, sequence = Driver(model), Sequence(ids)
    driver.step([(sequence, 89)])
    got = run(driver, [(sequence, 7)], {0: one})[0]
    for draft in range(-1, 6):
        branch = Sequence(ids + [one.drafts[i] for i in one.branch(draft)])
        other = Driver(model)
        plain = other.step([(branch, len(branch.token_ids))], rows="last")[0]
        assert_close(got[draft + 1 : draft + 2], plain.cpu())


def test_the_accepted_branch_becomes_contiguous_by_moving_its_keys() -> None:
    model = loaded("llama-3", "sdpa")
    vocabulary = model.config.vocab_size
    ids, one = prompt(15, vocabulary), tree(SMALL, vocabulary)
    driver, sequence = Driver(model, block_size=4), Sequence(ids)
    driver.step([(sequence, 14)])
    run(driver, [(sequence, 7)], {0: one})
    path = one.branch(5)
    assert path == [1, 4, 5]
    places = [14 + 1 + draft for draft in path]
    driver.cache.move([(driver.slot(sequence, p), driver.slot(sequence, 15 + i)) for i, p in enumerate(places)])
    sequence.token_ids += [one.drafts[i] for i in path] + prompt(1, vocabulary, seed=9)
    sequence.num_computed = 18
    with torch.inference_mode():
        exact = reference_model("llama-3")(torch.tensor([sequence.token_ids])).logits[0, -1:]
    assert_close(driver.step([(sequence, 1)])[0], exact)


def test_masks_show_a_token_its_ancestors_and_itself() -> None:
    assert tree_masks([]) == [1]
    assert tree_masks(SMALL) == [0b1, 0b11, 0b101, 0b1011, 0b10011, 0b100101, 0b1100101]
    deepest = tree_masks(range(-1, 62))
    assert deepest[-1] == -1 and deepest[62] == (1 << 63) - 1  # int64 has its highest bit below zero


def test_trees_that_cannot_be_are_refused() -> None:
    narrow = loaded("mistral", "sdpa")
    driver, sequence = Driver(narrow), Sequence([1, 2])
    one = tree([-1], narrow.config.vocab_size)
    with pytest.raises(ValueError, match=r"takes no trees: .* narrower than .* 64 tokens, and one is 7"):
        run(driver, [(sequence, 2)], {0: one})
    assert why_no_trees({None, 64}) is None and "one is 9" in (why_no_trees({None, 9, 70}) or "")
    driver = Driver(loaded("llama-3", "sdpa"))
    batch = driver.batch([(Sequence([1, 2]), 2)], trees={0: one})
    for wrong, message in (
        (None, "needs tree_lens"),
        ([1], "0 or, over a KV cache, all of its 2"),
        ([3], "tree_lens=3"),
    ):
        batch.tree_lens = wrong
        with pytest.raises(ValueError, match=message):
            driver.model.forward(batch, driver.cache)
    large = driver.batch([(Sequence([1] * 70), 70)], trees={})
    large.tree_lens = [70]
    with pytest.raises(ValueError, match="70 tokens is too large"):
        driver.model.forward(large, driver.cache)
    with pytest.raises(ValueError, match="64 drafts is too large"):
        tree_masks([-1] * 64)

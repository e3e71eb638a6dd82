"""Speculative rejection: the text has the target's distribution, and Triton decides as the definition does."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from kernels import rejection
from kernels.rejection import Drafts, Verified, verify
from tests.kernels.triton.oracle import DEVICE

SURE = 1e-4
"""Seeds are fixed, so a p-value below this is a fault and not bad luck."""


def table(rows: int, vocab: int, seed: int, spread: float = 1.0) -> Tensor:
    """Random distributions, float32 [rows, V]."""
    logits = torch.randn(rows, vocab, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * spread
    return logits.softmax(-1).float()


def trees(
    seqs: int,
    vocab: int,
    parents: list[int],
    *,
    drawn: bool = True,
    without_replacement: bool = False,
    target: Tensor | None = None,
    draft: Tensor | None = None,
    seed: int = 0,
) -> Drafts:
    """Drafts drawn from a Markov model: what follows a token is row token + 1 of `draft` and of `target` [V + 1, V]."""
    target = table(vocab + 1, vocab, seed=1) if target is None else target
    draft = table(vocab + 1, vocab, seed=2) if draft is None else draft
    generator = torch.Generator().manual_seed(seed)
    ids = torch.zeros(seqs, len(parents), dtype=torch.int64)
    states = torch.zeros(seqs, len(parents) + 1, dtype=torch.int64)  # the row of the tables for each row of the tree
    for i, parent in enumerate(parents):
        q = draft[states[:, parent + 1]].clone()
        older = [j for j in range(i) if parents[j] == parent]
        if without_replacement and older:
            q.scatter_(1, ids[:, older], 0.0)
        best = q.topk(len(older) + 1).indices[:, -1]
        ids[:, i] = torch.multinomial(q, 1, generator=generator).squeeze(1) if drawn else best
        states[:, i + 1] = ids[:, i] + 1
    return Drafts(
        ids,
        target[states],
        draft[states[:, :-1]] if drawn else None,
        seeds=torch.arange(seqs) * 7919 + seed,
        positions=torch.full((seqs,), 40),
        parents=torch.tensor(parents).expand(seqs, -1),
        without_replacement=without_replacement,
    )


def on(drafts: Drafts, device: torch.device) -> Drafts:
    moved = {name: value.to(device) for name, value in vars(drafts).items() if isinstance(value, Tensor)}
    return replace(drafts, **moved)


def p_value(counts: Tensor, expected: Tensor) -> float:
    """Chance of a chi-square at least this large; cells expected less than 5 times are put together."""
    counts, expected = counts.double().flatten(), expected.double().flatten()
    rare = expected < 5
    seen = torch.cat([counts[~rare], counts[rare].sum()[None]])
    wanted = torch.cat([expected[~rare], expected[rare].sum()[None]])
    seen, wanted = seen[wanted > 1e-9], wanted[wanted > 1e-9]
    statistic = ((seen - wanted) ** 2 / wanted).sum()
    degrees = torch.tensor(len(wanted) - 1, dtype=torch.float64)
    return float(torch.special.gammaincc(degrees / 2, statistic / 2))


def first_and_second_tokens(verified: Verified, target: Tensor) -> tuple[float, float]:
    """p-values of the first token, and of the second one given an accepted first one, under the Markov target."""
    vocab = target.shape[1]
    first = verified.tokens[:, 0]
    counts = torch.bincount(first, minlength=vocab)
    more = verified.num_accepted > 0
    pairs = torch.zeros(vocab, vocab).index_put_(
        (first[more], verified.tokens[more, 1]), torch.ones(int(more.sum())), accumulate=True
    )
    return (
        p_value(counts, target[0].double() * len(first)),
        p_value(pairs, target[1:].double() * pairs.sum(1, keepdim=True)),
    )


CHAIN = [-1, 0, 1]
WIDE = [-1, -1, -1, 0, 0, 2]
SHAPES = {
    "chain": (CHAIN, {}),
    "chain of certain drafts": (CHAIN, {"drawn": False}),
    "tree": (WIDE, {}),
    "tree without replacement": (WIDE, {"without_replacement": True}),
    "tree of the most probable": (WIDE, {"drawn": False}),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_tokens_have_exactly_the_distribution_of_the_target(shape: str) -> None:
    parents, options = SHAPES[shape]
    drafts = trees(4000, 5, parents, **options)
    assert min(first_and_second_tokens(verify(drafts, backend="torch"), table(6, 5, seed=1))) > SURE


def draws_from_the_target_after_a_rejection(drafts: Drafts, monkeypatch: pytest.MonkeyPatch) -> Drafts:
    real = rejection.walk

    def walk(target: Tensor, *rest: object) -> tuple[list[int], Tensor]:
        accepted, _ = real(target, *rest)  # type: ignore[arg-type]
        return accepted, target[accepted[-1] + 1 if accepted else 0].double()

    monkeypatch.setattr(rejection, "walk", walk)
    return drafts


def takes_another_proposal_for_the_draft_models(drafts: Drafts, monkeypatch: pytest.MonkeyPatch) -> Drafts:
    return replace(drafts, proposal=torch.full_like(drafts.target[:, :-1], 1 / 5))


def forgets_that_siblings_differ(drafts: Drafts, monkeypatch: pytest.MonkeyPatch) -> Drafts:
    return replace(drafts, without_replacement=False)


@pytest.mark.parametrize(
    ("shape", "plant"),
    [
        ("chain", draws_from_the_target_after_a_rejection),
        ("chain", takes_another_proposal_for_the_draft_models),
        ("tree without replacement", forgets_that_siblings_differ),
    ],
)
def test_a_planted_fault_is_found(
    shape: str, plant: Callable[[Drafts, pytest.MonkeyPatch], Drafts], monkeypatch: pytest.MonkeyPatch
) -> None:
    parents, options = SHAPES[shape]
    drafts = plant(trees(4000, 5, parents, **options), monkeypatch)
    assert min(first_and_second_tokens(verify(drafts, backend="torch"), table(6, 5, seed=1))) < SURE


def test_a_draft_is_accepted_as_often_as_the_two_models_agree() -> None:
    """Sum of min(p, q), the most that any exact rule can have."""
    drafts = trees(4000, 5, [-1])
    expected = torch.minimum(table(6, 5, seed=1)[0], table(6, 5, seed=2)[0]).sum().item()
    accepted = verify(drafts, backend="torch").num_accepted.double().mean().item()
    assert abs(accepted - expected) < 4 * (expected * (1 - expected) / 4000) ** 0.5


def test_drawn_drafts_may_be_taken_as_certain_and_are_accepted_less_often() -> None:
    drafts = trees(4000, 5, CHAIN)
    certain = verify(replace(drafts, proposal=None), backend="torch")
    assert min(first_and_second_tokens(certain, table(6, 5, seed=1))) > SURE
    assert certain.num_accepted.sum() < 0.5 * verify(drafts, backend="torch").num_accepted.sum()


def test_drafts_of_the_target_itself_are_all_accepted() -> None:
    drafts = trees(50, 300, CHAIN, target=table(301, 300, 3), draft=table(301, 300, 3))
    verified = verify(drafts, backend="torch")
    assert verified.num_accepted.tolist() == [3] * 50
    assert torch.equal(verified.tokens[:, :3], drafts.ids)


@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_one_hot_targets_accept_what_greedy_decoding_would_say(backend: str) -> None:
    ids = torch.tensor([[3, 1, 4], [3, 2, 4], [0, 1, 4]])
    greedy = torch.tensor([[3, 1, 4, 5], [3, 1, 4, 5], [3, 1, 4, 5]])
    target = torch.nn.functional.one_hot(greedy, 6).float()
    proposal = table(9, 6, seed=4).view(3, 3, 6)
    for q in (None, proposal):
        drafts = on(Drafts(ids, target, q, torch.arange(3), torch.arange(3)), DEVICE)
        verified = verify(drafts, backend=backend)
        assert verified.tokens.tolist() == [[3, 1, 4, 5], [3, 1, -1, -1], [3, -1, -1, -1]]
        assert verified.num_accepted.tolist() == [3, 1, 0]
        assert verified.path.tolist() == [[0, 1, 2], [0, -1, -1], [-1, -1, -1]]


@pytest.mark.parametrize(
    ("shape", "vocab"), [*((shape, 257) for shape in SHAPES), ("chain", 5), ("tree without replacement", 700)]
)
def test_triton_decides_and_draws_as_the_definition_does(shape: str, vocab: int) -> None:
    parents, options = SHAPES[shape]
    spread = 0.6 if vocab > 5 else 1.0
    tables = {"target": table(vocab + 1, vocab, 5, spread), "draft": table(vocab + 1, vocab, 6, spread)}
    drafts = trees(10, vocab, parents, seed=vocab, **options, **tables)
    counts = torch.tensor([len(parents)] * 6 + list(range(4))).clamp(max=len(parents))
    drafts = replace(drafts, counts=counts)
    wanted, got = verify(drafts, backend="torch"), verify(on(drafts, DEVICE), backend="triton")
    assert got.tokens.tolist() == wanted.tokens.tolist()
    assert got.path.tolist() == wanted.path.tolist()
    assert got.num_accepted.tolist() == wanted.num_accepted.tolist()
    assert vocab > 5 or len(set(wanted.num_accepted.tolist())) > 1


@pytest.mark.parametrize("without_replacement", [False, True])
def test_triton_follows_the_definition_through_many_rejected_siblings(without_replacement: bool) -> None:
    tables = {"target": table(41, 40, 8, spread=1.5), "draft": table(41, 40, 9, spread=1.5)}
    drafts = trees(60, 40, [-1] * 5, without_replacement=without_replacement, **tables)
    wanted, got = verify(drafts, backend="torch"), verify(on(drafts, DEVICE), backend="triton")
    assert (wanted.num_accepted == 0).sum() > 10
    assert (wanted.path[:, 0] > 0).sum() > 5
    assert got.tokens.tolist() == wanted.tokens.tolist()


@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_models_that_agree_to_the_last_bit_still_give_a_token(backend: str) -> None:
    """A rejection that leaves nothing (p below q everywhere, by rounding) gives the draft that was tried."""
    p = torch.full((1, 3, 8), 1 / 8)
    drafts = Drafts(torch.tensor([[5, 2]]), p * 0.5, p[:, :2], torch.tensor([3]), torch.tensor([0]))
    seeds = [s for s in range(20) if verify(replace(drafts, seeds=torch.tensor([s]))).num_accepted.item() == 0]
    assert len(seeds) > 3
    for seed in seeds[:2]:
        verified = verify(on(replace(drafts, seeds=torch.tensor([seed])), DEVICE), backend=backend)
        assert verified.tokens.tolist() == [[5, -1, -1]]


@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_without_drafts_a_token_is_drawn_and_without_sequences_none(backend: str) -> None:
    target = table(3, 40, 7)[:, None]
    words = torch.arange(3)
    drafts = Drafts(torch.zeros(3, 0, dtype=torch.int64), target, None, words, words)
    verified = verify(on(drafts, DEVICE), backend=backend)
    assert verified.tokens.shape == (3, 1)
    assert verified.tokens.min() >= 0
    none = Drafts(drafts.ids[:0], target[:0], None, words[:0], words[:0])
    assert verify(on(none, DEVICE), backend=backend).tokens.shape == (0, 1)


def test_what_does_not_fit_is_refused() -> None:
    good = trees(2, 5, CHAIN)
    with pytest.raises(ValueError, match=r"target \[S, N \+ 1, V\]"):
        verify(replace(good, target=good.target[:, :3]))
    with pytest.raises(ValueError, match="proposal of shape"):
        verify(replace(good, proposal=good.target))
    with pytest.raises(ValueError, match="seeds must be int64"):
        verify(replace(good, seeds=good.seeds.int()))
    with pytest.raises(ValueError, match="more than the 256"):
        many = torch.zeros(1, 300, dtype=torch.int64)
        verify(Drafts(many, torch.ones(1, 301, 2), None, good.seeds[:1], good.positions[:1]))

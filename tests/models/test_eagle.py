"""EAGLE-1 draft heads: against the paper's layer written out in float64, in chunks and batches, and what is refused."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from playground.config import QuantizationConfig
from playground.errors import ModelLoadError
from playground.models.batch import ModelBatch, tree_masks
from playground.models.decoder import Decoder
from playground.models.eagle import EagleHead, load_eagle_head
from playground.models.kv_cache import KVCache
from playground.models.linear import Linear
from playground.quantization.linear import QuantizedLinear
from tests.checkpoints import checkpoint
from tests.models.driver import load, make_batch, prompt

HIDDEN, HEADS, KV_HEADS, DIM, INNER, THETA, EPS = 48, 6, 2, 8, 80, 500.0, 1e-5


def config(**changes: Any) -> dict[str, Any]:
    shape = {
        "architectures": ["LlamaForCausalLMEagle"],
        "model_type": "llama",
        "hidden_size": HIDDEN,
        "num_hidden_layers": 1,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "intermediate_size": INNER,
        "hidden_act": "silu",
        "max_position_embeddings": 64,
        "rms_norm_eps": EPS,
        "rope_theta": THETA,
        "vocab_size": target().config.vocab_size,
        "torch_dtype": "float32",
        "bias": False,
    }
    return shape | changes


def tensors(*, bias: bool = False, embed: bool = False) -> dict[str, Tensor]:
    shapes: dict[str, tuple[int, ...]] = {
        "fc.weight": (HIDDEN, 2 * HIDDEN),
        "layers.0.self_attn.q_proj.weight": (HEADS * DIM, HIDDEN),
        "layers.0.self_attn.k_proj.weight": (KV_HEADS * DIM, HIDDEN),
        "layers.0.self_attn.v_proj.weight": (KV_HEADS * DIM, HIDDEN),
        "layers.0.self_attn.o_proj.weight": (HIDDEN, HEADS * DIM),
        "layers.0.post_attention_layernorm.weight": (HIDDEN,),
        "layers.0.mlp.gate_proj.weight": (INNER, HIDDEN),
        "layers.0.mlp.up_proj.weight": (INNER, HIDDEN),
        "layers.0.mlp.down_proj.weight": (HIDDEN, INNER),
    }
    if bias:
        shapes["fc.bias"] = (HIDDEN,)
    if embed:
        shapes["embed_tokens.weight"] = (target().config.vocab_size, HIDDEN)
    generator = torch.Generator().manual_seed(4)
    return {name: 0.3 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def write(folder: Path, weights: dict[str, Tensor], **changes: Any) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config(**changes)))
    save_file(weights, folder / "model.safetensors")
    return folder


def target(dtype: torch.dtype = torch.float64, **options: Any) -> Decoder:
    return load(checkpoint("llama-3"), dtype=dtype, **options).model


def rotated(x: Tensor, positions: Tensor) -> Tensor:
    """RoPE of x [T, heads, DIM]."""
    angles = positions[:, None].double() * THETA ** -(torch.arange(0, DIM, 2).double() / DIM)
    cos, sin = angles.cos()[:, None], angles.sin()[:, None]
    a, b = x[..., : DIM // 2], x[..., DIM // 2 :]
    return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)


@dataclass
class Paper:
    """The head as the paper has it: f'[i + 1] = layer(fc(e[i + 1], f[i])), logits = head(f')."""

    weights: dict[str, Tensor]
    model: Decoder

    def __call__(self, token_ids: list[int], features: Tensor) -> tuple[Tensor, Tensor]:
        w = {name.removeprefix("layers.0."): tensor.double() for name, tensor in self.weights.items()}
        embed = w.get("embed_tokens.weight", self.model.weights.embed)
        x = torch.cat((embed[token_ids], features), -1) @ w["fc.weight"].T + w.get("fc.bias", 0.0)
        count, positions = len(token_ids), torch.arange(len(token_ids))
        q = rotated((x @ w["self_attn.q_proj.weight"].T).view(count, HEADS, DIM), positions)
        k = rotated((x @ w["self_attn.k_proj.weight"].T).view(count, KV_HEADS, DIM), positions)
        v = (x @ w["self_attn.v_proj.weight"].T).view(count, KV_HEADS, DIM)
        k, v = (t.repeat_interleave(HEADS // KV_HEADS, 1) for t in (k, v))
        scores = torch.einsum("qhd,khd->hqk", q, k) / DIM**0.5
        scores = scores.masked_fill(torch.ones(count, count).triu(1).bool(), -torch.inf)
        attended = torch.einsum("hqk,khd->qhd", scores.softmax(-1), v).reshape(count, -1)
        x = x + attended @ w["self_attn.o_proj.weight"].T
        normed = x / (x.square().mean(-1, keepdim=True) + EPS).sqrt() * w["post_attention_layernorm.weight"]
        gate = torch.nn.functional.silu(normed @ w["mlp.gate_proj.weight"].T)
        x = x + (gate * (normed @ w["mlp.up_proj.weight"].T)) @ w["mlp.down_proj.weight"].T
        assert self.model.weights.head.weight is not None
        return x @ self.model.weights.head.weight.T, x


def pair(folder: Path, **options: bool) -> tuple[EagleHead, Paper]:
    weights, model = tensors(**options), target()
    return load_eagle_head(write(folder, weights), model), Paper(weights, model)


BLOCK = 4


def table(number: int) -> list[int]:
    """Blocks of the sequence of this number, up to 80 tokens."""
    return list(range(1 + 20 * number, 21 + 20 * number))


def ragged(work: list[tuple[list[int], int, int]]) -> ModelBatch:
    """Tokens [done, end) of each sequence, with logits of each."""
    ids = [t for token_ids, done, end in work for t in token_ids[done:end]]
    positions = [p for _, done, end in work for p in range(done, end)]
    slots = [
        table(n)[p // BLOCK] * BLOCK + p % BLOCK for n, (_, done, end) in enumerate(work) for p in range(done, end)
    ]
    lens, ends = [end - done for _, done, end in work], [end for _, _, end in work]
    return make_batch(ids, positions, slots, [table(n) for n in range(len(work))], lens, ends, list(range(len(ids))))


def cache(head: EagleHead, sequences: int = 3) -> KVCache:
    return KVCache(head.config, 1 + 20 * sequences, BLOCK, head.dtype)


def features(count: int, seed: int = 1) -> Tensor:
    return torch.randn(count, HIDDEN, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def assert_close(got: Tensor, exact: Tensor) -> None:
    torch.testing.assert_close(got, exact, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("embed", [False, True])
def test_a_head_is_the_layer_of_the_paper(tmp_path: Path, bias: bool, embed: bool) -> None:
    head, paper = pair(tmp_path, bias=bias, embed=embed)
    ids, given = prompt(30, 60), features(30)
    exact = paper(ids, given)
    for got, wanted in zip(head.forward(ragged([(ids, 0, 30)]), given, cache(head)), exact, strict=True):
        assert_close(got, wanted)
    for got, wanted in zip(head.forward(ragged([(ids, 0, 30)]), given, None), exact, strict=True):
        assert_close(got, wanted)


def test_chunks_in_a_ragged_batch_give_the_rows_of_the_whole(tmp_path: Path) -> None:
    head, paper = pair(tmp_path)
    sequences = [prompt(n, 60, seed=n) for n in (40, 25, 33)]
    given = [features(len(ids), seed) for seed, ids in enumerate(sequences)]
    held, done = cache(head), [0, 0, 0]
    got: list[list[tuple[Tensor, Tensor]]] = [[], [], []]
    for counts in ([20, 1, 30], [1, 1, 1], [1, 20, 1], [18, 3, 1]):
        work = [(ids, start, start + n) for ids, start, n in zip(sequences, done, counts, strict=True)]
        own = torch.cat([f[start:end] for f, (_, start, end) in zip(given, work, strict=True)])
        logits, out = head.forward(ragged(work), own, held)
        for number, rows in enumerate(zip(logits.split(counts), out.split(counts), strict=True)):
            got[number].append(rows)
        done = [end for _, _, end in work]
    for ids, own, parts in zip(sequences, given, got, strict=True):
        for side, wanted in enumerate(paper(ids, own)):
            assert_close(torch.cat([part[side] for part in parts]), wanted)


@pytest.mark.parametrize("ahead", [False, True])
def test_a_head_drafts_on_from_its_own_features(tmp_path: Path, ahead: bool) -> None:
    head, paper = pair(tmp_path)
    sequences, held, steps = [prompt(n, 60, seed=n) for n in (12, 7)], cache(head), 4
    given = [features(len(ids), seed) for seed, ids in enumerate(sequences)]
    logits, out = head.forward(ragged([(ids, 0, len(ids)) for ids in sequences]), torch.cat(given), held)
    last = [11, 18]
    token_ids, own = logits[last].argmax(-1), out[last]
    work = [(ids + [0] * steps, len(ids), len(ids) + 1) for ids in sequences]
    batches = [ragged([(ids, start + k, end + k) for ids, start, end in work]) for k in range(steps)]
    if ahead:
        slots = torch.stack([batch.slot_mapping for batch in batches])
        batches = head.steps_ahead(batches[0], slots, held)
    drafted = [token_ids]
    for batch in batches:
        batch.token_ids = drafted[-1]
        logits, own = head.forward(batch, own, held)
        drafted.append(logits.argmax(-1))
    for number, (ids, known) in enumerate(zip(sequences, given, strict=True)):
        for k in range(steps + 1):
            exact, imagined = paper(ids, known)
            assert int(exact[-1].argmax()) == int(drafted[k][number])
            ids, known = [*ids, int(drafted[k][number])], torch.cat((known, imagined[-1:]))
        assert_close(own[number], known[-1])


def test_a_tree_of_drafts_sees_its_branch(tmp_path: Path) -> None:
    head, paper = pair(tmp_path)
    ids, given, parents = prompt(10, 60), features(10), [-1, -1, 0]
    held, drafts, own = cache(head), prompt(3, 60, seed=7), features(4, 9)
    head.forward(ragged([(ids, 0, 9)]), given[:9], held)
    batch = ragged([(ids + drafts, 9, 13)])
    batch.positions = 9 + torch.tensor([0, 1, 1, 2])
    batch.tree_mask, batch.tree_lens = torch.tensor(tree_masks(parents)), [4]
    got = head.forward(batch, own, held)[0]
    for row, branch in enumerate(([], [0], [1], [0, 2])):
        along = torch.cat((given[:9], own[[0, *(i + 1 for i in branch)]]))
        assert_close(got[row], paper(ids + [drafts[i] for i in branch], along)[0][-1])


def test_the_targets_features_are_what_a_head_expects(tmp_path: Path) -> None:
    """Position i holds feature i and token i + 1; the last row's logits are of the token after the next."""
    head, paper = pair(tmp_path)
    ids = prompt(12, 60)
    batch = ragged([(ids, 0, 11)])
    _, hidden = paper.model.forward_with_hidden(batch, KVCache(paper.model.config, 61, BLOCK, torch.float64))
    batch.token_ids = torch.tensor(ids[1:])
    assert_close(head.forward(batch, hidden, cache(head))[0], paper(ids[1:], hidden)[0])


def test_a_head_runs_in_triton_and_in_the_targets_dtype(tmp_path: Path) -> None:
    from tests.kernels.triton.oracle import DEVICE

    weights = tensors()
    head = load_eagle_head(write(tmp_path, weights), target(torch.float32, attention="triton", device=DEVICE))
    ids, given = prompt(6, 60), features(6)
    batch = ragged([(ids, 0, 6)])
    for name in ("token_ids", "positions", "cu_seqlens_q", "kv_lens", "block_table", "slot_mapping", "logits_rows"):
        setattr(batch, name, getattr(batch, name).to(DEVICE))
    logits, out = head.forward(batch, given.float().to(DEVICE), KVCache(head.config, 61, BLOCK, head.dtype, DEVICE))
    exact = Paper(weights, target())(ids, given)
    assert (logits.cpu() - exact[0]).abs().max() < 1e-4 and (out.cpu() - exact[1]).abs().max() < 1e-4


def test_a_head_of_a_quantized_target_reads_its_tables_and_stays_as_it_is(tmp_path: Path) -> None:
    int8 = QuantizationConfig.named("int8")
    tied, plain = (load(checkpoint("smollm2"), dtype=torch.float64, quantization=how).model for how in (int8, None))
    assert isinstance(tied.weights.embed, QuantizedLinear)
    rounded = tied.weights.embed.take(torch.arange(plain.config.vocab_size))
    plain.weights.embed, plain.weights.head = rounded, Linear(rounded, None, keep=True)
    folder, work = write(tmp_path, tensors()), ragged([(prompt(30, 60), 0, 9)])
    got, expected = (load_eagle_head(folder, model)(work, features(9), None) for model in (tied, plain))
    assert_close(got[0], expected[0])
    assert_close(got[1], expected[1])


def test_its_cache_has_one_layer_and_positions_reach_as_far_as_the_targets(tmp_path: Path) -> None:
    head, _ = pair(tmp_path)
    assert cache(head).num_layers == 1
    assert head.config.max_position_embeddings == 256  # the checkpoint says 64


@pytest.mark.parametrize("name", ["EagleLlamaForCausalLM", "LlamaForCausalLM", "MistralForCausalLMEagle"])
def test_heads_are_known_by_their_published_names(tmp_path: Path, name: str) -> None:
    model = target(torch.float32)
    assert load_eagle_head(write(tmp_path, tensors(), architectures=[name]), model).config.num_layers == 1


def test_what_a_head_weighs_is_counted_without_what_it_shares(tmp_path: Path) -> None:
    model = target(torch.float32)
    for options in ({}, {"embed": True, "bias": True}):
        weights = tensors(**options)
        with_a_head_of_its_own = weights | {"lm_head.weight": torch.zeros(3, 3)}  # there in some files, never used
        head = load_eagle_head(write(tmp_path, with_a_head_of_its_own), model)
        assert head.weights_bytes == sum(4 * tensor.numel() for tensor in weights.values())


def without(name: str) -> Callable[[], dict[str, Tensor]]:
    return lambda: {key: tensor for key, tensor in tensors().items() if key != name}


@pytest.mark.parametrize(
    ("weights", "changes", "message"),
    [
        (tensors, {"hidden_size": 60}, "hidden_size=60 and its target 48"),
        (tensors, {"vocab_size": 999}, "vocab_size=999 and its target"),
        (tensors, {"num_hidden_layers": 3}, "has 3 layers and an EAGLE head has 1"),
        (tensors, {"architectures": ["LlamaForCausalLMEagle3"]}, "only heads of the first EAGLE"),
        (tensors, {"architectures": ["Eagle3LlamaForCausalLM"]}, "only heads of the first EAGLE"),
        (tensors, {"architectures": ["EagleMambaForCausalLM"]}, "MambaForCausalLM, which is not supported"),
        (tensors, {"architectures": ["GPT2LMHeadModel"], "n_embd": 48, "n_head": 6, "n_layer": 1}, "the layer of a"),
        (without("fc.weight"), {}, r"lacks 1 tensors .*\(fc.weight\)"),
        (without("layers.0.mlp.up_proj.weight"), {}, "lacks 1 tensors"),
        (lambda: tensors() | {"embedding_layernorm.weight": torch.ones(48)}, {}, "an EAGLE-1 head has no place for"),
        (lambda: tensors() | {"fc.weight": torch.ones(48, 48)}, {}, r"fc.weight has shape \[48, 48\]"),
        (tensors, {"intermediate_size": 64}, "has shape"),
        (tensors, {"quantization_config": {"quant_method": "awq"}}, "is quantized"),
    ],
)
def test_what_is_no_head_of_this_target_is_refused(
    tmp_path: Path, weights: Callable[[], dict[str, Tensor]], changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ModelLoadError, match=message) as caught:
        load_eagle_head(write(tmp_path, weights(), **changes), target())
    assert "\n" not in str(caught.value)


def test_pickled_heads_and_missing_folders_are_refused(tmp_path: Path) -> None:
    write(tmp_path, tensors())
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(ModelLoadError, match="only pickled weights"):
        load_eagle_head(tmp_path, target())
    with pytest.raises(ModelLoadError, match="no such folder"):
        load_eagle_head(tmp_path / "nowhere", target())


def test_features_of_another_shape_are_refused(tmp_path: Path) -> None:
    head, _ = pair(tmp_path)
    with pytest.raises(ValueError, match=r"features of shape \[3, 48\] must be \[4, 48\]"):
        head.forward(ragged([(prompt(4, 60), 0, 4)]), features(3), cache(head))

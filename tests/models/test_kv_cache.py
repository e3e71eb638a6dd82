"""The physical cache: where writes land, what copies and zeroing touch, and what it weighs."""

import pytest
import torch
from torch import Tensor

from kernels import reference
from kernels.kv_codes import PageLayout
from playground.models.config import DecoderConfig
from playground.models.kv_cache import KVCache
from tests.checkpoints import checkpoint


def cache(num_blocks: int = 6, block_size: int = 4, dtype: torch.dtype = torch.float32) -> KVCache:
    return KVCache(DecoderConfig.from_folder(checkpoint("llama-3")), num_blocks, block_size, dtype)


DTYPES = [torch.float32, torch.int8, torch.float8_e4m3fn]


def filled(dtype: torch.dtype = torch.float32) -> KVCache:
    held = cache(dtype=dtype)
    for number, kv in enumerate(held.kv):
        generator = torch.Generator().manual_seed(number)
        kv.copy_(torch.randn(kv.shape, generator=generator).mul_(9).to(dtype))
        for side in held.scales[number] or ():
            side.random_(1, 248, generator=generator)
    return held


def content(held: KVCache, layer: int) -> Tensor:
    """Everything of each slot [2, num_blocks, num_kv_heads, block_size, numbers], its scale behind the numbers."""
    kv, scales = held.kv[layer], held.scales[layer]
    if scales is None:
        return kv
    return torch.cat((kv.view(torch.uint8), torch.stack(scales)[..., None]), -1)


def test_layers_have_k_and_v_of_the_agreed_shape() -> None:
    held = cache()
    assert len(held.k) == len(held.v) == held.num_layers == 3
    assert held.k[0].shape == held.v[2].shape == (6, 2, 4, 8)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_writes_land_where_the_definition_puts_them(dtype: torch.dtype) -> None:
    held, expected = filled(dtype), filled(dtype)
    slots = torch.tensor([9, -1, 4, 23])
    kv = torch.randn(4, 4, 8)
    held.write(1, held.places(slots), kv)
    for x, side, scale in zip((kv[:, :2], kv[:, 2:]), expected.kv[1], expected.scales[1] or (None, None), strict=True):
        if scale is not None:
            x, worth = reference.quantize_kv(x, dtype)
            reference.scatter_slots(worth, scale, slots)
        reference.scatter_slots(x, side, slots)
    for layer in range(3):
        assert torch.equal(content(held, layer), content(expected, layer))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_tokens_without_a_slot_change_no_block(dtype: torch.dtype) -> None:
    held, expected = filled(dtype), filled(dtype)
    held.write(0, held.places(torch.tensor([-1, -1])), torch.randn(2, 4, 8))
    assert torch.equal(content(held, 0), content(expected, 0))


def test_the_null_block_is_zero() -> None:
    held = cache()
    held.write(0, held.places(torch.arange(4, 24)), torch.ones(20, 4, 8))
    assert (held.k[0][0] == 0).all() and (held.k[0][1:] == 1).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_copies_read_all_sources_before_they_write(dtype: torch.dtype) -> None:
    held, before = filled(dtype), filled(dtype)
    held.copy_blocks([(1, 2), (2, 3), (3, 1)])
    for layer in range(3):
        for source, target in ((1, 2), (2, 3), (3, 1)):
            assert torch.equal(content(held, layer)[:, target], content(before, layer)[:, source])
        assert torch.equal(content(held, layer)[:, 4:], content(before, layer)[:, 4:])
    held.copy_blocks([])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_moves_read_all_sources_before_they_write(dtype: torch.dtype) -> None:
    held, before = filled(dtype), filled(dtype)
    pairs = [(9, 10), (10, 5), (5, 9), (23, 4), (12, 12)]  # a circle, across blocks, and one that stays
    held.move(pairs)
    assert_moved(held, before, {target: source for source, target in pairs})
    held.move([])


def test_accepted_tokens_move_up_over_each_others_places() -> None:
    held, before = filled(), filled()
    held.move([(7, 6), (9, 7), (10, 8), (13, 9)])
    assert_moved(held, before, {6: 7, 7: 9, 8: 10, 9: 13})


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_moves_may_come_as_a_tensor_and_pairs_with_no_slot_move_nothing(dtype: torch.dtype) -> None:
    held, before = filled(dtype), filled(dtype)
    held.move(torch.tensor([[5, 6], [-1, 7], [8, -1], [-1, -1]]))
    assert_moved(held, before, {6: 5})
    held.move(torch.empty(0, 2, dtype=torch.int64))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_move_waits_for_no_device(dtype: torch.dtype) -> None:
    held = KVCache(DecoderConfig.from_folder(checkpoint("llama-3")), 6, 4, dtype, "meta")
    held.move(torch.zeros(3, 2, dtype=torch.int64, device="meta"))  # reading a number of these would raise


def assert_moved(held: KVCache, before: KVCache, source_of: dict[int, int]) -> None:
    """Every slot holds what its source held before, and the others what they held themselves."""
    for layer in range(3):
        for slot in range(24):
            source = source_of.get(slot, slot)
            now, then = (content(one, layer) for one in (held, before))
            same = torch.equal(now[:, slot // 4, :, slot % 4], then[:, source // 4, :, source % 4])
            assert same, f"layer {layer}, slot {slot}"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_zeroed_blocks_are_zero_and_others_untouched(dtype: torch.dtype) -> None:
    held, before = filled(dtype), filled(dtype)
    held.zero_blocks([2, 5])
    assert (content(held, 0)[:, [2, 5]] == 0).all()
    assert torch.equal(content(held, 2)[:, [1, 3, 4]], content(before, 2)[:, [1, 3, 4]])


def test_bytes_per_block_are_what_one_more_block_costs() -> None:
    config = DecoderConfig.from_folder(checkpoint("llama-3"))
    for dtype in (torch.float32, torch.bfloat16, torch.int8, torch.float8_e4m3fn):
        difference = cache(7, dtype=dtype).nbytes - cache(6, dtype=dtype).nbytes
        assert difference == KVCache.bytes_per_block(config, 4, dtype) == 4 * config.kv_bytes_per_token(dtype)
        assert difference == cache(dtype=dtype).block_bytes == 2 * 3 * 2 * PageLayout(4, 8, dtype).nbytes


def test_values_are_stored_in_the_caches_dtype() -> None:
    held = cache(dtype=torch.bfloat16)
    held.write(0, held.places(torch.tensor([4])), torch.full((1, 4, 8), 1.001))
    assert held.k[0].dtype == torch.bfloat16 and (held.k[0][1, :, 0] == 1.0).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_block_taken_out_and_put_elsewhere_is_the_same_block(dtype: torch.dtype) -> None:
    held, before = filled(dtype), filled(dtype)
    assert held.block(3).shape == held.block_shape
    held.block(5).copy_(held.block(3).contiguous())
    for layer in range(3):
        assert torch.equal(content(held, layer)[:, 5], content(before, layer)[:, 3])
        assert torch.equal(content(held, layer)[:, :5], content(before, layer)[:, :5])

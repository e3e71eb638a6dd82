"""The physical cache: where writes land, what copies and zeroing touch, and what it weighs."""

import torch

from kernels import reference
from playground.models.config import DecoderConfig
from playground.models.kv_cache import KVCache
from tests.checkpoints import checkpoint


def cache(num_blocks: int = 6, block_size: int = 4, dtype: torch.dtype = torch.float32) -> KVCache:
    return KVCache(DecoderConfig.from_folder(checkpoint("llama-3")), num_blocks, block_size, dtype)


def filled() -> KVCache:
    held = cache()
    for number, kv in enumerate(held.kv):
        kv.copy_(torch.randn(kv.shape, generator=torch.Generator().manual_seed(number)))
    return held


def test_layers_have_k_and_v_of_the_agreed_shape() -> None:
    held = cache()
    assert len(held.k) == len(held.v) == held.num_layers == 3
    assert held.k[0].shape == held.v[2].shape == (6, 2, 4, 8)


def test_writes_land_where_the_definition_puts_them() -> None:
    held, expected = filled(), filled()
    slots = torch.tensor([9, -1, 4, 23])
    kv = torch.randn(4, 4, 8)
    held.write(1, held.write_rows(slots), kv)
    reference.write_kv(kv[:, :2], kv[:, 2:], expected.k[1], expected.v[1], slots)
    for layer in range(3):
        assert torch.equal(held.kv[layer], expected.kv[layer])


def test_tokens_without_a_slot_change_no_block() -> None:
    held, expected = filled(), filled()
    held.write(0, held.write_rows(torch.tensor([-1, -1])), torch.randn(2, 4, 8))
    assert torch.equal(held.kv[0], expected.kv[0])


def test_the_null_block_is_zero() -> None:
    held = cache()
    held.write(0, held.write_rows(torch.arange(4, 24)), torch.ones(20, 4, 8))
    assert (held.k[0][0] == 0).all() and (held.k[0][1:] == 1).all()


def test_copies_read_all_sources_before_they_write() -> None:
    held, before = filled(), filled()
    held.copy_blocks([(1, 2), (2, 3), (3, 1)])
    for layer in range(3):
        for source, target in ((1, 2), (2, 3), (3, 1)):
            assert torch.equal(held.kv[layer][:, target], before.kv[layer][:, source])
        assert torch.equal(held.kv[layer][:, 4:], before.kv[layer][:, 4:])
    held.copy_blocks([])


def test_moves_read_all_sources_before_they_write() -> None:
    held, before = filled(), filled()
    pairs = [(9, 10), (10, 5), (5, 9), (23, 4), (12, 12)]  # a circle, across blocks, and one that stays
    held.move(pairs)
    assert_moved(held, before, {target: source for source, target in pairs})
    held.move([])


def test_accepted_tokens_move_up_over_each_others_places() -> None:
    held, before = filled(), filled()
    held.move([(7, 6), (9, 7), (10, 8), (13, 9)])
    assert_moved(held, before, {6: 7, 7: 9, 8: 10, 9: 13})


def test_moves_may_come_as_a_tensor_and_pairs_with_no_slot_move_nothing() -> None:
    held, before = filled(), filled()
    held.move(torch.tensor([[5, 6], [-1, 7], [8, -1], [-1, -1]]))
    assert_moved(held, before, {6: 5})
    held.move(torch.empty(0, 2, dtype=torch.int64))


def test_a_move_waits_for_no_device() -> None:
    held = KVCache(DecoderConfig.from_folder(checkpoint("llama-3")), 6, 4, torch.float32, "meta")
    held.move(torch.zeros(3, 2, dtype=torch.int64, device="meta"))  # reading a number of these would raise


def assert_moved(held: KVCache, before: KVCache, source_of: dict[int, int]) -> None:
    """Every slot holds what its source held before, and the others what they held themselves."""
    for layer in range(3):
        for slot in range(24):
            source = source_of.get(slot, slot)
            now, then = held.kv[layer][:, slot // 4, :, slot % 4], before.kv[layer][:, source // 4, :, source % 4]
            assert torch.equal(now, then), f"layer {layer}, slot {slot}"


def test_zeroed_blocks_are_zero_and_others_untouched() -> None:
    held, before = filled(), filled()
    held.zero_blocks([2, 5])
    assert (held.kv[0][:, [2, 5]] == 0).all()
    assert torch.equal(held.kv[2][:, [1, 3, 4]], before.kv[2][:, [1, 3, 4]])


def test_bytes_per_block_are_what_one_more_block_costs() -> None:
    config = DecoderConfig.from_folder(checkpoint("llama-3"))
    for dtype in (torch.float32, torch.bfloat16):
        difference = cache(7, dtype=dtype).nbytes - cache(6, dtype=dtype).nbytes
        assert difference == KVCache.bytes_per_block(config, 4, dtype) == 4 * config.kv_bytes_per_token(dtype)


def test_values_are_stored_in_the_caches_dtype() -> None:
    held = cache(dtype=torch.bfloat16)
    held.write(0, held.write_rows(torch.tensor([4])), torch.full((1, 4, 8), 1.001))
    assert held.k[0].dtype == torch.bfloat16 and (held.k[0][1, :, 0] == 1.0).all()

"""The plain decoder computes what transformers computes, for every family and every way a checkpoint is stored."""

import pytest
import torch

from playground.compression.blocks import PlainDecoder
from playground.models.checkpoint import Checkpoint
from playground.models.config import DecoderConfig
from playground.models.loader import check_names
from tests.checkpoints import VARIANTS, checkpoint, reference_model


@pytest.mark.parametrize("variant", VARIANTS)
@torch.inference_mode()
def test_logits_equal_those_of_transformers(variant: str) -> None:
    folder = checkpoint(variant)
    config = DecoderConfig.from_folder(folder)
    ids = torch.randint(0, config.vocab_size, (3, 21), generator=torch.Generator().manual_seed(1))
    with Checkpoint(folder) as files:
        decoder = PlainDecoder(config, check_names(config, files))
        x = decoder.embed(ids)
        for block in decoder.blocks():
            x = block(x)
        logits = decoder.logits(x)
    torch.testing.assert_close(logits, reference_model(variant)(ids).logits, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("variant", ["qwen2", "gpt2"])
@torch.inference_mode()
def test_what_the_linears_read_makes_the_block_again(variant: str) -> None:
    folder = checkpoint(variant)
    config = DecoderConfig.from_folder(folder)
    with Checkpoint(folder) as files:
        decoder = PlainDecoder(config, check_names(config, files))
        x = decoder.embed(torch.arange(12).view(1, 12))
        for block in (decoder.block(1, "attention"), decoder.block(1, "mlp")):
            second = block.roles[1]
            assert torch.equal(block(x), x + block.linear(second, block.inputs(second, x)))
            halved = block.weight(block.roles[0]) / 2
            block.set_weight(block.roles[0], halved)
            assert torch.equal(block.weight(block.roles[0]), halved)

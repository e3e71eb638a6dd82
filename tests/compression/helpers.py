"""What the tests of pruning share: calibration ids, and the logits of transformers for a saved checkpoint."""

from pathlib import Path

import torch
from torch import Tensor

from playground.compression.float_checkpoint import FloatCheckpoint
from playground.models.decoder import Decoder
from tests.models.driver import make_batch


def random_ids(vocab_size: int, sequences: int = 6, length: int = 40, seed: int = 0) -> Tensor:
    return torch.randint(3, vocab_size, (sequences, length), generator=torch.Generator().manual_seed(seed))


def decoder_logits(model: Decoder, ids: Tensor) -> Tensor:
    """[S, L] -> [S, L, vocab] through the engine's own decoder."""
    count, length = ids.shape
    lengths = [length] * count
    batch = make_batch(
        ids.flatten().tolist(), list(range(length)) * count, [-1] * ids.numel(), [[]] * count, lengths, lengths,
        list(range(ids.numel())),
    )  # fmt: skip
    return model.forward(batch, None).view(count, length, -1)


def assert_transformers_agrees(model: FloatCheckpoint, folder: Path) -> None:
    """transformers loads what was saved, by its config alone, without a missing or superfluous weight."""
    from transformers import AutoModelForCausalLM

    model.save(folder)
    theirs, report = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    ids = random_ids(model.config.vocab_size, 2, 24, seed=9)
    with torch.no_grad():
        expected = theirs.eval()(ids).logits
    torch.testing.assert_close(decoder_logits(model.decoder(), ids), expected, atol=2e-4, rtol=1e-4)

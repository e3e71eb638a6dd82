"""How many threads a forward uses: one where its layers are too small to be worth waking another."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from playground.models import decoder, layers
from playground.models.batch import ModelBatch
from playground.models.loader import load_model


def one_sequence(length: int) -> ModelBatch:
    return ModelBatch(
        token_ids=torch.arange(length),
        positions=torch.arange(length),
        cu_seqlens_q=torch.tensor([0, length], dtype=torch.int32),
        kv_lens=torch.tensor([length], dtype=torch.int32),
        block_table=torch.zeros(1, 0, dtype=torch.int32),
        slot_mapping=torch.zeros(0, dtype=torch.int64),
        logits_rows=torch.tensor([length - 1]),
        query_lens=[length],
        kv_lens_list=[length],
    )


@pytest.mark.parametrize(("tokens", "threads"), [(1, 1), (4, 2)])
def test_a_step_below_the_limit_runs_on_one_thread_and_the_setting_stays(
    tokens: int, threads: int, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        model = load_model(tiny_model).model
        size = sum(
            m.num_elements for layer in model.weights.layers[:1] for m in (layer.qkv, layer.out, layer.up, layer.down)
        )
        monkeypatch.setattr(layers, "_SERIAL_MULTIPLY_ADDS", 3 * size)
        seen = []
        embedding = F.embedding

        def watched(ids: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
            seen.append(torch.get_num_threads())
            return embedding(ids, weight)

        monkeypatch.setattr(decoder.F, "embedding", watched)
        model.forward(one_sequence(tokens), None)
        assert seen == [threads]
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)

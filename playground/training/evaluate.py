"""What a run says about its model: held-out bits per byte per source, loss by position, and sampled text.

Reads the model, never changes it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer

from playground.training.data import Rows, pack_stream
from playground.training.documents import Document, Encoder, Turn
from playground.training.generation import generate
from playground.training.model import TrainableLlama
from playground.training.tokenizer import SPECIAL_TOKENS

EVAL_ROWS = 8


def token_bytes(tokenizer: Tokenizer) -> torch.Tensor:
    """UTF-8 bytes that each token stands for (byte-level BPE writes one character per byte); specials have none."""
    size = tokenizer.get_vocab_size()
    tokens = [tokenizer.id_to_token(i) or "" for i in range(size)]
    return torch.tensor([0 if t in SPECIAL_TOKENS else len(t) for t in tokens], dtype=torch.long)


@torch.no_grad()
def position_losses(model: TrainableLlama, rows: Rows) -> tuple[torch.Tensor, torch.Tensor]:
    """Per-target negative log-likelihood [n, length] (nats) and the targets."""
    device = next(model.parameters()).device
    losses = []
    for start in range(0, len(rows.ids), EVAL_ROWS):
        ids = torch.from_numpy(rows.ids[start : start + EVAL_ROWS]).long().to(device)
        logits = model(ids[:, :-1])
        losses.append(F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none").view(len(ids), -1))
    return torch.cat(losses).cpu(), torch.from_numpy(rows.ids[:, 1:]).long()


def bits_per_byte(
    model: TrainableLlama, tokenizer: Tokenizer, documents: list[Document], length: int, max_tokens: int
) -> float | None:
    """Total bits over total bytes of the held-out documents' first `max_tokens` tokens; None if they fill no row."""
    encoded, total = [], 0
    encoder = Encoder(tokenizer)
    for document in documents:
        encoded += encoder.encode([document], assistant_only=False)
        total += len(encoded[-1][0])
        if total > max_tokens:
            break
    if total <= length:
        return None
    losses, targets = position_losses(model, pack_stream(encoded, length))
    return float(losses.double().sum() / math.log(2) / token_bytes(tokenizer)[targets].sum())


def loss_by_position(
    model: TrainableLlama, tokenizer: Tokenizer, documents: list[Document], max_rows: int, stretch: int = 128
) -> list[float]:
    """Mean held-out loss (nats per token) in stretches of the longest input: a climb means positions never learned."""
    length = model.shape.max_position_embeddings
    rows = pack_stream(Encoder(tokenizer).encode(documents, assistant_only=False), length)
    if not len(rows.ids):
        return []
    losses, _ = position_losses(model, Rows(rows.ids[:max_rows], rows.mask[:max_rows]))
    return [round(float(part.mean()), 3) for part in losses.split(stretch, dim=1)]


def reply(
    model: TrainableLlama, tokenizer: Tokenizer, turns: Sequence[Turn], seed: int, temperature: float, max_tokens: int
) -> tuple[str, bool]:
    """The assistant's next turn and whether it ended by itself."""
    encoder = Encoder(tokenizer)
    prompt = encoder.encode([Document(key="", turns=tuple(turns))], assistant_only=False)[0][0][:-1]
    prompt += [encoder.im_start, *encoder.headers["assistant"]]
    generator = torch.Generator().manual_seed(seed)
    stop = (encoder.im_end, encoder.end_of_text)
    prompts = torch.tensor([prompt], device=next(model.parameters()).device)
    ids = generate(model, prompts, max_tokens, temperature, generator, stop)[0].tolist()
    ended = bool(ids) and ids[-1] in stop
    return tokenizer.decode(ids[:-1] if ended else ids, skip_special_tokens=False), ended

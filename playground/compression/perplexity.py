"""Perplexity of a text by sliding window, token by token, so that two models are compared by paired differences.

The definition. The whole text is one sequence of N tokens, as the model's tokenizer makes it (with what the tokenizer
puts in front by itself). Windows of `length` tokens start every `stride` tokens, at position 0 each; the last ends with
the text. A window counts those of its tokens that no window before it counted, and never its first. So every token of
the text but the very first counts exactly once, behind at least `length - stride` tokens of context as soon as that
many precede it. A token's NLL is -ln of its probability among the whole vocabulary, temperature 1; the perplexity is
exp of the mean NLL of the N - 1 tokens.

Scores through a `Decoder` (fast) or through an `Engine` (everything that its configuration switches on shows, its
quantized KV cache too). Never changes a model.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from playground.errors import ConfigError, PlaygroundError
from playground.models.batch import ModelBatch
from playground.models.decoder import Decoder
from playground.sampling_params import SamplingParams

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from playground.engine.engine import Engine

DEFAULT_WINDOW = 512
_TOKENS_AT_A_TIME = 4096
_LOGITS_AT_A_TIME = 1 << 25
"""Bounds the memory of a batch of windows: 128 MB of float32 logits, unless one window alone has more."""
_NORMAL_95 = 1.959964


@dataclass(frozen=True)
class Window:
    """A piece of the text: its tokens, of which those from number `first` on count."""

    token_ids: list[int]
    first: int


Scorer = Callable[[Sequence[Window]], Tensor]
"""Windows -> NLLs of all their counted tokens in order, float64 [n], nats."""


@dataclass(frozen=True)
class PairedDifference:
    """How a model's NLLs differ from another's on the same tokens; positive is worse than the other.

    The standard error takes the tokens' differences as independent.
    """

    mean: float
    """Mean difference, nats per token."""
    standard_error: float
    num_tokens: int

    @property
    def z(self) -> float:
        """The mean in standard errors; 0 for two models that agree on every token."""
        if self.standard_error:
            return self.mean / self.standard_error
        return math.copysign(math.inf, self.mean) if self.mean else 0.0

    @property
    def relative(self) -> float:
        """Relative change of the perplexity: 0.01 is 1 % more."""
        return math.expm1(self.mean)

    @property
    def interval(self) -> tuple[float, float]:
        """95 % confidence interval of `relative`."""
        half = _NORMAL_95 * self.standard_error
        return math.expm1(self.mean - half), math.expm1(self.mean + half)


def perplexity(nlls: Tensor) -> float:
    """exp of the mean NLL."""
    return math.exp(float(nlls.mean()))


def paired_difference(nlls: Tensor, base: Tensor) -> PairedDifference:
    """NLLs [n] of one model against those of the base model on the same tokens in the same windows."""
    if nlls.shape != base.shape or nlls.numel() < 2:
        raise ConfigError(
            f"{nlls.numel()} and {base.numel()} tokens cannot be paired: score the same text with the same tokenizer "
            "and windows, two tokens at least."
        )
    difference = nlls.double() - base.double()
    error = float(difference.std(correction=1)) / math.sqrt(len(difference))
    return PairedDifference(float(difference.mean()), error, len(difference))


def text_nlls(
    scorer: Scorer, token_ids: Sequence[int], length: int = DEFAULT_WINDOW, stride: int | None = None
) -> Tensor:
    """NLL of every token of a text but the first, float64 [N - 1], in nats; `stride` None is half the window."""
    return scorer(windows(token_ids, length, stride))


def windows(token_ids: Sequence[int], length: int, stride: int | None = None) -> list[Window]:
    """The windows of a text, see the module's definition. `ConfigError` where there is no token to count."""
    stride = max(1, length // 2) if stride is None else stride
    if length < 2 or not 1 <= stride < length:
        raise ConfigError(
            f"a window of {length} tokens and a stride of {stride} do not work: give a window of at least 2 tokens and "
            "a stride from 1 to one less."
        )
    if len(token_ids) < 2:
        raise ConfigError(f"the text has {len(token_ids)} tokens: a perplexity takes at least 2; give a longer text.")
    found, counted = [], 1
    for start in range(0, len(token_ids), stride):
        end = min(start + length, len(token_ids))
        found.append(Window(list(token_ids[start:end]), counted - start))
        counted = end
        if end == len(token_ids):
            break
    return found


def read_text(path: Path) -> str:
    """A UTF-8 text file; `ConfigError` where it is missing, empty or something else."""
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 text (byte {error.start}): convert it first.") from None
    except OSError as error:
        raise ConfigError(f"{path} cannot be read ({error.strerror}): give a text file.") from None
    if not text.strip():
        raise ConfigError(f"{path} holds no text: give a file with some pages of it.")
    return text


def encode_text(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    """Token ids of a whole text, as the tokenizer makes them by default; control tokens written out in it count."""
    return list(tokenizer(text, verbose=False).input_ids)  # not verbose: it warns of texts longer than the context


def decoder_scorer(model: Decoder) -> Scorer:
    """Scores with a loaded model: every window in one forward over its own keys, several windows at a time."""

    def score(pieces: Sequence[Window]) -> Tensor:
        check_lengths(pieces, model.config.max_position_embeddings)
        parts, batch = [], list[Window]()
        for window in pieces:
            tokens = sum(len(one.token_ids) for one in (*batch, window))
            rows = sum(len(one.token_ids) - one.first for one in (*batch, window))
            if batch and (tokens > _TOKENS_AT_A_TIME or rows * model.config.vocab_size > _LOGITS_AT_A_TIME):
                parts.append(_forward(model, batch))
                batch = []
            batch.append(window)
        parts.append(_forward(model, batch))
        return torch.cat(parts)

    return score


def _forward(model: Decoder, pieces: Sequence[Window]) -> Tensor:
    lengths = [len(window.token_ids) for window in pieces]
    starts = torch.tensor([0, *lengths]).cumsum(0)
    rows = [
        torch.arange(window.first - 1, length - 1) + start
        for window, length, start in zip(pieces, lengths, starts.tolist(), strict=False)
    ]
    device = model.device
    batch = ModelBatch(
        token_ids=torch.tensor([token for window in pieces for token in window.token_ids], device=device),
        positions=torch.cat([torch.arange(length) for length in lengths]).to(device),
        cu_seqlens_q=starts.int().to(device),
        kv_lens=torch.tensor(lengths, dtype=torch.int32, device=device),
        block_table=torch.zeros((len(pieces), 0), dtype=torch.int32, device=device),
        slot_mapping=torch.full((sum(lengths),), -1, device=device),
        logits_rows=torch.cat(rows).to(device),
        query_lens=lengths,
        kv_lens_list=lengths,
    )
    targets = torch.tensor([token for window in pieces for token in window.token_ids[window.first :]], device=device)
    logits = model.forward(batch, None)
    chosen = logits.gather(1, targets[:, None]).squeeze(1)
    return (logits.logsumexp(-1).double() - chosen.double()).cpu()


def engine_scorer(engine: Engine) -> Scorer:
    """Scores with an engine as it is configured, as log-probabilities of prompts.

    Its KV cache dtype, quantization and chunks of `max_num_batched_tokens` take part.
    """

    def score(pieces: Sequence[Window]) -> Tensor:
        limit = engine.config.max_model_len
        assert limit is not None
        check_lengths(pieces, limit - 1)  # the engine always goes on to draw one token
        handles = [
            engine.submit(window.token_ids, SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=0))
            for window in pieces
        ]
        nlls: list[float] = []
        for window, handle in zip(pieces, handles, strict=True):
            generation = handle.result()
            if generation.error or generation.prompt_logprobs is None:
                raise PlaygroundError(f"the text could not be scored: {generation.error}")
            for entry in generation.prompt_logprobs[window.first :]:
                assert entry is not None  # only a prompt's first token has none
                nlls.append(-entry.logprob)
        return torch.tensor(nlls, dtype=torch.float64)

    return score


def check_lengths(pieces: Sequence[Window], limit: int) -> None:
    """`ConfigError` where a window is longer than the model reads at once."""
    longest = max(len(window.token_ids) for window in pieces)
    if longest > limit:
        raise ConfigError(f"a window of {longest} tokens is longer than this model reads, {limit}: give a shorter one.")

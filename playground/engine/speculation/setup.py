"""Builds the speculation that a configuration asks for: loads a draft, checks that it fits, wires it up.

Raises `ConfigError` or `ModelLoadError`, one sentence, for what cannot work; nothing is ignored.
"""

import json
import logging
from dataclasses import dataclass
from pathlib import Path

import torch

from playground.config import EngineConfig, SpeculationConfig
from playground.engine.block_pool import BlockPool
from playground.engine.resolve import resolve_attention
from playground.engine.speculation.controller import SpeculationController
from playground.engine.speculation.eagle_drafts import EagleProposer
from playground.engine.speculation.lookup import LookupProposer
from playground.engine.speculation.model_drafts import ModelProposer
from playground.engine.speculation.ngram import NgramProposer
from playground.engine.speculation.speculator import ComputedProposer, Speculator
from playground.engine.speculation.suffix import SuffixProposer
from playground.errors import ConfigError
from playground.models.attention import why_no_trees
from playground.models.bundled import BUNDLED_DRAFT_MODEL, BUNDLED_MODEL
from playground.models.config import DecoderConfig
from playground.models.decoder import Decoder
from playground.models.eagle import EagleHead, load_eagle_head
from playground.models.kv_cache import KVCache
from playground.models.loader import LoadedModel, load_model, read_config, resolve_model_path

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Draft:
    """What drafts besides the target's own weights."""

    config: SpeculationConfig
    model: LoadedModel | None = None
    """A smaller model, where the method needs one."""
    head: EagleHead | None = None
    path: Path | None = None

    @property
    def kv_config(self) -> DecoderConfig | None:
        """Shape of the KV that the draft keeps beside the target's."""
        loaded = self.model or self.head
        return None if loaded is None else loaded.config

    @property
    def weights_bytes(self) -> int:
        loaded = self.model or self.head
        return 0 if loaded is None else loaded.weights_bytes


def load_draft(config: EngineConfig, target: LoadedModel, device: torch.device, dtype: torch.dtype) -> Draft | None:
    """The draft that `config` asks for, loaded and checked against the target; None without speculation."""
    speculation = config.speculation
    if speculation is None and config.draft_model is not None:
        speculation = SpeculationConfig(method="draft", num_tokens="auto")
    if speculation is None:
        return None
    if speculation.method == "eagle":
        return _load_head(config, speculation, target)
    if speculation.method != "draft":
        return Draft(speculation)
    path = _draft_path(config, target)
    attention = resolve_attention(config.attention, read_config(path), device, dtype)
    loaded = load_model(
        str(path),
        device=device,
        dtype=dtype,
        load_format=config.load_format,
        attention=attention,
        sliding_window=_window(config, target),
        seed=config.seed,
    )
    _check_vocabulary(target, loaded)
    if loaded.weights_bytes > target.weights_bytes:
        logger.warning(
            "the draft model (%.1f MB) is larger than the target (%.1f MB): speculation cannot pay",
            loaded.weights_bytes / 1e6,
            target.weights_bytes / 1e6,
        )
    return Draft(speculation, loaded, path=loaded.path)


def build_speculator(
    draft: Draft,
    target: Decoder,
    kv_cache: KVCache | None,
    pool: BlockPool | None,
    config: EngineConfig,
    eos_token_ids: frozenset[int],
) -> Speculator:
    """`config` is the resolved one; `kv_cache` is the target's, `pool` has its blocks; both None without a cache."""
    speculation = draft.config
    assert config.max_model_len is not None and config.max_num_batched_tokens is not None
    if speculation.most_drafts >= config.max_model_len:
        raise ConfigError(
            f"num_tokens={speculation.most_drafts} drafts at once do not fit into max_model_len="
            f"{config.max_model_len}: give at most {config.max_model_len - 1}."
        )
    if speculation.tree_width > 1 and (reason := why_no_trees(target.config.layer_windows)) is not None:
        raise ConfigError(f"tree_width={speculation.tree_width} is not possible here: {reason}; give 1.")
    keeps_probabilities = speculation.verification == "rejection"
    proposer: ComputedProposer | LookupProposer
    if speculation.method == "ngram":
        proposer = NgramProposer(speculation.ngram_min, speculation.ngram_max)
    elif speculation.method == "suffix":
        proposer = SuffixProposer()
    elif draft.head is not None:
        assert kv_cache is not None and pool is not None
        proposer = EagleProposer(
            draft.head,
            _cache_beside(kv_cache, draft),
            pool,
            eos_token_ids=eos_token_ids,
            max_num_tokens=config.max_num_batched_tokens,
            keeps_probabilities=keeps_probabilities,
        )
    else:
        shares = draft.model is None
        model = _without_layers(target, speculation) if draft.model is None else draft.model.model
        proposer = ModelProposer(
            model,
            kv_cache if shares or kv_cache is None else _cache_beside(kv_cache, draft),
            pool,
            vocab_size=target.config.vocab_size,
            eos_token_ids=eos_token_ids,
            max_num_tokens=config.max_num_batched_tokens,
            shares_target_kv=shares,
            keeps_probabilities=keeps_probabilities,
            tree_width=speculation.tree_width,
        )
    controller = SpeculationController(
        speculation.num_tokens,
        max_batch_size=speculation.max_batch_size,
        max_num_tokens=speculation.max_num_tokens,
        drafts_cost_model_time=speculation.method not in ("ngram", "suffix"),
    )
    return Speculator(speculation, proposer, controller, max_model_len=config.max_model_len, device=target.device)


def _draft_path(config: EngineConfig, target: LoadedModel) -> Path:
    if config.draft_model is not None:
        return resolve_model_path(config.draft_model, None)
    if target.path.resolve() == BUNDLED_MODEL.resolve():
        return BUNDLED_DRAFT_MODEL
    raise ConfigError("speculation method 'draft' needs a draft_model for this model: name one, or use 'ngram'.")


def _load_head(config: EngineConfig, speculation: SpeculationConfig, target: LoadedModel) -> Draft:
    if config.draft_model is None:
        raise ConfigError("speculation method 'eagle' needs a draft_model: name the folder or hub id of the head.")
    if config.kv_cache == "none" or config.cuda_graphs:
        switch = "kv_cache='none'" if config.kv_cache == "none" else "cuda_graphs=True"
        raise ConfigError(f"speculation method 'eagle' does not work with {switch}: change one of the two.")
    path = resolve_model_path(config.draft_model, None)
    return Draft(speculation, head=load_eagle_head(path, target.model), path=path)


def _cache_beside(kv_cache: KVCache, draft: Draft) -> KVCache:
    """The draft's part of every block: the same block numbers in tensors of its own."""
    assert draft.kv_config is not None
    return KVCache(draft.kv_config, kv_cache.num_blocks, kv_cache.block_size, kv_cache.dtype, kv_cache.device)


def _without_layers(target: Decoder, speculation: SpeculationConfig) -> Decoder:
    count = target.config.num_layers
    skipped = speculation.skip_layers if speculation.skip_layers is not None else tuple(range(1, count - 1, 2))
    wrong = [layer for layer in skipped if not 0 <= layer < count]
    kept = [layer for layer in range(count) if layer not in skipped]
    if wrong or not kept or len(kept) == count:
        raise ConfigError(
            f"skip_layers={list(skipped)} leaves nothing to draft with or nothing out: this model has layers 0 to "
            f"{count - 1}; name some of them, not all."
        )
    return target.with_layers(kept)


def _window(config: EngineConfig, target: LoadedModel) -> int | None:
    """The draft must not look at blocks that the target's window has let go."""
    return config.sliding_window if config.sliding_window is not None else target.config.sliding_window


def _check_vocabulary(target: LoadedModel, draft: LoadedModel) -> None:
    ours, theirs = _token_table(target.path), _token_table(draft.path)
    if ours is None or theirs is None:  # dummy models without a tokenizer
        same = target.config.vocab_size == draft.config.vocab_size
    else:
        same = ours == theirs
    if not same:
        raise ConfigError(
            f"the draft model {draft.path.name!r} has another tokenizer than {target.path.name!r}, so its tokens mean "
            "nothing to the target: use a draft with the same tokenizer, or method 'ngram', 'suffix' or 'layer_skip'."
        )


def _token_table(folder: Path) -> object | None:
    """What decides how text becomes ids: vocabulary, merges and added tokens."""
    path = folder / "tokenizer.json"
    if not path.is_file():
        return None
    raw = json.loads(path.read_text(encoding="utf-8"))
    added = {token["content"]: token["id"] for token in raw.get("added_tokens", ())}
    model = raw.get("model", {})
    merges = [tuple(pair.split(" ")) if isinstance(pair, str) else tuple(pair) for pair in model.get("merges", ())]
    return model.get("vocab"), merges, added

"""EAGLE-1 draft heads (arXiv 2401.15077): one decoder layer that guesses the target's next feature from its last one.

Position i of a sequence takes the target's feature of token i (what its output head reads) and token i + 1; `fc` joins
the feature and the token's embedding, the layer (without its first norm) turns them into the feature of token i + 1,
and the target's own output head makes logits for token i + 2 of it. Where the target has not run yet, the head's own
features stand in for its.
"""

import re
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from playground.errors import ModelLoadError
from playground.models.batch import ModelBatch
from playground.models.checkpoint import Checkpoint, match_tensors
from playground.models.config import DecoderConfig, read_json
from playground.models.decoder import Decoder, look_up, project, take_rows
from playground.models.families import tensor_shapes
from playground.models.hub import resolve_model_path
from playground.models.kv_cache import KVCache
from playground.models.layers import Layer, LayerStack
from playground.models.linear import Linear
from playground.models.weights import WeightBuilder, layer_nbytes


class EagleHead:
    """A loaded draft head. `config` describes its one layer: a `KVCache` of it is the head's own."""

    def __init__(self, config: DecoderConfig, target: Decoder, fc: Linear, layer: Layer, embed: Tensor | None) -> None:
        """`embed` None is the target's; the output head always is."""
        self.config, self.dtype, self.device = config, target.dtype, target.device
        self._embed = target.weights.embed if embed is None else embed
        self._fc, self._head = fc, target.weights.head
        self._stack = LayerStack(config, [layer], dtype=self.dtype, device=self.device, attention=target.attention)
        self.weights_bytes = fc.nbytes + layer_nbytes(layer) + (0 if embed is None else embed.nbytes)
        """What it weighs beside the target."""

    @torch.inference_mode()
    def forward(self, batch: ModelBatch, features: Tensor, kv_cache: KVCache | None) -> tuple[Tensor, Tensor]:
        """Logits [R, vocab] of `batch.logits_rows`, and the features [T, H] that it expects the target to have next.

        Row t of the batch holds token i + 1 at position i of its sequence; row t of `features` [T, H] is that of
        token i: from `Decoder.forward_with_hidden`, or, drafting on, what this returned for the token before.
        """
        if features.shape != (len(batch.token_ids), self.config.hidden_size):
            wanted = [len(batch.token_ids), self.config.hidden_size]
            raise ValueError(f"features of shape {list(features.shape)} must be {wanted}, one row a token.")
        with self._stack.threads(len(batch.token_ids)):
            attention = self._stack.begin(batch, kv_cache)
            token_ids, order = batch.token_ids, attention.order
            if order is not None:
                token_ids, features = token_ids[order], features[order]
            embedded = look_up(self._embed, token_ids)
            x = self._stack.run(self._fc(torch.cat((embedded, features.to(self.dtype)), -1)), attention)
            if order is not None:
                x = x[torch.argsort(order)]
            return project(self._head, take_rows(x, batch.logits_rows)), x

    __call__ = forward

    def steps_ahead(self, batch: ModelBatch, slots: Tensor, kv_cache: KVCache) -> list[ModelBatch]:
        """See `Decoder.steps_ahead`."""
        return self._stack.steps_ahead(batch, slots, kv_cache)


def load_eagle_head(path_or_id: str | Path, target: Decoder, *, revision: str | None = None) -> EagleHead:
    """Load the draft head of `target`, in its dtype and on its device. Raises `ModelLoadError`, one sentence.

    The folder holds config.json, shaped like that of a Llama with one layer, and safetensors named fc.weight, fc.bias
    (optional), layers.0.* without layers.0.input_layernorm, and embed_tokens.weight (optional: the target's).
    """
    folder = resolve_model_path(path_or_id, revision)
    config = _head_config(folder, target.config)
    with Checkpoint(folder) as checkpoint:
        names, hidden = config.family.names, config.hidden_size
        shapes = {name: shape for name, shape in tensor_shapes(config).items() if "layers.0." in name}
        del shapes[f"{names.attn_norm.format(0)}.weight"]
        shapes["fc.weight"] = (hidden, 2 * hidden)
        optional = {"fc.bias": (hidden,), "embed_tokens.weight": (config.vocab_size, hidden)}
        shapes |= {name: shape for name, shape in optional.items() if name in checkpoint.entries}
        source = match_tensors(
            checkpoint,
            shapes,
            {name: name.removeprefix(names.optional_prefix) for name in shapes},
            also=["lm_head.weight"],  # the target's is used
            ignored_suffixes=config.family.ignored_suffixes,
            owner="an EAGLE-1 head",
        )
        builder = WeightBuilder(config, source, target.dtype, target.device)
        bias = builder.plain("fc.bias", shapes) if "fc.bias" in shapes else None
        fc = Linear(builder.plain("fc.weight", shapes), bias)
        layer = builder.layer(0, shapes, input_norm=False)
        embed = builder.plain("embed_tokens.weight", shapes) if "embed_tokens.weight" in shapes else None
    return EagleHead(config, target, fc, layer, embed)


def _head_config(folder: Path, target: DecoderConfig) -> DecoderConfig:
    """The head's config, checked against its target's."""
    raw = read_json(folder / "config.json")
    names = raw.get("architectures")
    name = str(names[0]) if isinstance(names, list) and names else ""
    if re.search("eagle_?3", name, re.IGNORECASE):
        raise ModelLoadError(
            f"{folder} is {name}, which reads features of several layers: only heads of the first EAGLE are supported."
        )
    # Published heads are called LlamaForCausalLMEagle, EagleLlamaForCausalLM or, by their authors, LlamaForCausalLM.
    plain = re.sub("eagle", "", name, flags=re.IGNORECASE)
    config = DecoderConfig.from_dict({**raw, "architectures": [plain] if plain else None}, str(folder))
    if config.norm != "rms" or config.positions != "rope":
        raise ModelLoadError(f"{folder} is {name}: an EAGLE head has the layer of a Llama, Mistral or Qwen.")
    if config.quantization is not None:
        raise ModelLoadError(f"{folder} is quantized, which an EAGLE head cannot be: use its original weights.")
    if config.num_layers != 1:
        raise ModelLoadError(
            f"{folder} has {config.num_layers} layers and an EAGLE head has 1: is it a draft model, or the target?"
        )
    for key, own, wanted in (
        ("hidden_size", config.hidden_size, target.hidden_size),
        ("vocab_size", config.vocab_size, target.vocab_size),
    ):
        if own != wanted:
            raise ModelLoadError(
                f"{folder} has {key}={own} and its target {wanted}: give the head that was trained for this target."
            )
    longest = max(config.max_position_embeddings, target.max_position_embeddings)
    return replace(config, max_position_embeddings=longest, tie_embeddings=True)

"""Batched sampling from a TrainableLlama with a simple KV cache: equal-length prompts in, token rows out.

Used for samples during training and for the teacher's own text in distillation; serving is the engine's job.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor

from playground.training.model import TrainableLlama, rms_norm, rotate


@torch.no_grad()
def generate(
    model: TrainableLlama,
    prompts: Tensor,
    max_tokens: int,
    temperature: float,
    generator: torch.Generator,
    stop: Iterable[int] = (),
) -> Tensor:
    """prompts [n, p] -> generated ids [n, <= max_tokens]; ends early once every row has produced a stop token."""
    n, length = prompts.shape
    total = min(length + max_tokens, model.shape.max_position_embeddings)
    cache = _Cache(model, n, total)
    stop_ids = torch.tensor(sorted(stop), device=prompts.device, dtype=torch.long)
    done = torch.zeros(n, dtype=torch.bool, device=prompts.device)
    out: list[Tensor] = []
    logits = cache.forward(prompts)
    while length + len(out) < total:
        if temperature == 0:
            token = logits.argmax(-1)
        else:
            probs = torch.softmax(logits.float().cpu() / temperature, -1)
            token = torch.multinomial(probs, 1, generator=generator)[:, 0].to(prompts.device)
        out.append(token)
        done |= torch.isin(token, stop_ids)
        if bool(done.all()) or length + len(out) == total:
            break
        logits = cache.forward(token[:, None])
    return torch.stack(out, dim=1) if out else prompts.new_empty((n, 0))


class _Cache:
    """Keys and values of every layer, [n, kv heads, total, dim], and the weights cast once to the compute dtype."""

    def __init__(self, model: TrainableLlama, n: int, total: int) -> None:
        shape, dtype = model.shape, model.compute_dtype
        self.shape, self.dtype, self.length = shape, dtype, 0
        self.weights = {name: w.detach().to(dtype) for name, w in model.named_weights().items()}
        device = next(model.parameters()).device
        size = (shape.num_layers, n, shape.num_kv_heads, total, shape.head_dim)
        self.keys = torch.zeros(size, dtype=dtype, device=device)
        self.values = torch.zeros(size, dtype=dtype, device=device)
        self.cos, self.sin = model.cos.to(dtype), model.sin.to(dtype)

    def forward(self, ids: Tensor) -> Tensor:
        """Logits of the last position; appends every position to the cache."""
        shape, w = self.shape, self.weights
        end = self.length + ids.shape[1]
        x = F.embedding(ids, w["model.embed_tokens.weight"])
        for layer in range(shape.num_layers):
            p = f"model.layers.{layer}."
            x = x + self._attention(rms_norm(x, w[p + "input_layernorm.weight"], shape.rms_norm_eps), layer, end)
            h = rms_norm(x, w[p + "post_attention_layernorm.weight"], shape.rms_norm_eps)
            inner = F.silu(F.linear(h, w[p + "mlp.gate_proj.weight"])) * F.linear(h, w[p + "mlp.up_proj.weight"])
            x = x + F.linear(inner, w[p + "mlp.down_proj.weight"])
        self.length = end
        last = rms_norm(x[:, -1], w["model.norm.weight"], shape.rms_norm_eps)
        return F.linear(last, w["model.embed_tokens.weight"])

    def _attention(self, x: Tensor, layer: int, end: int) -> Tensor:
        shape, start = self.shape, self.length
        n, length, _ = x.shape
        p = f"model.layers.{layer}.self_attn."
        cos, sin = self.cos[start:end], self.sin[start:end]
        heads, kv, dim = shape.num_heads, shape.num_kv_heads, shape.head_dim
        q = rotate(F.linear(x, self.weights[p + "q_proj.weight"]).view(n, length, heads, dim), cos, sin)
        k = rotate(F.linear(x, self.weights[p + "k_proj.weight"]).view(n, length, kv, dim), cos, sin)
        v = F.linear(x, self.weights[p + "v_proj.weight"]).view(n, length, kv, dim)
        self.keys[layer, :, :, start:end] = k.transpose(1, 2)
        self.values[layer, :, :, start:end] = v.transpose(1, 2)
        group = heads // kv
        rows = q.view(n, length, kv, group, dim).permute(0, 2, 3, 1, 4).reshape(n, kv, group * length, dim)
        scores = rows @ self.keys[layer, :, :, :end].transpose(-1, -2) * dim**-0.5
        positions = torch.arange(start, end, device=x.device).repeat(group)
        hidden = torch.arange(end, device=x.device)[None, :] > positions[:, None]
        probs = torch.softmax(scores.float().masked_fill(hidden, float("-inf")), -1).to(self.dtype)
        out = probs @ self.values[layer, :, :, :end]
        out = out.view(n, kv, group, length, dim).permute(0, 3, 1, 2, 4).reshape(n, length, heads * dim)
        return F.linear(out, self.weights[p + "o_proj.weight"])

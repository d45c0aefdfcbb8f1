"""A plain Llama in PyTorch, as people write it: the peer that Gradus' Llama family is measured against.

RMSNorm, rotary positions in transformers' convention, SwiGLU, grouped queries, a head tied to the embedding, attention by
`scaled_dot_product_attention`. Weights are kept in folders that transformers and Gradus open as a Llama model.
"""

import json
import pathlib
from dataclasses import dataclass

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional


@dataclass(frozen=True)
class Shape:
    """SmolLM2-135M's sizes: V tokens, C width, L layers, H query and K key-value heads of D, F feed-forward width."""

    vocabulary: int = 49152
    width: int = 576
    layers: int = 30
    heads: int = 9
    kv_heads: int = 3
    head_size: int = 64
    feed_forward: int = 1536
    context: int = 8192
    theta: float = 100_000.0

    def config(self):
        return {
            "architectures": ["LlamaForCausalLM"], "model_type": "llama", "dtype": "float32",
            "vocab_size": self.vocabulary, "hidden_size": self.width, "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads, "num_key_value_heads": self.kv_heads, "head_dim": self.head_size,
            "intermediate_size": self.feed_forward, "max_position_embeddings": self.context, "rms_norm_eps": 1e-5,
            "rope_theta": self.theta, "hidden_act": "silu", "attention_bias": False, "mlp_bias": False,
            "tie_word_embeddings": True, "initializer_range": 0.02, "bos_token_id": 0, "eos_token_id": 0,
        }

    @staticmethod
    def of(config):
        names = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
                 "head_dim", "intermediate_size", "max_position_embeddings", "rope_theta")
        return Shape(*(config[name] for name in names))


class Rotary(nn.Module):
    """Cosines and sines of all positions, made once."""

    def __init__(self, shape, positions):
        super().__init__()
        frequencies = shape.theta ** (-torch.arange(0, shape.head_size, 2, dtype=torch.float32) / shape.head_size)
        angles = torch.outer(torch.arange(positions, dtype=torch.float32), frequencies)
        angles = torch.cat((angles, angles), dim=-1)
        self.register_buffer("cosines", angles.cos(), persistent=False)
        self.register_buffer("sines", angles.sin(), persistent=False)

    def forward(self, x):
        length = x.shape[2]
        first, second = x.chunk(2, dim=-1)
        return x * self.cosines[:length] + torch.cat((-second, first), dim=-1) * self.sines[:length]


class Attention(nn.Module):
    def __init__(self, shape):
        super().__init__()
        self.shape = shape
        self.q_proj = nn.Linear(shape.width, shape.heads * shape.head_size, bias=False)
        self.k_proj = nn.Linear(shape.width, shape.kv_heads * shape.head_size, bias=False)
        self.v_proj = nn.Linear(shape.width, shape.kv_heads * shape.head_size, bias=False)
        self.o_proj = nn.Linear(shape.heads * shape.head_size, shape.width, bias=False)

    def forward(self, x, rotary):
        batch, length, _ = x.shape
        split = lambda part: part.view(batch, length, -1, self.shape.head_size).transpose(1, 2)
        q, k, v = rotary(split(self.q_proj(x))), rotary(split(self.k_proj(x))), split(self.v_proj(x))
        q, k = q.to(v.dtype), k.to(v.dtype)
        y = functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        return self.o_proj(y.transpose(1, 2).reshape(batch, length, -1))


class FeedForward(nn.Module):
    def __init__(self, shape):
        super().__init__()
        self.gate_proj = nn.Linear(shape.width, shape.feed_forward, bias=False)
        self.up_proj = nn.Linear(shape.width, shape.feed_forward, bias=False)
        self.down_proj = nn.Linear(shape.feed_forward, shape.width, bias=False)

    def forward(self, x):
        return self.down_proj(functional.silu(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Module):
    def __init__(self, shape):
        super().__init__()
        self.input_layernorm = nn.RMSNorm(shape.width, eps=1e-5)
        self.self_attn = Attention(shape)
        self.post_attention_layernorm = nn.RMSNorm(shape.width, eps=1e-5)
        self.mlp = FeedForward(shape)

    def forward(self, x, rotary):
        x = x + self.self_attn(self.input_layernorm(x), rotary)
        return x + self.mlp(self.post_attention_layernorm(x))


class Llama(nn.Module):
    def __init__(self, shape, positions=512):
        super().__init__()
        self.shape = shape
        self.model = nn.ModuleDict({
            "embed_tokens": nn.Embedding(shape.vocabulary, shape.width),
            "layers": nn.ModuleList(Block(shape) for _ in range(shape.layers)),
            "norm": nn.RMSNorm(shape.width, eps=1e-5),
        })
        self.rotary = Rotary(shape, positions)

    def initialise(self, seed):
        """Normal weights of 0.02, those that end a residual branch smaller by sqrt(2 L); norms 1."""
        generator = torch.Generator().manual_seed(seed)
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                branch_end = name.endswith(("o_proj.weight", "down_proj.weight"))
                nn.init.normal_(
                    parameter, std=0.02 / (2 * self.shape.layers) ** 0.5 if branch_end else 0.02, generator=generator)
            else:
                nn.init.constant_(parameter, 1.0)
        return self

    def forward(self, tokens, targets):
        """The mean loss; tokens and targets are [B, T]."""
        x = self.model.embed_tokens(tokens)
        for block in self.model.layers:
            x = block(x, self.rotary)
        logits = functional.linear(self.model.norm(x), self.model.embed_tokens.weight)
        return functional.cross_entropy(logits.flatten(0, 1), targets.flatten())


def save_folder(model, folder):
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(model.shape.config(), indent=2) + "\n")
    tensors = {name: p.detach().contiguous() for name, p in model.named_parameters()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def load_folder(folder):
    folder = pathlib.Path(folder)
    model = Llama(Shape.of(json.loads((folder / "config.json").read_text())))
    model.load_state_dict(load_file(folder / "model.safetensors"))
    return model

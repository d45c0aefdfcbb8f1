"""A plain GPT in PyTorch, as people write it: the peer that Gradus is measured against.

LayerNorm, learned positions, GELU by tanh, biases everywhere but in the head, a head of its own, attention by
`scaled_dot_product_attention`. Weights are kept in folders that transformers and Gradus open as a GPT-2 model: its
parameter names, its weights [in, out] for the layers inside a block, `lm_head.weight` [V, C].
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
    """V tokens, C width, L layers, H heads, T positions."""

    vocabulary: int = 4096
    width: int = 384
    layers: int = 6
    heads: int = 6
    positions: int = 256

    def config(self):
        return {
            "architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "dtype": "float32",
            "vocab_size": self.vocabulary, "n_embd": self.width, "n_layer": self.layers, "n_head": self.heads,
            "n_positions": self.positions, "n_inner": None, "activation_function": "gelu_new",
            "layer_norm_epsilon": 1e-5, "tie_word_embeddings": False, "initializer_range": 0.02,
            "attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0,
            "bos_token_id": 0, "eos_token_id": 0, "use_cache": True,
        }

    @staticmethod
    def of(config):
        return Shape(config["vocab_size"], config["n_embd"], config["n_layer"], config["n_head"], config["n_positions"])


class Attention(nn.Module):
    def __init__(self, shape):
        super().__init__()
        self.heads = shape.heads
        self.c_attn = nn.Linear(shape.width, 3 * shape.width)
        self.c_proj = nn.Linear(shape.width, shape.width)

    def forward(self, x):
        batch, length, width = x.shape
        split = (batch, length, self.heads, width // self.heads)
        q, k, v = (part.view(split).transpose(1, 2) for part in self.c_attn(x).split(width, dim=2))
        y = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.c_proj(y.transpose(1, 2).reshape(batch, length, width))


class FeedForward(nn.Module):
    def __init__(self, shape):
        super().__init__()
        self.c_fc = nn.Linear(shape.width, 4 * shape.width)
        self.c_proj = nn.Linear(4 * shape.width, shape.width)

    def forward(self, x):
        return self.c_proj(functional.gelu(self.c_fc(x), approximate="tanh"))


class Block(nn.Module):
    def __init__(self, shape):
        super().__init__()
        self.ln_1 = nn.LayerNorm(shape.width)
        self.attn = Attention(shape)
        self.ln_2 = nn.LayerNorm(shape.width)
        self.mlp = FeedForward(shape)

    def forward(self, x):
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class Gpt(nn.Module):
    def __init__(self, shape):
        super().__init__()
        self.shape = shape
        self.transformer = nn.ModuleDict({
            "wte": nn.Embedding(shape.vocabulary, shape.width),
            "wpe": nn.Embedding(shape.positions, shape.width),
            "h": nn.ModuleList(Block(shape) for _ in range(shape.layers)),
            "ln_f": nn.LayerNorm(shape.width),
        })
        self.lm_head = nn.Linear(shape.width, shape.vocabulary, bias=False)

    def initialise(self, seed):
        """Normal weights of 0.02, those that end a residual branch smaller by sqrt(2 L); biases 0, norms 1."""
        generator = torch.Generator().manual_seed(seed)
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                branch_end = name.endswith("c_proj.weight")
                nn.init.normal_(
                    parameter, std=0.02 / (2 * self.shape.layers) ** 0.5 if branch_end else 0.02, generator=generator)
            else:
                nn.init.constant_(parameter, 1.0 if ".ln_" in name and name.endswith("weight") else 0.0)
        return self

    def forward(self, tokens, targets):
        """The mean loss; tokens and targets are [B, T]."""
        x = self.transformer.wte(tokens) + self.transformer.wpe.weight[: tokens.shape[1]]
        for block in self.transformer.h:
            x = block(x)
        logits = self.lm_head(self.transformer.ln_f(x))
        return functional.cross_entropy(logits.flatten(0, 1), targets.flatten())


def transposed(name, tensor):
    """Inside a block GPT-2's files hold a linear layer's weight as [in, out]."""
    inside = ".h." in name and tensor.dim() == 2
    return tensor.t().contiguous() if inside else tensor.contiguous()


def save_folder(model, folder):
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(model.shape.config(), indent=2) + "\n")
    tensors = {name: transposed(name, p.detach()) for name, p in model.named_parameters()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def load_folder(folder):
    folder = pathlib.Path(folder)
    model = Gpt(Shape.of(json.loads((folder / "config.json").read_text())))
    tensors = load_file(folder / "model.safetensors")
    model.load_state_dict({name: transposed(name, tensor) for name, tensor in tensors.items()})
    return model


def decay_groups(model, decay=0.1):
    """Parameter groups for an optimizer: the weights of linear layers decay; embeddings (also one that serves as the
    head), biases and norms do not."""
    named = {"Linear", "Conv1D"}  # transformers' GPT-2 has linear layers of its own class
    linear = {id(m.weight): m.weight for m in model.modules() if type(m).__name__ in named}
    for module in model.modules():
        if isinstance(module, nn.Embedding):
            linear.pop(id(module.weight), None)
    rest = [p for p in model.parameters() if id(p) not in linear]
    return [{"params": list(linear.values()), "weight_decay": decay}, {"params": rest, "weight_decay": 0.0}]

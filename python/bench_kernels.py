"""The PyTorch peer of `cargo x bench kernels`: single operators, timed when told.

What: for each operation of Gradus' device, what PyTorch offers for the same thing: `mm` and `linear`,
`scaled_dot_product_attention`, `layer_norm`, `rms_norm`, `gelu`, `silu`, `cross_entropy`, `embedding`, AdamW with
`fused=True`. What ours does in one call, such as a linear layer and its activation, is here what a model makes of it:
one operator after the other. In bf16, tensors are those that autocast would hand to the operator: bf16 for products,
attention, rotation and what activates, f32 for norms, embeddings and the optimizer; the formats that an order names are
ours, and not looked at. Gradients are taken by `torch.autograd.grad` of a graph that is kept, so that a backward pass is
timed without its forward one, or, for linear layers, by the operators that autograd would run. Where PyTorch has two
ways, both are tried at the start and the faster one is timed; the answer to `prepare` names it.

How: each line of stdin is one JSON object, answered by one:

    {"do": "prepare", "op": {...}}        makes inputs that follow from their places, as Gradus makes them
    {"do": "outputs", "folder": FOLDER}   runs once on fresh inputs and writes a sample of each output as raw f32
    {"do": "run", "seconds": S}           runs again and again for at least so long; the median of the times

Invariant: `values` and `tokens` are those of crates/gradus/src/commands/bench_kernels/inputs.rs, and the tensors of each
operation are numbered as in tensors.rs beside it.

Usage: bench_kernels.py --precision f32|bf16 [--threads N]
"""

import argparse
import contextlib
import json
import math
import pathlib
import statistics
import sys
import time

import numpy
import torch
from torch.nn import functional

PERIOD = 1 << 22
SAMPLE = 1 << 22
LONG = 5  # an operation that takes so many times the least is run once


def hashes(length, tensor):
    h = numpy.arange(min(length, PERIOD), dtype=numpy.uint32)
    h ^= numpy.uint32(tensor * 0x9E3779B9 & 0xFFFFFFFF)
    h ^= h >> numpy.uint32(16)
    h *= numpy.uint32(0x85EBCA6B)
    h ^= h >> numpy.uint32(13)
    h *= numpy.uint32(0xC2B2AE35)
    h ^= h >> numpy.uint32(16)
    return h


def values(length, tensor, scale):
    """Numbers spread evenly over [-scale, scale), in f32."""
    unit = (hashes(length, tensor) >> numpy.uint32(8)).astype(numpy.float32) / numpy.float32(8388608.0) - numpy.float32(1.0)
    return torch.from_numpy(numpy.resize(unit * numpy.float32(scale), length))


def tokens(length, tensor, vocabulary):
    return torch.from_numpy((hashes(length, tensor) % numpy.uint32(vocabulary)).astype(numpy.int64))


class Operation:
    """What is prepared: `run` is timed, `outputs` says what of it is compared."""

    def __init__(self, op, dtype):
        self.op, self.dtype = op, dtype
        getattr(self, op["kind"])(**{name: value for name, value in op.items() if name != "kind"})

    def spread(self, tensor, scale, *shape):
        return values(math.prod(shape), tensor, scale).to(self.dtype).view(shape)

    def single(self, tensor, scale, *shape):
        """In f32, but rounded to the precision, since all programs have the same numbers."""
        return self.spread(tensor, scale, *shape).float()

    def choose(self, *ways):
        """The fastest of several ways, by three tries each."""
        def seconds(way):
            way()
            times = []
            for _ in range(3):
                start = time.perf_counter()
                way()
                times.append(time.perf_counter() - start)
            return min(times)
        self.run = min(ways, key=seconds) if len(ways) > 1 else ways[0]

    def choose_way(self, **ways):
        """The same of ways with names; the chosen one's is kept."""
        self.choose(*ways.values())
        self.way = next(name for name, way in ways.items() if way is self.run).replace("_", " ")

    def gradient(self, out, inputs, d_out):
        return lambda: torch.autograd.grad(out, inputs, d_out, retain_graph=True)

    # Linear layers

    def linear_forward(self, rows, inputs, outputs, bias, residual, epilogue, **formats):
        x, weight = self.spread(1, 1.0, rows, inputs), self.spread(2, 0.05, outputs, inputs)
        bias = self.spread(3, 0.5, outputs) if bias else None
        linear = lambda: functional.linear(x, weight, bias)
        if epilogue == "gelu":
            self.linear_gelu(linear)
        elif epilogue == "swiglu":
            self.linear_swiglu(x, weight)
        elif epilogue != "none":
            self.linear_rope(linear, **epilogue["rope"])
        else:
            added = self.spread(4, 1.0, rows, outputs) if residual else None
            self.choose((lambda: linear().add_(added)) if residual else linear)
            self.outputs = lambda: {"out": self.run()}

    def linear_gelu(self, linear):
        def run():
            out = linear()
            return out, functional.gelu(out, approximate="tanh")
        self.choose(run)
        self.outputs = lambda: dict(zip(("out", "activated"), self.run()))

    def linear_swiglu(self, x, weight):
        """Gate and up are layers of their own in transformers; one layer of both is tried too."""
        gate_weight, up_weight = weight.chunk(2)

        def activated(gate, up):
            return gate, up, functional.silu(gate) * up
        self.choose_way(
            one_matrix=lambda: activated(*functional.linear(x, weight).chunk(2, dim=-1)),
            two_matrices=lambda: activated(functional.linear(x, gate_weight), functional.linear(x, up_weight)))

        def outputs():
            gate, up, product = self.run()
            return {"out": torch.cat((gate, up), dim=-1), "activated": product}
        self.outputs = outputs

    def linear_rope(self, linear, batch, sequence, heads, kv_heads, head_size, kept):
        turn = self.rotation(sequence, head_size)

        def run():
            q, k, v = self.split(linear().view(batch, sequence, -1), heads, kv_heads, head_size)
            return turn(q), turn(k), v
        self.choose(run)
        self.outputs = lambda: {"out": self.joined(self.run())}

    def linear_input(self, rows, inputs, outputs, through, **formats):
        d_out, weight = self.spread(1, 1.0, rows, outputs), self.spread(2, 0.05, outputs, inputs)
        product = lambda: torch.mm(d_out, weight)
        if through == "gelu":
            x = self.spread(4, 3.0, rows, inputs)
            self.choose(lambda: torch.ops.aten.gelu_backward(product(), x, approximate="tanh"))
            self.outputs = lambda: {"d_x": self.run()}
        elif through == "swiglu":
            self.input_through_swiglu(product, self.spread(4, 3.0, rows, 2 * inputs))
        else:
            self.choose(product)
            self.outputs = lambda: {"d_x": self.run()}

    def input_through_swiglu(self, product, gate_up):
        """What autograd runs for `silu(gate) * up`, whose forward pass left `silu(gate)`."""
        gate, up = (part.contiguous() for part in gate_up.chunk(2, dim=-1))
        activated = functional.silu(gate)

        def run():
            d = product()
            return torch.ops.aten.silu_backward(d * up, gate), d * activated
        self.choose(run)
        self.outputs = lambda: {"d_x": torch.cat(self.run(), dim=-1)}

    def linear_weight(self, rows, inputs, outputs, bias, **formats):
        d_out, x = self.spread(1, 1.0, rows, outputs), self.spread(2, 1.0, rows, inputs)
        if bias:
            self.choose(lambda: (torch.mm(d_out.t(), x), d_out.sum(0)))
        else:
            self.choose(lambda: (torch.mm(d_out.t(), x),))
        self.outputs = lambda: dict(zip(("d_weight", "d_bias"), self.run()))

    # Attention

    def split(self, qkv, heads, kv_heads, head_size):
        """Queries, keys and values of `qkv[batch, sequence, (H + 2K) D]`, each [batch, heads, sequence, D]."""
        sizes = [heads * head_size, kv_heads * head_size, kv_heads * head_size]
        parts = qkv.split(sizes, dim=2)
        return [part.view(*part.shape[:2], -1, head_size).transpose(1, 2) for part in parts]

    def joined(self, parts):
        """The way back."""
        return torch.cat([part.transpose(1, 2).flatten(2) for part in parts], dim=2)

    def heads(self, tensor, batch, sequence, heads, kv_heads, head_size):
        qkv = self.spread(tensor, 1.0, batch, sequence, (heads + 2 * kv_heads) * head_size)
        return [part.detach().requires_grad_() for part in self.split(qkv, heads, kv_heads, head_size)]

    def attend(self, q, k, v, way):
        if q.shape[1] == k.shape[1]:
            return functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        if way == "repeated":  # as transformers does it
            each = q.shape[1] // k.shape[1]
            k, v = k.repeat_interleave(each, 1), v.repeat_interleave(each, 1)
            return functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)

    def ways(self, heads, kv_heads):
        return ["plain"] if heads == kv_heads else ["grouped", "repeated"]

    def attention_forward(self, batch, sequence, heads, kv_heads, head_size, kept):
        q, k, v = self.heads(1, batch, sequence, heads, kv_heads, head_size)
        q, k, v = q.detach(), k.detach(), v.detach()
        ways = self.ways(heads, kv_heads)
        self.choose_way(**{way: lambda way=way: self.attend(q, k, v, way) for way in ways})
        self.outputs = lambda: {"out": self.run().transpose(1, 2).reshape(batch, sequence, -1)}

    def attention_backward(self, batch, sequence, heads, kv_heads, head_size, kept):
        q, k, v = self.heads(1, batch, sequence, heads, kv_heads, head_size)
        d_out = self.spread(4, 1.0, batch, sequence, heads * head_size)
        d_out = d_out.view(batch, sequence, heads, head_size).transpose(1, 2)
        ways = self.ways(heads, kv_heads)
        self.choose_way(**{way: self.gradient(self.attend(q, k, v, way), (q, k, v), d_out) for way in ways})
        self.outputs = lambda: {"d_qkv": self.joined(self.run())}

    def rotation(self, sequence, head_size):
        """As transformers' Llama: cosines and sines are made once, queries and keys turned each."""
        frequencies = 10000.0 ** (-torch.arange(0, head_size, 2, dtype=torch.float32) / head_size)
        angles = torch.outer(torch.arange(sequence, dtype=torch.float32), frequencies)
        angles = torch.cat((angles, angles), dim=-1)
        cosines, sines = angles.cos().to(self.dtype), angles.sin().to(self.dtype)

        def turned(x):
            first, second = x.chunk(2, dim=-1)
            return x * cosines + torch.cat((-second, first), dim=-1) * sines
        return turned

    def rope_backward(self, batch, sequence, heads, kv_heads, head_size, kept):
        """Gradients of queries and keys are turned back; those of values stay."""
        d_q, d_k, d_v = (part.detach() for part in self.heads(1, batch, sequence, heads, kv_heads, head_size))
        turn = self.rotation(sequence, head_size)
        leaves = [torch.zeros_like(part).requires_grad_() for part in (d_q, d_k)]
        self.choose(self.gradient([turn(leaf) for leaf in leaves], leaves, [d_q, d_k]))
        self.outputs = lambda: {"d_qkv": self.joined([*self.run(), d_v])}

    # Rows

    def norm(self, x, weight, bias, layer):
        width = (x.shape[-1],)
        return functional.layer_norm(x, width, weight, bias, 1e-5) if layer else functional.rms_norm(x, width, weight, 1e-5)

    def norm_forward(self, rows, width, layer, out):
        x, weight, bias = self.single(1, 1.0, rows, width), self.single(2, 0.5, width), self.single(3, 0.5, width)
        self.choose(lambda: self.norm(x, weight, bias, layer))
        self.outputs = lambda: {"out": self.run()}

    def norm_backward(self, rows, width, layer, residual, d_out):
        x, weight, bias = self.single(1, 1.0, rows, width), self.single(2, 0.5, width), self.single(3, 0.5, width)
        d_out, d_residual = self.single(6, 1.0, rows, width), self.single(7, 1.0, rows, width)
        inputs = [t.requires_grad_() for t in ([x, weight, bias] if layer else [x, weight])]
        gradient = self.gradient(self.norm(x, weight, bias, layer), inputs, d_out)
        def run():
            d_x, *rest = gradient()
            return d_x.add_(d_residual), *rest  # as autograd adds the residual stream's gradient
        self.choose(run if residual else gradient)
        self.outputs = lambda: dict(zip(("d_x", "d_weight", "d_bias"), self.run()))

    def gelu_forward(self, elements, kept):
        x = self.spread(1, 3.0, elements)
        self.choose(lambda: functional.gelu(x, approximate="tanh"))
        self.outputs = lambda: {"out": self.run()}

    def swiglu_forward(self, rows, width, kept):
        gate, up = self.spread(1, 3.0, rows, 2 * width).chunk(2, dim=-1)
        self.choose(lambda: functional.silu(gate) * up)
        self.outputs = lambda: {"out": self.run()}

    def losses(self, logits, targets, way, reduction="sum"):
        with torch.autocast("cpu", torch.bfloat16) if way == "autocast" else contextlib.nullcontext():
            return functional.cross_entropy(logits, targets, reduction=reduction)

    def choose_loss(self, gradients):
        """Autocast takes the loss in f32, which costs; a model that is bf16 as a whole takes it as it is."""
        ways = ["plain"] if self.dtype == torch.float32 else ["bf16 loss", "autocast"]
        self.choose_way(**{way: lambda way=way: gradients(way) for way in ways})

    def cross_entropy(self, rows, vocabulary):
        logits, targets = self.spread(1, 3.0, rows, vocabulary).requires_grad_(), tokens(rows, 99, vocabulary)
        self.choose_loss(lambda way: torch.autograd.grad(self.losses(logits, targets, way), logits)[0])
        losses = lambda: self.losses(logits.detach(), targets, self.way, "none")
        self.outputs = lambda: {"losses": losses(), "d_logits": self.run()}

    def head(self, rows, width, vocabulary, x):
        x = self.spread(1, 1.0, rows, width).requires_grad_()
        weight = self.spread(2, 0.05, vocabulary, width).requires_grad_()
        targets = tokens(rows, 99, vocabulary)
        logits = lambda: functional.linear(x, weight)
        self.choose_loss(lambda way: torch.autograd.grad(self.losses(logits(), targets, way), (x, weight)))

        def outputs():
            with torch.no_grad():
                losses = self.losses(logits(), targets, self.way, "none")
            return {"losses": losses, **dict(zip(("d_x", "d_weight"), self.run()))}
        self.outputs = outputs

    # Tables

    def embedding(self, batch, sequence, vocabulary, width, positions):
        table, places = self.single(1, 0.05, vocabulary, width), self.single(2, 0.05, sequence, width)
        indices = tokens(batch * sequence, 99, vocabulary).view(batch, sequence)
        inputs = [t.requires_grad_() for t in ([table, places] if positions else [table])]

        def forward():
            out = functional.embedding(indices, table)
            return out + places if positions else out
        return inputs, forward

    def embedding_forward(self, **sizes):
        _, forward = self.embedding(**sizes)

        def run():
            with torch.no_grad():
                return forward()
        self.choose(run)
        self.outputs = lambda: {"out": self.run()}

    def embedding_backward(self, batch, sequence, vocabulary, width, positions):
        inputs, forward = self.embedding(batch, sequence, vocabulary, width, positions)
        d_out = self.single(1, 1.0, batch, sequence, width)
        self.choose(self.gradient(forward(), inputs, d_out))
        self.outputs = lambda: dict(zip(("d_table", "d_positions"), self.run()))

    # All parameters

    def sum_of_squares(self, elements):
        x = self.single(1, 1.0, elements)
        self.choose(lambda: torch.linalg.vector_norm(x))
        # Compared in f64: PyTorch's own sum in f32 keeps three digits of so many terms.
        self.outputs = lambda: {"sum": x.double().square().sum().float().view(1)}

    def fill(self, elements):
        x = self.single(1, 1.0, elements)
        self.choose(lambda: x.zero_())
        self.outputs = lambda: {"x": self.run()}

    def adamw(self, elements):
        def fresh():
            parameter = self.single(1, 0.05, elements).requires_grad_()
            parameter.grad = self.single(2, 1.0, elements)
            settings = {"lr": 3e-4, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1}
            return parameter, torch.optim.AdamW([parameter], fused=True, **settings)

        self.parameter, self.optimizer = fresh()
        self.choose(lambda: self.optimizer.step())

        def outputs():
            del self.parameter, self.optimizer  # so much at once might not fit
            self.parameter, self.optimizer = fresh()
            self.run()
            state = self.optimizer.state[self.parameter]
            return {"parameter": self.parameter, "moment1": state["exp_avg"], "moment2": state["exp_avg_sq"]}
        self.outputs = outputs


def write_outputs(operation, folder):
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for name, tensor in operation.outputs().items():
        flat = tensor.detach().flatten()
        sample = flat[:: len(flat) // SAMPLE | 1].float().contiguous()
        sample.numpy().astype("<f4").tofile(folder / f"{name}.f32")


def timed(operation, least_s):
    times, total = [], 0.0
    # A short operation's first run finds the caches as the other program left them; a long one's is no different.
    while total < least_s or len(times) < 2 and total < LONG * least_s:
        start = time.perf_counter()
        operation.run()
        times.append(time.perf_counter() - start)
        total += times[-1]
    return {"seconds": statistics.median_high(times), "repetitions": len(times)}


def main():
    parser = argparse.ArgumentParser(description="Single operators of PyTorch, timed when told on stdin.")
    parser.add_argument("--precision", choices=("f32", "bf16"), required=True)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.set_num_interop_threads(1)
    dtype = torch.float32 if arguments.precision == "f32" else torch.bfloat16
    print("ready " + json.dumps({"torch": torch.__version__, "threads": arguments.threads}), flush=True)
    operation = None
    for line in sys.stdin:
        try:
            order = json.loads(line)
            if order["do"] == "prepare":
                operation = None
                operation = Operation(order["op"], dtype)
                answer = {"way": getattr(operation, "way", None)}
            elif order["do"] == "outputs":
                write_outputs(operation, order["folder"])
                answer = {}
            elif order["do"] == "run":
                answer = timed(operation, order["seconds"])
            else:
                answer = {"error": f"no order: {line.strip()}"}
        except Exception as error:  # an operator that PyTorch lacks is the runner's to report
            answer = {"error": f"{line.strip()}: {type(error).__name__}: {error}"}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()

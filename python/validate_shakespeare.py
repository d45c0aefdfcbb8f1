"""Trains a Hugging Face folder's model with PyTorch on given batches and tells its loss on held-out tokens.

What and why: the end of a training run, not only its single steps, is held against PyTorch: from the same initial
weights, over the same samples in the same order, with the same optimizer, the loss on text that neither has seen should
agree within 0.3% after 300 steps. This is PyTorch's half; the other half is `gradus train`.

How: tokens are files of raw little-endian u16 (or u32). Sample i is tokens [i * stride, i * stride + T + 1): T inputs
and their targets. --batches is a JSON list of one list of sample numbers per step. --steps beyond the list are an
error: no batch is used twice unless the list says so. The model is opened by transformers, so any causal model will do.

Prints one line of JSON per --log-every steps, {"step", "loss"}, and last {"steps", "held_out_loss", "held_out_targets",
"train_losses"}.

Usage: validate_shakespeare.py --init FOLDER --train FILE --held-out FILE --batches FILE [--steps 300] ...
"""

import argparse
import json
import sys

import numpy
import torch
import transformers
from torch.nn import functional

import gpt


def arguments_of():
    parser = argparse.ArgumentParser(description="Trains with PyTorch and reports the held-out loss.")
    parser.add_argument("--init", required=True, metavar="FOLDER", help="config.json and model.safetensors")
    parser.add_argument("--train", required=True, metavar="FILE")
    parser.add_argument("--held-out", required=True, metavar="FILE")
    parser.add_argument("--batches", required=True, metavar="FILE", help="JSON: a list of sample numbers per step")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--sequence", type=int, default=256, metavar="T")
    parser.add_argument("--stride", type=int, default=0, help="tokens from one sample to the next; T when not given")
    parser.add_argument("--token-bytes", type=int, choices=(2, 4), default=2)
    parser.add_argument("--learning-rate", type=float, default=3e-4)
    parser.add_argument("--warmup", type=int, default=0, help="steps of linear warm-up: lr (step + 1) / warmup")
    parser.add_argument("--beta2", type=float, default=0.95)
    parser.add_argument("--weight-decay", type=float, default=0.1)
    parser.add_argument("--clip", type=float, default=1.0, help="norm to which gradients are clipped; 0: none")
    parser.add_argument("--precision", choices=("f32", "bf16"), default="f32", help="bf16: autocast over f32 weights")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--held-out-batch", type=int, default=8)
    parser.add_argument("--log-every", type=int, default=20)
    return parser.parse_args()


class Samples:
    """A token file, seen as samples of T + 1 tokens."""

    def __init__(self, path, arguments):
        self.path, self.length = path, arguments.sequence + 1
        self.stride = arguments.stride or arguments.sequence
        self.tokens = numpy.fromfile(path, dtype=f"<u{arguments.token_bytes}")
        self.count = max(0, (self.tokens.size - self.length) // self.stride + 1)
        if self.count == 0:
            sys.exit(f"{path}: {self.tokens.size} tokens are fewer than one sample of {self.length}")

    def batch(self, indices):
        beyond = [i for i in indices if not 0 <= i < self.count]
        if beyond:
            sys.exit(f"{self.path}: sample {beyond[0]} does not exist; it holds {self.count}")
        rows = [self.tokens[i * self.stride : i * self.stride + self.length] for i in indices]
        return torch.from_numpy(numpy.stack(rows).astype(numpy.int64))


def loss_of(model, batch, arguments, reduction="mean"):
    with torch.autocast("cpu", torch.bfloat16, enabled=arguments.precision == "bf16"):
        logits = model(input_ids=batch[:, :-1], use_cache=False).logits
    return functional.cross_entropy(logits.float().flatten(0, 1), batch[:, 1:].flatten(), reduction=reduction)


def train(model, samples, order, arguments):
    optimizer = torch.optim.AdamW(
        gpt.decay_groups(model, arguments.weight_decay), lr=arguments.learning_rate,
        betas=(0.9, arguments.beta2), eps=1e-8, fused=True)
    losses = []
    for step in range(arguments.steps):
        share = min(1.0, (step + 1) / arguments.warmup) if arguments.warmup else 1.0
        for group in optimizer.param_groups:
            group["lr"] = arguments.learning_rate * share
        loss = loss_of(model, samples.batch(order[step]), arguments)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if arguments.clip > 0:
            torch.nn.utils.clip_grad_norm_(model.parameters(), arguments.clip)
        optimizer.step()
        losses.append(loss.item())
        if (step + 1) % arguments.log_every == 0:
            print(json.dumps({"step": step + 1, "loss": losses[-1]}), flush=True)
    return losses


@torch.no_grad()
def held_out_loss(model, samples, arguments):
    """(mean loss over every target of every whole sample, number of targets)."""
    total, targets = 0.0, 0
    for start in range(0, samples.count, arguments.held_out_batch):
        batch = samples.batch(range(start, min(start + arguments.held_out_batch, samples.count)))
        total += loss_of(model, batch, arguments, reduction="sum").item()
        targets += batch[:, 1:].numel()
    return total / targets, targets


def main():
    arguments = arguments_of()
    transformers.logging.disable_progress_bar()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    order = json.load(open(arguments.batches))
    if len(order) < arguments.steps:
        sys.exit(f"{arguments.batches}: {len(order)} steps are listed, --steps asks for {arguments.steps}")
    model = transformers.AutoModelForCausalLM.from_pretrained(arguments.init, dtype=torch.float32)
    # Dropout is part of a configuration; a comparison of two implementations has none.
    model.eval()
    losses = train(model, Samples(arguments.train, arguments), order, arguments)
    loss, targets = held_out_loss(model, Samples(arguments.held_out, arguments), arguments)
    print(json.dumps({"steps": arguments.steps, "held_out_loss": loss, "held_out_targets": targets, "train_losses": losses}))


if __name__ == "__main__":
    main()

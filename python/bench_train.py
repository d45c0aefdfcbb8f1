"""The PyTorch peer of `cargo x bench train`: training steps of a 13.9M parameter GPT or of SmolLM2-135M, timed.

What: one GPT (gpt.py) on batches of 8 sequences of 256 tokens, or one Llama (llama.py) on 2 of 512; AdamW (fused; 3e-4,
or 3e-5 for the Llama, which 3e-4 without a warm-up throws about; 0.9, 0.95, decay 0.1), gradients clipped to norm 1, cross entropy; in f32 or bf16, eager or compiled, by 1 or more threads
or by DDP ranks over gloo. These are PyTorch's own recommended settings for a CPU; nothing is held back.

How: a long-lived worker is warmed up once and then runs steps when told, so that several workers, ours among them, can
take turns on a quiet machine:

    serve    prints `ready {...}` when warm; for each line `step K` on stdin runs K steps and prints one line of JSON
             {"mode", "threads", "ranks", "tokens", "seconds", "loss", "steps_done"}: the loss is the last step's, before
             its update (with ranks: their mean); steps_done counts from the initial weights, warm-up included. For a
             line `memory` prints what memory is held: see `Trainer.memory`. Ends at the end of stdin.
    init     writes initial weights as a folder that transformers and Gradus open
    batches  writes batches cut from a text's bytes: raw little-endian u16, [steps][8][257] or [steps][2][513]; a run that
             needs more steps starts over. With R ranks, rank r takes batch R * step + r.

Invariant: two workers with the same --init and --batches compute the same losses up to rounding.

Usage: bench_train.py init --out FOLDER | batches --data FILE --out FILE | serve --mode MODE [--threads N] [--ddp R]
       [--init FOLDER] [--batches FILE]; each with [--shape gpt|smollm2]
"""

import argparse
import contextlib
import dataclasses
import datetime
import json
import os
import pathlib
import resource
import sys
import tempfile
import time
import warnings

# Compiling in this process leaves no idle helpers beside the measurement.
os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")
os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")

import numpy
import torch
import torch.distributed
import torch.multiprocessing
from torch.nn.parallel import DistributedDataParallel

import gpt
import llama

warnings.filterwarnings("ignore")
MODES = ("f32-eager", "f32-compiled", "bf16-autocast-eager", "bf16-autocast-compiled", "bf16-pure")
WARMUP_STEPS = 3


SHAPES = json.loads((pathlib.Path(__file__).parent.parent / "benches/shapes.json").read_text())


class Bench:
    """What is trained: the module that makes it, its class there, sizes by benches/shapes.json, trainable numbers."""

    def __init__(self, module, model, name, parameters):
        sizes = SHAPES[name]
        self.module, self.batch, self.sequence = module, sizes["batch"], sizes["sequence"]
        self.parameters, self.learning_rate = parameters, sizes["learning_rate"]
        self.vocabulary = sizes["vocabulary"]
        known = {field.name for field in dataclasses.fields(module.Shape)}
        shape = {**sizes, "positions": self.sequence}
        self.make = lambda: model(module.Shape(**{key: value for key, value in shape.items() if key in known}))


BENCHES = {
    # VC + TC + L (12 CC + 13 C) + 2 C + CV at V=4096, C=384, L=6, T=256
    "gpt": Bench(gpt, gpt.Gpt, "gpt", 13_891_584),
    "smollm2": Bench(llama, llama.Llama, "smollm2", 134_515_008),
}


def random_batches(bench, steps=64, seed=7):
    generator = numpy.random.Generator(numpy.random.PCG64(seed))
    return generator.integers(0, bench.vocabulary, (steps, bench.batch, bench.sequence + 1)).astype(numpy.int64)


def read_batches(bench, path):
    flat = numpy.fromfile(path, dtype="<u2")
    each = bench.batch * (bench.sequence + 1)
    if flat.size == 0 or flat.size % each:
        raise SystemExit(
            f"{path}: {flat.size} tokens are not a multiple of {bench.batch} sequences of {bench.sequence + 1}")
    return flat.astype(numpy.int64).reshape(-1, bench.batch, bench.sequence + 1)


def cut_batches(bench, text, steps, seed):
    data = numpy.frombuffer(text, dtype=numpy.uint8)
    if data.size <= bench.sequence + 1:
        raise SystemExit(f"the text has {data.size} bytes, fewer than one sequence of {bench.sequence + 1}")
    generator = numpy.random.Generator(numpy.random.PCG64(seed))
    starts = generator.integers(0, data.size - bench.sequence - 1, steps * bench.batch)
    return numpy.stack([data[s : s + bench.sequence + 1] for s in starts]).astype("<u2")


def resident_bytes():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def is_of_a_weight(tensor):
    """Whether a tensor is a parameter in another form: transposed, cast by autocast, or both."""
    node = tensor.grad_fn
    while node is not None and type(node).__name__ != "AccumulateGrad":
        if type(node).__name__ not in ("TBackward0", "ToCopyBackward0", "TransposeBackward0", "ViewBackward0"):
            return False
        node = node.next_functions[0][0]
    return node is not None or isinstance(tensor, torch.nn.Parameter)


class Trainer:
    """One rank: its model, its optimizer, and the place in the batches where it stands."""

    def __init__(self, bench, mode, init, batches, rank=0, ranks=1):
        self.bench, self.mode, self.resident_before = bench, mode, resident_bytes()
        self.batches = torch.from_numpy(read_batches(bench, batches) if batches else random_batches(bench))
        self.rank, self.ranks, self.steps_done = rank, ranks, 0
        model = bench.module.load_folder(init) if init else bench.make().initialise(1)
        assert sum(p.numel() for p in model.parameters()) == bench.parameters
        if mode == "bf16-pure":
            model = model.to(torch.bfloat16)
        self.parameters = list(model.parameters())
        self.optimizer = torch.optim.AdamW(
            gpt.decay_groups(model), lr=bench.learning_rate, betas=(0.9, 0.95), eps=1e-8, fused=True)
        if ranks > 1:
            model = DistributedDataParallel(model, gradient_as_bucket_view=True)
        self.model = torch.compile(model) if mode.endswith("compiled") else model
        autocast = "autocast" in mode
        self.context = lambda: torch.autocast("cpu", torch.bfloat16) if autocast else contextlib.nullcontext()

    def step(self):
        batch = self.batches[(self.ranks * self.steps_done + self.rank) % len(self.batches)]
        with self.context():
            loss = self.model(batch[:, :-1], batch[:, 1:])
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.steps_done += 1
        return loss.detach()

    def memory(self):
        """Bytes, counted after steps: `state` is parameters, gradients and moments; `kept` what one forward pass leaves
        for its backward pass: the storages that autograd saves, each once, parameters and batch left out, and of them
        `weight_copies` those that are parameters cast to bf16; `logits` those of one batch, which the loss reads and
        does not keep; `peak` and `before` are resident memory at its most and before there was a model. What a compiled
        graph keeps is not asked for: hooks would have it compiled anew."""
        state = [p for p in self.parameters] + [p.grad for p in self.parameters if p.grad is not None]
        state += [value for values in self.optimizer.state.values() for value in values.values() if value.numel() > 1]
        result = {
            "state_bytes": sum(tensor.nbytes for tensor in state),
            "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
            "before_bytes": self.resident_before,
        }
        if self.mode.endswith("compiled"):
            return result
        batch = self.batches[0]
        known = {tensor.untyped_storage().data_ptr() for tensor in [*self.parameters, batch]}
        known |= {tensor.untyped_storage().data_ptr() for tensor in self.model.buffers()}
        kept, copies = {}, {}

        def pack(tensor):
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in known:
                (copies if is_of_a_weight(tensor) else kept)[storage.data_ptr()] = storage.nbytes()
            return tensor

        # Saved tensors live until the loss is dropped, so that no address is used twice.
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), self.context():
            loss = self.model(batch[:, :-1], batch[:, 1:])
        del loss
        logits = self.bench.batch * self.bench.sequence * self.bench.vocabulary * (2 if "bf16" in self.mode else 4)
        return {**result, "kept_bytes": sum(kept.values()) + sum(copies.values()),
                "weight_copies_bytes": sum(copies.values()), "logits_bytes": logits}

    def run(self, steps):
        """(seconds, mean loss over the ranks of the last step); the ranks start and stop together."""
        if self.ranks > 1:
            torch.distributed.barrier()
        start = time.perf_counter()
        for _ in range(steps):
            loss = self.step()
        if self.ranks > 1:
            torch.distributed.barrier()
        seconds = time.perf_counter() - start
        loss = loss.float()
        if self.ranks > 1:
            torch.distributed.all_reduce(loss)
        return seconds, loss.item() / self.ranks


def serve_commands(trainer, arguments):
    """The loop of rank 0: reads stdin, tells the other ranks, prints."""
    facts = {"mode": arguments.mode, "threads": arguments.threads, "ranks": arguments.ddp}
    print("ready " + json.dumps({**facts, "torch": torch.__version__, "warmup_steps": WARMUP_STEPS}), flush=True)
    for line in sys.stdin:
        words = line.split()
        if words == ["memory"]:
            print(json.dumps(trainer.memory()), flush=True)
            continue
        if len(words) != 2 or words[0] != "step" or not words[1].isdigit() or int(words[1]) == 0:
            print(json.dumps({"error": f"expected `step K`, got {line.strip()!r}"}), flush=True)
            continue
        steps = int(words[1])
        tell(steps, trainer)
        seconds, loss = trainer.run(steps)
        tokens = steps * trainer.bench.batch * trainer.bench.sequence * trainer.ranks
        result = {"tokens": tokens, "seconds": seconds, "loss": loss, "steps_done": trainer.steps_done}
        print(json.dumps({**facts, **result}), flush=True)
    tell(0, trainer)


def tell(steps, trainer):
    """Rank 0 says how many steps come next, 0 to end; the others wait for it asleep."""
    order = torch.tensor([steps])
    if trainer.ranks > 1:
        torch.distributed.broadcast(order, 0)
    return int(order)


def serve(rank, arguments, store):
    torch.set_num_threads(arguments.threads)
    torch.set_num_interop_threads(1)
    if arguments.ddp > 1:
        torch.distributed.init_process_group(
            "gloo", init_method=f"file://{store}", rank=rank, world_size=arguments.ddp,
            timeout=datetime.timedelta(hours=12))
    bench = BENCHES[arguments.shape]
    trainer = Trainer(bench, arguments.mode, arguments.init, arguments.batches, rank, arguments.ddp)
    trainer.run(WARMUP_STEPS)
    if rank == 0:
        serve_commands(trainer, arguments)
    else:
        while steps := tell(0, trainer):
            trainer.run(steps)
    if arguments.ddp > 1:
        torch.distributed.destroy_process_group()


def serve_ranks(arguments):
    """Rank 0 is this process, since it alone has stdin; the others are its children and end with it."""
    with tempfile.TemporaryDirectory() as scratch:
        store = os.path.join(scratch, "store")
        spawn = torch.multiprocessing.get_context("spawn")
        others = [
            spawn.Process(target=serve, args=(rank, arguments, store), daemon=True)
            for rank in range(1, arguments.ddp)
        ]
        for process in others:
            process.start()
        serve(0, arguments, store)
        for process in others:
            process.join()


def main():
    parser = argparse.ArgumentParser(description="Timed training steps in PyTorch.")
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("init", help="write initial weights")
    command.add_argument("--out", required=True)
    command.add_argument("--seed", type=int, default=1)
    command = commands.add_parser("batches", help="write batches of a text's bytes")
    command.add_argument("--data", required=True, nargs="+")
    command.add_argument("--out", required=True)
    command.add_argument("--steps", type=int, default=64)
    command.add_argument("--seed", type=int, default=7)
    command = commands.add_parser("serve", help="run steps when told on stdin")
    command.add_argument("--mode", choices=MODES, required=True)
    command.add_argument("--threads", type=int, default=1)
    command.add_argument("--ddp", type=int, default=1, metavar="RANKS")
    command.add_argument("--init", metavar="FOLDER")
    command.add_argument("--batches", metavar="FILE")
    for command in commands.choices.values():
        command.add_argument("--shape", choices=BENCHES, default="gpt")
    arguments = parser.parse_args()
    bench = BENCHES[arguments.shape]

    if arguments.command == "init":
        bench.module.save_folder(bench.make().initialise(arguments.seed), arguments.out)
    elif arguments.command == "batches":
        text = b"".join(open(path, "rb").read() for path in arguments.data)
        cut_batches(bench, text, arguments.steps, arguments.seed).tofile(arguments.out)
    else:
        serve_ranks(arguments)


if __name__ == "__main__":
    main()

"""Holds Gradus' files and numbers against the real readers: transformers, tokenizers, safetensors, TensorBoard.

What:
    export       the folder that a training run exported opens in transformers; greedy texts of several prompts agree
    families     the same for a short run of each family, whose tokenizer each has trained for itself
    logits       folders that transformers wrote (GPT-2, Llama, Qwen2; whole and in shards) give the same logits in Gradus
    tensorboard  the run's event files, read by TensorBoard's own reader, hold the losses of metrics.jsonl
    datasets     samples written by mosaicml-streaming, webdataset, pyarrow, gzip and zstandard are those that Gradus describes
                 and reads
    launchers    two ranks started by torchrun, Open MPI and MPICH learn what two ranks started by Gradus learn
    golden       the committed golden files are what PyTorch computes today

How: each check runs the `gradus` binary as a user would and prints `ok` or `FAILED` with the reason on its line.

Invariant: exit code 0 exactly when every check that was asked for ran and passed. A missing binary, folder or file is a
failure with its name, never a check left out.

Usage: interop.py --gradus BINARY --run FOLDER [--export FOLDER] [--only CHECK ...]
"""

import argparse
import json
import math
import pathlib
import socket
import subprocess
import sys
import tempfile

import numpy
import torch
import transformers
from safetensors.numpy import load_file

import golden
import interop_dataset

NEW_TOKENS = 64
PROMPTS = (
    "ROMEO:\n", "To be, or not to be", "First Citizen:\nBefore we proceed any further, hear me speak.", "a",
    "The naïve café, 3.14 — “quoted”, and a tab\there", "12345 67 !!!\n\nfoo.bar   cafe\u0301\r\n",
)
# Two correct implementations in f32 differ by a few 1e-6 in logits of size 10 (dot products of up to 384 terms, six
# blocks deep); when two candidates lie closer than 1e-4, either may be taken, and the texts part for good.
NEAR_TIE = 1e-4
# The tiny models have logits below 5 and two blocks: 1e-6 is what rounding gives, 1e-4 is what a wrong epsilon, rotary
# base or GELU would exceed by far.
LOGITS = 1e-4
# Losses pass through f32 once in each file: half a unit in the last place, 2^-24 of the value.
LOSS_RELATIVE = 2e-7
LIMIT_S = 300

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()


class Failure(Exception):
    """A check that did not pass; its text is the reason."""


def gradus(binary, *words, cwd=None):
    """Runs the binary; a failure names the command and the end of what it said."""
    command = [str(binary), *map(str, words)]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", timeout=LIMIT_S, cwd=cwd)
    except subprocess.TimeoutExpired:
        raise Failure(f"`{' '.join(command)}` did not end within {LIMIT_S} s") from None
    if done.returncode != 0:
        said = (done.stderr or done.stdout).strip()[-800:]
        raise Failure(f"`{' '.join(command)}` ended with {done.returncode}: {said}")
    return done.stdout


# ---------------------------------------------------------------- export

def is_model_folder(folder):
    weights = ("model.safetensors", "model.safetensors.index.json")
    return (folder / "config.json").is_file() and any((folder / name).is_file() for name in weights)


def exported(arguments):
    folder = arguments.export or arguments.run / "model"
    if not is_model_folder(folder):
        raise Failure(f"{folder} is no model folder: config.json or model.safetensors is missing")
    return folder


def generated_by_gradus(binary, folder, prompt, tokens, scratch):
    out = scratch / "tokens.json"
    out.unlink(missing_ok=True)
    gradus(binary, "generate", "--model", folder, "--temperature", 0, "--max-tokens", tokens, "--tokens-out", out, prompt)
    if not out.is_file():
        raise Failure(f"`gradus generate --tokens-out {out}` wrote no file")
    return json.loads(out.read_text())


def generated_by_transformers(model, prompt_tokens, tokens):
    given = torch.tensor([prompt_tokens])
    made = model.generate(
        given, attention_mask=torch.ones_like(given), max_new_tokens=tokens, do_sample=False,
        pad_token_id=model.generation_config.eos_token_id or 0)
    return made[0, given.shape[1] :].tolist()


def without_end(tokens, model):
    """Tokens up to the one that ends a text, which only one of the two may report."""
    ends = model.generation_config.eos_token_id
    ends = set(ends) if isinstance(ends, list) else {ends}
    return next((tokens[:i] for i, token in enumerate(tokens) if token in ends), tokens)


@torch.no_grad()
def compare_texts(model, prompt_tokens, ours, theirs):
    """None when the same, the gap of the two best logits when they part at a near tie; fails otherwise."""
    ours, theirs = without_end(ours, model), without_end(theirs, model)
    if ours == theirs:
        return None
    length = min(len(ours), len(theirs))
    place = next((i for i in range(length) if ours[i] != theirs[i]), length)
    logits = model(torch.tensor([prompt_tokens + theirs[:place]])).logits[0, -1]
    best, second = logits.topk(2).values.tolist()
    if best - second > NEAR_TIE:
        raise Failure(
            f"the texts part at new token {place}: {ours[place : place + 4]} here, {theirs[place : place + 4]} in"
            f" transformers, where the two best logits lie {best - second:.3g} apart (near tie: {NEAR_TIE})")
    return best - second


def check_export(arguments, scratch):
    return compare_export(exported(arguments), arguments, scratch)


FAMILIES = {
    "gpt2": 'family = "gpt2"',
    "gpt2, free head": 'family = "gpt2"\ntied = false',
    "llama": 'family = "llama"\nkv_heads = 1',
    "qwen2": 'family = "llama"\nqkv_bias = true',
}


def check_families(arguments, scratch):
    """A short run of each family, with a tokenizer of its own, opens in transformers, which reads its text as we do."""
    (scratch / "corpus.txt").write_text(pathlib.Path(__file__).read_text() * 4)
    said = []
    for name, model in FAMILIES.items():
        (scratch / "run.toml").write_text(SETTINGS.replace("[model]", f"[model]\n{model}").replace("context = 32", "context = 128"))
        folder = scratch / "runs" / name
        gradus(arguments.gradus.resolve(), "train", "run.toml", "--run.dir", folder, "--data.prepared", scratch / "data" / name, cwd=scratch)
        said.append(compare_export(folder / "model", arguments, scratch).rpartition("/model: ")[2])
    return "; ".join(said)


def compare_export(folder, arguments, scratch):
    config = transformers.AutoConfig.from_pretrained(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model, report = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True)
    model.eval()
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if report[kind]:
            raise Failure(f"{folder}: {kind} {sorted(map(str, report[kind]))[:5]}")
    positions = config.max_position_embeddings
    ties = 0
    for prompt in PROMPTS:
        prompt_tokens = tokenizer(prompt).input_ids
        tokens = min(NEW_TOKENS, positions - len(prompt_tokens))
        if tokens < 1:
            raise Failure(f"the prompt {prompt!r} fills all {positions} positions")
        ours = generated_by_gradus(arguments.gradus, folder, prompt, tokens, scratch)
        if ours["prompt_tokens"] != prompt_tokens:
            raise Failure(f"{prompt!r} is {ours['prompt_tokens']} here and {prompt_tokens} in transformers")
        theirs = generated_by_transformers(model, prompt_tokens, tokens)
        ties += compare_texts(model, prompt_tokens, ours["tokens"], theirs) is not None
    return f"{folder}: {config.model_type}, {len(PROMPTS)} prompts, {ties} parted at a near tie"


# ---------------------------------------------------------------- logits

def foreign_models():
    """(name, model, most bytes in a shard or None): models that transformers made, whole and in shards."""
    for name, make, seed, shard in (
        ("gpt2", lambda: golden.gpt2(True), 11, None), ("gpt2-free", lambda: golden.gpt2(False), 12, None),
        ("llama", golden.llama, 13, None), ("qwen2", golden.qwen2, 14, None),
        ("gpt2-shards", lambda: golden.gpt2(True), 15, "30KB"), ("llama-shards", golden.llama, 16, "20KB"),
    ):
        model = make().float().eval()
        golden.random_weights(model, numpy.random.Generator(numpy.random.PCG64(seed)))
        yield name, model, shard


@torch.no_grad()
def compare_logits(binary, name, model, shard, scratch):
    folder, out = scratch / name, scratch / f"{name}.logits.safetensors"
    model.save_pretrained(folder, **({"max_shard_size": shard} if shard else {}))
    if shard and not (folder / "model.safetensors.index.json").is_file():
        raise Failure(f"{name}: transformers wrote no index; choose a smaller shard")
    tokens = numpy.random.Generator(numpy.random.PCG64(99)).integers(0, golden.V, 19).tolist()
    gradus(binary, "logits", "--model", folder, "--tokens", ",".join(map(str, tokens)), "--out", out)
    ours = torch.from_numpy(load_file(out)["logits"])
    theirs = model(torch.tensor([tokens]), use_cache=False).logits[0]
    if ours.shape != theirs.shape or ours.dtype != torch.float32:
        raise Failure(f"{name}: logits are {ours.dtype} {list(ours.shape)}, expected float32 {list(theirs.shape)}")
    worst = (ours - theirs).abs().max().item()
    if not worst <= LOGITS:
        raise Failure(f"{name}: logits differ by {worst:.3g}, allowed {LOGITS}")
    return f"{name} {worst:.1e}"


def check_logits(arguments, scratch):
    results = [compare_logits(arguments.gradus, *case, scratch) for case in foreign_models()]
    return "largest differences: " + ", ".join(results)


# ---------------------------------------------------------------- tensorboard

def recorded_losses(run):
    """{step: loss} of metrics.jsonl; a loss that is not finite, which JSON cannot say, stands there as null."""
    path = run / "metrics.jsonl"
    if not path.is_file():
        raise Failure(f"{path} is missing")
    losses = {}
    for number, line in enumerate(path.read_text().splitlines(), 1):
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise Failure(f"{path}:{number}: not JSON: {error}") from None
        if record.get("event") == "step":
            losses[record["step"]] = math.nan if record["loss"] is None else record["loss"]
    if not losses:
        raise Failure(f"{path} holds no step")
    return losses


def event_losses(run):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folders = sorted({path.parent for path in run.rglob("events.out.tfevents.*")})
    if not folders:
        raise Failure(f"{run} holds no events.out.tfevents.* file")
    losses = {}
    for folder in folders:
        reader = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
        if "train/loss" not in reader.Tags()["scalars"]:
            raise Failure(f"{folder} has no train/loss, only {reader.Tags()['scalars']}")
        losses |= {event.step: event.value for event in reader.Scalars("train/loss")}
    return losses


def check_tensorboard(arguments, _scratch):
    recorded, events = recorded_losses(arguments.run), event_losses(arguments.run)
    if recorded.keys() != events.keys():
        apart = sorted(recorded.keys() ^ events.keys())
        raise Failure(f"{len(recorded)} losses are recorded, {len(events)} in events; first step in one only: {apart[0]}")
    for step, loss in recorded.items():
        same = math.isclose(loss, events[step], rel_tol=LOSS_RELATIVE) or math.isnan(loss) and math.isnan(events[step])
        if not same:
            raise Failure(f"step {step}: {loss} in metrics.jsonl, {events[step]} in TensorBoard")
    return f"{len(recorded)} losses are the same"


# ---------------------------------------------------------------- golden

def check_golden(_arguments, _scratch):
    torch.set_num_threads(1)
    if golden.check(list(golden.CASES), golden.FOLDER) != 0:
        raise Failure("the golden files are not what PyTorch computes today")
    return f"{len(golden.CASES)} cases"


# ---------------------------------------------------------------- datasets

def check_datasets(arguments, scratch):
    try:
        return interop_dataset.check(lambda *words: gradus(arguments.gradus, *words), scratch)
    except interop_dataset.Failure as failure:
        raise Failure(str(failure)) from None


# ---------------------------------------------------------------- launchers

SETTINGS = """
[data]
input = ["corpus.txt"]
vocabulary = 300
[model]
width = 32
layers = 2
heads = 2
context = 32
[train]
steps = 10
microbatch = 2
precision = "f32"
threads = 1
[sample]
tokens = 0
"""


def train_under(launcher, arguments, scratch, name):
    command = [*launcher, arguments.gradus.resolve(), "train", "run.toml", "--run.dir", f"runs/{name}"]
    done = subprocess.run(command, cwd=scratch, text=True, capture_output=True, timeout=LIMIT_S)
    if done.returncode != 0:
        raise Failure(f"{name}: exit code {done.returncode}: {done.stderr.strip()[-2000:]}")
    return recorded_losses(scratch / "runs" / name)


def check_launchers(arguments, scratch):
    """Two ranks started by each of the field's launchers learn what two ranks started by Gradus learn."""
    (scratch / "corpus.txt").write_text(pathlib.Path(__file__).read_text() * 4)
    (scratch / "run.toml").write_text(SETTINGS)
    own = [arguments.gradus.resolve(), "train", "run.toml", "--run.dir", "runs/own", "--nproc-per-node", "2"]
    subprocess.run(own, cwd=scratch, check=True, capture_output=True, timeout=LIMIT_S)
    expected = recorded_losses(scratch / "runs/own")
    for name, launcher in launchers().items():
        if train_under(launcher, arguments, scratch, name) != expected or len(expected) != 10:
            raise Failure(f"the losses under {name} differ from those under our own launcher")
    return f"{len(expected)} steps have the same losses under {', '.join(launchers())}"


def launchers():
    """Two ranks on this host, as each launcher's manual says; `prterun --personality ompi` is what Open MPI 5's mpirun runs."""
    programs = pathlib.Path(sys.executable).parent
    return {
        "torchrun": [
            programs / "torchrun", "--no-python", "--nproc-per-node", "2", "--master-addr", "127.0.0.1", "--master-port", free_port(),
        ],
        "openmpi": [programs / "prterun", "--personality", "ompi", "--allow-run-as-root", "--oversubscribe", "-n", "2"],
        "mpich": [programs / "mpiexec.hydra", "-n", "2"],
    }


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


CHECKS = {
    "export": check_export,
    "families": check_families,
    "logits": check_logits,
    "tensorboard": check_tensorboard,
    "datasets": check_datasets,
    "launchers": check_launchers,
    "golden": check_golden,
}


def run_check(name, arguments):
    if name != "golden" and not arguments.gradus.is_file():
        raise Failure(f"no gradus binary at {arguments.gradus}; build it with `cargo build --release`")
    needs_run = name == "tensorboard" or (name == "export" and arguments.export is None)
    if needs_run and not (arguments.run and arguments.run.is_dir()):
        raise Failure(f"no run at {arguments.run}; name one with --run")
    with tempfile.TemporaryDirectory() as scratch:
        return CHECKS[name](arguments, pathlib.Path(scratch))


def main():
    parser = argparse.ArgumentParser(description="Holds Gradus' files against the real readers.")
    parser.add_argument("--gradus", type=pathlib.Path, required=True, help="the binary")
    parser.add_argument("--run", type=pathlib.Path, help="a training run: metrics.jsonl, TensorBoard events, an export")
    parser.add_argument("--export", type=pathlib.Path, help="the exported folder; RUN/model when not given")
    parser.add_argument("--only", nargs="+", choices=list(CHECKS), default=list(CHECKS))
    arguments = parser.parse_args()
    failed = 0
    for name in arguments.only:
        try:
            print(f"interop {name}: ok: {run_check(name, arguments)}", flush=True)
        except Exception as error:  # a reader may refuse a file in any way; each is this check's failure
            text = str(error) if isinstance(error, Failure) else f"{type(error).__name__}: {error}"
            print(f"interop {name}: FAILED: {text}", flush=True)
            failed += 1
    print(f"interop: {len(arguments.only) - failed} of {len(arguments.only)} checks passed", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

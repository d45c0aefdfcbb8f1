"""Makes the golden files: what PyTorch and transformers compute for five tiny language models.

What and why: the model's forward and backward passes in Rust are held against numbers that other people's code made.
Each case is one folder under crates/gradus-model/tests/golden/:

    config.json, generation_config.json, model.safetensors   as `save_pretrained` writes them
    inputs.json            tokens [B][T+1]; targets [B][T], -100 where the target does not count; document_starts [B][..],
                           the positions at which a packed document begins (always 0, then perhaps more)
    expected.safetensors   logits [B, T, V]; loss []; grad.NAME for each parameter, under its Hugging Face name: the
                           gradient of the sum of the losses divided by the number of targets that count
    training.json          settings and losses of ten AdamW steps on that one batch, in f32 and under bf16 autocast;
                           each loss is the one before the step's update
    muon.json              of two cases: losses of ten such steps in f32 in which `torch.optim.Muon` updates the matrices of
                           blocks, by each way to adjust the learning rate: as it is (it multiplies in bf16), and with
                           f32 in the place of bf16

How: weights and tokens come from numpy's generator in integers and f64, which gives the same bits on every machine.
Everything is computed in f32 by one thread. Every bias and norm is moved away from 0 and 1, so that no gradient is
trivial. A tied model has one tensor for embedding and head: its gradient stands under the embedding's name.

Invariant: running this again gives the same weights and inputs bit for bit, and the same results up to rounding;
`--check` makes everything anew in a scratch folder and says so, or fails.

Usage: golden.py [--check] [--folder FOLDER] [CASE ...]
"""

import argparse
import contextlib
import json
import pathlib
import sys
import tempfile
from unittest import mock

import numpy
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch.nn import functional

import gpt

B, T, V = 3, 17, 61  # an odd vocabulary and length: nothing divides by a vector's width
POSITIONS = 24
IGNORED = -100
STEPS = 10
ADAMW = {"learning_rate": 3e-4, "beta1": 0.9, "beta2": 0.95, "epsilon": 1e-8, "weight_decay": 0.1}
MUON = {"momentum": 0.95, "nesterov": True, "iterations": 5}
# Muon takes queries, keys and values, gate and up for matrices of their own, as which these models keep them.
MUON_CASES = ("llama-free", "qwen2-tied")
ADJUSTMENTS = ("original", "match_rms_adamw")
FOLDER = pathlib.Path(__file__).resolve().parent.parent / "crates/gradus-model/tests/golden"

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()


# ---------------------------------------------------------------- cases

def gpt2(tied):
    config = transformers.GPT2Config(
        vocab_size=V, n_positions=POSITIONS, n_embd=32, n_layer=2, n_head=4, tie_word_embeddings=tied,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, summary_first_dropout=0.0,
        bos_token_id=0, eos_token_id=0,
    )
    return transformers.GPT2LMHeadModel(config)


def llama():
    config = transformers.LlamaConfig(
        vocab_size=V, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, max_position_embeddings=POSITIONS, tie_word_embeddings=False,
        rms_norm_eps=1e-5, rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        bos_token_id=1, eos_token_id=2,
    )
    return transformers.LlamaForCausalLM(config)


def qwen2():
    config = transformers.Qwen2Config(
        vocab_size=V, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=1, max_position_embeddings=POSITIONS, tie_word_embeddings=True, rms_norm_eps=1e-6,
        rope_parameters={"rope_type": "default", "rope_theta": 1000000.0}, bos_token_id=1, eos_token_id=2,
    )
    return transformers.Qwen2ForCausalLM(config)


ONE_DOCUMENT = [[0]] * B
CASES = {
    "gpt2-tied": dict(make=lambda: gpt2(True), seed=1),
    "gpt2-free": dict(make=lambda: gpt2(False), seed=2, ignored=[(0, 0), (0, 16), (1, 3), (1, 4), (1, 5), (2, 9)]),
    "llama-free": dict(make=llama, seed=3),
    "qwen2-tied": dict(make=qwen2, seed=4),
    # The same weights as llama-free; a document of one token, one that ends at the edge, and a sequence of one document.
    "llama-documents": dict(make=llama, seed=3, documents=[[0, 5, 6, 12], [0], [0, 1, 9, 16]]),
}


def random_weights(model, generator):
    """Weights large enough that every path matters: a linear layer keeps the size of what passes through it."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            draw = generator.standard_normal(tuple(parameter.shape))
            if parameter.dim() == 2:
                embedding = "wte" in name or "wpe" in name or "embed" in name
                draw *= 0.25 if embedding else 1.2 / parameter.shape[-1] ** 0.5
            elif name.endswith("bias"):
                draw *= 0.1
            else:
                draw = 1.0 + 0.2 * draw
            parameter.copy_(torch.from_numpy(draw.astype(numpy.float32)))


def make_inputs(case, generator):
    tokens = generator.integers(0, V, (B, T + 1)).tolist()
    targets = [row[1:] for row in tokens]
    for row, position in case.get("ignored", []):
        targets[row][position] = IGNORED
    documents = case.get("documents", ONE_DOCUMENT)
    return {"tokens": tokens, "targets": targets, "document_starts": documents}


# ---------------------------------------------------------------- computing

def document_mask(document_starts):
    """[B, 1, T, T], to be added to the scores: 0 where a query may look, the least f32 elsewhere. Causal within a
    document, nothing across documents; positions are not counted anew."""
    starts = torch.zeros(B, T, dtype=torch.long)
    for row, positions in enumerate(document_starts):
        starts[row, positions] = 1
    number = starts.cumsum(1)
    same = number[:, :, None] == number[:, None, :]
    allowed = same & torch.ones(T, T, dtype=torch.bool).tril()
    return torch.zeros(B, 1, T, T).masked_fill(~allowed[:, None], torch.finfo(torch.float32).min)


def logits_of(model, tokens, mask):
    return model(input_ids=tokens, attention_mask=mask, use_cache=False).logits


def loss_of(logits, targets):
    return functional.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), ignore_index=IGNORED)


def train(model, tokens, targets, mask, autocast):
    optimizer = torch.optim.AdamW(
        gpt.decay_groups(model, ADAMW["weight_decay"]), lr=ADAMW["learning_rate"],
        betas=(ADAMW["beta1"], ADAMW["beta2"]), eps=ADAMW["epsilon"], foreach=False)
    losses = []
    for _ in range(STEPS):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            logits = logits_of(model, tokens, mask)
        loss = loss_of(logits, targets)
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return losses


def matrices_of_blocks(model):
    """What Muon is for: the weights of linear layers, but for the head."""
    decayed = gpt.decay_groups(model)[0]["params"]
    return [p for p in decayed if p is not model.get_output_embeddings().weight]


def train_by_muon(model, tokens, targets, mask, adjustment, precise):
    matrices = matrices_of_blocks(model)
    groups = gpt.decay_groups(model, ADAMW["weight_decay"])
    taken = {id(p) for p in matrices}
    for group in groups:
        group["params"] = [p for p in group["params"] if id(p) not in taken]
    adamw = torch.optim.AdamW(
        [group for group in groups if group["params"]], lr=ADAMW["learning_rate"],
        betas=(ADAMW["beta1"], ADAMW["beta2"]), eps=ADAMW["epsilon"], foreach=False)
    muon = torch.optim.Muon(
        matrices, lr=ADAMW["learning_rate"], weight_decay=ADAMW["weight_decay"], momentum=MUON["momentum"],
        nesterov=MUON["nesterov"], ns_steps=MUON["iterations"], adjust_lr_fn=adjustment)
    losses = []
    for _ in range(STEPS):
        loss = loss_of(logits_of(model, tokens, mask), targets)
        losses.append(loss.item())
        model.zero_grad()
        loss.backward()
        adamw.step()
        with mock.patch.object(torch, "bfloat16", torch.float32) if precise else contextlib.nullcontext():
            muon.step()
    return losses


def make_muon(name, folder, tokens, targets, mask):
    found = {f"{adjustment}{suffix}": train_by_muon(prepare(name)[0], tokens, targets, mask, adjustment, precise)
             for adjustment in ADJUSTMENTS for suffix, precise in (("", True), ("_bf16", False))}
    model = prepare(name)[0]
    names = {id(p): n for n, p in model.named_parameters()}
    matrices = sorted(names[id(p)] for p in matrices_of_blocks(model))
    write_json(folder / "muon.json", {**MUON, "matrices": matrices, **found})


def prepare(name):
    case = CASES[name]
    generator = numpy.random.Generator(numpy.random.PCG64(case["seed"]))
    model = case["make"]().float().eval()
    random_weights(model, generator)
    inputs = make_inputs(case, generator)
    mask = None
    if inputs["document_starts"] != ONE_DOCUMENT:
        model.set_attn_implementation("eager")
        mask = document_mask(inputs["document_starts"])
    return model, inputs, mask


def assert_documents_apart(model, tokens, mask, logits, starts):
    """Another first token in every first document changes nothing in the documents after it."""
    changed = tokens.clone()
    changed[:, 0] = (changed[:, 0] + 1) % V
    moved = (logits_of(model, changed, mask) - logits).abs().amax(-1)
    for row, positions in enumerate(starts):
        end = positions[1] if len(positions) > 1 else T
        assert moved[row, :end].max() > 0 and moved[row, end:].sum() == 0, "the document mask leaks"


def write_json(path, value):
    lines = [f"  {json.dumps(key)}: {json.dumps(value[key])}" for key in value]
    path.write_text("{\n" + ",\n".join(lines) + "\n}\n")


def make_case(name, folder):
    model, inputs, mask = prepare(name)
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    tokens, targets = torch.tensor(inputs["tokens"])[:, :T], torch.tensor(inputs["targets"])
    write_json(folder / "inputs.json", inputs)

    logits = logits_of(model, tokens, mask)
    loss = loss_of(logits, targets)
    loss.backward()
    expected = {f"grad.{n}": p.grad.contiguous() for n, p in model.named_parameters()}
    expected |= {"logits": logits.detach().contiguous(), "loss": loss.detach()}
    save_file(expected, folder / "expected.safetensors")
    for path in folder.glob("*.safetensors"):
        path.chmod(0o644)
    if mask is not None:
        assert_documents_apart(model, tokens, mask, logits, inputs["document_starts"])

    losses = train(prepare(name)[0], tokens, targets, mask, autocast=False)
    losses_bf16 = train(prepare(name)[0], tokens, targets, mask, autocast=True)
    assert losses[-1] < losses[0], f"{name}: training does not lower the loss"
    if name in MUON_CASES:
        make_muon(name, folder, tokens, targets, mask)
    names = {id(p): n for n, p in model.named_parameters()}
    write_json(folder / "training.json", {
        **ADAMW, "decayed": sorted(names[id(w)] for w in gpt.decay_groups(model)[0]["params"]),
        "losses": losses, "losses_bf16_autocast": losses_bf16,
    })


# ---------------------------------------------------------------- checking

# Another machine sums in another order (other BLAS, other vector width). Measured between AVX2 and AVX-512 kernels, the
# worst tensor differs by 6e-7 of its norm, as dot products of up to 61 terms at 2^-24 each let expect; 1e-5 leaves room
# for orders not seen, and the Rust side's own limit is 1e-4. The second term is for tensors whose true gradient is zero,
# such as the part of GPT-2's attention bias that belongs to the keys.
RELATIVE, OF_GLOBAL = 1e-5, 1e-7
# A loss of about 5 has steps of 2^-21 = 5e-7; measured 1e-6 after ten updates.
LOSS_F32 = 1e-5
# bf16 keeps 8 bits, so that another order flips some roundings by 2^-8 of a value: measured 2.3e-3 between AVX2 and
# AVX-512 kernels. Between bf16 and f32 it is 5e-3.
LOSS_BF16 = 1e-2
# Of Muon's steps only their own products are in bf16: they differ from f32's by 8e-5 after nine updates.
LOSS_MUON_BF16 = 1e-3


def compare_tensors(name, made, committed):
    problems = []
    if made.keys() != committed.keys():
        return [f"{name}: tensors {sorted(made.keys() ^ committed.keys())} are in one of the two only"]
    total = sum(t.double().square().sum().item() for k, t in committed.items() if k.startswith("grad.")) ** 0.5
    for key, there in committed.items():
        here = made[key]
        if here.shape != there.shape or here.dtype != there.dtype:
            problems.append(f"{name}: {key} is {list(here.shape)} {here.dtype}, not {list(there.shape)} {there.dtype}")
            continue
        difference, size = (here - there).double().norm().item(), there.double().norm().item()
        limit = RELATIVE * size + (OF_GLOBAL * total if key.startswith("grad.") else 0.0)
        if not difference <= limit:
            problems.append(f"{name}: {key} differs by {difference:.3g}, allowed {limit:.3g}")
    return problems


def compare_losses(name, made, committed, limit):
    worst = max(abs(a - b) for a, b in zip(made, committed, strict=True))
    return [] if worst <= limit else [f"{name}: losses differ by {worst:.3g}, allowed {limit:.3g}"]


def same_json(name, made, committed, apart=()):
    keys = (made.keys() | committed.keys()) - set(apart)
    differing = sorted(key for key in keys if made.get(key) != committed.get(key))
    return [f"{name}: {', '.join(differing)} differ"] if differing else []


def check_case(name, made, committed):
    if not committed.is_dir():
        return [f"{name}: {committed} is missing; make it with golden.py {name}"]
    read = lambda folder, file: json.loads((folder / file).read_text())
    problems = []
    for file in ("config.json", "generation_config.json", "inputs.json"):
        version = ("transformers_version",)
        problems += same_json(f"{name}/{file}", read(made, file), read(committed, file), version)
    weights, there = load_file(made / "model.safetensors"), load_file(committed / "model.safetensors")
    if weights.keys() != there.keys() or any(not torch.equal(weights[k], there[k]) for k in there):
        problems.append(f"{name}/model.safetensors: the weights differ; they must be the same bit for bit")
    problems += compare_tensors(
        f"{name}/expected.safetensors", load_file(made / "expected.safetensors"), load_file(committed / "expected.safetensors"))
    here, there = read(made, "training.json"), read(committed, "training.json")
    losses = ("losses", "losses_bf16_autocast")
    problems += same_json(f"{name}/training.json", here, there, losses)
    problems += compare_losses(f"{name}/training.json losses", here["losses"], there["losses"], LOSS_F32)
    problems += compare_losses(f"{name}/training.json losses_bf16_autocast", here[losses[1]], there[losses[1]], LOSS_BF16)
    return problems + check_muon(name, made, committed)


def check_muon(name, made, committed):
    if name not in MUON_CASES:
        return []
    if not (committed / "muon.json").exists():
        return [f"{name}: muon.json is missing; make it with golden.py {name}"]
    here, there = (json.loads((folder / "muon.json").read_text()) for folder in (made, committed))
    problems = same_json(f"{name}/muon.json", here, there, [key for key in here if key.startswith(ADJUSTMENTS)])
    for adjustment in ADJUSTMENTS:
        for key, limit in ((adjustment, LOSS_F32), (f"{adjustment}_bf16", LOSS_MUON_BF16)):
            problems += compare_losses(f"{name}/muon.json {key}", here[key], there[key], limit)
    return problems


def check(names, folder):
    failed = False
    with tempfile.TemporaryDirectory() as scratch:
        for name in names:
            make_case(name, pathlib.Path(scratch, name))
            problems = check_case(name, pathlib.Path(scratch, name), folder / name)
            print(f"golden {name}: {'FAILED' if problems else 'ok'}", flush=True)
            for problem in problems:
                print("  " + problem, flush=True)
            failed |= bool(problems)
    return 1 if failed else 0


def main():
    parser = argparse.ArgumentParser(description="Makes or checks the golden files.")
    parser.add_argument("--check", action="store_true", help="compare with what is committed, change nothing")
    parser.add_argument("--folder", type=pathlib.Path, default=FOLDER)
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"of {', '.join(CASES)}; all when none is named")
    arguments = parser.parse_args()
    if unknown := [name for name in arguments.cases if name not in CASES]:
        parser.error(f"no case {', '.join(unknown)}; there are {', '.join(CASES)}")
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    names = arguments.cases or list(CASES)
    if arguments.check:
        return check(names, arguments.folder)
    for name in names:
        make_case(name, arguments.folder / name)
        print(f"golden {name}: made", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())

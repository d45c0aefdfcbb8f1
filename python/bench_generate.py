"""The transformers peer of `cargo x bench generate`: greedy text, token after token, when told.

What: `AutoModelForCausalLM` of a Hugging Face folder in bf16 or f32 on the CPU, with its key-value cache, in inference
mode. The loop is the least that writes text: the prompt at once, then one token at a time through the cache, the likeliest
taken each time; `model.generate` does the same with more around it, at no less cost.

How: each line of stdin is {"prompt": [...], "tokens": N}, answered by one line with the seconds of the prompt (until its
first token is known) and of the rest, the tokens, and for each token how far the best logit stood above the next.

Usage: bench_generate.py --model FOLDER --precision f32|bf16 [--threads N]
"""

import argparse
import json
import sys
import time

import torch
from transformers import AutoModelForCausalLM, DynamicCache


def write(model, prompt, count):
    cache, chosen, leads = DynamicCache(config=model.config), [], []
    tokens = torch.tensor([prompt])
    start = time.perf_counter()
    first = None
    with torch.inference_mode():
        for _ in range(count):
            logits = model(input_ids=tokens, past_key_values=cache, use_cache=True, logits_to_keep=1).logits[0, -1]
            best = torch.topk(logits.float(), 2)
            chosen.append(int(best.indices[0]))
            leads.append(float(best.values[0] - best.values[1]))
            tokens = torch.tensor([[chosen[-1]]])
            first = first or time.perf_counter()
    end = time.perf_counter()
    return {"prompt_s": first - start, "rest_s": end - first, "tokens": chosen, "leads": leads}


def main():
    parser = argparse.ArgumentParser(description="Greedy text by transformers, when told on stdin.")
    parser.add_argument("--model", required=True)
    parser.add_argument("--precision", choices=("f32", "bf16"), required=True)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.set_num_interop_threads(1)
    dtype = torch.float32 if arguments.precision == "f32" else torch.bfloat16
    model = AutoModelForCausalLM.from_pretrained(arguments.model, dtype=dtype).eval()
    facts = {"torch": torch.__version__, "parameters": sum(p.numel() for p in model.parameters()),
             "weight_bytes": sum(p.nbytes for p in model.parameters())}
    print("ready " + json.dumps(facts), flush=True)
    for line in sys.stdin:
        try:
            order = json.loads(line)
            answer = write(model, order["prompt"], order["tokens"])
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()

"""The gloo peer of `cargo x bench collective`: all-reduce of f32 sums in place, by torch.distributed, timed as the other arms are.

Rank 0 prints a line of JSON for each size: {"bytes", "us", "turns", "wrong"}: the median time of one call, how many turns it
is the median of, and how many elements of its last result were wrong. The rules of a turn stand in
benches/peers/mpi_all_reduce.c; they are the same in every arm.

Usage: bench_collective.py RANKS BYTES,BYTES,...
"""

import json
import os
import statistics
import sys
import tempfile
import time

os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")

import torch
import torch.distributed
import torch.multiprocessing

SMALL_BYTES, SMALL_CALLS, WARM_UP, FEWEST_TURNS, MOST_TURNS = 4096, 64, 2, 7, 300
TOTAL_BYTES = 256 << 20


def turn(data, values, calls):
    if calls == 1:
        data.copy_(values)
    torch.distributed.barrier()
    start = time.perf_counter_ns()
    for _ in range(calls):
        if calls > 1:
            data.copy_(values)
        torch.distributed.all_reduce(data)
    return (time.perf_counter_ns() - start) / calls / 1000


def measure(size, rank, ranks):
    pattern = 1 + torch.arange(size // 4, dtype=torch.float32) % 8
    values, data = pattern * (rank + 1), torch.empty(size // 4)
    calls = SMALL_CALLS if size <= SMALL_BYTES else 1
    turns = min(max(TOTAL_BYTES // (size * calls), FEWEST_TURNS), MOST_TURNS)
    for _ in range(WARM_UP):
        turn(data, values, calls)
    times = [turn(data, values, calls) for _ in range(turns)]
    wrong = int((data != pattern * (ranks * (ranks + 1) // 2)).sum())
    if rank == 0:
        print(json.dumps({"bytes": size, "us": statistics.median(times), "turns": turns, "wrong": wrong}), flush=True)


def run(rank, ranks, sizes, store):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=ranks)
    for size in sizes:
        measure(size, rank, ranks)
    torch.distributed.destroy_process_group()


def main():
    if len(sys.argv) != 3:
        sys.exit(__doc__.rsplit("\n\n", 1)[-1].strip())
    ranks, sizes = int(sys.argv[1]), [int(size) for size in sys.argv[2].split(",")]
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(run, (ranks, sizes, os.path.join(folder, "store")), nprocs=ranks)


if __name__ == "__main__":
    main()

"""The data sets and the peers of `cargo x bench dataset`: makes samples in every form, and reads them by other people's loaders.

Forms of one set, the same bytes in each, in FOLDER: `files/` (one file a sample), `mds/` (mosaicml-streaming), `litdata/`,
`tars/` (webdataset), and `all.bin` with `all.offsets` (u64, little-endian: where each sample begins, and the end).
`facts.json` is written last and says what is in there.

The sum of a sample is that of its 64-bit little-endian words, the last one filled up with zeros, wrapping; that of an epoch is
the sum over its samples, so every order has the same.

`read` prints a line of JSON for each epoch: {"epoch", "seconds", "samples", "bytes", "sum"}. The first epoch begins before
the data set is opened, with everything imported, and holds the start of worker processes; later ones begin when the loader is
asked for an iterator. The process that asks for batches does the summing. At the end it waits for the end of its stdin.

Usage: bench_dataset.py make --samples N --seed S --shard-bytes B --out FOLDER
       bench_dataset.py read --arm ARM --workers W --set FOLDER --cache FOLDER --epochs E --batch B --seed S
                             [--bucket BUCKET] [--cache-bytes B]
"""

import argparse
import importlib.metadata
import json
import pathlib
import shutil
import sys
import time

import numpy

import dataset_arms

SMALLEST_BYTES, LARGEST_BYTES = 60 << 10, 140 << 10
SAMPLES_IN_A_FOLDER = 1000
PACKAGES = ("torch", "mosaicml-streaming", "litdata", "webdataset", "boto3", "obstore", "numpy")


def sample_lengths(samples, seed):
    return numpy.random.default_rng(seed).integers(SMALLEST_BYTES, LARGEST_BYTES, samples, endpoint=True)


def all_samples(samples, seed):
    """Each sample's bytes; they depend on its number and the seed alone."""
    for number, length in enumerate(sample_lengths(samples, seed)):
        yield numpy.random.default_rng((seed, number)).bytes(int(length))


def write_files(folder, samples):
    for number, sample in enumerate(samples):
        path = folder / f"{number // SAMPLES_IN_A_FOLDER:04}" / f"{number:08}.bin"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(sample)


def write_one(folder, samples):
    offsets = [0]
    with open(folder / "all.bin", "wb") as file:
        for sample in samples:
            offsets.append(offsets[-1] + file.write(sample))
    numpy.array(offsets, "<u8").tofile(folder / "all.offsets")


def write_mds(folder, samples, shard_bytes):
    import streaming

    with streaming.MDSWriter(out=str(folder), columns={"data": "bytes"}, size_limit=shard_bytes) as writer:
        for sample in samples:
            writer.write({"data": sample})


def write_tars(folder, samples, shard_bytes):
    import webdataset

    folder.mkdir()
    # A set has fewer samples than a shard may hold by number: bytes alone end it.
    with webdataset.ShardWriter(str(folder / "%06d.tar"), maxsize=shard_bytes, maxcount=1 << 30, verbose=0) as writer:
        for number, sample in enumerate(samples):
            writer.write({"__key__": f"{number:08}", "bin": sample})


def write_litdata(folder, files, shard_bytes):
    import litdata

    paths = sorted(str(path) for path in files.glob("*/*.bin"))
    # One writer, so that chunks are as full as other people's shards.
    litdata.optimize(dataset_arms.read_file, paths, str(folder), chunk_bytes=shard_bytes, num_workers=1, verbose=False)


def versions():
    return {package: importlib.metadata.version(package) for package in PACKAGES}


def make(options):
    folder = pathlib.Path(options.out)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    samples = list(all_samples(options.samples, options.seed))
    write_one(folder, samples)
    write_files(folder / "files", samples)
    write_mds(folder / "mds", samples, options.shard_bytes)
    write_tars(folder / "tars", samples, options.shard_bytes)
    facts = {
        "samples": options.samples,
        "seed": options.seed,
        "shard_bytes": options.shard_bytes,
        "bytes": sum(map(len, samples)),
        "sum": dataset_arms.sum_of(samples),
        "versions": versions(),
    }
    # It starts processes, which would each have the samples as well.
    del samples
    write_litdata(folder / "litdata", folder / "files", options.shard_bytes)
    (folder / "facts.json").write_text(json.dumps(facts))


def read(options):
    start, loader = time.perf_counter(), None
    for epoch in range(1, options.epochs + 1):
        if epoch > 1:
            start = time.perf_counter()
        loader = loader or dataset_arms.open_arm(options)
        samples, size, total = 0, 0, 0
        for batch in loader.epoch(epoch):
            count, length, part = dataset_arms.count(batch)
            samples, size, total = samples + count, size + length, total + part
        seconds = time.perf_counter() - start
        line = {"epoch": epoch, "seconds": seconds, "samples": samples, "bytes": size, "sum": total % (1 << 64)}
        print(json.dumps(line), flush=True)
    # Whoever measures memory wants the last epoch's too.
    sys.stdin.read()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    maker = commands.add_parser("make")
    for name in ("--samples", "--seed", "--shard-bytes"):
        maker.add_argument(name, type=int, required=True)
    maker.add_argument("--out", required=True)
    reader = commands.add_parser("read")
    reader.add_argument("--arm", choices=sorted(dataset_arms.ARMS), required=True)
    for name in ("--workers", "--epochs", "--batch", "--seed"):
        reader.add_argument(name, type=int, required=True)
    reader.add_argument("--set", required=True)
    reader.add_argument("--cache", required=True)
    reader.add_argument("--bucket")
    reader.add_argument("--cache-bytes", type=int)
    options = parser.parse_args()
    if options.command == "make":
        make(options)
    else:
        dataset_arms.import_arm(options.arm)
        read(options)


if __name__ == "__main__":
    main()

"""Datasets that the real packages write, as Gradus describes and reads them. A part of interop.py.

What: each package writes the same few hundred samples; `gradus dataset index` describes the folder. What the index says of each
sample is held against what the package itself reads back: the same samples in the same order, each of the same length and
CRC-32C. Then `gradus bench dataset` reads all samples, of which it tells number, bytes and sum: they are those of the package's.

How: the index is opened by pyarrow, as anybody would. mosaicml-streaming imports the clients of every cloud and torchvision, none
of which is used to write or read a folder: modules without content stand in for them.
"""

import gzip
import importlib.abc
import importlib.machinery
import io
import json
import pathlib
import sys
import tarfile
import types

import numpy

import dataset_arms

SAMPLES = 300
# So small that there are several shards, members and row groups.
SHARD_BYTES = 30_000
PART = 70
LEFT_OUT = ("torchvision", "boto3", "botocore", "google", "azure", "oci", "paramiko", "matplotlib", "transformers")
CASTAGNOLI = 0x82F63B78


class Failure(Exception):
    """What an index says is not what the package reads."""


class LeftOut(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds a module without content for each name of LEFT_OUT."""

    def find_spec(self, name, path, target=None):
        if name.partition(".")[0] in LEFT_OUT:
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec):
        module = types.ModuleType(spec.name)
        module.__getattr__ = lambda name: _nothing(name)
        return module

    def exec_module(self, module):
        module.__path__ = []


def _nothing(name):
    if name.startswith("__"):
        raise AttributeError(name)
    return type(name, (), {})


def streaming_format():
    """The part of mosaicml-streaming that writes and reads shards, imported as if there were no cloud."""
    known, finder = set(sys.modules), LeftOut()
    hidden = {name: sys.modules.pop(name) for name in list(sys.modules) if name.partition(".")[0] in LEFT_OUT}
    sys.meta_path.insert(0, finder)
    try:
        import streaming.base.compression
        import streaming.base.format
    finally:
        sys.meta_path.remove(finder)
        for name in set(sys.modules) - known:
            if name.partition(".")[0] in LEFT_OUT:
                del sys.modules[name]
        sys.modules.update(hidden)
    return streaming.base.format, streaming.base.compression


def texts():
    words = ["größer", "the", "clocks", "were", "striking", "\U0001f600", "thirteen", "\"quoted\"", "\\", "\t", "\n"]
    draw = numpy.random.Generator(numpy.random.PCG64(7))
    lengths = draw.integers(0, 120, SAMPLES)
    return [" ".join(words[word] for word in draw.integers(0, len(words), length)) for length in lengths]


def crc32c_table():
    table = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (CASTAGNOLI if value & 1 else 0)
        table.append(value)
    return table


TABLE = crc32c_table()


def crc32c(data):
    state = 0xFFFFFFFF
    for byte in data:
        state = TABLE[(state ^ byte) & 255] ^ state >> 8
    return state ^ 0xFFFFFFFF


# ------------------------------------- what packages write, the samples that they read back, and the first field of each


def mosaic(packing):
    def write(folder):
        writers, compression = streaming_format()
        # A writer puts columns in the order of their names.
        columns = {"body": "str", "n": "int", "ids": "ndarray:int32:4", "tail": "bytes"}
        with writers.MDSWriter(out=str(folder), columns=columns, compression=packing, size_limit=SHARD_BYTES) as out:
            for number, text in enumerate(texts()):
                ids = numpy.arange(4, dtype=numpy.int32) + number
                out.write({"body": text, "n": number, "ids": ids, "tail": b"x" * (number % 3)})
        samples, bodies = [], []
        for shard in json.loads((folder / "index.json").read_text())["shards"]:
            if shard["compression"]:
                packed = (folder / shard["zip_data"]["basename"]).read_bytes()
                plain = compression.decompress(shard["compression"], packed)
                beside = folder.with_name(f"{folder.name}-plain")
                beside.mkdir(exist_ok=True)
                (beside / shard["raw_data"]["basename"]).write_bytes(plain)
                reader = writers.reader_from_json(str(beside), None, shard)
            else:
                reader = writers.reader_from_json(str(folder), None, shard)
            samples += [reader.get_sample_data(number) for number in range(shard["samples"])]
            decoded = [reader.decode_sample(sample) for sample in samples[len(bodies) :]]
            if [sample["n"] for sample in decoded] != list(range(len(bodies), len(samples))):
                raise Failure("the shards are not in the order in which they were written")
            bodies += [sample["body"].encode() for sample in decoded]
        return samples, bodies

    return write


def web_dataset(folder):
    import webdataset

    with webdataset.ShardWriter(str(folder / "a-%04d.tar"), maxcount=PART, verbose=0) as out:
        for number, text in enumerate(texts()):
            out.write({"__key__": f"deep/sample-{number:05d}", "body.txt": text, "seg.cls": number, "tail": b"x" * (number % 3)})
    paths = sorted(str(path) for path in folder.glob("*.tar"))
    samples = list(webdataset.WebDataset(paths, shardshuffle=False, empty_check=False))
    return samples, [sample["body.txt"] for sample in samples]


def parquet(packing):
    def write(folder):
        import pyarrow
        import pyarrow.parquet

        column = [None if number % 11 == 0 else text for number, text in enumerate(texts())]
        for part in range(0, SAMPLES, 2 * PART):
            table = pyarrow.table({"n": list(range(part, min(part + 2 * PART, SAMPLES))), "text": column[part : part + 2 * PART]})
            path = folder / f"{part:05d}.parquet"
            pyarrow.parquet.write_table(table, path, compression=packing, row_group_size=PART, data_page_size=1000)
        read = (pyarrow.parquet.read_table(path, columns=["text"]) for path in sorted(folder.glob("*.parquet")))
        samples = [(text or "").encode() for table in read for text in table.column(0).to_pylist()]
        return samples, samples

    return write


def lines(name, pack, unpack):
    def write(folder):
        rows = [json.dumps({"n": number, "text": text}, ensure_ascii=False) for number, text in enumerate(texts())]
        parts = ["\n".join(rows[first : first + PART]) + "\n" for first in range(0, SAMPLES, PART)]
        (folder / name).write_bytes(b"".join(pack(part.encode()) for part in parts))
        samples = unpack(folder / name).splitlines()
        return samples, samples

    return write


def gzip_lines(path):
    with gzip.open(path) as file:
        return file.read()


def zstandard_pack(data):
    import zstandard

    return zstandard.ZstdCompressor(level=3).compress(data)


def zstandard_lines(path):
    import zstandard

    with zstandard.open(path, "rb") as file:
        return file.read()


DATASETS = {
    "mosaic": mosaic(None),
    "mosaic-zstd": mosaic("zstd"),
    "mosaic-gz": mosaic("gz"),
    "webdataset": web_dataset,
    "parquet-snappy": parquet("snappy"),
    "parquet-zstd": parquet("zstd"),
    "jsonl": lines("a.jsonl", bytes, pathlib.Path.read_bytes),
    "jsonl-gzip": lines("a.jsonl.gz", gzip.compress, gzip_lines),
    "jsonl-zstd": lines("a.jsonl.zst", zstandard_pack, zstandard_lines),
}


# ---------------------------------------------------------------- what Gradus makes of them


def read_index(path):
    """The rows of an index, and what its metadata say."""
    import pyarrow.parquet

    table = pyarrow.parquet.read_table(path)
    return table.to_pylist(), json.loads(table.schema.metadata[b"gradus.index"])


def tar_samples(rows, theirs):
    """The bytes that rows of tar files name, once each proved to hold what the package reads of the sample."""
    samples = []
    for row, sample in zip(rows, theirs):
        with open(row["address"].removeprefix("file://"), "rb") as file:
            file.seek(row["unit_start"])
            samples.append(file.read(row["length"]))
        # A sample ends with its last content, and a tar with two blocks of zeros.
        with tarfile.open(fileobj=io.BytesIO(samples[-1] + bytes(3 * tarfile.BLOCKSIZE))) as archive:
            entries = {entry.name: archive.extractfile(entry).read() for entry in archive}
        fields = {f"{sample['__key__']}.{name}": data for name, data in sample.items() if not name.startswith("__")}
        if row["key"] != sample["__key__"] or entries != fields:
            raise Failure(f"{row['key']} holds {sorted(entries)}, the package reads {sorted(fields)} of {sample['__key__']}")
    return samples


def compare(gradus, name, write, folder):
    folder.mkdir()
    theirs, first_fields = write(folder)
    gradus("dataset", "index", "--checksums", folder)
    rows, described = read_index(folder / "gradus-index.parquet")
    if len(rows) != len(theirs) or len(theirs) != SAMPLES:
        raise Failure(f"{name}: {len(rows)} samples, the package reads {len(theirs)} of {SAMPLES}")
    if len(described["objects"]) < 2 and len({row["unit_start"] for row in rows}) < 2:
        raise Failure(f"{name}: one shard, or one unit, shows little")
    if isinstance(theirs[0], dict):
        theirs = tar_samples(rows, theirs)
    for number, (row, sample) in enumerate(zip(rows, theirs)):
        ours, expected = (row["length"], row["crc32c"]), (len(sample), crc32c(sample))
        if ours != expected:
            raise Failure(f"{name}: sample {number} has length and CRC-32C {ours}, the package reads {expected}")
    read = json.loads(gradus("bench", "dataset", "--epochs", 1, "--source", folder))
    ours = tuple(read[key] for key in ("epoch", "samples", "bytes", "sum"))
    expected = (1, len(theirs), sum(map(len, first_fields)), dataset_arms.sum_of(first_fields))
    if ours != expected:
        raise Failure(f"{name}: epoch, samples, bytes and sum that are read are {ours}, of the package {expected}")


def check(gradus, scratch):
    """`gradus` runs the program with the words given and returns what it prints."""
    for name, write in DATASETS.items():
        compare(gradus, name, write, scratch / name)
    return f"{SAMPLES} samples each of {', '.join(DATASETS)}"

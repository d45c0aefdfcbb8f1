"""Other people's loaders, each as its documentation recommends, behind one face: `open_arm(options).epoch(number)` yields batches.

A batch comes from a worker process as one flat tensor in shared memory, each sample filled up to whole words, which is what
torch's own collate function does for samples of equal length: 32 pickled byte strings, or a segment of shared memory for
each, took longer. Without workers the samples are handed over as they are.

What is chosen here holds for every arm alike: persistent workers, torch's own number of batches ahead (2 a worker), no thread
settings (torch gives its workers one thread each), seeds given.
"""

import concurrent.futures
import importlib
import json
import os
import pathlib
import urllib.parse

import numpy
import torch
import torch.utils.data

WORD_BYTES = 8
# webdataset's own default and what its documentation shows.
SHUFFLE_BUFFER = 1000
# As many requests at once as a batch has samples by default, and as botocore keeps connections for.
REQUESTS_AT_ONCE = 32
LINK_SECONDS = 7 * 24 * 3600


def sum_of(samples):
    total = 0
    for sample in samples:
        words = len(sample) // WORD_BYTES
        total += int(numpy.frombuffer(sample, "<u8", words).sum(dtype=numpy.uint64))
        total += int.from_bytes(sample[words * WORD_BYTES :], "little")
    return total % (1 << 64)


def count(batch):
    """Samples, bytes and sum of a batch."""
    if torch.is_tensor(batch[0]):
        flat, samples, size = batch
        return samples, size, int(flat.numpy().view("<u8").sum(dtype=numpy.uint64))
    return len(batch), sum(map(len, batch)), sum_of(batch)


def collate(samples):
    if torch.utils.data.get_worker_info() is None:
        return samples
    padded = [-(-len(sample) // WORD_BYTES) * WORD_BYTES for sample in samples]
    flat = torch.empty(0, dtype=torch.uint8).set_(torch.UntypedStorage._new_shared(sum(padded)))
    view, start = flat.numpy(), 0
    for sample, length in zip(samples, padded):
        view[start : start + len(sample)] = numpy.frombuffer(sample, numpy.uint8)
        view[start + len(sample) : start + length] = 0
        start += length
    return flat, len(samples), sum(map(len, samples))


def read_file(path):
    return pathlib.Path(path).read_bytes()


def loader_settings(options):
    return {"num_workers": options.workers, "persistent_workers": options.workers > 0}


def boto_client():
    """One that keeps a connection for each request at once; endpoint, keys and region come from the environment."""
    import boto3
    import botocore.config

    config = botocore.config.Config(max_pool_connections=REQUESTS_AT_ONCE, s3={"addressing_style": "path"})
    return boto3.client("s3", config=config)


def keys_below(bucket, prefix):
    pages = boto_client().get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
    return sorted(found["Key"] for page in pages for found in page.get("Contents", ()))


class Files(torch.utils.data.Dataset):
    """One file a sample."""

    def __init__(self, folder):
        self.paths = sorted(str(path) for path in folder.glob("*/*.bin"))

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, number):
        return read_file(self.paths[number])


class Objects(torch.utils.data.Dataset):
    """One object a sample; a batch's are asked for at once, by threads."""

    def __init__(self, bucket, prefix):
        self.bucket, self.keys, self.client, self.threads = bucket, keys_below(bucket, prefix), None, None

    def __len__(self):
        return len(self.keys)

    def get(self, number):
        return self.client.get_object(Bucket=self.bucket, Key=self.keys[number])["Body"].read()

    def __getitems__(self, numbers):
        # Clients and threads do not outlive a fork: each worker makes its own.
        if self.client is None:
            self.client = boto_client()
            self.threads = concurrent.futures.ThreadPoolExecutor(REQUESTS_AT_ONCE)
        return list(self.threads.map(self.get, numbers))


class Torch:
    def __init__(self, options):
        set_folder = pathlib.Path(options.set)
        data = Objects(options.bucket, "files/") if options.bucket else Files(set_folder / "files")
        generator = torch.Generator().manual_seed(options.seed)
        self.loader = torch.utils.data.DataLoader(
            data,
            batch_size=options.batch,
            shuffle=True,
            generator=generator,
            collate_fn=collate,
            **loader_settings(options),
        )

    def epoch(self, _):
        return iter(self.loader)


class Streaming:
    """mosaicml-streaming: StreamingDataset with its default order, py1e, which at this size shuffles across the whole set."""

    # Samples that are shuffled with each other; None is the library's own, 262144 or more.
    block_samples = None

    def __init__(self, options):
        import streaming

        if options.bucket:
            place = {"remote": f"s3://{options.bucket}/mds", "local": options.cache}
        else:
            place = {"local": f"{options.set}/mds"}
        data = streaming.StreamingDataset(
            **place,
            shuffle=True,
            shuffle_seed=options.seed,
            shuffle_block_size=self.block_samples,
            batch_size=options.batch,
            cache_limit=options.cache_bytes,
        )
        for stream in data.streams:
            # The index was fetched by a client of this process, whose open connection workers would inherit and share:
            # shards came out mixed. Each makes its own when it finds none.
            stream._downloader.clean_up()
        self.loader = torch.utils.data.DataLoader(
            data, batch_size=options.batch, collate_fn=self.collate, **loader_settings(options)
        )

    @staticmethod
    def collate(samples):
        return collate([sample["data"] for sample in samples])

    def epoch(self, _):
        return iter(self.loader)


class StreamingBlocks(Streaming):
    """The same with blocks of about an eighth of the set, which a limited cache can hold."""

    def __init__(self, options):
        index = json.loads(pathlib.Path(options.set, "mds", "index.json").read_text())
        self.block_samples = max(1, sum(shard["samples"] for shard in index["shards"]) // 8)
        super().__init__(options)


class Litdata:
    """litdata: StreamingDataset and StreamingDataLoader; chunks in shuffled order, and samples within them."""

    def __init__(self, options):
        import litdata

        if options.bucket:
            # Its fast way, obstore, refuses servers without TLS unless told otherwise, and offers no setting for it.
            litdata.streaming.downloader._OBSTORE_CLIENT_OPTIONS["allow_http"] = "true"
            place = {
                "input_dir": f"s3://{options.bucket}/litdata",
                "cache_dir": options.cache,
                "storage_options": {
                    "endpoint_url": os.environ["AWS_ENDPOINT_URL"],
                    "aws_access_key_id": os.environ["AWS_ACCESS_KEY_ID"],
                    "aws_secret_access_key": os.environ["AWS_SECRET_ACCESS_KEY"],
                },
            }
        else:
            place = {"input_dir": f"{options.set}/litdata"}
        data = litdata.StreamingDataset(
            **place, shuffle=True, seed=options.seed, max_cache_size=options.cache_bytes
        )
        self.loader = litdata.StreamingDataLoader(
            data, batch_size=options.batch, collate_fn=collate, **loader_settings(options)
        )

    def epoch(self, _):
        return iter(self.loader)


class Webdataset:
    """webdataset: shards in shuffled order, a buffer of 1,000 samples, its own cache of shards for what is not local."""

    def __init__(self, options):
        import webdataset

        cache = {}
        if options.bucket:
            client = boto_client()
            shards = [
                client.generate_presigned_url(
                    "get_object", Params={"Bucket": options.bucket, "Key": key}, ExpiresIn=LINK_SECONDS
                )
                for key in keys_below(options.bucket, "tars/")
            ]
            cache = {"cache_dir": options.cache, "cache_size": options.cache_bytes or -1}
        else:
            shards = sorted(str(path) for path in pathlib.Path(options.set, "tars").glob("*.tar"))
        data = webdataset.WebDataset(shards, shardshuffle=len(shards), seed=options.seed, **cache)
        for stage in data.pipeline:
            # Its cache is trimmed every 30 s, for which there is no setting here: within them it would hold more than others may.
            if options.cache_bytes and isinstance(stage, webdataset.cache.FileCache):
                stage.cleaner.interval = None
        data = data.shuffle(SHUFFLE_BUFFER, seed=options.seed).to_tuple("bin").batched(options.batch, self.collate)
        self.loader = webdataset.WebLoader(data, batch_size=None, **loader_settings(options))

    @staticmethod
    def collate(samples):
        return collate([sample for (sample,) in samples])

    def epoch(self, _):
        return iter(self.loader)


ARMS = {
    "torch": (Torch, ("boto3",)),
    "streaming": (Streaming, ("streaming",)),
    "streaming-blocks": (StreamingBlocks, ("streaming",)),
    "litdata": (Litdata, ("litdata",)),
    "webdataset": (Webdataset, ("webdataset", "boto3")),
}


def import_arm(name):
    for module in ARMS[name][1]:
        importlib.import_module(module)


def open_arm(options):
    return ARMS[options.arm][0](options)

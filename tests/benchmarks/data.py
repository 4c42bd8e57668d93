"""Measures data preparation: `python tests/benchmarks/data.py RESULT.json`.

Every measurement runs in a process of its own, so that its peak memory is its own. Ratios come from
one run on one machine; text is the standard library's, written as JSON lines.
"""

import argparse
import json
import multiprocessing
import os
import platform
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

TOKENIZER = Path(__file__).parents[2] / "longred" / "demo" / "model"


def write_corpus(path: Path, num_bytes: int) -> int:
    """Write about so many bytes of JSON lines, no two documents alike; return their number."""
    from longred.demo.corpus import library_documents

    texts = [text for _, text in library_documents()]
    written = count = 0
    with path.open("w", encoding="utf-8") as file:
        while written < num_bytes:
            text = f"# {count}\n{texts[count % len(texts)]}"
            written += file.write(json.dumps({"text": text}) + "\n")
            count += 1
    return count


def make_job(path: Path, work: Path, **changes: Any) -> Any:
    from longred.config import DataConfig
    from longred.data.tokenise import Job

    values = {
        "sources": [{"name": "text", "kind": "files", "path": str(path)}],
        "num_tokens": 1024,
        "shard_bytes": 2**22,
        "original_window": 256,
        "target_window": 1024,
        "short_length": 128,
    }
    return Job(DataConfig(**{**values, **changes}), str(TOKENIZER), str(work), "benchmark")


def raw_encoding(path: Path) -> dict[str, float]:
    """The tokenizer alone, batches as the pipeline makes them, texts already in memory."""
    from longred.data.tokenise import BATCH_CHARACTERS
    from longred.data.tokens import TextTokenizer

    tokenizer = TextTokenizer(TOKENIZER, add_bos=True)._tokenizer
    batches: list[list[str]] = [[]]
    size = 0
    for line in path.read_bytes().splitlines():
        text = json.loads(line)["text"]
        batches[-1].append(text)
        size += len(text)
        if size >= BATCH_CHARACTERS:
            batches.append([])
            size = 0
    begun, tokens = time.process_time(), 0
    for batch in batches:
        tokens += sum(map(len, tokenizer.encode_batch_fast(batch, add_special_tokens=False)))
    return {"cpu_seconds": time.process_time() - begun, "tokens": tokens}


def to_disk(path: Path, work: Path) -> dict[str, float]:
    """Everything from bytes to a shard's finished files, one thread."""
    from longred.data.sources import shards_of
    from longred.data.tokenise import load_tokenizer, tokenise_shard

    job = make_job(path, work)
    load_tokenizer(job)
    shards = list(shards_of(job.config, 0))
    begun = time.process_time()
    records = [tokenise_shard(job, shard) for shard in shards]
    seconds = time.process_time() - begun
    return {"cpu_seconds": seconds, "tokens": sum(record.read_tokens for record in records)}


def pool(path: Path, work: Path, num_workers: int) -> dict[str, float]:
    """The process pool, from its start to the last record."""
    from longred.data.executors import run_shards
    from longred.data.sources import shards_of

    job = make_job(path, work, executor={"num_workers": num_workers})
    shards = list(shards_of(job.config, 0))
    begun = time.perf_counter()
    run_shards(job, shards, lambda counts: None)
    return {"seconds": time.perf_counter() - begun}


def divide_and_copy(folder: Path, num_tokens: int) -> dict[str, float]:
    """Draw, pack and copy: 32K, 1K and 8K blocks from twice as many tokens of made-up documents."""
    from longred.config import DataConfig
    from longred.data.copying import write_bucket
    from longred.data.filling import Filler
    from longred.data.quotas import source_quotas
    from longred.data.shards import TABLE

    config = DataConfig(
        sources=[{"name": "made", "kind": "files", "path": "made"}],
        num_tokens=num_tokens,
        original_window=8192,
        target_window=32768,
        validation_fraction=0.01,
    )
    quotas = source_quotas(config)["made"]
    generator = np.random.default_rng(0)
    tables, paths = [], []
    for number in range(10):
        lengths = np.minimum(generator.lognormal(7.6, 1.5, 400_000), 2_000_000).astype(np.uint32)
        ends = np.cumsum(lengths, dtype=np.uint64)
        count = int(np.searchsorted(ends, num_tokens // 5))
        table = np.zeros(count, dtype=TABLE)
        for key in ("split", "draw", "text"):
            table[key] = generator.integers(0, 2**64, count, dtype=np.uint64)
        table["length"], table["start"] = lengths[:count], ends[:count] - lengths[:count]
        tables.append(table)
        paths.append(folder / f"{number}.bin")
        generator.integers(0, 2**16, int(ends[count - 1]), dtype=np.uint16).tofile(paths[-1])
    begun = time.perf_counter()
    filler = Filler(quotas, config.validation_fraction)
    for number, table in enumerate(tables):
        filler.add(number, table, np.zeros(len(table), dtype=bool))
    settled = filler.settle()
    drawn = time.perf_counter() - begun
    written = 0
    for (split, bucket), segments in settled.segments.items():
        quota = next(q for q in quotas if (q.split, q.bucket) == (split, bucket))
        blocks = write_bucket(
            [segments],
            paths,
            folder / f"{split}-{bucket}.bin",
            block_length=quota.block_length,
            dtype="uint16",
            seed=0,
            ends_path=folder / f"{split}.ends.npy" if bucket == "long" else None,
        )
        written += blocks * quota.block_length
    return {
        "seconds": time.perf_counter() - begun,
        "of_which_drawing_and_packing": drawn,
        "documents": sum(map(len, tables)),
        "tokens_written": written,
    }


def load(folder: Path) -> dict[str, float]:
    """Random 32K blocks of the file that `divide_and_copy` wrote, as the loader reads them."""
    from longred.data.loader import BlockFile, Permutation

    path = folder / "train-long.bin"
    num_blocks = path.stat().st_size // 65536
    entry = {
        "block_length": 32768,
        "num_blocks": num_blocks,
        "dtype": "uint16",
        "file": path.name,
    }
    index = {"format_version": 1, "train": {"long": entry}}
    (folder / "index.json").write_text(json.dumps(index))
    file = BlockFile(folder, "long")
    order = Permutation(num_blocks, seed=0, bucket="long", epoch=0)
    begun = time.perf_counter()
    for position in range(num_blocks):
        file[order[position]]
    seconds = time.perf_counter() - begun
    return {"seconds": seconds, "tokens_a_second": num_blocks * 32768 / seconds}


def alone(function: Callable[..., dict[str, float]], *arguments: Any) -> dict[str, float]:
    """Return what a function measures in a process of its own, with that process's peak memory."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as process:
        return process.apply(_measured, (function, arguments))


def _measured(function: Callable[..., dict[str, float]], arguments: Any) -> dict[str, float]:
    found = function(*arguments)
    return {**found, "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3}


def measure(num_bytes: int, num_tokens: int, repeats: int) -> dict[str, Any]:
    """Return every measurement."""
    os.environ["RAYON_NUM_THREADS"] = "1"
    found: dict[str, Any] = {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {platform.platform()}",
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "load_average": os.getloadavg()[0],
        "corpus_bytes": num_bytes,
    }
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        corpus = folder / "corpus.jsonl"
        write_corpus(corpus, num_bytes)
        pairs = [
            (alone(raw_encoding, corpus), alone(to_disk, corpus, folder / f"work-{n}"))
            for n in range(repeats)
        ]
        ratios = [raw["cpu_seconds"] / disk["cpu_seconds"] for raw, disk in pairs]
        found["to_disk"] = {"raw_over_to_disk_median": statistics.median(ratios), "runs": pairs}
        one, two = (pool(corpus, folder / f"pool-{n}", n) for n in (1, 2))
        found["two_processes"] = {"speedup": one["seconds"] / two["seconds"]}
        found["divide_and_copy"] = alone(divide_and_copy, folder, num_tokens)
        found["loader"] = alone(load, folder)
    return found


def main() -> None:
    """Measure and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("result", type=Path)
    parser.add_argument("--bytes", type=int, default=32 * 10**6)
    parser.add_argument("--tokens", type=int, default=200_000_000)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    found = measure(arguments.bytes, arguments.tokens, arguments.repeats)
    arguments.result.write_text(json.dumps(found, indent=2) + "\n")
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()

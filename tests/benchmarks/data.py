"""Measure data preparation: `python tests/benchmarks/data.py RESULT.json`; also writes RESULT.md.

Each measurement that reports memory runs in its own process, so that peak memory is measured
separately. Ratios come from one run on one machine. The text is the standard library's, written as
JSON lines. `--parts` repeats some parts and keeps the results of the others in the file. `large`
needs 8 GB in the temporary folder.
"""

import argparse
import itertools
import json
import multiprocessing
import os
import platform
import resource
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, wait
from pathlib import Path
from typing import Any

import numpy as np
import psutil

SAMPLE_SECONDS = 0.2
# Slightly less than the most that `prepare` can write from this corpus.
WRITTEN_TOKENS_PER_BYTE = 0.28
TOKENIZER = Path(__file__).parents[2] / "longred" / "demo" / "model"


def write_corpus(path: Path, num_bytes: int) -> int:
    """Write about `num_bytes` of JSON lines, all documents distinct; return how many."""
    from longred.demo.corpus import library_documents

    texts = [json.dumps(text)[1:] for _, text in library_documents()]
    written = count = 0
    with path.open("w", encoding="utf-8") as file:
        while written < num_bytes:
            written += file.write(f'{{"text": "# {count}\\n{texts[count % len(texts)]}}}\n')
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
    """Measure the tokenizer alone: the pipeline's batch size, texts already in memory."""
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
    """Measure tokenising shards from source bytes to finished files, in one thread."""
    from longred.data.sources import shards_of
    from longred.data.tokenise import load_tokenizer, tokenise_shard

    job = make_job(path, work)
    load_tokenizer(job.tokenizer_folder, job.config.add_bos)
    shards = list(shards_of(job.config, 0))
    begun = time.process_time()
    records = [tokenise_shard(job, shard) for shard in shards]
    seconds = time.process_time() - begun
    return {"cpu_seconds": seconds, "tokens": sum(record.read_tokens for record in records)}


def pool(path: Path, work: Path, num_workers: int) -> dict[str, float]:
    """Measure the process pool, from its start to the last record."""
    from longred.data.executors import run_shards
    from longred.data.sources import shards_of

    job = make_job(path, work, executor={"num_workers": num_workers})
    shards = list(shards_of(job.config, 0))
    begun = time.perf_counter()
    run_shards(job, shards, lambda counts: None)
    return {"seconds": time.perf_counter() - begun}


def divide_and_copy(folder: Path, num_tokens: int) -> dict[str, float]:
    """Measure deduplicating, drawing, packing and copying into 32K, 1K and 8K blocks.

    The documents are synthetic and have about `2 * num_tokens` tokens.
    """
    from longred.config import DataConfig
    from longred.data.filling import Filler
    from longred.data.quotas import source_quotas
    from longred.data.reading import duplicate_masks
    from longred.data.shards import TABLE
    from longred.data.writing import write_bucket

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
    num_shards = num_tokens // 10_000_000
    for number in range(num_shards):
        lengths = np.minimum(generator.lognormal(7.6, 1.5, 400_000), 2_000_000).astype(np.uint32)
        ends = np.cumsum(lengths, dtype=np.uint64)
        count = int(np.searchsorted(ends, 2 * num_tokens // num_shards))
        table = np.zeros(count, dtype=TABLE)
        for key in ("split", "draw", "text"):
            table[key] = generator.integers(0, 2**64, count, dtype=np.uint64)
        table["length"], table["start"] = lengths[:count], ends[:count] - lengths[:count]
        tables.append(table)
        paths.append(folder / f"{number}.bin")
        generator.integers(0, 2**16, int(ends[count - 1]), dtype=np.uint16).tofile(paths[-1])
    begun = time.perf_counter()
    filler = Filler(quotas, config.validation_fraction)
    masks = duplicate_masks([len(table) for table in tables], lambda n: tables[n]["text"])
    for number, (table, mask) in enumerate(zip(tables, masks, strict=True)):
        filler.add(number, table, mask)
    selection = filler.select()
    drawn = time.perf_counter() - begun
    written = 0
    for (split, bucket), segments in selection.segments.items():
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
    """Read the 32K blocks that `divide_and_copy` wrote, in the loader's random order."""
    from longred.data.layout import BlockFile
    from longred.data.loader import Permutation

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


def prepare_all(path: Path, folder: Path, num_tokens: int, **changes: Any) -> dict[str, float]:
    """Measure `prepare`, from a recipe's data section to the finished folder, in two processes."""
    from longred.data.buckets import prepare

    changes["executor"] = {"num_workers": 2}
    config = make_job(path, folder, num_tokens=num_tokens, **changes).config
    (folder / "data").mkdir(parents=True)
    begun = time.perf_counter()
    prepare(config, TOKENIZER, folder / "data", folder / "work")
    seconds = time.perf_counter() - begun
    tokens = json.loads((folder / "data" / "index.json").read_text())["tokens"]
    return {"seconds": seconds, "tokens_read": tokens["read"], "tokens_out": tokens["written"]}


def datasets_map(path: Path, folder: Path, block_length: int) -> dict[str, float]:
    """Measure the usual way: one `map` tokenises, one packs whole batches, two processes each."""
    import datasets
    from transformers import AutoTokenizer

    datasets.disable_progress_bars()
    tokenizer = AutoTokenizer.from_pretrained(TOKENIZER)

    def tokenise(rows: dict[str, list[str]]) -> Any:
        return tokenizer(rows["text"])

    def pack(rows: dict[str, list[list[int]]]) -> dict[str, list[list[int]]]:
        joined = {name: list(itertools.chain.from_iterable(rows[name])) for name in rows}
        end = len(joined["input_ids"]) // block_length * block_length
        starts = range(0, end, block_length)
        cut = {name: [ids[i : i + block_length] for i in starts] for name, ids in joined.items()}
        return {**cut, "labels": cut["input_ids"].copy()}

    begun = time.perf_counter()
    rows = datasets.load_dataset("json", data_files=str(path), split="train", cache_dir=str(folder))
    ids = rows.map(tokenise, batched=True, num_proc=2, remove_columns=["text"])
    blocks = ids.map(pack, batched=True, num_proc=2)
    return {"seconds": time.perf_counter() - begun, "tokens_out": len(blocks) * block_length}


def alone(function: Callable[..., dict[str, float]], *arguments: Any, **named: Any) -> Any:
    """Run a function in its own process; return its measurements and peak memory in MB.

    `peak_mb` is the peak resident set of that process. The other peaks come from sampling its
    process tree every SAMPLE_SECONDS: `process_mb` is the largest resident set of one process,
    `tree_mb` the sum of proportional set sizes, and `tree_anonymous_mb` the same without
    file-backed pages, which can be reclaimed.
    """
    peaks: Counter[str] = Counter()
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        pid = process.submit(os.getpid).result()
        pending = process.submit(_measured, function, arguments, named)
        while wait([pending], SAMPLE_SECONDS).not_done:
            peaks |= _memory(pid)
        return {**pending.result(), **{f"{key}_mb": n / 1e3 for key, n in peaks.items()}}


def _measured(function: Callable[..., dict[str, float]], arguments: Any, named: Any) -> Any:
    found = function(*arguments, **named)
    own, children = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    used = own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime
    return {"tree_cpu_seconds": used, **found, "peak_mb": own.ru_maxrss / 1e3}


def _memory(pid: int) -> Counter[str]:
    """Return the memory of a process and its descendants, in kB."""
    found: Counter[str] = Counter()
    root = psutil.Process(pid)
    for process in (root, *root.children(recursive=True)):
        try:
            lines = Path(f"/proc/{process.pid}/smaps_rollup").read_text().splitlines()[1:]
        except (FileNotFoundError, ProcessLookupError):
            continue  # the process has ended
        held = {key: int(rest.split()[0]) for key, _, rest in (x.partition(":") for x in lines)}
        found += Counter(tree=held["Pss"], tree_anonymous=held["Pss_Anon"])
        found |= Counter(process=held["Rss"])
    return found


def to_disk_part(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Compare tokenising to disk with the tokenizer alone, by CPU time."""
    corpus = folder / "corpus.jsonl"
    write_corpus(corpus, options.bytes)
    pairs = [
        (alone(raw_encoding, corpus), alone(to_disk, corpus, folder / f"work-{n}"))
        for n in range(options.repeats)
    ]
    ratios = [raw["cpu_seconds"] / disk["cpu_seconds"] for raw, disk in pairs]
    return {"raw_over_to_disk_median": statistics.median(ratios), "runs": pairs}


def two_processes_part(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Compare tokenising with two processes and with one."""
    corpus = folder / "corpus.jsonl"
    write_corpus(corpus, options.bytes)
    one, two = (pool(corpus, folder / f"pool-{n}", n) for n in (1, 2))
    return {"speedup": one["seconds"] / two["seconds"]}


def blocks_part(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Measure bucketing and packing, then reading the written blocks."""
    return {
        "divide_and_copy": alone(divide_and_copy, folder, options.tokens),
        "loader": alone(load, folder),
    }


def map_part(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Compare `prepare` with `datasets.map` for about the same number of output tokens.

    `prepare` reads more text for the same output: it holds out validation text, and each short row
    comes from a single document. `datasets.map` discards nothing.
    """
    corpus, less = folder / "corpus.jsonl", folder / "less.jsonl"
    write_corpus(corpus, 2 * options.bytes)
    wanted = int(WRITTEN_TOKENS_PER_BYTE * corpus.stat().st_size)
    ours = alone(prepare_all, corpus, folder / "ours", wanted, validation_fraction=0.01)
    write_corpus(less, int(corpus.stat().st_size * ours["tokens_out"] / ours["tokens_read"]))
    theirs = alone(datasets_map, less, folder / "cache", 1024)
    keys = ("tree_mb", "tree_anonymous_mb", "process_mb")
    return {
        "bytes": [corpus.stat().st_size, less.stat().st_size],
        "ours": ours,
        "datasets_map": theirs,
        "speedup": theirs["seconds"] / ours["seconds"],
        "memory_ratio": {key: ours[key] / theirs[key] for key in keys},
    }


def large_part(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Prepare 16 M tokens from a 3 GB corpus, then divide as many tokens as the corpus has.

    Tokenising the whole corpus would only repeat the same work on every shard, so the second step
    uses synthetic document tables and tokens of that size.
    """
    corpus = folder / "corpus.jsonl"
    windows = {"original_window": 8192, "target_window": 32768, "short_length": 1024}
    num_documents = write_corpus(corpus, options.large_bytes)
    prepared = alone(prepare_all, corpus, folder / "ours", 16_000_000, shard_bytes=2**26, **windows)
    size = corpus.stat().st_size
    corpus.unlink()
    divided = alone(divide_and_copy, folder, size // 8)
    return {
        "bytes": size,
        "documents": num_documents,
        "prepare_16M_tokens": prepared,
        "divide_all": divided,
    }


PARTS = {
    "to_disk": to_disk_part,
    "two_processes": two_processes_part,
    "blocks": blocks_part,
    "map": map_part,
    "large": large_part,
}


def machine() -> dict[str, Any]:
    """Return the machine, date and load of a measurement."""
    return {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {platform.platform()}",
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "load_average": os.getloadavg()[0],
    }


def to_markdown(found: dict[str, Any]) -> str:
    """Return the main figures as a Markdown page."""
    rows: list[tuple[str, str, str]] = []
    if part := found.get("to_disk"):
        median = part["raw_over_to_disk_median"]
        rows.append(("tokenise to disk / tokenizer alone, CPU", f"{median:.2f}", "≥ 0.9"))
    if part := found.get("two_processes"):
        rows.append(("two processes / one", f"{part['speedup']:.2f}", "≥ 1.7, idle machine"))
    if part := found.get("blocks"):
        divided, rate = part["divide_and_copy"], part["loader"]["tokens_a_second"] / 1e6
        what = f"bucket and pack {divided['tokens_written'] / 1e6:.0f} M tokens"
        rows.append((what, f"{divided['seconds']:.1f} s", "≤ 20 s"))
        rows.append(("loader, one process", f"{rate:.0f} M tokens/s", "≥ 100"))
    if part := found.get("map"):
        ours, theirs = part["ours"], part["datasets_map"]
        same = "`datasets.map` / ours, as many tokens written: time"
        rows.append((same, f"{part['speedup']:.2f}", "> 1"))
        parts = (("seconds", "s"), ("tree_cpu_seconds", "CPU s"), ("tokens_out", "tokens out"))
        for key, what in (x for x in (*parts, *MEMORY) if x[0] in ours):
            both = f"{ours[key]:,.0f} and {theirs[key]:,.0f}"
            rows.append((f"ours and `datasets.map`: {what}", both, ""))
    if part := found.get("large"):
        size = f"{part['bytes'] / 1e9:.1f} GB"
        prepared, divided = part["prepare_16M_tokens"], part["divide_all"]
        done = f"{prepared['tokens_read'] / 1e6:.0f} M tokens read, {prepared['seconds']:.0f} s"
        for key, what in MEMORY:
            rows.append((f"16 M tokens of {size} ({done}): {what}", f"{prepared[key]:,.0f}", ""))
        what = f"bucket and pack the tokens of {size}, one process: peak resident MB"
        rows.append((what, f"{divided['peak_mb']:,.0f}", "≤ 700"))
    lines = [f"| {' | '.join(row)} |" for row in (("what", "measured", "goal"), *rows)]
    lines.insert(1, "|---|---:|---|")
    places = [
        f"- {name}: {part['date']}, {part['machine']}, load {part['load_average']:.1f} at the start"
        for name, part in found.items()
    ]
    return "\n".join(["# Data preparation", "", *lines, "", *places, ""])


MEMORY = (
    ("process_mb", "peak resident MB of the largest process"),
    ("tree_mb", "peak MB of all processes (proportional shares)"),
    ("tree_anonymous_mb", "the same without pages of files"),
)


def main() -> None:
    """Measure the chosen parts and write both result files."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("result", type=Path)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--bytes", type=int, default=32 * 10**6)
    parser.add_argument("--large-bytes", type=int, default=3 * 10**9)
    parser.add_argument("--tokens", type=int, default=200_000_000)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    os.environ["RAYON_NUM_THREADS"] = "1"
    path = options.result
    found = json.loads(path.read_text()) if path.exists() else {}
    for name in options.parts:
        with tempfile.TemporaryDirectory() as folder:
            found[name] = {**machine(), **PARTS[name](Path(folder), options)}
        path.write_text(json.dumps(found, indent=2) + "\n")
    path.with_suffix(".md").write_text(to_markdown(found))
    print(path.with_suffix(".md").read_text())


if __name__ == "__main__":
    main()

"""Summaries, text samples and a length histogram of a data folder."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from longred.data.cutting import cut_text
from longred.data.finding import ignored_text
from longred.data.layout import DTYPES, SPLITS, BlockFile, read_index
from longred.errors import MismatchError

SHOWN_BLOCKS, SHOWN_CHARACTERS = 3, 300


def summary(folder: Path) -> dict[str, Any]:
    """Return the index of a data folder without the length histograms.

    Raises:
        MismatchError: the folder is not a data folder.
    """
    index = read_index(folder)
    sources = {
        name: {key: value for key, value in source.items() if key != "lengths"}
        for name, source in index.get("sources", {}).items()
    }
    return {**index, "sources": sources}


def bucket_rows(index: Mapping[str, Any]) -> list[list[str]]:
    """Return split, bucket, block length, blocks and tokens of each bucket."""
    return [
        [
            split.replace("_", "-"),
            bucket,
            f"{entry['block_length']:,}",
            f"{entry['num_blocks']:,}",
            f"{entry['num_blocks'] * entry['block_length']:,}",
        ]
        for split in SPLITS
        for bucket, entry in index[split].items()
    ]


def source_rows(index: Mapping[str, Any]) -> list[list[str]]:
    """Return name, kind and counts of each source."""
    counts = ["shards", "rows", "documents", "held_out_documents", "tokens", "read_tokens"]
    counts += ["duplicates", "contaminated"]
    return [
        [name, source["kind"], *(f"{source[key]:,}" for key in counts)]
        for name, source in index["sources"].items()
    ]


def reason_rows(index: Mapping[str, Any]) -> list[list[str]]:
    """Return the rejected rows and dropped tokens of each source, by reason."""
    return [
        [name, what, reason, f"{count:,}"]
        for name, source in index["sources"].items()
        for what, counts in (
            ("rejected rows", source["rejected"]),
            ("dropped tokens", source["dropped_tokens"]),
        )
        for reason, count in counts.items()
    ]


def files_texts(name: str, source: Mapping[str, Any]) -> list[str]:
    """Return sentences on the files of a source that were cut or not read, from its entry."""
    texts = []
    if source.get("cut_files"):
        texts.append(f"{name}: {cut_text(source['cut_files'], source['cut_documents'])}")
    if source.get("ignored_files"):
        ignored = ignored_text(source["ignored_files"], source["ignored_names"])
        texts.append(f"{name}: not read: {ignored}")
    return texts


def sample_blocks(folder: Path) -> dict[str, list[str]]:
    """Return the first training blocks of each bucket as text, shortened in the middle.

    Raises:
        MismatchError: the folder has no tokenizer.
    """
    from tokenizers import Tokenizer

    path = folder / "tokenizer.json"
    if not path.is_file():
        raise MismatchError(f"{path}: is missing; prepare the data again")
    tokenizer = Tokenizer.from_file(str(path))
    samples: dict[str, list[str]] = {}
    half = SHOWN_CHARACTERS // 2
    for bucket in read_index(folder)["train"]:
        file = BlockFile(folder, bucket)
        samples[bucket] = []
        for block in range(min(SHOWN_BLOCKS, len(file))):
            text = tokenizer.decode(file[block].tolist(), skip_special_tokens=False)
            if len(text) > SHOWN_CHARACTERS:
                text = f"{text[:half]} … {text[-half:]}"
            samples[bucket].append(text)
    return samples


def draw_lengths(folder: Path, path: Path) -> None:
    """Draw a histogram of document lengths per source, with the block lengths, as PNG.

    Raises:
        MismatchError: the folder's index has no lengths.
    """
    from matplotlib.figure import Figure

    index = read_index(folder)
    sources = index.get("sources", {})
    if not sources or any("lengths" not in source for source in sources.values()):
        raise MismatchError(f"{folder}: its index has no lengths; prepare the data again")
    figure = Figure(figsize=(8, 1.2 + 1.9 * len(sources)), layout="constrained")
    axes = figure.subplots(len(sources), 1, sharex=True, squeeze=False)[:, 0]
    longest = [index["train"]["long"]["block_length"]]
    for axis, (name, source) in zip(axes, sources.items(), strict=True):
        edges, counts = source["lengths"]["edges"], source["lengths"]["documents"]
        axis.stairs(counts, [max(1, edge) for edge in edges], fill=True, color="#4c78a8")
        axis.set_ylabel("documents")
        axis.set_title(name, loc="left", fontsize=10)
        longest += [edge for edge, count in zip(edges[1:], counts, strict=True) if count]
        for bucket, entry in index["train"].items():
            axis.axvline(entry["block_length"], color="#e45756", linewidth=1)
            top = {"transform": axis.get_xaxis_transform(), "verticalalignment": "top"}
            axis.text(entry["block_length"], 0.98, f" {bucket}", fontsize=8, color="#e45756", **top)
        axis.set_ylim(top=1.25 * max(1, *counts))
        axis.set_xscale("log", base=2)
    axes[-1].set_xlim(1, 2 * max(longest))
    axes[-1].set_xlabel("document length in tokens")
    figure.savefig(path, dpi=120)


def size_bytes(index: Mapping[str, Any]) -> int:
    """Return the total size of all blocks."""
    itemsize = DTYPES[index["train"]["long"]["dtype"]].itemsize
    return int(index["tokens"]["written"] * itemsize)

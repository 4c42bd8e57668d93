"""Metrics of published benchmarks: the score of one answer, and whether it could be read.

Each is written from what its benchmark's own script computes, named at the function.
"""

import math
import re
import string
from collections.abc import Callable, Iterable, Mapping, Sequence
from difflib import SequenceMatcher
from itertools import combinations
from typing import Any, NamedTuple

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)
_RANKING = re.compile(r"\d+(?:\s*>\s*\d+)*")
_NODES = re.compile(r"Final Answer:\s*\[(.*)\]")


class Score(NamedTuple):
    """The score of one answer.

    Attributes:
        percent: 0 to 100.
        is_parsed: whether the answer held anything that the metric can read.
    """

    percent: float
    is_parsed: bool


Metric = Callable[[str, Mapping[str, Any]], Score]
"""Scores an answer to a sample; `outputs` of the sample holds the references."""


def helmet_substring(answer: str, sample: Mapping[str, Any]) -> Score:
    """Return 100 if a reference is part of the answer, both without case, articles, punctuation.

    Source: HELMET's `substring_exact_match`, the larger value for the whole answer and for its
    first line behind the words that open it (`Answer:` or those of `opening`).
    """
    opening = sample.get("opening", "Answer:")
    texts = [_normalized(answer), _normalized(first_line(answer, opening))]
    found = any(_normalized(each) in text for each in sample["outputs"] for text in texts)
    return Score(100.0 * found, bool(_behind(answer, opening)))


def helmet_label(answer: str, sample: Mapping[str, Any]) -> Score:
    """Return 100 if the first line behind `label:` is the label.

    Source: HELMET's `exact_match` for in-context learning.
    """
    label = first_line(answer, "label:")
    is_right = any(_normalized(label) == _normalized(each) for each in sample["outputs"])
    return Score(100.0 * is_right, any(character.isdecimal() for character in label))


def helmet_recall(answer: str, sample: Mapping[str, Any]) -> Score:
    """Return the percentage of references that the answer contains, ignoring case.

    Source: HELMET's `ruler_recall`.
    """
    references = sample["outputs"]
    found = sum(each.lower() in answer.lower() for each in references)
    return Score(100.0 * found / len(references), _says_more(answer, sample))


def helmet_ranking(answer: str, sample: Mapping[str, Any]) -> Score:
    """Return NDCG@10 of a ranking such as `ID3 > ID1 > ID2`, in percent.

    The longest run of numbers with `>` between them counts; a number counts where it first stands.
    Unparsed is an answer whose numbers are no document's id.

    Source: HELMET's `parse_rankings` and `NDCG@10`.
    """
    relevances: Mapping[str, int] = sample["relevances"]
    text = re.sub(r"[\[\]:]", "", answer).lower().replace("id", "")
    longest = max((match[0] for match in _RANKING.finditer(text)), key=len, default="")
    ranking = list(dict.fromkeys(number.strip() for number in longest.split(">")))
    is_parsed = any(number in relevances for number in ranking)
    return Score(100.0 * ndcg(ranking, relevances, 10), is_parsed)


def graphwalks(answer: str, sample: Mapping[str, Any]) -> Score:
    """Return the F1 of the set of nodes in the last line, in percent.

    An empty list is right for an empty set. Source: the card of openai/graphwalks, whose formula
    gives 100 to any answer without a right node; here those get 0.
    """
    match = _NODES.search(answer.rstrip().rpartition("\n")[2])
    if match is None:
        return Score(0.0, False)
    nodes = {node for each in match[1].split(",") if (node := each.strip(" '\""))}
    wanted = set(sample["outputs"])
    if not nodes and not wanted:
        return Score(100.0, True)
    return Score(200.0 * len(nodes & wanted) / (len(nodes) + len(wanted)), True)


def mrcr(answer: str, sample: Mapping[str, Any]) -> Score:
    """Return how similar the answer is to the reference, in percent; 0 without its random prefix.

    Source: the card of openai/mrcr: the ratio of `difflib.SequenceMatcher` of both texts without
    the prefix. White space before the prefix is allowed here.
    """
    prefix, text = sample["random_prefix"], answer.lstrip()
    if not text.startswith(prefix):
        return Score(0.0, False)
    reference = sample["outputs"][0].removeprefix(prefix)
    ratio = SequenceMatcher(None, text.removeprefix(prefix), reference).ratio()
    return Score(100.0 * ratio, True)


def contains(answer: str, sample: Mapping[str, Any]) -> Score:
    """Return 100 if the answer contains a reference, in the same case."""
    found = any(each in answer for each in sample["outputs"])
    return Score(100.0 * found, _says_more(answer, sample))


def longbench_pro(answer: str, sample: Mapping[str, Any]) -> Score:
    """Score an answer by the metric of the sample's `measure`.

    The answer is what stands behind the last `[Answer]` (or `[答案]`), one item a line; without
    such a mark it is the whole text. Case and the amount of white space do not count.

    Source: arXiv 2601.02872 and the evaluation that its authors publish.
    """
    area = answer
    for mark in ("[Answer]", "[答案]"):
        if mark in answer:
            area = answer.rpartition(mark)[2]
            break
    items = [_spaced(line) for line in area.strip().lower().split("\n")]
    wanted = [_spaced(each.lower()) for each in sample["outputs"]]
    return Score(100.0 * MEASURES[sample["measure"]](items, wanted), bool(area.strip()))


def _first_item(items: Sequence[str], wanted: Sequence[str]) -> float:
    return float(items[0] == wanted[0])


def _item_f1(items: Sequence[str], wanted: Sequence[str]) -> float:
    given, right = set(items), set(wanted)
    return 2.0 * len(given & right) / (len(given) + len(right))


def _item_recall(items: Sequence[str], wanted: Sequence[str]) -> float:
    return sum(each in items for each in wanted) / len(wanted)


def _item_ndcg(items: Sequence[str], wanted: Sequence[str]) -> float:
    # An item that is there twice counts where it stands last, as in the authors' dictionaries.
    relevances = {each: len(wanted) - place for place, each in enumerate(wanted)}
    ranking = list(dict.fromkeys(reversed(items)))[::-1]
    return ndcg(ranking, relevances, len(wanted))


def _ordered_pairs(items: Sequence[str], wanted: Sequence[str]) -> float:
    """Return the share of all pairs of items that are pairs of the reference in its order."""
    if len(items) < 2 or len(wanted) < 2:
        return 0.0
    place = {item: number for number, item in enumerate(items)}
    right = sum(
        one in place and other in place and place[one] < place[other]
        for one, other in combinations(wanted, 2)
    )
    return right / math.comb(len(items), 2)


MEASURES: dict[str, Callable[[Sequence[str], Sequence[str]], float]] = {
    "accuracy": _first_item,
    "f1": _item_f1,
    "recall": _item_recall,
    "ndcg": _item_ndcg,
    "pairs": _ordered_pairs,
}
"""Name of a measure of LongBench Pro → share of 1 for lists of given and wanted items."""

METRICS: dict[str, Metric] = {
    "helmet_substring": helmet_substring,
    "helmet_label": helmet_label,
    "helmet_recall": helmet_recall,
    "helmet_ranking": helmet_ranking,
    "graphwalks": graphwalks,
    "mrcr": mrcr,
    "contains": contains,
    "longbench_pro": longbench_pro,
}
"""Name → metric."""


def ndcg(ranking: Sequence[str], relevances: Mapping[str, int], depth: int) -> float:
    """Return the normalised discounted cumulative gain of the first items of a ranking.

    Args:
        ranking: items without repetition, best first; unknown ones have relevance 0.
        relevances: relevance of each known item; the gain is the relevance itself.
        depth: number of items that count.

    Source: trec_eval's `ndcg_cut`.
    """
    best = _gain(sorted(relevances.values(), reverse=True)[:depth])
    return _gain(relevances.get(item, 0) for item in ranking[:depth]) / best if best else 0.0


def first_line(answer: str, opening: str) -> str:
    """Return the rest of the line behind the words that open an answer, or its first line.

    Source: HELMET's `parse_output`.
    """
    words = re.escape(opening)
    match = re.search(f"{words}(.*)", answer, re.IGNORECASE) or re.search("(.*)", answer)
    line = match[1].strip() if match else ""
    return re.sub(f"^{words}", "", line, flags=re.IGNORECASE).strip()


def _says_more(answer: str, sample: Mapping[str, Any]) -> bool:
    """Return whether an answer has text behind the words that the plain form opens it with."""
    return bool(answer.strip().removeprefix(sample.get("suffix", "").strip()).strip())


def _behind(answer: str, opening: str) -> str:
    """Return an answer without the words that open it."""
    return re.sub(f"^{re.escape(opening)}", "", answer.strip(), flags=re.IGNORECASE).strip()


def _normalized(text: str) -> str:
    """Return a text in lower case without punctuation, articles and needless white space."""
    return _spaced(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)))


def _spaced(text: str) -> str:
    return " ".join(text.split())


def _gain(relevances: Iterable[int]) -> float:
    return sum(value / math.log2(place + 1) for place, value in enumerate(relevances, start=1))

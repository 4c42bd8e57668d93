"""What the models, tasks and figures of a page are, for readers who meet them for the first time.

Names are those of all tables: methods as in `longred.method.methods`, tasks as in the suites,
columns as in `longred.report.names`. A page shows only the texts of what is on it.
"""

import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from markupsafe import Markup, escape

from longred.report import names
from longred.report.names import ORIGINAL, RESCALED
from longred.report.scores import Comparison

if TYPE_CHECKING:
    from longred.report.compare import RunComparison

Terms = dict[str, str]
"""Name → what it is."""

MODELS = {
    ORIGINAL: "The model before its context window was extended; 100 % in every retention.",
    RESCALED: "The original with its position encoding (RoPE) rescaled for the longer window and "
    "no training: what an extension breaks at once.",
    "self-extend": "The original, untrained: its attention compares far words by groups, so that "
    "no distance exceeds its window (SelfExtend).",
    "dual-chunk": "The original, untrained: its attention reads in chunks, and takes all older "
    "chunks to be as far as its window (dual chunk attention, DCA).",
    "longred-c": "Extended by LongReD: trained on long text, while on short text its hidden states "
    "are kept close to the original's. On texts of the original window, its positions skip ahead "
    "into the new window as CREAM chooses them.",
    "longred-u": "As longred-c, with positions that skip uniformly over the new window.",
    "cpt": "Extended by continual pre-training on long text alone: the usual way, without "
    "restoration.",
    "mix-cpt": "Extended by continual pre-training on long and short text together, without "
    "distillation.",
    "attention-only": "As cpt, but only the linear layers of self-attention are trained; all other "
    "weights stay those of the original.",
    "cream": "Trained on text of the original window alone, at positions that skip ahead into the "
    "new window (CREAM).",
    "pose": "Trained on two runs cut out of each long text, at the positions where they stand; "
    "together they are as long as the original window (PoSE).",
    "pose-anywhere": "A variant of PoSE: trained on text of the original window alone, at "
    "positions that skip once, anywhere, by a random distance.",
    "logit-distill": "As longred-c, but on short text and at skipped positions its predictions of "
    "the next token are kept close to the original's, instead of its hidden states. Our variant.",
    "recalibrate": "Trained on text of the original window at its ordinary positions, to get used "
    "to a changed position encoding (as in DroPE).",
    "recalibrate-distill": "As recalibrate, while hidden states are kept close to the original's, "
    "as in LongReD but at ordinary positions. Our variant.",
    "merge": "The weights of cpt, averaged with those of the original.",
    "lora": "Trained with the same objectives through low-rank adapters (LoRA); the original "
    "weights stay fixed.",
    "attention-distill": "Trained on text of the original window to keep the relations of queries, "
    "keys and values in every layer as in the original.",
}
"""Name of a model → what it is; all methods and references."""

RULER_TEXT = (
    "A public test of reading long text: facts, words or documents are hidden in a text of the "
    "given length in tokens, and the model must report them. Mean over its tasks, in percent."
)
RULER_V2_TEXT = (
    "The second version of RULER: twelve tasks in levels, from finding a number in a text of the "
    "given length to solving a question that is found by its number. Mean over all twelve, in "
    "percent; in no other average."
)
RULER_TASKS = {
    "niah_single_1": "find one number among repeated sentences",
    "niah_single_2": "find one number hidden in ordinary text",
    "niah_single_3": "find one long identifier hidden in ordinary text",
    "niah_multikey_1": "find one of four numbers in ordinary text, asked for by its key",
    "niah_multikey_2": "find one number among nothing but other keys and numbers",
    "niah_multikey_3": "find one long identifier among nothing but others",
    "niah_multivalue": "find four numbers that belong to one key",
    "niah_multiquery": "find the numbers of four keys at once",
    "vt": "name all variables that got the same value through a chain of assignments",
    "cwe": "find the words that occur most often in a list",
    "fwe": "find the most frequent invented words in a text",
    "qa_1": "answer a question from one of many documents (SQuAD)",
    "qa_2": "answer a question from two of many documents (HotpotQA)",
    "kv_retrieval": "find the value of one key in a long JSON object; in no average",
    "v2_mk_niah_basic": "find one of many numbers in lines that are all alike, by its key",
    "v2_mk_niah_easy": "copy one of many exam questions, found by its number",
    "v2_mk_niah_medium": "copy one of many exam questions, found by its number, and solve it; "
    "guessing the letter scores 25 %",
    "v2_mk_niah_hard": "solve one of many exam questions, found by its number; guessing the letter "
    "scores 25 %",
    "v2_mv_niah_basic": "find the four numbers of one key in lines that are all alike",
    "v2_mv_niah_easy": "copy the four exam questions that share one number",
    "v2_mv_niah_medium": "copy the four exam questions that share one number, then one of them by "
    "its order; the last copy is scored",
    "v2_mv_niah_hard": "copy one of four exam questions that share one number, by its order",
    "v2_qa_basic": "find the number of the document that holds a given text",
    "v2_qa_easy": "find the number of a document that helps to answer a question",
    "v2_qa_medium": "copy the documents that answer a question (HotpotQA), then answer it",
    "v2_qa_hard": "answer a question from two of many numbered documents (HotpotQA)",
}
"""RULER task → what the model must do."""

SHORT_TASKS = {
    # Tasks of longred, from held-out text.
    "continuation": "choose the line that continues a passage",
    "brackets": "choose the bracket that closes next",
    "cloze": "choose the next word of a passage, in which it has occurred before",
    "key_recall": "write the number that was stated for a key a few lines before",
    # Tasks of lm-eval.
    "mmlu": "school and university exams in 57 subjects, multiple choice",
    "bbh": "BIG-Bench Hard: reasoning in several written steps",
    "lambada_openai": "the last word of a passage that needs all of it",
    "humaneval": "write a Python function that passes its tests",
    "mbpp": "write a short Python program that passes its tests",
    "gsm8k": "word problems of school mathematics",
    "minerva_math": "problems of mathematics competitions",
    "squadv2": "answer a question from a paragraph, or say that it holds no answer",
    "coqa": "answer the next question of a conversation about a passage",
    "triviaqa": "general knowledge, answered from memory",
    "drop": "count, add and compare what a paragraph states",
    "boolq": "yes or no, from a paragraph",
    "hellaswag": "choose how an everyday scene continues",
    "piqa": "choose how to do something with everyday objects",
    "social_iqa": "choose what people feel or do next",
    "openbookqa": "elementary science, multiple choice",
    "commonsense_qa": "common knowledge, multiple choice",
    "arc_challenge": "school science, multiple choice, its hard part",
    "arc_easy": "school science, multiple choice, its easy part",
    "winogrande": "choose whom or what a pronoun means",
}
"""Short task → what the model must do."""

FAMILIES = {
    "helmet_json_kv_": "find the value of one key in a long JSON object (HELMET)",
    "helmet_niah_": "find stated values in a long text (RULER's needles, in HELMET)",
    "helmet_msmarco_": "rank documents by their relevance to a query (HELMET)",
    "helmet_": "a task of HELMET: answer from retrieved passages, or label texts by examples",
    "mrcr_": "repeat one of several similar texts of a long conversation (MRCR)",
    "graphwalks_": "find nodes of a graph that is given as a list of edges (GraphWalks)",
    "nolima_": "find a fact that shares no words with the question (NoLiMa)",
    "longproc_": "write out a procedure of many steps (LongProc)",
    "longbench_pro_": "a task of LongBench Pro, about documents of 8K to 256K tokens",
    "longbench2_": "multiple choice about long documents (LongBench v2)",
    "longbench_": "a task of LongBench, about documents of thousands of words",
    "babilong_": "facts hidden in books (BABILong)",
    "infinitebench_": "a task of InfiniteBench, at about 100,000 tokens",
}
"""Start of a task's name → what its tasks have in common."""

COLUMNS = {
    names.SHORT_AVERAGE: "Mean score on tasks with short prompts, in percent: first over the tasks "
    "of each capacity (group of tasks), then over capacities.",
    names.SHORT_RETENTION: "Short average divided by the original's on the same samples. Its "
    "95 % interval: other samples of the same kind would most likely give a value in it.",
    names.RULER: RULER_TEXT,
    names.RULER_V2: RULER_V2_TEXT,
    names.UNPARSED: "Generated answers in which the metric finds nothing to score, such as no "
    "number where one is asked for, over all tasks: a low score then tells of the form of the "
    "answers.",
    names.AVERAGE: f"Mean over capacities and {names.RULER} at its longest length, in percent.",
    names.SIMILARITY: "Cosine between the model's last hidden state and the original's on the same "
    "short text: 1 is identical.",
    names.ATTENTION_KL: "How far the model's attention is from the original's on the same short "
    "text (KL divergence in nats): 0 is identical.",
    names.NATS: "Loss on text within the original window, held out from {text}; lower is better.",
}
"""Name of a column or measure → what it is; `{text}` is what text was held out from."""


def model_terms(models: Iterable[str]) -> Terms:
    """Return what the named models are; models of other names are left out."""
    return {name: MODELS[name] for name in models if name in MODELS}


def task_text(task: str) -> str:
    """Return what a short or RULER task asks; empty for a task that is not in the tables."""
    task = task.removesuffix(names.BUILT_IN)
    for text in (SHORT_TASKS.get(task), RULER_TASKS.get(task)):
        if text:
            return text
    return next((text for start, text in FAMILIES.items() if task.startswith(start)), "")


def column_terms(columns: Iterable[str], text: str = names.RUN_TEXT) -> Terms:
    """Return what the columns of a table are; RULER at several lengths is one term.

    Args:
        columns: names of columns.
        text: what the text of the measured loss was held out from.
    """
    found = {}
    for column in columns:
        name = names.ruler_version(column) or column
        if name in COLUMNS:
            found[name] = COLUMNS[name].replace("{text}", text)
    return found


def ruler_terms(comparison: Comparison) -> Terms:
    """Return the evaluated RULER tasks and what each asks for."""
    units = comparison.long_units()
    return {unit.task + comparison.mark(unit): task_text(unit.task) for unit in units}


def terms_of_runs(comparison: "RunComparison") -> dict[str, Terms]:
    """Return the terms on the page of several runs: models, measures and tasks."""
    results = comparison.results
    columns = results.header[1:] if results else []
    columns += [row.name for model in comparison.models for row in model.measures]
    models = [row[0].partition(" ")[2] for row in results.rows] if results else []
    models += [str(run.config["training"]["method"]) for run in comparison.runs]
    tasks = dict.fromkeys(column.partition(" at ")[0] for column in columns)
    return {
        "models": model_terms(dict.fromkeys(models)),
        "measures": column_terms(columns),
        "tasks": {task: text for task in tasks if (text := task_text(task))},
    }


def breakable(text: str) -> Markup:
    """Return escaped text whose lines break after underscores and not at hyphens of names."""
    words = re.sub(r"\w+(-\w+)+", r'<span class="word">\g<0></span>', str(escape(text)))
    return Markup(words.replace("_", "_<wbr>"))  # noqa: S704 - escaped above


def window_text(recipe: Mapping[str, object]) -> str:
    """Return in one sentence what a run's page compares."""
    return (
        "A language model, the original, was extended to read "
        f"{recipe.get('target_window', 0):,} tokens at once instead of "
        f"{recipe['original_window']:,}. This page compares ways to do that by two questions: is "
        "the longer window used, and how much of the skill on short texts is left?"
    )

"""RULER v2: twelve tasks whose needles are numbers, questions of MMLU, or documents of HotpotQA.

Tasks, parameters, wording and scores follow `nemo_skills/dataset/ruler2` and the evaluators
`ruler.py` and `mcq.py` of NVIDIA-NeMo/Skills, Copyright (c) 2025 NVIDIA Corporation, Apache-2.0.
The wording is its form for base models (`prompt_type` base), which ends with the start of the
answer. The code is our own.

Each of `mk_niah` (one of many keys), `mv_niah` (several values of a key) and `qa` exists in four
levels, from copying to answering:

- `needles`: `mk_niah_basic` and `mv_niah_basic`, numbers of ten digits among lines like them.
- `choices`: the other six niah tasks, on multiple-choice questions that `mmlu` reads.
- `documents`: the four qa tasks, on HotpotQA's documents, each with a number of seven digits.

`packing` fills their prompts; the metrics are `longred.evaluation.metrics.ruler_v2`. What differs
from the original: prompts are filled to the length together with the answer; numbers are distinct,
and a text repeats only when all are used; answers end where the form has one line or paragraph;
HotpotQA's other documents come from the same file, then passages of the haystack.
"""

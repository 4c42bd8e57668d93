"""Ask every model the same frozen questions: RULER, short tasks, similarity to the original.

`suites` names the short tasks, `samples` freezes all questions once per tokenizer, `benchmarks`
asks them through lm-eval, `perplexity` measures held-out text, `evaluate` does all for one model.
"""

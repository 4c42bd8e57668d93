"""Evaluation: score every model on the same frozen samples.

Four nouns:

- **Sample**: one frozen prompt with its reference, one JSON line. Samples are generated once per
  tokenizer, so that all models of a run answer the same ones.
- **Task**: a named set of samples with a metric: a short task, a member of an lm-eval group, or a
  RULER task at one length (`tasks.Task`). Held-out loss, long-text perplexity and similarity to
  the original are measurements: tasks whose samples are rows of held-out text.
- **Model under evaluation**: what generates answers and scores choices (`model.EvaluatedModel`).
- **Result**: one score per sample, aggregated per task (`results.Result`).

Two stages (`longred.stages.evaluation`) and the command `longred evaluate` call this package:

1. `samples.freeze` writes the samples and their `index.json`. It gets the short tasks of a suite
   from `suites`, and their samples from `short` (generated from held-out text), `published` (read
   from the files of a benchmark) or `lm_eval_catalog` and `lm_eval_tasks` (tasks of lm-eval);
   RULER samples from `ruler`; rows of long text from `perplexity`.
2. `evaluate.evaluate` evaluates one model. `plan.plan` reads the tasks from the index and returns
   one `TaskRun` per task. Each result is an artifact of its own in the store, so nothing is
   computed twice. `TaskRun.finish` calls `own_tasks.run_own_task` for samples of longred,
   `lm_eval_tasks.run_lm_eval_task` for tasks of lm-eval, or `perplexity` for held-out text.
   `evaluate` then aggregates the results into `scores.json`.

File by file:

- `suites/`: YAML files that list the short tasks by capacity, and their reader.
- `samples`: generates and freezes samples, reusing files from the store.
- `ruler/`, `short/`: generators of long-context and short samples.
- `published/`: readers of published benchmarks.
- `prompts`: a sample as plain text or as messages of a chat, and what ends its answer.
- `counting`: tokenisation of prompts and exact token counts, shared by all other files.
- `tasks`: `Task`, its reader, and the JSON Lines files of samples and answers.
- `model`: `EvaluatedModel`, which loads the model on first use; when to use its chat template.
- `local_lm`: `LocalLM`, the loaded model: never truncates a prompt silently, never holds logits of
  whole prompts. `runner` runs prompts for it, without masks, and what they have in common once;
  `cache` holds their keys and values; `generation` writes answers token by token. `lm`:
  `TransformersLM`, the same as an LM of lm-eval. `vllm`: `VllmEngine`, which writes answers with
  vLLM instead, after a check that both score the same.
- `own_tasks`: runs a task whose samples longred generated or read. `lm_eval_finder`: finds tasks,
  groups and tags of lm-eval and in the user's files, of which `own_task_files` knows the digests.
  `lm_eval_catalog`: settings of a suite's tasks; replaces their data with local files;
  `lm_eval_classes` does so for tasks that are Python classes. `lm_eval_tasks`: builds, freezes and
  runs them. `lm_eval_answers`: finds documents whose right answer is none of their choices.
  `lm_eval_errors`: what to say about these, about columns that do not suit a task, and about
  missing packages, metrics and data.
- `metrics/`: the metrics of RULER and published benchmarks, those that lm-eval would fetch from the
  hub, and the process that runs a program which a model wrote.
- `perplexity`: loss on held-out text, within the original window and at long lengths.
- `results`: scores of samples and their aggregation. `intervals`: their 95 % intervals.
- `plan`, `evaluate`: the runs of an evaluation, and their execution. `parallel`: the same in
  several processes, one per device.
- `standalone`: configuration of an evaluation outside of a pipeline.

lm-eval, datasets and vLLM are imported only when a task needs them: `lm`, the modules `lm_eval_*`
and `vllm` are therefore imported inside functions. `local_lm`, `own_tasks`, `perplexity` and
`results` run on a machine that has torch and transformers but neither pydantic nor lm-eval.
"""

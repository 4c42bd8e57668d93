"""Prefect flows that compose the stages.

`pipeline` is the whole method without Prefect, `full_pipeline` the flow around it, `windows` its
progressive extension, `stages` one flow per stage, `study` a grid of recipes and seeds. `forms`
says what Prefect's forms ask for and refuse. `flow_run` describes the current flow run and posts
its end to a webhook; `local` runs the pipeline in the process of the command line.

What a cancelled flow run does: Prefect signals the process, `longred.training.stop` lets the
trainer finish its micro-batch and save, `tasks.stage` does not retry, `flow_run` notifies the
webhook, and `longred.services.reap` ends a run whose worker missed the cancellation.
"""

"""Prefect flows that compose the stages.

`pipeline` is the whole method, `windows` its progressive extension, `stages` one flow per stage.
`flow_run` describes the current flow run and posts its end to a webhook; `local` runs the pipeline
in the process of the command line.
"""

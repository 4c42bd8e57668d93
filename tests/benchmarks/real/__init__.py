"""A real model, measured on one GPU: what `real_model.py prepare` and `measure` are made of.

`recipe` and `prepare` make the inputs with the whole of longred, `short` freezes and scores short
sets, `parts` packs everything into files that can travel and joins them again, `inputs` reads what
was joined.
`items` lists what is measured, most valuable first, with the seconds of `estimates`; `drift`
profiles and selects, `training` trains, `models` measures one model; `summary` prints models x
measures. The items run as those of the GPU check do (`gpu.run`), each in its own process.
"""

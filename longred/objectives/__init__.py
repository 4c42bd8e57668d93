"""Training objectives and their weights.

`table` lists the objectives (what each needs of the models, how its loss is computed) and the
weights of a method's terms. The losses are in `cross_entropy`, `hidden` (cosine distances),
`logits` (KL of next-token distributions) and `relations` (attention distillation); `precision`
holds the compute types that all of them share, also with `longred.training.layers`.
`relations.first_seen` also masks `longred.profiling`'s KL. Sources: arXiv 2502.07365, section 4;
arXiv 2604.00004 for relations.
"""

"""What students are trained on: a table of objectives, and their weights.

Read in this order: `table` says what each objective needs and how its loss is taken from it,
`cross_entropy`, `hidden` and `relations` hold the losses, `weights` what they are multiplied by.
Sources: arXiv 2502.07365, section 4; arXiv 2604.00004 for relations.
"""

from longred.objectives.cross_entropy import long_loss
from longred.objectives.hidden import cosine_distance, short_distill_loss, short_to_long_loss
from longred.objectives.relations import attention_distill_loss, relation_kl
from longred.objectives.table import OBJECTIVES, Objective, Outputs, Passes
from longred.objectives.weights import WEIGHTINGS, loss_weights

__all__ = [
    "OBJECTIVES",
    "WEIGHTINGS",
    "Objective",
    "Outputs",
    "Passes",
    "attention_distill_loss",
    "cosine_distance",
    "long_loss",
    "loss_weights",
    "relation_kl",
    "short_distill_loss",
    "short_to_long_loss",
]

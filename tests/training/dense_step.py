"""Reference optimizer step: row by row in float64, with dense masks and full logits."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from longred.data.loader import StepLoader
from longred.method.job import TrainingJob
from longred.training.step import fixed_weights, skipped_positions


def dense_model(config_folder: Path, weights_folder: Path):
    config = AutoConfig.from_pretrained(config_folder, trust_remote_code=False)
    return AutoModelForCausalLM.from_pretrained(
        weights_folder,
        config=config,
        dtype=torch.float64,
        attn_implementation="eager",
        trust_remote_code=False,
        use_safetensors=True,
    )


def dense_forward(model, tokens: Tensor, documents: Tensor | None, positions: Tensor | None):
    """Run one row with an explicit mask, so that no library derives one from the positions."""
    length = len(tokens)
    mask = torch.full((length, length), torch.finfo(torch.float64).min, dtype=torch.float64)
    for query in range(length):
        for key in range(query + 1):
            if documents is None or documents[query] == documents[key]:
                mask[query, key] = 0.0
    positions = torch.arange(length) if positions is None else positions
    return model(
        input_ids=tokens[None],
        attention_mask=mask[None, None],
        position_ids=positions[None],
        output_hidden_states=True,
        use_cache=False,
    )


def cross_entropy_terms(output, tokens: Tensor, documents: Tensor | None) -> list[Tensor]:
    log_probs = output.logits[0].log_softmax(-1)
    return [
        -log_probs[i, tokens[i + 1]]
        for i in range(len(tokens) - 1)
        if documents is None or documents[i] == documents[i + 1]
    ]


def distances(student, teacher, layer: int) -> Tensor:
    a, b = student.hidden_states[layer][0], teacher.hidden_states[layer][0]
    return 1 - (a * b).sum(-1) / (a.norm(dim=-1) * b.norm(dim=-1))


def logit_kls(job: TrainingJob, student, teacher) -> Tensor:
    """Return KL(teacher || student) of the next token's distribution after every token."""
    log_q, log_p = (
        (output.logits[0] / job.logit_distill_temperature).log_softmax(-1)
        for output in (student, teacher)
    )
    return job.logit_distill_temperature**2 * (log_p.exp() * (log_p - log_q)).sum(-1)


def relations(model, tokens: Tensor) -> list[list[Tensor]]:
    """Return queries and keys after RoPE, and values, of each layer: [heads, T, d]."""
    captured: list[dict[str, Tensor]] = [{} for _ in model.model.layers]
    hooks = []
    for found, layer in zip(captured, model.model.layers, strict=True):
        for name in ("q_proj", "k_proj", "v_proj"):

            def keep(module, args, output, found=found, name=name):
                found[name] = output[0].unflatten(-1, (-1, model.config.head_dim)).transpose(0, 1)

            hooks.append(getattr(layer.self_attn, name).register_forward_hook(keep))
    dense_forward(model, tokens, None, None)
    for hook in hooks:
        hook.remove()
    places = torch.arange(len(tokens))[None]
    cos, sin = model.model.rotary_emb(torch.zeros(1, dtype=torch.float64), places)
    result = []
    for found in captured:
        query, key = apply_rotary_pos_emb(found["q_proj"][None], found["k_proj"][None], cos, sin)
        result.append([query[0], key[0], found["v_proj"]])
    return result


def relation_terms(student, teacher, tokens: Tensor, heads: str) -> Tensor:
    future = torch.ones(len(tokens), len(tokens)).triu(1).bool()
    layers = []
    for ours, theirs in zip(relations(student, tokens), relations(teacher, tokens), strict=True):
        for a, b in zip(ours, theirs, strict=True):
            log_q, log_p = (
                (x @ x.mT / x.shape[-1] ** 0.5).masked_fill(future, -1e300).log_softmax(-1)
                for x in (a, b)
            )
            kl = (log_p.exp() * (log_p - log_q)).sum(-1)
            num_heads = len(ours[0]) if heads == "query" else len(a)
            layers.append(kl.sum() / (num_heads * len(tokens)))
    return torch.stack(layers).sum() / (len(layers) / 3)


def first_windows(student, teacher, tokens, documents, window: int) -> list[Tensor]:
    """Return the last layer's distances in the first window of each document of a long row."""
    last = student.config.num_hidden_layers
    whole = dense_forward(student, tokens, documents, None).hidden_states[last][0]
    terms, start = [], 0
    for end in range(1, len(tokens) + 1):
        if end < len(tokens) and (documents is None or documents[end] == documents[start]):
            continue
        shown = slice(start, min(end, start + window))
        a, b = (
            whole[shown],
            dense_forward(teacher, tokens[shown], None, None).hidden_states[last][0],
        )
        terms.append(1 - (a * b).sum(-1) / (a.norm(dim=-1) * b.norm(dim=-1)))
        start = end
    return terms


def objective_loss(job: TrainingJob, objective: str, rows: list, student, teacher) -> Tensor:
    """Return the mean of one objective over (tokens, documents, positions) rows."""
    terms: list[Tensor] = []
    for tokens, documents, positions in rows:
        if objective == "long_distill":
            terms += first_windows(student, teacher, tokens, documents, job.original_window)
            continue
        if objective == "attention_distill":
            terms.append(relation_terms(student, teacher, tokens, job.relation_heads)[None])
            continue
        ours = dense_forward(student, tokens, documents, positions)
        if objective == "cross_entropy":
            terms.append(torch.stack(cross_entropy_terms(ours, tokens, documents)))
            continue
        theirs = dense_forward(teacher, tokens, documents, None)
        if objective == "logit_distill":
            terms.append(logit_kls(job, ours, theirs))
            continue
        layers = {"hidden_distill": job.distill_layers}.get(
            objective, (student.config.num_hidden_layers,)
        )
        terms.append(sum(distances(ours, theirs, layer) for layer in layers))
    return torch.cat(terms).mean()


def cut_rows(job: TrainingJob, step, documents: Tensor | None):
    """Yield the rows that PoSE cuts out of long ones: tokens where the positions point."""
    pieces = job.target_window // job.original_window
    for row, number in enumerate(step.row_numbers):
        for piece in range(pieces):
            (places,) = skipped_positions(job, [number * pieces + piece])
            split = next(i for i in range(1, 999) if i == len(places) or places[i] > i)
            shift = int(places[-1]) - len(places) + 1
            tokens = step.input_ids_BT[row].tolist()
            own = tokens[:split] + tokens[split + shift : len(places) + shift]
            ids = None
            if documents is not None:
                ids = torch.stack([documents[row][place] for place in places])
            yield torch.tensor(own), ids, places


def trains(job: TrainingJob, name: str) -> bool:
    """Return whether a training changes the weight of this name."""
    if job.method != "attention-only" and job.trained == "all":
        return True
    return ".self_attn." in name and "norm." not in name


def reference_update(job: TrainingJob, grads: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return all weights after the first step: AdamW on clipped gradients, written out."""
    weights = dict(
        dense_model(Path(job.student_folder), Path(job.teacher_folder)).named_parameters()
    )
    norm = float(sum((grad**2).sum() for grad in grads.values()) ** 0.5)
    scale = min(1.0, job.max_grad_norm / norm)
    rate = job.learning_rate / max(1, job.warmup_steps)
    updated = {name: weight.detach() for name, weight in weights.items()}
    for name, grad in grads.items():
        # The first step's moments, corrected for their bias, are the gradient and its square.
        step = scale * grad / (scale * grad.abs() + job.epsilon)
        decays = weights[name].ndim == 2 or job.decay_norms
        shrunk = 1 - rate * job.weight_decay if decays else 1.0
        updated[name] = shrunk * updated[name] - rate * step
    return updated


def reference_step(job: TrainingJob) -> tuple[dict[str, float], dict[str, Tensor]]:
    """Return the losses by metric and the gradients of the first step."""
    original = Path(job.teacher_folder)
    student, teacher = (dense_model(Path(f), original) for f in (job.student_folder, original))
    for name, weight in student.named_parameters():
        weight.requires_grad_(trains(job, name))
    loaded = StepLoader(Path(job.data_folder), rows=job.rows, seed=job.seed).next_step()
    rows: dict[str, list[Any]] = {}
    for bucket, step in loaded.items():
        count = len(step.input_ids_BT)
        documents = step.document_ids_BT if job.mask_documents else None
        if job.method == "pose":
            rows[bucket] = list(cut_rows(job, step, documents))
            continue
        skipped = skipped_positions(job, step.row_numbers) if bucket == "original" else None
        nothing = [None] * count
        rows[bucket] = list(
            zip(
                step.input_ids_BT,
                nothing if documents is None else documents,
                nothing if skipped is None else skipped,
                strict=True,
            )
        )
    weights = fixed_weights(job)
    losses: Mapping[Any, Tensor] = {
        term: objective_loss(job, term.objective, rows[term.bucket], student, teacher)
        for term in weights
    }
    total = sum(weight * losses[term] for term, weight in weights.items())
    total.backward()
    grads = {n: w.grad for n, w in student.named_parameters() if w.grad is not None}
    values = {term.metric: float(loss.detach()) for term, loss in losses.items()}
    return {**values, "train/loss": float(total.detach())}, grads

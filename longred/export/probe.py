"""Loads a model folder with the transformers on the path and writes its results to a file.

Run as a script in its own process: `python -P probe.py FOLDER REQUEST.json RESULT.json`.
It does not import longred, so it reads the folder as any other program does.
"""

import json
import sys
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer


def frequencies(model: Any, last_position: int) -> dict[str, Any]:
    """Return frequencies and attention factor of each rotary embedding at `last_position`."""
    found = {}
    for name, module in model.named_modules():
        parent, _, own = name.rpartition(".")
        # OLMo-3 in version 4 has one for each kind of layer, in a dictionary.
        of_kind = parent.endswith("rotary_embs")
        if isinstance(module, torch.nn.ModuleDict) or not ("rotary_emb" in own or of_kind):
            continue
        kinds = getattr(module, "layer_types", None)
        x, positions = torch.zeros(1, 1, 1), torch.tensor([[last_position]])
        for kind in kinds or [None]:
            module(x, positions, *([kind] if kind else []))
            prefix = f"{kind}_" if kind else ""
            label = kind or ("sliding_attention" if name.endswith("_local") else "full_attention")
            label = own if of_kind else label
            found[label] = {
                "inv_freq": getattr(module, f"{prefix}inv_freq").double().tolist(),
                "attention_factor": float(getattr(module, f"{prefix}attention_scaling")),
            }
    return found


def perplexities(model: Any, tokens: list[int], starts: list[int]) -> list[list[float]]:
    """Return each position at which the tokens start, and their perplexity there."""
    ids, index = torch.tensor([tokens]), torch.arange(len(tokens))[None]
    losses = (model(ids, position_ids=start + index, labels=ids).loss for start in starts)
    return [[start, float(loss.exp())] for start, loss in zip(starts, losses, strict=True)]


def main(folder: str, request_path: str, result_path: str) -> None:
    """Compute the last logits of the request's tokens, a passage, window, RoPE and template."""
    with open(request_path, encoding="utf-8") as file:
        request = json.load(file)
    loader: Any = AutoModelForCausalLM
    model = loader.from_pretrained(
        folder,
        dtype=getattr(torch, request["dtype"]),
        attn_implementation=request["attention"],
        trust_remote_code=False,
    ).eval()
    window = model.config.max_position_embeddings
    with torch.no_grad():
        rope, rope_inside = (frequencies(model, position) for position in (window - 1, 0))
        output = model(torch.tensor([request["tokens"]]), use_cache=False)
        logits = output.logits[0, -request["num_logits"] :].float()
        placed = perplexities(model, request["passage"], request["starts"])
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    result = {
        "transformers": transformers.__version__,
        "window": window,
        "window_type": type(window).__name__,
        "tokenizer_window": tokenizer.model_max_length,
        "has_chat_template": tokenizer.chat_template is not None,
        "rope": rope,
        "rope_inside": rope_inside,
        "logits": logits.tolist(),
        "passage": placed,
    }
    with open(result_path, "w", encoding="utf-8") as file:
        json.dump(result, file)


if __name__ == "__main__":
    main(*sys.argv[1:])

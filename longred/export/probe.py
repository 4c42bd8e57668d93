"""Loads a model folder with whatever transformers is on the path and writes down what it computes.

Run as a file in a process of its own: `python -P probe.py FOLDER REQUEST.json RESULT.json`. It
imports nothing of longred, so that what it sees is what any other program sees.
"""

import json
import sys
from typing import Any


def frequencies(model: Any, last_position: int) -> dict[str, Any]:
    """Return each rotary embedding's frequencies and factor, as the model uses them far out."""
    import torch

    found = {}
    for name, module in model.named_modules():
        if "rotary_emb" not in name.rsplit(".", 1)[-1]:
            continue
        kinds = getattr(module, "layer_types", None)
        x, positions = torch.zeros(1, 1, 1), torch.tensor([[last_position]])
        for kind in kinds or [None]:
            module(x, positions, *([kind] if kind else []))
            prefix = f"{kind}_" if kind else ""
            label = kind or ("sliding_attention" if name.endswith("_local") else "full_attention")
            found[label] = {
                "inv_freq": getattr(module, f"{prefix}inv_freq").double().tolist(),
                "attention_factor": float(getattr(module, f"{prefix}attention_scaling")),
            }
    return found


def main(folder: str, request_path: str, result_path: str) -> None:
    """Answer the request: tokens whose last logits are asked, and the computing type."""
    import torch
    import transformers
    from transformers import AutoModelForCausalLM, AutoTokenizer

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
        rope = frequencies(model, window - 1)
        output = model(torch.tensor([request["tokens"]]), use_cache=False)
        logits = output.logits[0, -request["num_logits"] :].float()
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    result = {
        "transformers": transformers.__version__,
        "window": window,
        "window_type": type(window).__name__,
        "tokenizer_window": tokenizer.model_max_length,
        "has_chat_template": tokenizer.chat_template is not None,
        "rope": rope,
        "logits": logits.tolist(),
    }
    with open(result_path, "w", encoding="utf-8") as file:
        json.dump(result, file)


if __name__ == "__main__":
    main(*sys.argv[1:])

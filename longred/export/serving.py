"""Commands that serve an exported folder, and differences in how servers read RoPE.

Source: the code of vLLM 0.24, SGLang and llama.cpp's converter as of 2026.
"""

import shlex
from pathlib import Path

from transformers import PreTrainedConfig

from longred.method.rope import is_dropped, switches
from longred.models.architectures import main_rope

LLAMA3_IN_LLAMA_CPP = ("llama", "mistral", "mixtral", "exaone", "exaone4")
"""model_types whose converter writes the factors of rope type llama3."""


def serve_commands(config: PreTrainedConfig, folder: Path) -> dict[str, list[str]]:
    """Return server → commands for a model folder."""
    window, path = config.max_position_embeddings, shlex.quote(str(folder))
    gguf = shlex.quote(f"{folder.name}.gguf")
    return {
        "Transformers": [
            f"python -c \"from transformers import pipeline; p = pipeline('text-generation', "
            f"{str(folder)!r}); print(p('Once')[0]['generated_text'])\""
        ],
        "vLLM": [f"vllm serve {path} --max-model-len {window}"],
        "SGLang": [f"python -m sglang.launch_server --model-path {path} --context-length {window}"],
        "llama.cpp": [
            f"python convert_hf_to_gguf.py {path} --outtype bf16 --outfile {gguf}",
            f"llama-server --model {gguf} --ctx-size {window}",
        ],
    }


def serving_notes(config: PreTrainedConfig) -> list[str]:
    """Return warnings about a model's RoPE; none for models extended by abf or ntk."""
    rope, window = main_rope(config), config.max_position_embeddings
    kind = rope["rope_type"]
    if kind == "linear":
        derived = int(window * rope["factor"])
        return [
            f"servers disagree on linear scaling: max_position_embeddings is {window}, which is "
            f"right for Transformers and llama.cpp, but vLLM and SGLang multiply it by the factor "
            f"{rope['factor']:g} and would offer {derived} tokens; the flags above limit them to "
            f"{window}. Models extended by abf, ntk or yarn do not have this conflict"
        ]
    if kind == "yarn":
        original = rope["original_max_position_embeddings"]
        return [
            f"vLLM computes the window of a yarn model as {original} x {rope['factor']:g}; SGLang "
            f"and llama.cpp read max_position_embeddings. Both are {window}"
        ]
    if kind == "longrope":
        return _longrope_notes(config)
    if is_dropped(rope) and config.model_type not in LLAMA3_IN_LLAMA_CPP:
        return [
            "RoPE is switched off by the factors of rope type llama3, which llama.cpp converts for "
            f"{', '.join(LLAMA3_IN_LLAMA_CPP)} only; it would rotate this {config.model_type} model"
        ]
    return []


def _longrope_notes(config: PreTrainedConfig) -> list[str]:
    rope, window = main_rope(config), config.max_position_embeddings
    original, notes = int(rope["original_max_position_embeddings"]), []
    if original < window:
        notes.append(
            f"vLLM starts a longrope model at its original window of {original} unless "
            "--max-model-len is larger"
        )
    if switches(rope):
        notes.append(
            f"this model was trained with the original RoPE in rows of up to {original} tokens and "
            "with the long factors in longer ones. Transformers chooses so by the length of a "
            "pass, SGLang by the longest row of a batch, and vLLM takes the long factors at every "
            f"length if --max-model-len exceeds {original}: serve short texts from a second server "
            f"with --max-model-len {original}"
        )
    if config.model_type != "phi3":
        notes.append(
            "llama.cpp converts longrope factors only for architectures designed with them "
            f"(Phi-3), and would rotate this {config.model_type} model incorrectly"
        )
    return notes

"""Measure a teacher's cost in three precisions, and its distance from an unchanged student.

`python tests/benchmarks/teacher.py` writes `results/teacher.md`. Seconds are CPU time, which other
work on the machine affects little.
"""

import platform
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from longred.models.load import hidden_states, load_model
from longred.objectives.hidden import cosine_distance
from longred.training.load import load_teacher

RESULT = Path(__file__).parent / "results" / "teacher.md"
CONFIG = LlamaConfig(
    vocab_size=8000,
    hidden_size=512,
    intermediate_size=1536,
    num_hidden_layers=6,
    num_attention_heads=8,
    num_key_value_heads=4,
    max_position_embeddings=1024,
    rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
)
REPEATS = 3
CPU = torch.device("cpu")


def main() -> None:
    """Measure the three teachers and write the table."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    tokens = torch.randint(0, CONFIG.vocab_size, (2, 1024))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        LlamaForCausalLM(CONFIG).save_pretrained(folder)
        student = load_model(folder)
        with load_teacher(folder, dtype="bfloat16", device=CPU, backend="auto")() as kept:
            teachers = {
                "bf16 weights, no autocast": load_model(folder, dtype=torch.bfloat16),
                "fp32 weights, autocast": load_model(folder),
                "linear layers bf16, rest fp32, autocast, no output embedding (ours)": kept,
            }
        lines, last = [], CONFIG.num_hidden_layers
        with torch.no_grad():
            with torch.autocast("cpu", torch.bfloat16):
                state = hidden_states(student, tokens, layers=[last])[last]
            for name, teacher in teachers.items():
                seconds = []
                for _ in range(REPEATS):
                    started = time.process_time()
                    with torch.autocast("cpu", torch.bfloat16, enabled="no autocast" not in name):
                        found = hidden_states(teacher, tokens, layers=[last])[last]
                    seconds.append(time.process_time() - started)
                size = sum(w.numel() * w.element_size() for w in teacher.parameters())
                distance = float(cosine_distance(state, found))
                lines.append(
                    f"| {name} | {size / 2**20:.0f} | {min(seconds):.2f} | {distance:.1e} |"
                )
                print(lines[-1], flush=True)
    RESULT.write_text(
        f"""# The teacher's precision

{datetime.now(UTC):%Y-%m-%d}, {platform.machine()}, 1 thread, torch {torch.__version__}. A random \
Llama of {CONFIG.num_hidden_layers} layers, {CONFIG.hidden_size} dimensions and \
{CONFIG.vocab_size:,} words, {tokens.numel():,} tokens forward, processor time, the best of \
{REPEATS}. The student has the same weights in float32 and runs under bf16 autocast; its distance \
is 1 - cosine of the last hidden state.

| teacher | MiB of weights | seconds | distance of an unchanged student |
|---|---:|---:|---:|
"""
        + "\n".join(lines)
        + "\n",
        encoding="utf-8",
    )


if __name__ == "__main__":
    main()

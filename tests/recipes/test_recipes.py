"""The packaged recipes on models of the true dimensions, on the meta device.

The meta device holds no weights and takes no memory. Losses run on four decoder layers; parameters
are counted on all layers.
"""

import copy
import math
import re

import pytest
import torch
from transformers import LlamaConfig, MistralConfig, PreTrainedConfig, Qwen2Config
from transformers.models.auto.modeling_auto import AutoModelForCausalLM

from longred.attention.function import guard, register
from longred.config import RunConfig, load_recipe
from longred.evaluation.ruler.materials import question_sources
from longred.method.schedules import learning_rate
from longred.models.extension import extend_config, frequencies
from longred.models.load import hidden_states
from longred.objectives.hidden import short_distill_loss, short_to_long_loss
from longred.recipes import RECIPES

LLAMA3 = LlamaConfig(
    vocab_size=128256,
    hidden_size=4096,
    intermediate_size=14336,
    num_hidden_layers=32,
    num_attention_heads=32,
    num_key_value_heads=8,
    max_position_embeddings=8192,
    rms_norm_eps=1e-5,
    rope_parameters={"rope_type": "default", "rope_theta": 500000.0},
)
MISTRAL = MistralConfig(
    vocab_size=32768,
    hidden_size=4096,
    intermediate_size=14336,
    num_hidden_layers=32,
    num_attention_heads=32,
    num_key_value_heads=8,
    max_position_embeddings=32768,
    sliding_window=None,
    rope_parameters={"rope_type": "default", "rope_theta": 1000000.0},
)
QWEN25 = Qwen2Config(
    vocab_size=152064,
    hidden_size=3584,
    intermediate_size=18944,
    num_hidden_layers=28,
    num_attention_heads=28,
    num_key_value_heads=4,
    max_position_embeddings=131072,
    max_window_layers=28,
    sliding_window=131072,
    use_sliding_window=False,
    rope_parameters={"rope_type": "default", "rope_theta": 1000000.0},
)
SMOLLM2 = LlamaConfig(
    vocab_size=49152,
    hidden_size=576,
    intermediate_size=1536,
    num_hidden_layers=30,
    num_attention_heads=9,
    num_key_value_heads=3,
    max_position_embeddings=8192,
    rms_norm_eps=1e-5,
    rope_parameters={"rope_type": "default", "rope_theta": 100000.0},
    tie_word_embeddings=True,
)
"""Public facts of each model's config.json."""

MODELS = {
    "llama3-8b-32k": (LLAMA3, 8_030_261_248),
    "llama3-8b-128k": (LLAMA3, 8_030_261_248),
    "mistral-7b-128k": (MISTRAL, 7_248_023_552),
    "qwen2.5-7b-128k": (QWEN25, 7_615_616_512),
}
"""The recipes with the paper's step, and the parameters of their models."""

RIVALS = {
    "llama3-8b-64k-prolong": (LLAMA3, 8_030_261_248),
    "llama3-8b-64k-olmo3": (LLAMA3, 8_030_261_248),
}
"""Recipes of other methods on models of the paper."""

PUBLIC = {**MODELS, **RIVALS}

SMALL = {"smollm2-135m-16k": SMOLLM2, "smollm2-135m-32k": SMOLLM2}


def extended(recipe: RunConfig, config: PreTrainedConfig) -> PreTrainedConfig:
    return extend_config(
        config,
        method=recipe.extension.method,
        original_window=recipe.original_window,
        target_window=recipe.target_window,
        **recipe.extension.settings(),
    )


def test_every_recipe_of_a_public_model_is_here() -> None:
    assert {path.stem for path in RECIPES.glob("*.yaml")} - {"demo"} == {*PUBLIC, *SMALL}


@pytest.mark.parametrize("name", PUBLIC)
def test_models_corpora_and_questions_are_pinned(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.name == name
    asked = recipe.evaluation.ruler
    sources = question_sources(asked)
    assert {source.path for source in sources.values()} == {asked.squad, asked.hotpot}
    assert all(source.is_on_hub for source in sources.values())
    revisions = [source.revision for source in (*recipe.data.sources, *sources.values())]
    for revision in [recipe.model.revision, *revisions]:
        assert re.fullmatch("[0-9a-f]{40}", str(revision))
    text = (RECIPES / f"{name}.yaml").read_text()
    assert text.count("Apache-2.0") + text.count("Community License") >= 3, "licences are said"


@pytest.mark.parametrize("name", SMALL)
def test_small_models_are_pinned_and_their_theta_follows_the_rule(name: str) -> None:
    recipe, config = load_recipe(name), SMALL[name]
    assert recipe.name == name
    sources = [source for source in recipe.data.sources if source.kind == "hub"]
    for revision in [recipe.model.revision, *(source.revision for source in sources)]:
        assert re.fullmatch("[0-9a-f]{40}", str(revision))
    assert "Apache-2.0" in (RECIPES / f"{name}.yaml").read_text()
    assert recipe.original_window == config.max_position_embeddings
    ruled = recipe.model_copy(
        update={"extension": recipe.extension.model_copy(update={"rope_theta": None})}
    )
    expected = extended(ruled, config).rope_parameters["rope_theta"]
    assert recipe.extension.rope_theta == pytest.approx(expected, rel=0.001)


@pytest.mark.parametrize("name", MODELS)
def test_a_step_has_the_papers_tokens(name: str) -> None:
    training = load_recipe(name).training
    rows, lengths = training.rows(training.method), training.block_lengths()
    tokens = {bucket: count * lengths[bucket] for bucket, count in rows.items()}
    assert tokens == {"long": 1048576, "short": 786432, "original": 262144}
    assert (training.num_steps, training.learning_rate) == (512, 2e-5)
    assert training.betas == (0.9, 0.95)
    assert training.micro_batch_tokens >= lengths["long"]


@pytest.mark.parametrize(
    ("name", "theta", "weights", "num_layers"),
    [
        ("llama3-8b-32k", 2e7, (5, 10), 6),
        ("llama3-8b-128k", 1e8, (2, 15), 3),
        ("mistral-7b-128k", 2e7, (2, 15), 6),
    ],
)
def test_the_papers_recipes_have_its_settings(
    name: str, theta: float, weights: tuple[float, float], num_layers: int
) -> None:
    """Theta at 32K and clipping: published code; the rest at 128K: one secondary source."""
    recipe = load_recipe(name)
    training = recipe.training
    assert recipe.extension.rope_theta == theta
    assert (training.short_distill_weight, training.short_to_long_weight) == weights
    assert recipe.selection.num_distill_layers == num_layers
    # The authors clip the mean over 16 micro-steps of equal tokens, 8 of them long; the loss here
    # is relative to the long ones.
    assert training.max_grad_norm == 1.0 * 16 / 8
    assert training.decay_norms
    assert not training.mask_documents


@pytest.mark.parametrize(
    ("name", "theta", "long_share"),
    [("llama3-8b-64k-prolong", 8e6, 0.6), ("llama3-8b-64k-olmo3", None, 0.34)],
)
def test_rivals_have_their_published_settings(
    name: str, theta: float | None, long_share: float
) -> None:
    recipe = load_recipe(name)
    training = recipe.training
    assert recipe.extension.rope_theta == theta
    assert recipe.target_window == 8 * recipe.original_window == 65536
    tokens = training.bucket_tokens("mix-cpt")
    assert set(tokens) == {"long", "short"}
    assert float(tokens["long"] / training.step_tokens) == pytest.approx(long_share, abs=0.01)
    # A little more than the published 64 rows of 64K, so that 8 GPUs can divide the rows.
    assert training.step_tokens == pytest.approx(64 * 65536, rel=0.26)
    assert all(rows % 8 == 0 for rows in training.rows("mix-cpt").values())
    assert training.num_steps * training.step_tokens <= recipe.data.num_tokens
    assert training.mask_documents
    assert training.max_grad_norm == 1.0
    assert (training.betas, training.weight_decay) == ((0.9, 0.95), 0.1)
    last = [training.num_steps - 1, training.num_steps]
    if theta:
        assert (training.schedule, training.learning_rate) == ("cosine", 1e-5)
        assert training.min_learning_rate == pytest.approx(0.1 * training.learning_rate)
        assert training.warmup_steps == round(0.1 * training.num_steps)
    else:
        assert training.warmup_steps + training.decay_steps == training.num_steps
        rates = [learning_rate(step, training) for step in (200, *last)]
        assert rates == pytest.approx([2.07e-4, 2.07e-4 / 255, 0.0], rel=0.01)


@pytest.mark.parametrize("name", ["qwen2.5-7b-128k"])
def test_our_own_theta_turns_the_slowest_pair_as_far_as_the_authors(name: str) -> None:
    recipe = load_recipe(name)
    config = extended(recipe, MODELS[name][0])
    angle = float(frequencies(config).inv_freq[-1]) * recipe.target_window
    authors = 32768 * 2e7 ** (-126 / 128)
    assert angle == pytest.approx(authors, rel=0.03)
    assert angle < 2 * math.pi


@pytest.mark.parametrize("config", [LLAMA3, MISTRAL, QWEN25, SMOLLM2])
def test_dimensions_are_the_true_ones(config: PreTrainedConfig) -> None:
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    counts = [*MODELS.values(), (SMOLLM2, 134_515_008)]
    (expected,) = {count for each, count in counts if each is config}
    assert sum(weight.numel() for weight in model.parameters()) == expected


@pytest.mark.parametrize("name", PUBLIC)
def test_losses_run_on_the_meta_device(name: str) -> None:
    recipe, config = load_recipe(name), copy.deepcopy(PUBLIC[name][0])
    config.num_hidden_layers = 4
    register()
    models = []
    with torch.device("meta"):
        for each in (config, extended(recipe, config)):
            models.append(
                AutoModelForCausalLM.from_config(
                    each, attn_implementation="longred", dtype=torch.bfloat16
                )
            )
            guard(models[-1])
    teacher, student = models
    last = config.num_hidden_layers
    layers = [1, 3, last]

    def rows(length: int) -> torch.Tensor:
        return torch.zeros(1, length, dtype=torch.long, device="meta")

    target = hidden_states(student, rows(recipe.target_window), layers=[last])[last]
    assert target.shape == (1, recipe.target_window, config.hidden_size)
    short, original = rows(recipe.data.short_length), rows(recipe.original_window)
    skipped = torch.zeros(1, recipe.original_window, dtype=torch.long, device="meta")
    with torch.no_grad():
        from_short = hidden_states(teacher, short, layers=layers)
        from_original = hidden_states(teacher, original, layers=[last])
    loss = short_distill_loss(hidden_states(student, short, layers=layers), from_short)
    far = hidden_states(student, original, layers=[last], position_ids_BT=skipped)
    loss = loss + short_to_long_loss(far[last], from_original[last])
    loss.backward()
    assert student.base_model.embed_tokens.weight.grad.shape == (
        config.vocab_size,
        config.hidden_size,
    )

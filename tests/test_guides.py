"""Guides against the code: links, commands, keys, messages and figures in every Markdown file."""

import ast
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
import yaml

from longred import cli
from longred.config import load_recipe
from longred.config.describe import groups, key, override_pattern
from longred.cost.recipe import RecipePlan, choose_speeds, plan_recipe, shape_of_model
from longred.errors import ConfigError
from longred.recipes import names

ROOT = Path(__file__).parents[1]
FOLDERS = (".github", "longred", "flows", "tasks", "deployments", "docker", "tests")
GUIDES = sorted([*ROOT.glob("*.md"), *(p for f in FOLDERS for p in (ROOT / f).rglob("*.md"))])
ROOMS = ("data", "demo", "evaluation", "profiling", "training")
RESULTS = ROOT / "tests/benchmarks/results"

LINK = re.compile(r"\]\(([^)\s]+)\)")
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
CODE = re.compile(r"`([^`\n]+)`")
COMMAND = re.compile(r"(?:^|&&|\|\||\bexec)\s*(?:\S*/)?longred (.*)")
FILE_NAME = re.compile(r".*\.(py|json|jsonl|yaml|md|log|txt|bin|html|sh|sbatch)$")

PYTHON = ("store.verify",)
"""Code that looks like a key."""

COMMANDS = typer.main.get_command(cli.app)


def guide(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def prose(text: str) -> str:
    """Return a guide without its fenced blocks."""
    return FENCE.sub("", text)


def anchors(text: str) -> set[str]:
    """Return the fragments that GitHub makes of the headings."""
    heads = re.findall(r"^#+ (.+)$", prose(text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


def lines_of(block: str) -> Iterator[list[str]]:
    """Yield the arguments of each `longred` command in a shell block."""
    for line in block.replace("\\\n", " ").splitlines():
        found = COMMAND.match(line.strip())
        if found:
            yield shlex.split(found[1], comments=True)


def commands() -> list[tuple[str, list[str]]]:
    return [
        (name(path), arguments)
        for path in GUIDES
        for language, block in FENCE.findall(guide(path))
        if language in ("sh", "bash")
        for arguments in lines_of(block)
    ]


def table(text: str, first: str) -> dict[str, list[str]]:
    """Return the rows of the table whose header starts with `first`: label → cells."""
    start = text.index(f"| {first} |")
    rows = {}
    for line in text[start:].splitlines():
        if not line.startswith("|"):
            break
        cells = [cell.strip(" *") for cell in line.strip("|").split("|")]
        rows[cells[0]] = cells[1:]
    return rows


def test_every_room_has_a_guide() -> None:
    for room in ROOMS:
        text = guide(ROOT / "longred" / room / "README.md")
        assert "## Traps" in text
        assert FENCE.search(text), room
    assert len(guide(ROOT / "README.md").splitlines()) <= 120


@pytest.mark.parametrize("path", GUIDES, ids=name)
def test_links_lead_somewhere(path: Path) -> None:
    for link in LINK.findall(prose(guide(path))):
        if re.match(r"https?://|mailto:", link):
            continue
        file, _, fragment = link.partition("#")
        target = (path.parent / file).resolve() if file else path
        assert target.exists(), f"{name(path)}: {link}"
        if fragment:
            assert fragment in anchors(guide(target)), f"{name(path)}: {link}"


def test_there_are_commands() -> None:
    assert len(commands()) > 30


@pytest.mark.parametrize(("where", "arguments"), commands(), ids=lambda x: str(x)[:60])
def test_commands_parse(where: str, arguments: list[str]) -> None:
    verb, *rest = arguments
    if verb.startswith("-"):
        return
    assert verb in COMMANDS.commands, f"{where}: longred {verb}"
    values = COMMANDS.commands[verb].make_context(verb, rest).params
    overrides = values.get("overrides") or []
    assert all(re.match(override_pattern(), one) for one in overrides), f"{where}: {overrides}"
    recipe = values.get("recipe")
    if recipe in names() or verb == "demo":
        load_recipe(recipe or "demo", overrides)
    elif recipe is not None and not recipe.isupper():
        # An own recipe or a run, by the names that the guides give them.
        assert re.fullmatch(r"latest|\d{8}-.+|.+\.yaml", recipe), f"{where}: {recipe}"


@pytest.mark.parametrize("path", GUIDES, ids=name)
def test_keys_and_verbs_exist(path: Path) -> None:
    for code in CODE.findall(prose(guide(path))):
        if code.startswith("longred ") and re.match(r"[a-z]", code[8:]):
            assert code.split()[1] in COMMANDS.commands, f"{name(path)}: {code}"
        dotted = code.partition("=")[0].strip(" .")
        section = dotted.partition(".")[0]
        is_key = re.fullmatch(r"[a-z_]+(\.\w+)+", dotted) and section in groups()
        if not is_key or FILE_NAME.match(dotted) or dotted in {*groups(), *PYTHON}:
            continue
        if "CHANGELOG" in path.name:
            continue  # names keys as they were
        try:
            key(dotted)
        except ConfigError as error:
            pytest.fail(f"{name(path)}: {error}")


class TaskLoader(yaml.SafeLoader):
    """Reads task files of lm-eval, whose functions have a tag of their own."""


TaskLoader.add_constructor("!function", lambda loader, node: loader.construct_scalar(node))


@pytest.mark.parametrize("path", [p for p in GUIDES if p.name == "README.md"], ids=name)
def test_yaml_blocks_are_yaml(path: Path) -> None:
    for language, block in FENCE.findall(guide(path)):
        if language == "yaml":
            assert yaml.load(block, TaskLoader), name(path)  # noqa: S506


def texts_in(source: str) -> Iterator[str]:
    """Yield every text of a module, with `…` for what is filled in."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.JoinedStr):
            parts = (p.value if isinstance(p, ast.Constant) else "…" for p in node.values)
            yield "".join(map(str, parts))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


@pytest.mark.medium
def test_messages_are_those_of_the_program() -> None:
    rows = list(table(guide(ROOT / "README.md"), "message"))[2:]
    assert len(rows) == 10
    modules = [guide(path) for path in (ROOT / "longred").rglob("*.py")]
    for row in rows:
        (text,) = CODE.findall(row)
        pattern = re.compile(".*".join(re.escape(part) for part in text.split("…")))
        # A module with all words of the message, which is rarely more than one.
        near = [
            source for source in modules if all(w in source for w in text.replace("…", " ").split())
        ]
        assert any(pattern.search(one) for source in near for one in texts_in(source)), text


def test_cited_tests_exist() -> None:
    text = guide(ROOT / "README.md")
    rows = list(table(text, "in `tests/`"))[2:]
    files = [code for row in rows for code in CODE.findall(row) if code.endswith(".py")]
    assert len(files) == 12
    for file in files:
        assert list((ROOT / "tests").rglob(Path(file).name)), file
        assert "/" not in file or (ROOT / "tests" / file).is_file(), file


def test_the_demos_result_is_one() -> None:
    short, whole = guide(ROOT / "README.md"), guide(ROOT / "longred/demo/README.md")
    assert table(short, "model") == table(whole, "model")


@pytest.mark.parametrize(
    ("heading", "study"),
    [("Five seeds", "study-demo.md"), ("Its parts", "study-demo-ablations.md")],
)
def test_figures_of_studies_are_their_tables(heading: str, study: str) -> None:
    text = guide(ROOT / "longred/demo/README.md").partition(f"\n## {heading}\n")[2]
    text = text.partition("\n## ")[0]
    made = guide(RESULTS / study).splitlines()
    shown = [line for line in text.splitlines() if line.startswith(("| ", "- **", "  - "))]
    assert len(shown) > 20
    assert [line for line in shown if line not in made] == []
    assert made[0].partition("; ")[2][:10] in text  # the date


def planned(settings: list[str], device: str) -> RecipePlan:
    """Return the plan of the paper's setting from published figures of a GPU."""
    config = load_recipe("llama3-8b-32k", settings)
    shape = shape_of_model(config)
    return plan_recipe(config, shape, choose_speeds(config, shape, device=device))


@pytest.mark.medium
def test_planned_figures_are_the_plans() -> None:
    rows = table(guide(ROOT / "deployments/training/README.md"), "Llama-3-8B, 8K → 32K, planned")
    for label, (settings, memory, speed, hours) in list(rows.items())[2:]:
        device = "h100" if "H100" in label else "h200"
        training = planned(settings.strip("`").split(), device).trainings[0]
        assert round(training.memory_bytes / 2**30) == int(memory), label
        assert training.tokens_per_second == pytest.approx(float(speed.replace(",", "")), rel=1e-3)
        assert round(training.seconds / 3600, 1) == float(hours), label


def test_the_price_is_the_plans() -> None:
    hours = planned(["training.parallel.num_processes=8"], "h200").gpu_hours
    text = guide(ROOT / "README.md").partition("```")[0]
    assert f"{hours:.1f} GPU hours" in text
    assert f"{3 * hours:.0f} dollars at an assumed 3 dollars" in text

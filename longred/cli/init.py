"""`longred init`: writes a first recipe for a model, a target window and a text."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from longred.errors import ConfigError, StorageError, where_paths_start
from longred.progress import duration

if TYPE_CHECKING:
    from longred.cli.first_recipe import FirstRecipe


def init(
    name: Annotated[str, typer.Argument(help="name of the run; the file is NAME.yaml")],
    model: Annotated[
        str, typer.Option(help="a Hugging Face folder, a hub name with --revision, or demo")
    ],
    target_window: Annotated[int, typer.Option(min=2, help="context window to reach, tokens")],
    text: Annotated[
        list[str] | None,
        typer.Option(help="a file or folder of text; repeatable (default: public corpora)"),
    ] = None,
    revision: Annotated[
        str | None, typer.Option(help="commit of a hub name, 40 hexadecimal digits")
    ] = None,
    original_window: Annotated[
        int | None, typer.Option(min=2, help="the model's window, tokens (default: its own)")
    ] = None,
    device: Annotated[
        str, typer.Option(help="the device to plan for: auto (this machine), cpu, h100, h200, …")
    ] = "auto",
    gpus: Annotated[
        int | None, typer.Option(min=1, help="number of GPUs (default: this machine's)")
    ] = None,
) -> None:
    """Write a commented recipe, derived from a model, a text and a machine."""
    from longred.cli.first_recipe import Wish, derive

    path = Path(f"{name}.yaml")
    if path.exists():
        raise ConfigError(f"{path}: exists already; choose another name, or remove it")
    for each in text or ():
        if "://" not in each and not any(c in each for c in "*?[") and not Path(each).exists():
            raise ConfigError(f"--text: {each} does not exist{where_paths_start(each)}")
    wish = Wish(
        name=name,
        model=model,
        revision=revision,
        target_window=target_window,
        original_window=original_window,
        texts=text or (),
        device=device,
        num_processes=gpus,
    )
    recipe = derive(wish)
    try:
        path.write_text(recipe.text(), encoding="utf-8")
    except OSError as error:
        raise StorageError(f"{path.resolve()}: cannot be written ({error.strerror})") from error
    elsewhere = "" if device == "auto" else f" --device {device}"
    _print(path, recipe, elsewhere)


def _print(path: Path, recipe: "FirstRecipe", elsewhere: str) -> None:
    """Print the recipe's cost and the next commands; `elsewhere` are the options for a plan."""
    from longred.config.derived import MIN_STEPS

    plan = recipe.plan
    training = plan.trainings[0]
    fits = "fits" if training.fits else "does not fit, see `longred plan`"
    about = "about " if training.seconds >= 1 else ""
    typer.echo(
        f"{path}: {training.method}, {training.tokens:,} tokens, {about}"
        f"{duration(training.seconds)} of training on {training.num_processes} x "
        f"{plan.speeds.name}; {fits}"
    )
    for entry in recipe.entries:
        if entry.key == "training.num_steps" and entry.value < MIN_STEPS:
            typer.echo(f"{entry.key} {entry.value}: {entry.why}")
    typer.echo("look at it, then:")
    for words in (f"run {path} --dry-run", f"plan {path}{elsewhere}", f"run {path}"):
        typer.echo(f"  longred {words}")

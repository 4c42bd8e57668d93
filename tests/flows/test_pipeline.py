"""The pipeline: refuses bad settings before any work, has no control flow, is deployable."""

import ast
import importlib
import inspect
from pathlib import Path

import pytest
import yaml

import flows.full_pipeline
import flows.pipeline
import flows.stages
from flows.full_pipeline import full_pipeline
from longred import stages
from longred.errors import ConfigError
from longred.runs.scope import STAGES, Scope
from longred.runs.session import run_options
from longred.services import servers as services
from longred.services.programs import WORK_POOL

ROOT = Path(__file__).parents[2]


def test_bad_settings_are_refused_with_their_key_before_any_work(tmp_path: Path) -> None:
    store = f"store.path={tmp_path / 'store'}"
    with pytest.raises(ConfigError, match=r"training\.learning_rat: unknown key"):
        full_pipeline.fn("demo", [store, "training.learning_rat=1"])
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["selection.num_distill_layers=9"], "selection.num_distill_layers: 9 is not in 1 to 6"),
        (["selection.strategy=manual", "selection.layers=[9]"], "selection.layers: must be"),
    ],
)
def test_layers_that_the_model_lacks_are_refused_before_any_work(
    tmp_path: Path, overrides: list[str], message: str
) -> None:
    store = f"store.path={tmp_path / 'store'}"
    with run_options(scope=Scope(is_dry=True)), pytest.raises(ConfigError, match=message):
        full_pipeline.fn("demo", [store, *overrides])


def test_the_flow_composes_and_decides_nothing() -> None:
    decisions = (ast.If, ast.IfExp, ast.Try, ast.For, ast.While)
    for module in (flows.full_pipeline, flows.pipeline):
        source = ast.parse(inspect.getsource(module))
        assert not [node for node in ast.walk(source) if isinstance(node, decisions)]


def test_every_stage_has_a_task_that_the_flow_calls() -> None:
    public = [name for name in stages.__all__ if inspect.isfunction(getattr(stages, name))]
    assert len(public) >= len(STAGES)
    called = inspect.getsource(flows.pipeline)
    for name in public:
        assert f"{name}(" in called


def test_each_deployment_names_its_flow_and_the_defaults_of_it() -> None:
    file = yaml.safe_load((ROOT / services.DEPLOYMENTS_FILE).read_text())
    names = [deployment["name"] for deployment in file["deployments"]]
    assert names == ["full-pipeline", "study", *STAGES[1:]]
    assert services.DEPLOYMENT == "longred/full-pipeline"
    for deployment in file["deployments"]:
        path, _, function = deployment["entrypoint"].partition(":")
        assert (ROOT / path).is_file()
        flow = getattr(importlib.import_module(path[: -len(".py")].replace("/", ".")), function)
        assert flow.name == "longred"
        assert flow.fn.__name__ == deployment["name"].replace("-", "_")
        assert deployment["work_pool"]["name"] == WORK_POOL
        parameters = inspect.signature(flow.fn).parameters
        assert deployment["parameters"] == {n: p.default for n, p in parameters.items()}


def test_results_are_not_kept_by_prefect() -> None:
    assert full_pipeline.persist_result is False
    assert flows.stages.evaluation.persist_result is False

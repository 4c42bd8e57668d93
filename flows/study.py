"""A study as one Prefect flow; each of its runs is a task run, and a flow run of its own."""

from prefect import flow, get_run_logger

from flows.flow_run import HOOKS
from flows.full_pipeline import full_pipeline
from flows.pipeline import look_up
from longred.progress import duration
from longred.study.cells import PlannedCell
from longred.study.session import open_study
from tasks.study import run_cells


@flow(name=full_pipeline.name, flow_run_name="{study}", persist_result=False, **HOOKS)
def study(study: str = "demo", slots: int | None = None, only: list[str] = []) -> str:  # noqa: B006
    """Run a grid of recipes and seeds, and compare them with intervals and tests.

    Args:
        study: name of a packaged study such as `demo`, or path of a YAML file where the worker
            runs.
        slots: runs side by side, each with its part of the worker's GPUs or cores; empty for the
            study's own number.
        only: panels, or variants as `panel/variant`; empty for all.

    Returns:
        Folder of the study's artifact: its page, tables and numbers.
    """
    logger = get_run_logger()
    with open_study(study, look_up, only=only, num_slots=slots) as opened:
        cells = opened.begin()

        def tell(cell: PlannedCell, end: float | BaseException) -> None:
            opened.ended(cell, end)
            logger.info("%s: %s", cell.name, end if isinstance(end, Exception) else duration(end))

        run_cells(opened, cells, tell)
        return str(opened.finish())

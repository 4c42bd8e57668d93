"""The runs of a study as Prefect task runs, as many side by side as the study has slots."""

from collections.abc import Callable, Sequence
from functools import partial

from longred.study.cells import PlannedCell
from longred.study.session import OpenStudy
from tasks.stage import is_worth_another_try


def run_cells(
    opened: OpenStudy,
    cells: Sequence[PlannedCell],
    on_done: Callable[[PlannedCell, float | BaseException], None],
) -> None:
    """Run all cells; one that fails does not stop the others.

    Args:
        opened: the study.
        cells: what to run.
        on_done: called with each cell as it ends, and its duration in seconds or its error.
    """
    from prefect import task
    from prefect.cache_policies import NO_CACHE
    from prefect.futures import as_completed
    from prefect.task_runners import ThreadPoolTaskRunner

    @task(
        task_run_name="{name}",
        retries=2,
        retry_delay_seconds=[2, 30],
        retry_condition_fn=is_worth_another_try,
        cache_policy=NO_CACHE,
        persist_result=False,
    )
    def run_cell(name: str, run: Callable[[], float]) -> float:
        """Run one variant with one seed."""
        return run()

    with ThreadPoolTaskRunner(max_workers=len(opened.slots)) as runner:
        try:
            futures = {
                runner.submit(run_cell, {"name": cell.name, "run": partial(opened.run, cell)}): cell
                for cell in cells
            }
            for future in as_completed(list(futures)):
                on_done(futures[future], future.result(raise_on_failure=False))
        except BaseException:
            # The threads end with their processes, and the runner waits for its threads.
            opened.children.stop()
            raise

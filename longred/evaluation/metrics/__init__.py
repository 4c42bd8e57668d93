"""Metrics: the score of an answer, and what tasks of lm-eval fetch from elsewhere.

`ruler` and `ruler_v2` score RULER, `published` the published benchmarks.

lm-eval loads some metrics with `evaluate.load`, which downloads and runs code of the hub, and its
task coqa imports `transformers.data.metrics`, which transformers 5 removed. Here are the same
metrics, to be found under those names: `squad` (SQuAD, CoQA, SQuAD 2.0) and `code` (pass@k, with
`run_program`, which executes one program in a process of its own).
"""

import contextlib
import sys
import types
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

from longred.evaluation.metrics import code, squad

LOCAL = {"code_eval": code.CodeEval, "squad_v2": squad.SquadV2}
"""Name of a metric on the hub -> its class here."""
_PACKAGE = "transformers.data.metrics"


@contextlib.contextmanager
def local_metrics() -> Iterator[None]:
    """Let lm-eval find the metrics of this package while it imports, builds or scores a task."""
    import evaluate

    load = evaluate.load

    def load_local(path: str, *args: Any, **settings: Any) -> Any:
        return LOCAL[path]() if path in LOCAL else load(path, *args, **settings)

    modules = {} if find_spec(_PACKAGE) else _squad_modules()
    sys.modules.update(modules)
    evaluate.load = load_local
    try:
        yield
    finally:
        evaluate.load = load
        for name in modules:
            sys.modules.pop(name, None)


def _squad_modules() -> dict[str, types.ModuleType]:
    """Return the modules that transformers removed: name -> module."""
    package = types.ModuleType(_PACKAGE)
    vars(package).update(squad_metrics=squad, __path__=[])
    return {_PACKAGE: package, f"{_PACKAGE}.squad_metrics": squad}

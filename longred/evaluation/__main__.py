"""`python -m longred.evaluation JOB`: one process of a parallel evaluation."""

import sys
from pathlib import Path

from longred.errors import LongredError
from longred.evaluation.parallel import run_job

try:
    run_job(Path(sys.argv[1]))
except LongredError as error:
    sys.stderr.write(f"longred: {error}\n")
    sys.exit(error.exit_code)

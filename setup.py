"""Builds the wheel with the pipeline in it; everything else is declared in pyproject.toml.

`flows/` and `tasks/` stand at the top of the repository, because Prefect's entrypoints name them by
path. A wheel carries them, the deployments and the tested versions under `longred/_pipeline/`.
"""

import shutil
from pathlib import Path

from setuptools import Command, setup
from setuptools.command.build import build

FOLDERS = ("flows", "tasks", "deployments")
FILES = ("constraints.txt",)
TARGET = "longred/_pipeline"


class BuildPipeline(Command):
    """Copy the pipeline into the wheel that is being built; an editable install uses the clone.

    setuptools sets `editable_mode` and adds `get_source_files` to an sdist.
    """

    user_options = [("build-lib=", "d", "folder of the wheel's content")]  # noqa: RUF012

    def initialize_options(self) -> None:
        """Set the options that setuptools fills in."""
        self.build_lib = None
        self.editable_mode = False

    def finalize_options(self) -> None:
        """Take the folder of the wheel's content from `build_py`."""
        self.set_undefined_options("build_py", ("build_lib", "build_lib"))

    def run(self) -> None:
        """Copy the files; replace those of an earlier build."""
        if self.editable_mode:
            return
        # It may have left files that no longer exist.
        shutil.rmtree(Path(self.build_lib, TARGET), ignore_errors=True)
        for copy, source in self.get_output_mapping().items():
            Path(copy).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, copy)

    def get_source_files(self) -> list[str]:
        """Return the files to copy, relative to the repository."""
        found = [path for folder in FOLDERS for path in Path(folder).rglob("*") if path.is_file()]
        return [*sorted(str(path) for path in found if "__pycache__" not in path.parts), *FILES]

    def get_outputs(self) -> list[str]:
        """Return the copies."""
        return list(self.get_output_mapping())

    def get_output_mapping(self) -> dict[str, str]:
        """Return copy → source; nothing for an editable install."""
        if self.editable_mode:
            return {}
        return {str(Path(self.build_lib, TARGET, name)): name for name in self.get_source_files()}


class Build(build):
    """setuptools' build with the pipeline."""

    sub_commands = [*build.sub_commands, ("build_pipeline", None)]  # noqa: RUF012


setup(cmdclass={"build": Build, "build_pipeline": BuildPipeline})

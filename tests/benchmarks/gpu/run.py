"""Run the items of the GPU check one after another, until a deadline."""

import contextlib
import multiprocessing
import os
import signal
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

from gpu import child
from gpu.items import MACHINE, Item
from gpu.lines import Line, Results

PRELOADED = ["torch", "training", "profiling", "generation"]
"""Imported once, in the process from which every item is forked; saves seconds per item."""

END_SECONDS = 3.0
"""Time reserved before the deadline for printing the table."""


class Runner:
    """Starts items and yields their lines.

    Args:
        tiny: whether to measure small shapes on the CPU.
        deadline: seconds from now at which everything must have ended.
    """

    def __init__(self, *, tiny: bool, deadline: float) -> None:
        self.tiny = tiny
        self._end = time.monotonic() + deadline - END_SECONDS
        self._spent = self._estimated = 0.0
        self._context: Any = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(PRELOADED)
        self.machine: Line = {}

    @property
    def left(self) -> float:
        """Seconds until the deadline."""
        return self._end - time.monotonic()

    def find_machine(self) -> Mapping[str, Any]:
        """Return the result of `gpu.machine`; `problem` says why it is unusable, or is empty."""
        found = self._machine()
        if found["problem"] and found["has_cuda_build"] and not self.tiny:
            # A preloaded import may have initialized the driver; forked processes cannot use it.
            self._context = multiprocessing.get_context("spawn")
            found = self._machine()
            if found["problem"]:
                # Some virtual machines refuse the driver calls that expandable segments need.
                os.environ["PYTORCH_CUDA_ALLOC_CONF"] = "expandable_segments:False"
                found = self._machine()
        self.machine = found
        return found

    def _machine(self) -> dict[str, Any]:
        lines = list(self._lines_of(MACHINE, [], max(self.left, 60.0)))
        if lines[-1]["status"] != "ok":
            raise RuntimeError(lines[-1]["error"])
        found: dict[str, Any] = lines[0]["measured"]
        return found

    def lines(self, item: Item, before: Sequence[Line]) -> Iterator[dict[str, Any]]:
        """Yield an item's lines; the last one holds the item's status."""
        estimated = self._seconds(item)
        if estimated > self.left:
            reason = f"deadline: about {estimated:.0f} s needed, {max(self.left, 0.0):.0f} left"
            yield {"item": item.name, "is_end": True, "status": "skipped", "reason": reason}
            return
        started = time.monotonic()
        limit = item.limit or 2 * estimated + 60
        for line in self._lines_of(item, before, min(limit, self.left)):
            if line.get("is_end"):
                line["seconds"] = round(time.monotonic() - started, 2)
                # `smoke` compiles kernels that later items reuse: its time does not predict theirs.
                if line["status"] == "ok" and item.name != "smoke":
                    self._spent += line["seconds"]
                    self._estimated += item.tiny_seconds if self.tiny else item.seconds
            yield line

    def _seconds(self, item: Item) -> float:
        """Return an item's estimate, up to 3 times as long if earlier items exceeded theirs."""
        seconds = item.tiny_seconds if self.tiny else item.seconds
        slower = self._spent / self._estimated if self._estimated else 1.0
        return seconds * min(max(slower, 1.0), 3.0)

    def _lines_of(
        self, item: Item, before: Sequence[Line], limit: float
    ) -> Iterator[dict[str, Any]]:
        is_cut = limit >= self.left
        with tempfile.TemporaryDirectory() as folder:
            log = Path(folder) / "log"
            log.touch()
            own, other = self._context.Pipe(duplex=True)
            process = self._context.Process(
                target=child.run_item,
                args=(item, other, str(log)),
                kwargs={
                    "tiny": self.tiny,
                    "lines": list(before),
                    "machine": self.machine,
                    "limit": limit,
                },
            )
            process.start()
            other.close()
            stop = time.monotonic() + limit
            try:
                end = yield from _received(own, process, stop)
                is_late = time.monotonic() >= stop
            finally:
                _kill(process)
                own.close()
            if end is None:
                end = {"item": item.name, "is_end": True}
                if is_late and is_cut:
                    end |= {"status": "skipped", "reason": f"deadline: killed after {limit:.0f} s"}
                else:
                    how = "killed after the timeout" if is_late else f"exit code {process.exitcode}"
                    end |= {"status": "failed", "error": f"{_said(log)}\n{how}"}
            yield end


def _received(own: Any, process: Any, end: float) -> Iterator[dict[str, Any]]:
    """Yield a process's lines; return the last one, with the status, or None if it never came."""
    while time.monotonic() < end:
        try:
            if not own.poll(min(0.2, max(0.0, end - time.monotonic()))):
                continue
            line = own.recv()
        except (EOFError, OSError):
            process.join(10)
            return None
        if line.get("is_end"):
            process.join(5)
            return line
        yield line
    return None


def _kill(process: Any) -> None:
    """Kill all remaining processes of an item."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    if process.is_alive():
        process.kill()
    process.join()


def _said(log: Path) -> str:
    return "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-12:])


def run(runner: Runner, items: Iterable[Item], results: Results, done: set[str]) -> bool:
    """Measure all items that are not done, and return whether none failed.

    Items may be made one by one, while those before them run.
    """
    fixed = {"date": date.today().isoformat(), "machine": runner.machine["device"]}
    fixed["versions"] = runner.machine["versions"]
    all_well = True
    for item in items:
        if item.name in done:
            print(f"{item.name}: already measured", flush=True)
            continue
        for line in runner.lines(item, results.lines):
            results.append({**fixed, **line})
            all_well = all_well and line["status"] != "failed"
            _tell(line)
    return all_well


def _tell(line: Line) -> None:
    seconds = f" {line['seconds']:7.1f} s" if "seconds" in line else ""
    print(f"{line['status']:>7}{seconds}  {line['item']}", flush=True)
    for text in (line.get("reason"), line.get("error")):
        if text:
            print("         " + text.strip().replace("\n", "\n         "), flush=True)

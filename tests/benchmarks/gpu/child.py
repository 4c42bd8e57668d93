"""Run one item of the GPU check in its own process; send each line to the parent immediately."""

import faulthandler
import importlib
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Mapping
from multiprocessing.connection import Connection
from typing import Any

from gpu.items import Item
from gpu.lines import Line, latest, measured_line


class Skip(Exception):
    """Raised by an item that this machine cannot measure; the message says why."""


class Check:
    """Passed to an item's `measure`: the settings, the earlier results, and methods to write lines.

    Args:
        item: item name, the prefix of its lines' names.
        tiny: whether to measure small shapes on the CPU.
        lines: lines of earlier items.
        machine: result of `gpu.machine`.
        send: sends a line to the parent process, which writes it to disk.
    """

    def __init__(
        self, item: str, *, tiny: bool, lines: list[Line], machine: Line, send: Any
    ) -> None:
        self.item = item
        self.tiny = tiny
        self.machine = machine
        self._lines = lines
        self._send = send
        self._since = time.perf_counter()

    @property
    def found(self) -> Mapping[str, Line]:
        """The last successful line of every name."""
        return latest(self._lines)

    @property
    def device_type(self) -> str:
        """`cpu` with `--tiny`, else `cuda`."""
        return "cpu" if self.tiny else "cuda"

    def line(
        self,
        name: str,
        *,
        settings: Mapping[str, Any],
        measured: Mapping[str, Any],
        planned: Mapping[str, float] | None = None,
        **more: Any,
    ) -> None:
        """Write a measurement, with the seconds since the previous line."""
        found = measured_line(
            f"{self.item}/{name}", settings=settings, measured=measured, planned=planned, **more
        )
        self._write(found)

    def skip(self, name: str, reason: str) -> None:
        """Write that a measurement is not possible here."""
        self._write({"item": f"{self.item}/{name}", "status": "skipped", "reason": reason})

    def fail(self, name: str, error: str, **more: Any) -> None:
        """Write that a measurement failed; the item must still raise an error at its end."""
        self._write({"item": f"{self.item}/{name}", "status": "failed", "error": error, **more})

    def _write(self, line: dict[str, Any]) -> None:
        now = time.perf_counter()
        line["seconds"], self._since = round(now - self._since, 2), now
        self._lines.append(line)
        self._send(line)


def run_item(
    item: Item,
    connection: Connection,
    log: str,
    *,
    tiny: bool,
    lines: list[Line],
    machine: Line,
    limit: float,
) -> None:
    """Measure an item in this process, in a new session so that all its processes can be killed.

    Args:
        item: item to measure.
        connection: sends the lines to the parent process, then a last line with the item's status.
        log: file for stdout and stderr.
        tiny: whether to measure small shapes on the CPU.
        lines: lines of earlier items.
        machine: result of `gpu.machine`; empty for that item itself.
        limit: timeout in seconds after which the parent kills the process; shortly before it, all
            stack traces are printed.
    """
    os.setsid()
    output = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    os.dup2(output, 1)
    os.dup2(output, 2)
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    threading.Thread(target=_end_with_parent, args=(connection,), daemon=True).start()
    faulthandler.enable()
    faulthandler.dump_traceback_later(max(1.0, limit - 5.0))
    check = Check(item.name, tiny=tiny, lines=lines, machine=machine, send=connection.send)
    try:
        importlib.import_module(item.module).measure(check, **item.options)
        end = {"status": "ok"}
    except Skip as reason:
        end = {"status": "skipped", "reason": str(reason)}
    except Exception:
        traceback.print_exc()
        end = {"status": "failed", "error": "".join(traceback.format_exc().splitlines(True)[-12:])}
    sys.stdout.flush()
    connection.send({"item": item.name, "is_end": True, **end})


def _end_with_parent(connection: Connection) -> None:
    """Kill this process group when the parent dies, which sends no signal."""
    try:
        connection.recv()
    except (EOFError, OSError):
        os.killpg(0, signal.SIGKILL)

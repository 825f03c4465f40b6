"""`segue run --engine ray`: the lines of a job, answered by processes that each hold the model.

1. This process reads the input and leaves out what is answered already.
2. Ray Data hands the rest out in batches; a worker answers a batch through one engine, like `segue run` here.
3. Answers come back here, and this process alone writes them: each line once, whatever is done twice.
4. The batch of a worker that ends is done again by another. Lines that lose their workers again and again are answered
   each alone, so that only the line at fault fails.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import signal
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from segue import cluster
from segue.cli import report, tasks
from segue.cli.attempts import Attempts
from segue.cli.interrupt import Signals, Stopped
from segue.cli.job import Job, Planner
from segue.cli.shards import Shards
from segue.cli.tally import Tally

if TYPE_CHECKING:
    import pyarrow

BATCHES = 2  # for each worker at least, so that none waits long for the last one
ATTEMPTS = 3  # times that a batch is begun, where its worker ends each time


def spread(
    shards: Shards,
    tally: Tally,
    planner: Planner,
    budgets: dict[str, Any],
    place: dict[str, Any],
    workers: int | None,
    cpus: int,
    address: str | None,
) -> int:
    """Answer what is left by `workers` processes of `cpus` cores; gives the signal that ended it early or 0."""
    with cluster.connected(address, workers, cpus, place.get("device")) as places:
        place = {**place, "device": places.device(place.get("device"))}
        tally.workers = places.number
        planner = Planner(planner.method, planner.fields, planner.settings)  # without methods made here
        plan = {"planner": planner, "budgets": budgets, "place": place, "threads": cpus}
        with Signals(signal.SIGINT, signal.SIGTERM) as signals, tally:
            try:
                left = tally.total - tally.before
                largest = max(left // (BATCHES * places.number), 1)
                for size in (min(budgets["max_running"], largest), 1):
                    _pass(shards, tally, plan, places, size, signals)
            except Stopped as stop:
                return stop.number
            for task in tasks.read(shards):
                error = f"{ATTEMPTS} workers ended while they answered this line: it may need more memory than there is"
                tally.add(task.key, {**task.head(), "error": error})
    return 0


def _pass(
    shards: Shards, tally: Tally, plan: dict[str, Any], places: cluster.Places, size: int, signals: Signals
) -> None:
    """Have every line that has no answer answered, except where workers end again and again."""
    import ray
    from ray.data import ActorPoolStrategy, from_arrow_refs

    with signals.waiting():
        blocks = [ray.put(block) for block in _blocks(shards, tally, size)]
        if not blocks:
            return
        _quieten()
        dataset = from_arrow_refs(blocks).map_batches(
            Worker,
            fn_constructor_kwargs={**plan, "attempts": ray.remote(num_cpus=0)(Attempts).remote(ATTEMPTS)},
            batch_size=size,  # a block as it is
            batch_format="pyarrow",
            # One at a time: a batch that waits behind a slow one could be with another worker.
            compute=ActorPoolStrategy(size=min(places.number, len(blocks)), max_tasks_in_flight_per_actor=1),
            **places.options(),
        )
        results = iter(dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0))
    with contextlib.closing(results):  # before Ray is left, which it would start anew to clean up
        while True:
            with signals.waiting():
                table = next(results, None)
            if table is None:
                return
            for row in table.to_pylist():
                if row["fault"]:
                    raise ValueError(row["fault"])
                sys.stderr.write(row["said"])
                tally.forwards += row["forwards"]
                for line in row["answers"]:
                    record = json.loads(line)
                    tally.add(tasks.key(record), record)


def _quieten() -> None:
    """Ray Data tells a terminal about itself what its log files say, too."""
    from ray.data import DataContext

    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.target_max_block_size = 2**20  # by which Ray guesses the memory of answers before it has seen any
    for handler in logging.getLogger("ray.data").handlers:
        if handler.name == "console":
            handler.setLevel(logging.ERROR)


def _blocks(shards: Shards, tally: Tally, size: int) -> Iterator[pyarrow.Table]:
    import pyarrow

    block: dict[str, list[Any]] = {"number": [], "place": [], "line": []}
    for number, line in shards:
        place = shards.place(number)
        if tasks.parse(number, line, place).key in tally.answers.done:
            continue
        for column, value in zip(block.values(), (number, place, line), strict=True):
            column.append(value)
        if len(block["line"]) == size:
            yield pyarrow.table(block)
            block = {name: [] for name in block}
    if block["line"]:
        yield pyarrow.table(block)


class Worker:
    """A process with the model. Ray makes it, and makes it again after it ended."""

    def __init__(
        self, planner: Planner, budgets: dict[str, Any], place: dict[str, Any], threads: int, attempts: Any
    ) -> None:
        import torch

        from segue.models.engine import Engine
        from segue.models.load import load

        torch.set_num_threads(threads)
        self._attempts = attempts
        self._answers: list[bytes] = []
        self._fault = ""
        self._job: Job | None = None
        try:
            lm = load(**place)
            engine = Engine(**budgets | {"kv_budget": cluster.kv_budget(budgets["kv_budget"], threads)})
            self._job = Job(lm, planner, engine, self._write)
        except (ValueError, OSError) as error:  # the user's: told as it is, with the first batch
            self._fault = str(error)

    def _write(self, task: tasks.Task, record: dict[str, Any]) -> None:
        self._answers.append(report.as_json(record).encode())

    def __call__(self, block: pyarrow.Table) -> pyarrow.Table:
        """The answers to a block of lines, in one row."""
        import pyarrow
        import ray

        self._answers = []
        forwards = 0
        said = io.StringIO()
        rows = block.to_pylist()
        if self._job is not None and ray.get(self._attempts.begin.remote(rows[0]["number"])):
            before = self._job.engine.forwards
            with contextlib.redirect_stderr(said):
                self._job.run(tasks.parse(row["number"], row["line"], row["place"]) for row in rows)
            forwards = self._job.engine.forwards - before
        row = {"answers": self._answers, "forwards": forwards, "said": said.getvalue(), "fault": self._fault}
        return pyarrow.Table.from_pylist([row])

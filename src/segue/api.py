"""The library's front door: a model that generates, by any method, one prompt or many."""

from __future__ import annotations

import difflib
import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, overload

from segue import catalog
from segue.data import Completion, Settings
from segue.models.engine import Engine
from segue.models.job import Job
from segue.models.lm import LM
from segue.models.method import Method, sequences_of
from segue.models.prefixes import Prefixes
from segue.models.prompted import scored
from segue.models.run import Decoder, Run, Spawn

Prompt = str | Sequence[int]
DEFAULT_METHOD = "auto"


@dataclass(frozen=True)
class Request:
    """One prompt with everything that decides its answer."""

    prompt: Prompt
    method: Method
    settings: Settings
    score_prompt: bool = False  # also log-probabilities of the prompt's tokens: `Run.prompt_logprobs`


class Model:
    """A loaded model. Calls from several threads are served one after the other."""

    def __init__(self, lm: LM, *, engine: Callable[[], Engine] = Engine, prefixes: Prefixes | None = None) -> None:
        """`engine` makes the engine of a call; `prefixes` keeps prompts from one call to the next."""
        self.lm = lm
        self.prefixes = prefixes
        self._engine = engine
        self._lock = threading.Lock()

    @overload
    def generate(self, prompt: str, method: str | Method = ..., *, n: None = ..., **settings: Any) -> Completion: ...
    @overload
    def generate(self, prompt: Any, method: str | Method = ..., *, n: int | None = ..., **settings: Any) -> Any: ...
    def generate(
        self, prompt: Any, method: str | Method = DEFAULT_METHOD, *, n: int | None = None, **settings: Any
    ) -> Any:
        """Complete a prompt: text, or a list of token ids; or a list of such prompts, decoded as one batch.

        `method` is a name or a method object; `settings` are the fields of `Settings` (max_tokens, temperature, ...).
        Gives a Completion; for a list of prompts a list of them; with `n`, a list of n samples for each prompt, which
        read the prompt once. Sample i of a seed uses seed + i. Raises ValueError on bad input before any work is done.
        """
        many = not isinstance(prompt, str) and any(not isinstance(p, int) for p in prompt)
        prompts: list[Prompt] = list(prompt) if many else [prompt]
        chosen = resolve(method)
        options = make_settings(**settings)
        if n is not None and (not isinstance(n, int) or isinstance(n, bool) or n < 1):
            raise ValueError(f"n={n!r} is not allowed: a whole number of at least 1")
        with self._lock:
            engine = self._engine()
            jobs: list[list[Job]] = []
            for i, p in enumerate(prompts):
                try:
                    jobs.append(self.enqueue(engine, Request(p, chosen, options), n or 1))
                except ValueError as error:
                    raise type(error)(f"prompt {i}: {error}" if many else str(error)) from None
            engine.drain()
        answers = [[answer(job) for job in group] for group in jobs]
        flat = answers if n is not None else [group[0] for group in answers]
        return flat if many else flat[0]

    def stream(
        self, prompt: Prompt, method: str | Method = DEFAULT_METHOD, **settings: Any
    ) -> Generator[str, None, Completion]:
        """Complete one prompt and give its text in pieces as they become certain: never half a character, never text
        that a stop string may still cut. The generator's return value is the Completion."""
        request = Request(prompt, resolve(method), make_settings(**settings))
        with self._lock:
            engine = self._engine()
            (job,) = self.enqueue(engine, request, 1)
            try:
                for _ in engine.steps():
                    piece = job.run.text.take()
                    if piece:
                        yield piece
                completion = answer(job)
            finally:
                engine.cancel(job)
            rest = job.run.text.take_rest()
            if rest:
                yield rest
            return completion

    def batch(self, requests: Iterable[Request], *, ahead: int = 64) -> Iterator[tuple[int, Completion | Exception]]:
        """Answer a stream of requests through one engine, as they finish: (position, Completion or what was wrong).

        A ValueError is the request's fault; any other exception is a bug or a device out of memory, and it is handed
        out as well, so that it costs its own request only. At most `ahead` requests are held at a time, so the input
        may be longer than memory.
        """
        with self._lock:
            engine = self._engine()
            source = enumerate(requests)
            open_jobs: dict[int, Job] = {}
            exhausted = False
            while open_jobs or not exhausted:
                while not exhausted and len(open_jobs) < ahead:
                    try:
                        number, request = next(source)
                    except StopIteration:
                        exhausted = True
                        break
                    try:
                        (open_jobs[number],) = self.enqueue(engine, request, 1)
                    except Exception as error:
                        yield number, error
                engine.step()
                for number in [i for i, job in open_jobs.items() if job.finished]:
                    job = open_jobs.pop(number)
                    try:
                        completion = answer(job)
                    except Exception as error:
                        yield number, error
                    else:
                        yield number, completion

    def reset(self) -> None:
        """Forget what drafters learned from earlier requests."""
        self.lm.reset_stores()

    def encode(self, prompt: Prompt) -> list[int]:
        """Token ids of a prompt; ids pass through. An empty text is refused."""
        if isinstance(prompt, str):
            if not prompt:
                raise ValueError("the prompt is empty: give some text, or token ids to start from nothing")
            return self.lm.encode(prompt)
        ids = list(prompt) if isinstance(prompt, Iterable) else [prompt]
        if not isinstance(prompt, Iterable) or not all(isinstance(i, int) and not isinstance(i, bool) for i in ids):
            raise ValueError(f"a prompt is text or a list of token ids; {str(prompt)[:60]} is neither")
        return ids

    def enqueue(self, engine: Engine, request: Request, n: int) -> list[Job]:
        """Queue the n samples of a request, which read its prompt once: a job for each. Whoever steps the engine looks
        at them, takes their `answer`s, and may `withdraw` them."""
        ids = self.encode(request.prompt)
        runs = []
        for i in range(n):
            seed = request.settings.seed
            own = request.settings if seed is None else replace(request.settings, seed=seed + i)
            runs.append(Run(self.lm, ids, own, method=method_name(request.method)))
            runs[-1].width = sequences_of(request.method)
            runs[-1].prefixes = self.prefixes
        if n == 1:
            decoder = request.method.run(runs[0])
            return [engine.add(runs[0], scored(runs[0], decoder) if request.score_prompt else decoder)]
        if request.score_prompt:
            raise ValueError(f"a prompt is scored for one answer, not for {n}")
        reader = Run(self.lm, ids, request.settings, method=method_name(request.method))
        reader.prefixes = self.prefixes
        parent = engine.add(reader, _share_prompt(reader, runs, request.method))
        return [_Sample(parent, i, run) for i, run in enumerate(runs)]


class _Sample(Job):
    """Sample i of a prompt that another job reads: its job exists once the prompt is read."""

    def __init__(self, parent: Job, index: int, run: Run) -> None:
        super().__init__(run, parent.decoder, 0)
        self._parent, self._index = parent, index

    def resolved(self) -> Job:
        """Its own job, or that of the prompt where there is none (yet)."""
        children = self._parent.children
        return children[self._index] if self._index < len(children) else self._parent

    @property
    def finished(self) -> bool:
        job = self.resolved()
        return job.error is not None or (job is not self._parent and job.finished)


def _share_prompt(reader: Run, runs: list[Run], method: Method) -> Decoder[None]:
    """Read a prompt once, then start the runs on forks of it."""
    scores = yield from reader.prefill(getattr(method, "needs", None))
    for run in runs:
        run.first = scores
        run.sequence = reader.sequence.fork()
        run.reused = reader.reused
        run.stats.target_forwards = run.stats.prefill_forwards = reader.stats.prefill_forwards
        yield Spawn(run, method.run(run))


def answer(job: Job) -> Completion:
    """What a finished job of `enqueue` has come to; raises what went wrong with it."""
    job = job.resolved()
    if job.error is not None:
        raise job.error
    return job.run.completion()


def withdraw(engine: Engine, job: Job) -> None:
    """End a job of `enqueue` now and free its memory."""
    engine.cancel(job.resolved())


def resolve(method: str | Method) -> Method:
    """A method object from a name or an object."""
    if isinstance(method, str):
        built: Method = catalog.build(method)
        return built
    if not isinstance(method, Method):
        raise ValueError(f"method={method!r} is not a method: give a name or an object made by segue.method(...)")
    return method


def make_settings(**values: Any) -> Settings:
    """Settings with unknown names refused and the nearest named."""
    known = Settings.names()
    for name in values:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"
            raise ValueError(f"no setting is called {name!r}: {hint}")
    settings = Settings(**values)
    if settings.constrained:
        from segue.models.constraint import check

        check(settings)  # a grammar that cannot be read is told before any work is done
    return settings


def method_name(method: Method) -> str:
    """The catalog's name of a method object: its file."""
    return type(method).__module__.rpartition(".")[2]

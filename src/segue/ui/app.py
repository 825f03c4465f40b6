"""The page itself (gradio) and the process that serves it. Nothing on it is fetched from another machine."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator, Sequence
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
import uvicorn
from fastapi import FastAPI, HTTPException
from fastapi.responses import HTMLResponse
from starlette.datastructures import MutableHeaders
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from segue import catalog
from segue.address import LOCAL
from segue.api import DEFAULT_METHOD, Model
from segue.ui import listing, stream, treeview
from segue.ui.asked import MOST_TOKENS, Form, Wrong, requests
from segue.ui.race import Race
from segue.ui.stage import Stage

SHEET = Path(__file__).with_name("page.css")
PROMPT = "User: I want to book a table for two.\nAssistant:"
TICK = 0.2  # seconds between two looks at a race, at least
CLICK = """
element.addEventListener('click', (event) => {
  const at = event.target.closest('[data-step]');
  if (at && element.contains(at)) trigger('click', {step: Number(at.dataset.step)});
});
"""
FAIR = (
    "Both methods start from the same prompt with empty memories and take turns at the model, one forward at a time. "
    "No forward is shared, and the one that has used less time goes next: tokens per forward and seconds are each "
    "method's own, and the streams advance at their true relative speed. One run is no benchmark: that is segue bench."
)
OWN = "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
OWN += "img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self'; frame-src 'self'; "
OWN += "object-src 'none'; base-uri 'self'; form-action 'self'; frame-ancestors 'self'"
IDLE = '<p class="seg-hint">Press Run: the text appears here.</p>'


def blocks(stage: Stage, reports: Sequence[Path], *, guests: bool) -> Any:
    """The page for a model. With `guests` other machines may reach it."""
    names = list(catalog.entries())
    play = _Play(stage, guests)
    with gr.Blocks(title="Segue", analytics_enabled=False, fill_width=True) as page:
        gr.HTML(f'<h1 class="seg-title">Segue <small>{escape(Path(stage.model.lm.name).name)}</small></h1>', **PLAIN)
        with gr.Tabs():
            with gr.Tab("Playground", id="playground"):
                prompt = gr.Textbox(PROMPT, label="Prompt", lines=3, max_lines=12, elem_id="prompt")
                pickers, fields = [], []
                with gr.Row():
                    for label, default in (("left", DEFAULT_METHOD), ("right", "plain")):
                        with gr.Column(min_width=280):
                            pickers.append(
                                gr.Dropdown(names, value=default, label=f"Method {label}", elem_id=f"method-{label}")
                            )
                            fields.append(
                                gr.Textbox(
                                    label=f"Its fields, as NAME=VALUE ({label})",
                                    placeholder="none: the defaults",
                                    elem_id=f"fields-{label}",
                                )
                            )
                            told = gr.HTML(listing.fields(default), **PLAIN)
                            pickers[-1].change(listing.fields, pickers[-1], told, **QUIET)
                with gr.Row(equal_height=True):
                    most = gr.Number(96, label=f"Max tokens (to {MOST_TOKENS})", elem_id="max-tokens", min_width=120)
                    temperature = gr.Number(0, label="Temperature (0: greedy)", elem_id="temperature", min_width=120)
                    seed = gr.Number(0, label="Seed", elem_id="seed", min_width=120)
                    run = gr.Button("Run", variant="primary", elem_id="run", min_width=120)
                    stop = gr.Button("Stop", elem_id="stop", min_width=120)
                head = gr.HTML(f'<p class="seg-hint">{FAIR}</p>', elem_id="verdict", **PLAIN)
                sides, trees = [], []
                with gr.Row():
                    for label in ("left", "right"):
                        with gr.Column(min_width=280):
                            sides.append(gr.HTML(IDLE, elem_id=f"side-{label}", js_on_load=CLICK, **PLAIN))
                            trees.append(gr.HTML("", elem_id=f"tree-{label}", **PLAIN))
                shown = [head, *sides, *trees]
                form = [prompt, *pickers, *fields, most, temperature, seed]
                run.click(
                    play.run, form, shown, concurrency_limit=None, show_progress="hidden", api_visibility="private"
                )
                stop.click(play.stop, None, None, **QUIET)
                for number, one in enumerate(sides):
                    one.click(play.chooser(number), None, [one, trees[number]], **QUIET)
            with gr.Tab("Methods", id="methods"):
                words = gr.Textbox(label="Only those with these words", elem_id="filter", placeholder="tree attention")
                table = gr.HTML(listing.methods(), elem_id="methods", **PLAIN)
                words.change(listing.methods, words, table, **QUIET)
            with gr.Tab("Bench reports", id="reports"):
                gr.HTML(listing.reports(reports), elem_id="reports", **PLAIN)
        page.unload(play.leave)
    return page


PLAIN: dict[str, Any] = {"padding": False, "apply_default_css": False}
QUIET: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}


class _Play:
    """What the buttons do. A session is a tab of a browser; it has one race at a time."""

    def __init__(self, stage: Stage, guests: bool) -> None:
        self.stage = stage
        self.guests = guests

    def run(
        self,
        prompt: str,
        left: str,
        right: str,
        given: str,
        other: str,
        most: Any,
        warm: Any,
        seed: Any,
        at: gr.Request,
    ) -> Iterator[tuple[Any, ...]]:
        """Start a race and show it until it ends."""
        form = Form(prompt, (left, right), (given, other), most, warm, seed)
        try:
            race = Race(self.stage.model, requests(form, self.stage.model, guests=self.guests))
            self.stage.enter(at.session_hash, race)
        except ValueError as error:
            yield _refused(error)
            return
        try:
            while not race.finished.is_set():
                race.look()
                began = time.perf_counter()
                yield (_heading(race, self.stage.ahead(race)), *_sides(race), "", "")
                # A long text takes long to draw, here and in the browser: then it is drawn less often.
                race.finished.wait(max(TICK, 5 * (time.perf_counter() - began)))
            yield (_heading(race, 0), *_sides(race), *(_tree(race, i) for i in (0, 1)))
        finally:
            race.stop("stopped: the page was closed")

    def stop(self, at: gr.Request) -> None:
        self.stage.stop(at.session_hash)

    def leave(self, at: gr.Request) -> None:
        self.stage.leave(at.session_hash)

    def chooser(self, number: int) -> Callable[..., Any]:
        """What a click on a side does: its step is drawn."""

        def choose(event: gr.EventData, at: gr.Request) -> Any:
            race = self.stage.last(at.session_hash)
            step = event._data.get("step") if isinstance(event._data, dict) else None
            if race is None or not isinstance(step, int) or not 0 <= step < len(race.sides[number].log.steps):
                return gr.skip(), gr.skip()
            race.sides[number].selected = step
            drawn = gr.skip() if not race.finished.is_set() else _sides(race)[number]
            return drawn, _tree(race, number)

        return choose


def _refused(error: ValueError) -> tuple[Any, ...]:
    """The page where the form cannot be run."""
    told = stream.trouble(str(error))
    side = error.side if isinstance(error, Wrong) else None
    sides = [told if side == number else IDLE for number in (0, 1)]
    return (told if side is None else "", *sides, "", "")


def _heading(race: Race, ahead: int) -> str:
    if race.finished.is_set():
        if race.stopped is not None:
            return f'<p class="seg-verdict">{escape(race.stopped.capitalize())}. The memory is free again.</p>'
        return stream.verdict(*race.sides)
    if ahead:
        return f'<p class="seg-hint">Waiting: {ahead} run{"s" * (ahead > 1)} before this one.</p>'
    return f'<p class="seg-hint">{FAIR}</p>'


def _sides(race: Race) -> list[str]:
    drawn = []
    for side in race.sides:
        state = "over" if side.over else race.stopped or ("running" if race.begun else "waiting")
        drawn.append(stream.side(side, race.drafters, state=state))
    return drawn


def _tree(race: Race, number: int) -> str:
    """The step that was chosen; before one was, the one whose draft was accepted furthest."""
    side = race.sides[number]
    steps = list(side.log.steps)
    if side.selected is None:
        side.selected = max(range(len(steps)), key=lambda i: (steps[i].kept, steps[i].drafted), default=None)
    if side.selected is None:
        return ""
    return treeview.panel(steps[side.selected], side.selected, side.word)


class Sealed:
    """An ASGI middleware: browsers load nothing for these pages from elsewhere, and show them in no frame of others."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def sealing(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.setdefault("Content-Security-Policy", OWN)
                headers.setdefault("X-Content-Type-Options", "nosniff")
                headers.setdefault("Referrer-Policy", "no-referrer")
            await send(message)

        await self.app(scope, receive, sealing)


def create_app(model: Model, reports: Sequence[Path] = (), *, host: str = "127.0.0.1") -> FastAPI:
    """The page as an application."""
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)

    @app.get("/reports/{number}")
    def report(number: int) -> HTMLResponse:
        if not 0 <= number < len(reports):
            raise HTTPException(404)
        try:
            return HTMLResponse(reports[number].read_bytes(), headers=listing.SEALED)
        except OSError:
            raise HTTPException(404, f"{reports[number].name} is gone") from None

    fonts = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}
    page = blocks(Stage(model), reports, guests=host not in LOCAL)
    mounted: FastAPI = gr.mount_gradio_app(
        app,
        page,
        "/",
        footer_links=[],
        run_history=False,
        show_error=False,
        max_file_size=1,  # nobody uploads anything here
        ssr_mode=False,
        pwa=False,
        theme=gr.themes.Default(primary_hue="blue", neutral_hue="slate", **fonts),
        head=f"<style>{SHEET.read_text()}</style>",
    )
    mounted.add_middleware(Sealed)
    if host in LOCAL:  # another site's page could come to this one by a name of its own that leads here
        mounted.add_middleware(TrustedHostMiddleware, allowed_hosts=[*LOCAL, "[::1]"], www_redirect=False)
    return mounted


def serve(app: FastAPI, listening: socket.socket) -> None:
    """Serve until Ctrl-C or SIGTERM."""
    config = uvicorn.Config(
        app, log_level="warning", access_log=False, server_header=False, timeout_graceful_shutdown=1
    )
    uvicorn.Server(config).run(sockets=[listening])

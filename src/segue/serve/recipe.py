"""What a server is made of, before any of it is there: it can be sent to another process and be made there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fastapi import FastAPI

from segue.api import Model
from segue.models.crossencoder import cross_encoder
from segue.models.embedding import encoder
from segue.models.engine import Engine
from segue.models.load import load
from segue.models.prefixes import Prefixes
from segue.profile import Profile
from segue.serve.app import create_app
from segue.serve.choosing import Choosing
from segue.serve.limits import Limits


@dataclass(frozen=True)
class Recipe:
    """The operator's choices."""

    source: str | None  # of the model
    options: Mapping[str, Any]  # of loading it
    method: str
    fields: Mapping[str, Any] = field(default_factory=dict)
    profiles: Mapping[str, Profile] = field(default_factory=dict)
    limits: Limits = field(default_factory=Limits)
    name: str | None = None  # what clients call the model; its own if left out
    keys: tuple[str, ...] = ()
    prefix_bytes: int = 0  # kept of prompts; 0: none
    max_running: int = 64
    kv_bytes: int | None = None
    json_log: bool = False
    embedder: str | None = None  # folder of an encoder, or the name of the packaged one
    reranker: str | None = None  # folder of a cross-encoder
    cors: tuple[str, ...] = ()  # origins whose pages may ask

    def make(self, replica: str | None = None) -> FastAPI:
        """Load the model and put the server around it; `replica` is told apart in the metrics."""
        embeds = None if self.embedder is None else encoder(self.embedder)
        reranks = None if self.reranker is None else cross_encoder(self.reranker)
        choosing = Choosing(self.method, dict(self.fields), dict(self.profiles), self.limits)
        lm = load(self.source, **self.options)
        # What is read in other pieces differs in the last bits, which `invariant` rules out: no prompt is kept then.
        keep = self.prefix_bytes and not self.options.get("invariant")
        return create_app(
            Model(lm, prefixes=Prefixes(self.prefix_bytes) if keep else None),
            name=self.name or Path(lm.name).name,
            choosing=choosing,
            keys=self.keys,
            engine=lambda: Engine(max_running=self.max_running, kv_budget=self.kv_bytes),
            json_log=self.json_log,
            embedder=embeds,
            reranker=reranks,
            cors=self.cors,
            replica=replica,
        )

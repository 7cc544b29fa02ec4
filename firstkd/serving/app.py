"""The server around a champion: JSON in, answers with their route and confidence out."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse
from starlette.exceptions import HTTPException

from firstkd.errors import PipelineError
from firstkd.serving.batching import Batcher, OverloadedError, Served
from firstkd.serving.drift import Drift
from firstkd.serving.escalation import Escalation
from firstkd.serving.limits import Guard
from firstkd.serving.metrics import Metrics
from firstkd.serving.policy import route
from firstkd.serving.settings import ServeSettings
from firstkd.serving.targets import target_of
from firstkd.serving.traffic import TrafficLog
from firstkd.serving.wire import Request, Response

WATCH_SECONDS = 5.0

Newest = Callable[[str | None], Served | None]
"""Returns the champion, unless it has this name. Runs in a thread, and may take a while."""

log = logging.getLogger(__name__)


class Service:
    """A champion, its batches, and whoever it passes questions on to."""

    def __init__(
        self,
        settings: ServeSettings,
        newest: Newest,
        other: Served | None,
        traffic_folder: Path | None,
        drift: Drift | None,
    ) -> None:
        champion = newest(None)
        assert champion is not None
        self.limits, self.newest, self.metrics = settings.limits, newest, Metrics()
        self.drift = drift
        self.champion = self._batcher(champion, self.metrics.batch.observe)
        self._in_charge(champion)
        self.metrics.waiting.set_function(lambda: self.champion.size)
        self.other = self._batcher(other, lambda _: None) if other else None
        self.traffic = None
        if settings.traffic and traffic_folder:
            self.traffic = TrafficLog(traffic_folder, settings.traffic)
        self.escalation = None
        if (asked := settings.escalate) is not None:
            target = target_of(asked, self.other)
            self.escalation = Escalation(target, asked.timeout_seconds, asked.parallel)

    def _batcher(self, served: Served, on_batch: Callable[[int], None]) -> Batcher:
        return Batcher(served, self.limits.questions, self.limits.waiting, on_batch)

    def _in_charge(self, served: Served) -> None:
        self.metrics.in_charge(served.name)
        if self.drift:
            answerer = served.answerer
            self.drift.watch(served.name, answerer.reference, answerer.threshold.abstain_below)

    async def answer(self, request: Request) -> Response:
        questions, limits = request.questions, self.limits
        if len(questions) > limits.questions:
            raise HTTPException(413, f"{len(questions)} questions; at most {limits.questions}")
        if (most := max(len(asked.choices or ()) for asked in questions)) > limits.choices:
            raise HTTPException(413, f"a question has {most} choices; at most {limits.choices}")
        examples = self.champion.served.answerer.examples(
            [asked.question for asked in questions], [asked.choices for asked in questions]
        )
        served, answers = await self.champion.answer(examples)
        if self.drift and served.name == self.drift.state.version:
            chosen = [
                (e, a.confidence) for e, a in zip(examples, answers, strict=True) if e.choices
            ]
            self.drift.add([e for e, _ in chosen], [sure for _, sure in chosen])
            self.metrics.drifting(self.drift.state)
        told = await route(served, examples, answers, self.escalation)
        for each in told:
            self.metrics.count(each)
        if self.traffic:
            self.traffic.add(examples, told)
        return Response(answers=told)

    def health(self) -> dict[str, Any]:
        served = self.champion.served
        first, *others = served.answerer.thresholds
        alarm = self.drift and self.drift.state.alarm
        return {
            "version": served.name,
            **first.in_force(),
            **({"open_text": others[0].in_force()} if others else {}),
            "drift": alarm and alarm.words,
            "escalation": self.escalation and ("paused" if self.escalation.is_open else "ready"),
        }

    async def watch(self, seconds: float) -> None:
        """Load each new champion, which answers from the next batch on."""
        while True:
            await asyncio.sleep(seconds)
            known = self.champion.served.name
            try:
                found = await asyncio.to_thread(self.newest, known)
            except PipelineError as error:
                log.warning("%s stays in charge; the registry cannot be read: %s", known, error)
                continue
            except Exception as error:  # e.g. too little memory for two; the next look may succeed
                kind = type(error).__name__
                log.warning(
                    "%s stays in charge; loading the next failed: %s: %s", known, kind, error
                )
                continue
            if found is not None:
                self.champion.served = found
                self._in_charge(found)
                log.info("%s takes over from %s", found.name, known)

    @contextlib.asynccontextmanager
    async def running(self, watch_seconds: float) -> AsyncIterator[None]:
        batchers = [self.champion, *([self.other] if self.other else [])]
        tasks = [asyncio.create_task(batcher.work()) for batcher in batchers]
        tasks.append(asyncio.create_task(self.watch(watch_seconds)))
        if self.traffic:
            tasks.append(asyncio.create_task(self.traffic.work()))
        if self.drift:
            tasks.append(asyncio.create_task(self.drift.work()))
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            if self.traffic:
                await self.traffic.flush()
            if self.drift:
                await self.drift.flush()
            if self.escalation:
                await self.escalation.target.close()


def create_app(
    settings: ServeSettings,
    newest: Newest,
    token: str | None = None,
    other: Served | None = None,
    watch_seconds: float = WATCH_SECONDS,
    traffic_folder: Path | None = None,
    drift: Drift | None = None,
) -> FastAPI:
    """Return the server's application, with the champion loaded.

    With a token, everything but /health requires it. `other` is the registered model to escalate
    to. The traffic log is written to `traffic_folder` if the settings enable it; `drift` watches
    the answers.
    """
    service = Service(settings, newest, other, traffic_folder, drift)

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with service.running(watch_seconds):
            yield

    app = FastAPI(title="firstkd", lifespan=lifespan)
    app.state.stopping = False
    app.add_middleware(Guard, limits=settings.limits, metrics=service.metrics, token=token)
    app.post("/answer")(service.answer)
    app.get("/health")(service.health)

    @app.get("/metrics", response_class=PlainTextResponse)
    def metrics() -> bytes:
        return service.metrics.text()

    for error, handler in HANDLERS.items():
        app.add_exception_handler(error, handler)
    return app


async def _invalid(_: Any, error: Any) -> JSONResponse:
    """Say where a request is wrong and why, without repeating it."""
    [first, *_] = error.errors()
    if first["type"] == "json_invalid":
        return JSONResponse({"error": "the body is not JSON"}, 400)
    place = ".".join(map(str, first["loc"][1:]))
    return JSONResponse({"error": f"{place}: {first['msg']}" if place else first["msg"]}, 422)


async def _unanswerable(_: Any, error: Exception) -> JSONResponse:
    return JSONResponse({"error": str(error)[:500]}, 422)


async def _overloaded(*_: Any) -> JSONResponse:
    return JSONResponse({"error": "too many questions are waiting"}, 503, {"Retry-After": "1"})


async def _refused(_: Any, error: Any) -> JSONResponse:
    return JSONResponse({"error": error.detail}, error.status_code, error.headers)


HANDLERS: dict[type[Exception], Any] = {
    RequestValidationError: _invalid,
    PipelineError: _unanswerable,
    OverloadedError: _overloaded,
    HTTPException: _refused,
}

"""Answer, abstain or pass on."""

import asyncio
from collections.abc import Sequence

from firstkd.answering import Answer
from firstkd.data.examples import Example
from firstkd.serving.batching import Served
from firstkd.serving.escalation import Escalation
from firstkd.serving.targets import EscalationError
from firstkd.serving.wire import Told, question_id


async def route(
    served: Served,
    examples: Sequence[Example],
    answers: Sequence[Answer],
    escalation: Escalation | None,
) -> list[Told]:
    """Return what each question gets; those passed on go at the same time."""
    pairs = zip(examples, answers, strict=True)
    return await asyncio.gather(*(_told(served, *pair, escalation) for pair in pairs))


async def _told(
    served: Served, example: Example, own: Answer, escalation: Escalation | None
) -> Told:
    told = Told(
        id=question_id(example.prompt, example.choices or ()),
        route="answered",
        answer=own.answer,
        confidence=own.confidence,
        by=served.name,
        guess=own.answer,
        guess_confidence=own.confidence,
    )
    if not own.abstain:
        return told
    if escalation is None:
        return told.model_copy(update={"route": "abstained", "answer": None})
    try:
        given = await escalation.ask(example)
    except EscalationError as error:
        return told.model_copy(update={"route": "fallback", "reason": str(error)})
    found = {"answer": given.answer, "confidence": given.confidence, "by": given.by}
    return told.model_copy(update={"route": "escalated", **found})

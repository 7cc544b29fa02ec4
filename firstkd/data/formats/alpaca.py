"""Alpaca as published: `instruction`, `input` (often empty) and `output`, which is open text."""

from collections.abc import Iterator

from firstkd.data.formats.entry import Entry, Format, Malformed, cleaned, text_of
from firstkd.data.records import Record


def parse(record: Record, labelled: bool) -> Iterator[Entry]:
    given, output = record.get("input"), record.get("output")
    if given is None:
        given = ""
    if not isinstance(given, str) or not isinstance(output, str):
        raise Malformed(f"'input' and 'output' must be text, found {given!r} and {output!r}")
    passage = cleaned(given, "input")
    yield Entry(
        prompt="\n\n".join(filter(None, [text_of(record, "instruction"), passage])),
        choices=None,
        response=cleaned(output, "output"),
    )


ALPACA = Format(parse, "output")

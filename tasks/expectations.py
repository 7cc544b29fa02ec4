"""What is expected of the examples, validated with Great Expectations."""

import logging
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from firstkd.data.examples import UNLABELLED
from firstkd.data.settings import ValidateSettings

os.environ["GX_ANALYTICS_ENABLED"] = "false"  # read on import

import great_expectations as gx
import great_expectations.expectations as gxe
from great_expectations.data_context import EphemeralDataContext
from great_expectations.data_context.types.base import ProgressBarsConfig
from great_expectations.expectations.expectation import Expectation
from great_expectations.expectations.metadata_types import FailureSeverity

# It sets its own level on import, and mentions a temporary folder that is never used.
logging.getLogger("great_expectations.data_context.types.base").setLevel(logging.WARNING)

NOT_NULL = ("id", "prompt", "response", "source", "split")
NOT_BLANK = ("id", "prompt", "response")
WARNING = FailureSeverity.WARNING
MAX_IDS = 20  # named per failed expectation

DATA = "fetch.datasets"
"""What governs an expectation without a limit: the data sets, their format and columns."""

Expected = Iterator[tuple[str, str, Expectation]]
"""Name, the setting of params.yaml that governs it, and expectation."""
Outcome = dict[str, Any]


def expected_of_rows(split: str, settings: ValidateSettings) -> Expected:
    """Yield what is expected of every row of a split's frames (firstkd.data.frames)."""
    for column in NOT_NULL:
        yield f"{column}_not_null", DATA, gxe.ExpectColumnValuesToNotBeNull(column=column)
    for column in NOT_BLANK:
        if (split, column) != (UNLABELLED, "response"):
            blank = gxe.ExpectColumnValuesToNotMatchRegex(column=column, regex=r"^\s*$")
            yield f"{column}_not_blank", DATA, blank
    once = gxe.ExpectColumnValuesToBeBetween(column="rows_of_id", max_value=1)
    yield "id_unique", DATA, once
    yield "split_as_file", DATA, gxe.ExpectColumnValuesToBeInSet(column="split", value_set=[split])
    yield from _of_choices()
    yield from _unlabelled() if split == UNLABELLED else _of_answers()
    for column, key in (
        ("prompt_tokens", "max_prompt_tokens"),
        ("response_tokens", "max_response_tokens"),
    ):
        limit = getattr(settings, key)
        within = gxe.ExpectColumnValuesToBeBetween(column=column, min_value=1, max_value=limit)
        yield f"{column}_within_limit", f"validate.{key} = {limit}", within
    for shared in ("id", "question", "group"):
        alone = gxe.ExpectColumnValuesToBeNull(column=f"same_{shared}_in")
        yield f"{shared}_in_one_split", DATA, alone


def expected_of_split(split: str, places: pd.DataFrame, settings: ValidateSettings) -> Expected:
    """Yield what is expected of a split as a whole; `places` come from `answer_places`."""
    yield _enough(split, settings)
    if split == UNLABELLED:
        return
    fewest, least = settings.min_answer_questions, settings.min_answer_share
    setting = (
        f"validate.min_answer_share = {least}, checked once validate.min_answer_questions = "
        f"{fewest} questions have the choice"
    )
    for column in places.columns:
        if places[column].notna().sum() >= fewest:
            share = gxe.ExpectColumnMeanToBeBetween(column=column, min_value=least)
            yield column.replace("_at_", "_share_"), setting, share


def _enough(split: str, settings: ValidateSettings) -> tuple[str, str, Expectation]:
    fewest = getattr(settings.min_examples, split, None)
    setting = f"validate.min_examples.{split} = {fewest}"
    if fewest is None:  # an out-of-domain set, or the unlabelled questions: not empty
        name = split.removeprefix("ood_")
        fewest, setting = 1, DATA if split == UNLABELLED else f"{DATA}.{name}"
    return "enough_examples", setting, gxe.ExpectTableRowCountToBeBetween(min_value=fewest)


def _of_choices() -> Expected:
    """Expect choices that make sense; open text has nulls in these columns, which are skipped."""
    two = gxe.ExpectColumnValuesToBeBetween(column="num_choices", min_value=2)
    yield "choices_two_or_more", DATA, two
    blank = gxe.ExpectColumnValuesToBeBetween(column="blank_choices", max_value=0)
    yield "choices_not_blank", DATA, blank
    # Published data have such questions: 122 of CommonsenseQA's 9,741 repeat a choice.
    yield (
        "choices_distinct",
        DATA,
        gxe.ExpectColumnPairValuesToBeEqual(
            column_A="num_choices",
            column_B="distinct_choices",
            ignore_row_if="both_values_are_missing",
            severity=WARNING,
        ),
    )


def _unlabelled() -> Expected:
    empty = gxe.ExpectColumnValuesToBeInSet(column="response", value_set=[""])
    yield "response_empty", DATA, empty
    yield "no_answer_index", DATA, gxe.ExpectColumnValuesToBeNull(column="answer_index")


def _of_answers() -> Expected:
    positive = gxe.ExpectColumnValuesToBeBetween(column="answer_index", min_value=0)
    yield "answer_index_not_negative", DATA, positive
    yield (
        "answer_index_within_choices",
        DATA,
        gxe.ExpectColumnPairValuesAToBeGreaterThanB(
            column_A="num_choices", column_B="answer_index", ignore_row_if="either_value_is_missing"
        ),
    )
    yield (
        "response_is_chosen_choice",
        DATA,
        gxe.ExpectColumnPairValuesToBeEqual(
            column_A="response", column_B="chosen", ignore_row_if="either_value_is_missing"
        ),
    )


class Validation:
    """Validates frames, any number per split, and writes Data Docs to a folder."""

    def __init__(self, settings: ValidateSettings, docs: Path) -> None:
        self._settings = settings
        self._context = _context(docs)
        self._source = self._context.data_sources.add_pandas("examples")
        self._definitions: dict[str, gx.ValidationDefinition] = {}
        self._found: dict[str, dict[str, Outcome]] = {}

    def rows(self, split: str, frame: pd.DataFrame) -> bool:
        """Validate some rows of a split; return whether only warnings have failed so far."""
        self._run(split, split, frame, lambda: expected_of_rows(split, self._settings))
        found = self._found[split].values()
        return all(outcome["success"] or outcome["severity"] == "warning" for outcome in found)

    def split(self, split: str, places: pd.DataFrame) -> None:
        """Validate what only a whole split shows; `places` has a row for each of its questions."""
        whole = f"{split}, as a whole"
        self._run(split, whole, places, lambda: expected_of_split(split, places, self._settings))

    def finish(self) -> dict[str, dict[str, Outcome]]:
        """Write the Data Docs.

        Returns, per split and name of expectation, `success`, `severity` (critical or warning),
        the `setting` of params.yaml that governs it, and what was seen: `observed`, or `unexpected`
        rows and up to 20 of their `ids`.
        """
        self._context.build_data_docs()
        return {
            split: {name: _governed(outcome) for name, outcome in outcomes.items()}
            for split, outcomes in self._found.items()
        }

    def _run(
        self, split: str, name: str, frame: pd.DataFrame, expected: Callable[[], Expected]
    ) -> None:
        if name not in self._definitions:
            self._definitions[name] = self._define(name, expected())
        result = self._definitions[name].run(
            batch_parameters={"dataframe": frame},
            result_format={
                "result_format": "SUMMARY",
                "unexpected_index_column_names": ["id"],
                "partial_unexpected_count": MAX_IDS,
            },
        )
        found = self._found.setdefault(split, {})
        for expectation, outcome in map(_outcome, result.to_json_dict()["results"]):
            before = found.get(expectation)
            found[expectation] = outcome if before is None else _together(before, outcome)

    def _define(self, name: str, expected: Expected) -> gx.ValidationDefinition:
        suite = gx.ExpectationSuite(name)
        for expectation_name, setting, expectation in expected:
            expectation.meta = {"name": expectation_name, "setting": setting}
            suite.add_expectation(expectation)
        data = self._source.add_dataframe_asset(name).add_batch_definition_whole_dataframe(name)
        definition = gx.ValidationDefinition(
            name=name, data=data, suite=self._context.suites.add(suite)
        )
        return self._context.validation_definitions.add(definition)


def _context(docs: Path) -> EphemeralDataContext:
    shutil.rmtree(docs, ignore_errors=True)
    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = ProgressBarsConfig(globally=False)
    for site in context.get_site_names():  # the default one is in a temporary folder
        context.delete_data_docs_site(site)
    context.add_data_docs_site(
        site_name="data_docs",
        site_config={
            "class_name": "SiteBuilder",
            "site_index_builder": {"class_name": "DefaultSiteIndexBuilder"},
            "store_backend": {
                "class_name": "TupleFilesystemStoreBackend",
                "base_directory": str(docs.absolute()),
            },
        },
    )
    return context


def _outcome(result: dict[str, Any]) -> tuple[str, Outcome]:
    config, seen = result["expectation_config"], result["result"]
    outcome = {
        "success": result["success"],
        "severity": config["severity"],
        "setting": config["meta"]["setting"],
    }
    if "unexpected_count" not in seen:
        outcome["observed"] = seen["observed_value"]
    else:
        outcome["unexpected"] = seen["unexpected_count"]
        outcome["ids"] = [row["id"] for row in seen.get("partial_unexpected_index_list", [])]
    return config["meta"]["name"], outcome


def _together(before: Outcome, more: Outcome) -> Outcome:
    """Merge the outcomes for the rows of two frames."""
    return {
        **before,
        "success": before["success"] and more["success"],
        "unexpected": before["unexpected"] + more["unexpected"],
        "ids": [*before["ids"], *more["ids"]][:MAX_IDS],
    }


def _governed(outcome: Outcome) -> Outcome:
    """Name the data sets of the rows that are wrong: an id starts with its data set's name."""
    if outcome["setting"] != DATA or not outcome.get("ids"):
        return outcome
    sources = sorted({str(identity).partition("/")[0] for identity in outcome["ids"]})
    return {**outcome, "setting": ", ".join(f"{DATA}.{source}" for source in sources)}

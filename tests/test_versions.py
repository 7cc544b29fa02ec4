"""Pairs of packages that `pip check` finds in order and that break Prefect 3.8 all the same."""

from importlib.metadata import version

import pytest
from packaging.version import Version


@pytest.mark.parametrize(
    ("package", "limit", "symptom"),
    [
        ("fastapi", "0.151", "every flow call fails: Body() got an unexpected keyword 'min_items'"),
        ("sqlalchemy", "2.1", "scheduled runs never appear: Can't evaluate bulk DML statement"),
    ],
)
def test_prefect_works_with_what_it_is_paired_with(package: str, limit: str, symptom: str) -> None:
    if Version(version("prefect")) >= Version("3.9"):
        pytest.fail("try the newer pairs with this Prefect, then mend pyproject.toml and this test")
    assert Version(version(package)) < Version(limit), f"{package} {version(package)}: {symptom}"

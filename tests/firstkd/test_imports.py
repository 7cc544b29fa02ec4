import sys

import pytest

from firstkd.imports import unimportable


def test_module_cannot_be_imported_inside_and_is_what_it_was_afterwards() -> None:
    import json

    with unimportable("json"), pytest.raises(ImportError):
        import json
    assert sys.modules["json"] is json
    with unimportable("not_there"):
        pass
    assert "not_there" not in sys.modules

"""Which places a term on hidden states compares."""

import pytest

from firstkd.errors import ConfigError
from firstkd.terms.base import Pairing
from firstkd.terms.flow import Flow
from firstkd.terms.hidden import Hidden
from firstkd.terms.places import matched

SAME = (32, 32)


def hidden(**settings):
    return Hidden.model_validate({"kind": "hidden", "from": "states", **settings})


def flow(**settings):
    return Flow.model_validate({"kind": "flow", "from": "states", **settings})


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        ("last", [(4, 6)]),
        ("uniform", [(1, 2), (2, 3), (3, 5), (4, 6)]),
        # behind the student's first layer, which was the teacher's 0, its next one was the 2
        ("kept", [(1, 2), (2, 3), (3, 5), (4, 6)]),
        ([[0, 0], [4, 5]], [(0, 0), (4, 5)]),
    ],
)
def test_the_map_of_layers(layers, expected):
    pairing = Pairing((4, 6), SAME, [0, 2, 3, 5])
    assert [*hidden(layers=layers).pairs(pairing, "")] == expected


@pytest.mark.parametrize("of", ["layers", "places"])
def test_uniform_stays_within_a_model_of_fewer_layers(of):
    first = 0 if of == "layers" else 1
    found = matched("uniform", Pairing((30, 7), SAME, None), "", of)
    assert found[0] == (first, first) and found[-1] == (29 + first, 6 + first)
    assert [theirs for _, theirs in found] == sorted(theirs for _, theirs in found)


@pytest.mark.parametrize(
    ("settings", "pairing", "message"),
    [
        ({"layers": [[1, 7]]}, Pairing((4, 6), SAME, None), r"k.layers: .*pair \[1, 7\]; .* to 6"),
        ({"layers": [[5, 1]]}, Pairing((4, 6), SAME, None), r"k.layers: .*pair \[5, 1\]; .*0 to 4"),
        ({"layers": "kept"}, Pairing((4, 6), SAME, None), r"k.layers: kept, but the student"),
    ],
)
def test_what_cannot_be_compared_is_named(settings, pairing, message):
    with pytest.raises(ConfigError, match=message):
        hidden(**settings).pairs(pairing, "k")


def test_a_flow_is_between_two_places_at_least():
    pairing = Pairing((4, 6), SAME, None)
    assert [*flow().pairs(pairing, "")] == [(1, 2), (2, 3), (3, 5), (4, 6)]
    for layers in ("last", [[1, 2]]):
        with pytest.raises(ConfigError, match=r"k.layers: a single place, but flow compares one"):
            flow(layers=layers).pairs(pairing, "k")


def test_a_gram_matrix_takes_equal_widths_and_a_length_does_not():
    pairing = Pairing((4, 6), (32, 48), None)
    with pytest.raises(ConfigError, match=r"k.form: gram compares matrices of 32 × 32 and 48 × 48"):
        flow().pairs(pairing, "k")
    assert len(flow(form="length").pairs(pairing, "k")) == 4

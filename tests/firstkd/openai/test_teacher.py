from firstkd.openai.teacher import LONGEST_ASKED, LONGEST_WAIT, seconds_to_wait


def test_a_server_decides_the_wait_within_reason():
    assert seconds_to_wait(0, 2.5) == 2.5
    assert seconds_to_wait(0, 86_400.0) == seconds_to_wait(0, float("inf")) == LONGEST_ASKED
    assert LONGEST_WAIT / 2 <= seconds_to_wait(20, None) <= LONGEST_WAIT

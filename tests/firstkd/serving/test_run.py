import pytest

from firstkd.errors import ConfigError
from firstkd.serving.run import TOKEN, token_for

GOOD = "sixteen-letters-x"


def test_other_machines_need_a_token(tmp_path, monkeypatch):
    monkeypatch.delenv(TOKEN, raising=False)
    for host in ("127.0.0.1", "127.3.2.1", "::1", "localhost"):
        assert token_for(host, None) is None
    for host in ("0.0.0.0", "192.168.1.4", "::", "example.org"):
        with pytest.raises(ConfigError, match=f"other machines can reach {host}"):
            token_for(host, None)
    monkeypatch.setenv(TOKEN, GOOD)
    assert token_for("0.0.0.0", None) == token_for("127.0.0.1", None) == GOOD
    (tmp_path / "token").write_text(f"{GOOD}-file\n")
    assert token_for("0.0.0.0", tmp_path / "token") == f"{GOOD}-file"


@pytest.mark.parametrize("content", ["", "short", "not-ascii-ä-ä-ä-ä"])
def test_a_token_that_is_none_is_refused(tmp_path, monkeypatch, content):
    monkeypatch.delenv(TOKEN, raising=False)
    (tmp_path / "token").write_text(content)
    with pytest.raises(ConfigError, match="token"):
        token_for("127.0.0.1", tmp_path / "token")
    with pytest.raises(ConfigError, match="cannot be read"):
        token_for("127.0.0.1", tmp_path / "missing")

import http.server
import threading
from pathlib import Path

import httpx
import pytest
import requests

from firstkd.data.sources import fetch_source
from firstkd.errors import ConfigError
from firstkd.proxies import bypass_for_this_machine, check_proxies


@pytest.fixture(autouse=True)
def _no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


@pytest.mark.parametrize("direct", ["", "example.org", "127.0.0.1", "127.0.0.10,b", "localhost"])
@pytest.mark.parametrize("proxy", ["HTTP_PROXY", "http_proxy", "ALL_PROXY"])
def test_this_machine_is_asked_without_a_proxy(
    monkeypatch: pytest.MonkeyPatch, proxy: str, direct: str
) -> None:
    monkeypatch.setenv(proxy, "http://127.0.0.1:9")
    monkeypatch.setenv("NO_PROXY", direct)
    monkeypatch.setenv("no_proxy", "")  # so that it is put back
    bypass_for_this_machine()
    with http.server.HTTPServer(("127.0.0.1", 0), http.server.SimpleHTTPRequestHandler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        for host in ("127.0.0.1", "localhost"):
            url = f"http://{host}:{server.server_port}/"
            assert httpx.head(url).is_success  # as Prefect asks
            assert requests.head(url, timeout=10).ok  # as MLflow does
        server.shutdown()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("HTTP_PROXY", "proxy.example:3128"),
        ("https_proxy", "http://user:secret@proxy.example:3128"),
        ("ALL_PROXY", "socks5://proxy.example:1080"),
        ("ALL_PROXY", "socks5h://proxy.example:1080"),
        ("NO_PROXY", "10.0.0.0/8,.example,::1"),
    ],
)
def test_usual_proxies_can_be_used(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)
    check_proxies()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ALL_PROXY", "socks://127.0.0.1:7890"),  # as GNOME and Clash set it
        ("http_proxy", "http://user:se/cret@proxy.example:3128"),
        ("NO_PROXY", "fd00::/8"),
        ("no_proxy", "[::1]"),
    ],
)
def test_one_that_cannot_is_named_without_its_value(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=f"variables {name} cannot be used") as raised:
        check_proxies()
    assert value not in str(raised.value)
    with pytest.raises(ConfigError, match=name):  # before the hub is asked
        fetch_source(f"hub:org/name@{'0' * 40}", None, tmp_path / "model", tmp_path)

"""Proxies from the environment: bypassed for this machine's own servers, and checked.

httpx, which Prefect and the hub's client also use, reads all of them whatever address it requests,
and crashes on one that it does not understand.
"""

import os

from firstkd.errors import ConfigError

VARIABLES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")


def bypass_for_this_machine() -> None:
    """Let requests to 127.0.0.1 and localhost go direct, since no proxy could answer them."""
    given = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
    hosts = [host.strip() for host in given.split(",") if host.strip()]
    if "*" not in hosts:
        missing = [host for host in ("127.0.0.1", "localhost") if host not in hosts]
        os.environ["no_proxy"] = os.environ["NO_PROXY"] = ",".join([*hosts, *missing])


def check_proxies() -> None:
    """Raise ConfigError naming the variables if httpx cannot make any request with them."""
    import httpx

    try:
        httpx.Client().close()
    except (ValueError, httpx.InvalidURL) as error:
        # not their values, which may contain a password
        names = ", ".join(sorted(name for name in os.environ if name.lower() in VARIABLES))
        raise ConfigError(
            f"the environment variables {names} cannot be used: a proxy's address starts "
            "with http://, https://, socks5:// or socks5h://, its port is a number, and NO_PROXY "
            "holds host names and addresses, but no brackets or IPv6 networks"
        ) from error

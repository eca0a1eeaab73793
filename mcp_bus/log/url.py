"""The URL of the log: one server, or several of a cluster.

nats://[USER:PASSWORD@]HOST:PORT[,HOST:PORT…]        a token stands for the user alone
"""

from __future__ import annotations

import re


def servers_of(url: str) -> tuple[list[str], str, str]:
    """The servers of a URL, and user and password for all of them.

    Also for those that it does not name, and of which the servers tell: nats-py would go there with
    nothing, and be refused.
    """
    scheme, _, rest = url.rpartition("://")
    who, _, places = rest.rpartition("@")
    user, _, password = who.partition(":")
    return [f"{scheme or 'nats'}://{place}" for place in places.split(",")], user, password


def without_password(url: str) -> str:
    return re.sub(r"//[^@/]*@", "//", url)

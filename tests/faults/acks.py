"""A wire that loses the first acknowledgement of each message."""

from __future__ import annotations

import re

from tests.faults.proxy import Proxy, Way, Wire

# what the server says to whoever listens: its head, and how long what follows is
HEAD = re.compile(rb"(H?MSG) [^\r\n]* (\d+)\r\n")
# that it has stored a message, and not that it has known it already
ACKED = re.compile(rb'\{"stream":"MCP",[^{}]*"seq":\d+[^{}]*\}\r\n\Z')
KNOWN = b'"duplicate"'


class FirstAcks(Proxy):
    """Reads along as the server speaks (docs.nats.io/reference/reference-protocols/nats-protocol),
    and passes on all but the acknowledgements of what was stored now. One that is sent again is
    known by then, and its acknowledgement says so."""

    def __init__(self, engine_port: int) -> None:
        super().__init__(engine_port)
        self.dropped = 0
        self._read: dict[Wire, bytes] = {}  # of a line or a message whose end has not come yet

    def passed_on(self, data: bytes, wire: Wire, way: Way) -> bytes:
        if way == "up":
            return data
        data = self._read.pop(wire, b"") + data
        passed: list[bytes] = []
        at = 0
        while (line_end := data.find(b"\r\n", at)) >= 0:
            end = line_end + 2
            if head := HEAD.match(data, at):
                end += int(head[2]) + 2
            if end > len(data):
                break
            said = data[at:end]
            at = end
            if head and ACKED.search(said) and KNOWN not in said:
                self.dropped += 1
            else:
                passed.append(said)
        self._read[wire] = data[at:]
        return b"".join(passed)

"""The embedded bus: real engines and every service as children of one process.

`running(settings)` starts nats-server, PostgreSQL and the services, keeps them alive, and ends
them all; nothing is simulated. Production runs the same services against engines given by URL.
Linux and macOS; only Linux lets children die with a parent that was killed by SIGKILL.
"""

from mcp_bus.embedded.bus import SERVICES, TOGETHER, Bus, running
from mcp_bus.embedded.supervisor import Event

__all__ = ["SERVICES", "TOGETHER", "Bus", "Event", "running"]

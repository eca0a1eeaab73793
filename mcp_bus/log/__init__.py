"""The log: the only door to NATS. Publishing, following, queues, questions and answers.

One JetStream stream holds every message in one order; a message's sequence is its position. This
package is the only importer of nats-py, because each of its pitfalls is handled once, here:
futures that hang, silent drops, publishes without an outcome, fetches that sit out their time.
"""

from mcp_bus.log import callout, copies, health, mending, micro, questions, queues, snapshots
from mcp_bus.log.asker import Answer, Asker
from mcp_bus.log.connection import Listening, Log, connect
from mcp_bus.log.delivery import Deliveries, Delivery
from mcp_bus.log.fenced import FencedPublisher, Output
from mcp_bus.log.follower import Follower
from mcp_bus.log.records import LogInfo, Published, Record, republished
from mcp_bus.log.stream import prepare

__all__ = [
    "Answer",
    "Asker",
    "Deliveries",
    "Delivery",
    "FencedPublisher",
    "Follower",
    "Listening",
    "Log",
    "LogInfo",
    "Output",
    "Published",
    "Record",
    "callout",
    "connect",
    "copies",
    "health",
    "mending",
    "micro",
    "prepare",
    "questions",
    "queues",
    "republished",
    "snapshots",
]

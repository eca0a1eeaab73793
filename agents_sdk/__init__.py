"""The SDK: make an agent of your functions, or talk to those of others.

It needs nats-py, pydantic and opentelemetry-api, and nothing of the server; docs/sdk.md is its
reference.
"""

from agents_sdk.actions import Action, ActionError
from agents_sdk.agent import Agent
from agents_sdk.client import Bus, connect
from agents_sdk.context import Context
from agents_sdk.subscription import Subscription
from mcp_bus.errors import BusError
from mcp_bus.messages import Message

__all__ = [
    "Action",
    "ActionError",
    "Agent",
    "Bus",
    "BusError",
    "Context",
    "Message",
    "Subscription",
    "connect",
]

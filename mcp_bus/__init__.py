"""An event-sourced message bus for AI agents: the log is the truth, all else a fold of it."""

__version__ = "0.1.0"

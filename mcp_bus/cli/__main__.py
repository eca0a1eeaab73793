"""`python -m mcp_bus.cli`: the same as `mcp-bus`; this is how the embedded bus runs services."""

from mcp_bus.cli import main

main(prog_name="mcp-bus")

"""`mcp-bus`, and `python -m mcp_bus`: this is how the embedded bus runs services."""

import sys


def main() -> None:
    """The command; without the server's packages one sentence that says what to install."""
    try:
        from mcp_bus.cli import main as command
    except ModuleNotFoundError as error:
        sys.exit(f"mcp-bus needs {error.name}: pip install 'mcp-event-bus[server]'")
    command(prog_name="mcp-bus")


if __name__ == "__main__":
    main()

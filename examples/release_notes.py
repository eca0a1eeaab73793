# An agent that makes release notes of a git log. Run it: python examples/release_notes.py
import re
from collections import Counter

from agents_sdk import Agent

KINDS = {"add": "Added", "feat": "Added", "fix": "Fixed", "remove": "Removed", "test": "Tested"}
COMMIT = re.compile(r"^Commit: (\w+)\nAuthor: (.*)\nDate: .*\nMessage: (\W*(\w*).*)", re.MULTILINE)
agent = Agent("release-notes", type="writer", capability="text")


@agent.action
def release_notes(log: str, title: str = "Release notes") -> dict[str, object]:
    """Make release notes of the text that mcp-server-git's git_log gives."""
    commits = [(*found, KINDS.get(found[3].lower(), "Changed")) for found in COMMIT.findall(log)]
    kinds, authors = Counter(c[4] for c in commits), Counter(c[1] for c in commits)
    markdown = f"# {title}\n\n{len(commits)} changes by {', '.join(authors)}\n"
    for kind, count in kinds.most_common():
        lines = (f"- {c[2]} ({c[0][:7]}, {c[1]})" for c in commits if c[4] == kind)
        markdown += "\n".join((f"\n## {kind} ({count})\n", *lines, ""))
    return {"markdown": markdown, "commits": len(commits), "authors": authors, "kinds": kinds}


if __name__ == "__main__":
    agent.run()

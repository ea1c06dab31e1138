"""`lmconsole skill`: instructions for coding agents, in the format of Agent Skills (https://agentskills.io)."""

import re
from pathlib import Path

import msgspec

from lmconsole.commands.output import print_data, print_json


class Skill(msgspec.Struct, frozen=True, kw_only=True):
    """The instructions, as `skill --json` prints them."""

    name: str
    """Name of the skill, and of the folder for its SKILL.md."""
    description: str
    """Subject and purpose, by which an agent decides to read it."""
    text: str
    """Content of SKILL.md."""


def show_skill(*, json: bool) -> None:
    """Print SKILL.md."""
    text = Path(__file__).with_name("SKILL.md").read_text(encoding="utf-8")
    if json:
        fields: dict[str, str] = dict(re.findall(r"^(name|description): (.+)$", text, re.MULTILINE))
        print_json(Skill(name=fields["name"], description=fields["description"], text=text))
    else:
        print_data(text.removesuffix("\n"))

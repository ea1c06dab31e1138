"""Makes the README's picture: the console itself, on a real store, drawn by Textual as SVG.

python docs/screenshot.py RUNS docs/console.svg [--select 1 5 9 11] [--size 120x36] [--theme lmconsole-light]
"""

import argparse
import asyncio
import os
import tempfile
from pathlib import Path


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Draw the console on a run store as SVG.")
    parser.add_argument("runs", type=Path)
    parser.add_argument("picture", type=Path)
    parser.add_argument("--select", nargs="*", type=int, default=[1, 5, 9, 11], metavar="ID")
    parser.add_argument("--size", default="120x36", metavar="COLUMNSxROWS")
    parser.add_argument("--theme", default="lmconsole-dark")
    return parser.parse_args()


async def draw(asked: argparse.Namespace) -> None:
    """Open the console without a terminal, wait for the store, and save what it shows."""
    from lmconsole.plan.load import load_plan
    from lmconsole.tui.app import Console
    from lmconsole.tui.options import ConsoleOptions

    options = ConsoleOptions(plan=load_plan(None), store=asked.runs, exports=Path("exports"), theme=asked.theme)
    app = Console(options)
    columns, rows = map(int, asked.size.split("x"))
    async with app.run_test(size=(columns, rows)) as pilot:
        while not app.feed.snapshot.runs:
            await pilot.pause(0.1)
        app.main.checked = {f"e{number}" for number in asked.select}
        await pilot.pause(1.0)
        app.main.redraw()
        await pilot.pause()
        asked.picture.write_text(app.export_screenshot(title="lmconsole", simplify=True), encoding="utf-8")


def main() -> None:
    """Draw with settings of its own, whatever the person's are."""
    asked = parse()
    with tempfile.TemporaryDirectory() as folder:
        os.environ |= {"XDG_CONFIG_HOME": folder, "LC_ALL": "C.UTF-8", "TEXTUAL_COLOR_SYSTEM": "truecolor"}
        os.environ.pop("NO_COLOR", None)
        asyncio.run(draw(asked))


if __name__ == "__main__":
    main()

"""The console's own themes, dark and light. Textual's themes can be chosen as well."""

from textual.theme import Theme

DARK = Theme(
    name="lmconsole-dark",
    primary="#4aa3df",
    secondary="#1fbf92",
    accent="#e69f00",
    warning="#e69f00",
    error="#f0763a",
    success="#1fbf92",
    foreground="#d8dee4",
    background="#11151a",
    surface="#11151a",
    panel="#1d242c",
    boost="#1a2027",
    dark=True,
)
LIGHT = Theme(
    name="lmconsole-light",
    primary="#0072b2",
    secondary="#007d5a",
    accent="#9a6700",
    warning="#9a6700",
    error="#b84a00",
    success="#007d5a",
    foreground="#1c2126",
    background="#fbfbf9",
    surface="#fbfbf9",
    panel="#e6e8ea",
    boost="#eef0f1",
    dark=False,
)

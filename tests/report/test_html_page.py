"""The report as one HTML file: complete, self-contained, and safe with names that are markup."""

import base64
import json
import re
from collections import Counter
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest
from recorded import record

from lmconsole.report.document import build_report, title
from lmconsole.report.export import export
from lmconsole.report.export_files import report_tables
from lmconsole.report.export_options import ExportOptions
from lmconsole.report.figures import figure_specs
from lmconsole.report.findings import findings
from lmconsole.report.markdown_report import report_markdown
from lmconsole.report.selection import choose_group
from lmconsole.runs.store import Store

pytestmark = pytest.mark.slow

OPTIONS = ExportOptions(file_format="html", against="published", template="course")
HOSTILE = "\"'></td></style><script>alert(1)</script><img src=//x.invalid onerror=alert(2)>&lt;b&#62; \u202e\x1b[31m"
ELEMENTS = """
html head meta title style body header h1 nav a main h2 h3 p b ul li code pre
figure figcaption img picture source div table thead tbody tr th td
"""


class Page(HTMLParser):
    """Elements, attributes and text of a page."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: set[str] = set()
        self.attributes: list[tuple[str, str, str | None]] = []
        self.open: list[str] = []
        self.texts: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: Sequence[tuple[str, str | None]]) -> None:
        self.elements.add(tag)
        self.attributes += [(tag, name, value) for name, value in attrs]
        if tag not in ("meta", "img", "source"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.texts.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", "".join(self.texts))

    def values(self, *names: str) -> list[str]:
        return [value or "" for _, name, value in self.attributes if name in names]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a store, one run of which has a hostile name, and with its export."""
    root = tmp_path_factory.mktemp("html")
    for number, model, name in ((1, "lstm", HOSTILE[:50]), (5, "gpt1", "")):
        run = record(root, number, model, [(5.0, 4.5), (4.0, 4.75)], name=name)
        info = json.loads(run.paths.info.read_text())
        info["preset"] = info["corpus"]["name"] = info["corpus"]["path"] = HOSTILE
        run.paths.info.write_text(json.dumps(info))
    paths = export(Store(root / "runs"), root / "out", OPTIONS)
    assert paths == [root / "out" / "report.html"]
    return root


@pytest.fixture(scope="module")
def page(folder: Path) -> Page:
    return Page((folder / "out/report.html").read_text(encoding="utf-8"))


def test_the_page_shows_the_whole_report(folder: Path, page: Page) -> None:
    group = choose_group(Store(folder / "runs").runs())
    tables, figures = report_tables(group, "course"), figure_specs(group)
    blocks = build_report(group, tables, figures, findings(group), template="course")
    missing = words(report_markdown(title(group), blocks)) - Counter(re.findall(r"\w+", " ".join(page.texts)))
    assert not missing
    assert "Table 3." in page.text


def words(markdown: str) -> Counter[str]:
    """Return the words and numbers that a person sees, and how often."""
    seen = re.sub(r"!\[.*?\]\(.*?\)|^```sh$|^\|[-:| ]+\|$", "", markdown, flags=re.MULTILINE)
    return Counter(re.findall(r"\w+", re.sub(r"\\([^a-z0-9\s])", r"\1", seen)))


def test_the_page_needs_nothing_else(page: Page) -> None:
    assert page.elements == set(ELEMENTS.split())
    assert all(value.startswith("data:image/svg+xml;base64,") for value in page.values("src", "srcset"))
    assert all(re.fullmatch(r"#[a-z-]+", value) for value in page.values("href"))
    assert [name for _, name, _ in page.attributes if name.startswith("on") or name == "style"] == []
    (policy,) = [value for _, name, value in page.attributes if name == "content" and value and "src" in value]
    assert policy.startswith("default-src 'none';")


def test_links_lead_to_sections(page: Page) -> None:
    links = page.values("href")
    assert "#findings" in links
    assert {link.removeprefix("#") for link in links} <= set(page.values("id"))


def test_figures_are_images_and_have_a_narrow_form_if_they_have_columns(page: Page) -> None:
    wide, narrow = (
        [base64.b64decode(url.partition(",")[2]) for url in page.values(name)] for name in ("src", "srcset")
    )
    assert (len(wide), len(narrow)) == (7, 1), "figures without runs or targets are left out"
    widths = [ElementTree.fromstring(svg).attrib["width"] for svg in (wide[0], *narrow)]
    assert widths == ["504pt", "244.8pt"]


def test_a_hostile_name_is_text(page: Page) -> None:
    assert "</style><script>alert(1)</script><img src=//x.invalid onerror=alert(2)>&lt;b&#62;" in page.text
    assert "\\u202e\\x1b[31m" in page.text
    assert "\x1b" not in page.text


def test_equal_data_give_equal_bytes(folder: Path) -> None:
    again = folder / "again"
    export(Store(folder / "runs"), again, OPTIONS)
    assert (again / "report.html").read_bytes() == (folder / "out/report.html").read_bytes()

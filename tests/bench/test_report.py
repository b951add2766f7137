"""The page: from a recorded result, whole, well formed, and without anything from elsewhere."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from pathlib import Path

import pytest

from bench import targets
from bench.__main__ import main
from bench.e2e.measure import UDP_CLEAN, UDP_MOST
from bench.report.command import FILES
from bench.report.page import render
from bench.report.pictures import sections
from bench.report.svg import Bar, Bars, Line, Lines, standalone
from bench.results import Results, Sample, load

VOID = {"meta", "br", "hr", "img", "th", "td", "tr"}
"also those whose end tag HTML lets one leave out"


class Balanced(HTMLParser):
    """Knows whether every element was closed in turn."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag


@pytest.fixture
def results(recorded: Path) -> Results:
    found = load(recorded)
    found.checks = list(targets.check(found))
    return found


def test_the_page_is_well_formed_and_alone(results: Results) -> None:
    page = render(results)
    parser = Balanced()
    parser.feed(page)
    assert parser.open == []
    outside = re.findall(r"(?:src|href)=|@import|url\(|<script", page)
    assert outside == []
    assert 'name="viewport"' in page
    assert "prefers-color-scheme:dark" in page


def test_every_picture_is_an_svg_with_a_name(results: Results) -> None:
    pictures = [picture for section in sections(results) for picture in section.pictures]
    assert len(pictures) > 25
    for picture in pictures:
        root = ElementTree.fromstring(picture.render())
        assert root.get("aria-label")
        assert "nan" not in picture.render()
    assert {picture.title for picture in pictures} >= set(FILES) - {"UDP packets over packet size"}


def test_figures_and_targets_are_on_the_page(results: Results) -> None:
    page = render(results)
    median = results.summary("tcp1", "ipsec", panel="peers")
    assert median is not None
    assert f"<b>{median.median:.1f}<small> Gbit/s" in page
    assert all(row["what"] in page.replace("&#x27;", "'") for row in results.checks)
    assert "wireguard-go" in page


def test_text_from_elsewhere_is_escaped(results: Results) -> None:
    results.failures.append("<script>alert(1)</script>")
    results.subjects["ipsec"]["title"] = "<b>&"
    assert "<script" not in render(results)


def test_a_result_with_nothing_in_it_makes_a_page() -> None:
    assert "</html>" in render(Results(options={"rounds": 5}))


def test_ciphers_are_kept_apart(results: Results) -> None:
    picture = next(p for s in sections(results) for p in s.pictures if p.title == "One TCP stream")
    assert isinstance(picture, Bars)
    groups = {heading: [bar.label for bar in bars] for heading, bars in picture.groups}
    assert "wireguard-go" in groups["ChaCha20-Poly1305"]
    assert "strongSwan" in groups["AES-128-GCM"]
    assert "copy, no cipher" in groups["no cipher"]


def test_bars_are_as_long_as_their_values() -> None:
    bars = Bars("t", "u", [("", [Bar("a", 10, "red", "10"), Bar("b", 5, "red", "5"), Bar("c", 0, "red", "0")])])
    widths = [float(w) for w in re.findall(r'width="([\d.]+)" height="16" rx="3" style', bars.render())]
    assert widths[0] == pytest.approx(2 * widths[1], abs=0.2)
    assert widths[2] == 0


def test_higher_values_are_higher_on_a_logarithmic_axis() -> None:
    lines = Lines("t", "u", "x", [Line("a", [(1, 10), (2, 100), (3, 1000)], "red")], [(1, "1"), (3, "3")], log_y=True)
    heights = [float(y) for y in re.findall(r'cy="([\d.]+)"', lines.render())]
    assert heights[0] - heights[1] == pytest.approx(heights[1] - heights[2], abs=0.2)
    assert heights[0] > heights[1]


def test_a_picture_of_its_own_has_its_colours() -> None:
    svg = standalone(Bars("title", "u", [("", [Bar("a", 1, "var(--c-ours)", "1")])]).render())
    ElementTree.fromstring(svg)
    assert "--c-ours:" in svg
    assert "prefers-color-scheme:dark" in svg
    assert "title, u" in svg


def test_the_command(tmp_path: Path, recorded: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "page.html"
    assert main(["report", str(recorded), "--out", str(out), "--pictures", str(tmp_path / "pictures")]) == 0
    assert out.stat().st_size > 10_000
    assert (tmp_path / "pictures" / "tcp.svg").exists()
    capsys.readouterr()
    assert main(["report", str(recorded), "--markdown"]) == 0
    tables = capsys.readouterr().out
    assert "Too noisy" in tables, "the recorded run was"
    columns = {line.count("|") for line in tables.splitlines() if line.startswith("| ") and "stream" in line}
    assert columns == {9, 6}
    assert main(["report", str(tmp_path / "none.json")]) == 2
    assert main(["report", str(recorded), "--out", str(tmp_path / "no" / "page.html")]) == 2
    assert "No such file" in capsys.readouterr().err


def test_sizes_have_a_solid_and_a_dashed_curve() -> None:
    results = Results(options={"rounds": 5}, subjects={"ipsec": {"title": "ipsecd"}, "plain": {"title": "plain"}})
    for metric, factor in ((UDP_MOST, 1.0), (UDP_CLEAN, 0.8)):
        for size in (64, 512, 1372):
            results.add(metric, "ipsec", Sample(factor * 1e5 / size), panel="peers", size=str(size))
        results.add(metric, "plain", Sample(300.0), panel="peers", size="64")
    picture = next(p for s in sections(results) for p in s.pictures if p.title == "UDP packets over packet size")
    assert isinstance(picture, Lines)
    assert [(line.label, line.dashed, len(line.points)) for line in picture.lines] == [
        ("ipsecd", False, 3), ("ipsecd", True, 3),
    ]  # fmt: skip
    gbit = next(p for s in sections(results) for p in s.pictures if p.title == "UDP payload over packet size")
    assert isinstance(gbit, Lines)
    assert [y for _, y in gbit.lines[0].points] == pytest.approx([0.8] * 3)
    ElementTree.fromstring(picture.render())

"""The page in a real browser: Debian's Chromium, driven by Playwright; skipped where either is missing."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.report.conftest import HOSTILE
from tests.report.studies import Study, build_study
from tuner.formatting import one_line
from tuner.report.compare import compare
from tuner.report.page import write_report
from tuner.report.quote import production, shell_lines
from tuner.report.tables import read_study

playwright_api = pytest.importorskip("playwright.sync_api")

CHROMIUM = shutil.which("chromium")
FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
MARKS = "svg .point, svg .points path, svg .js-line"

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium here")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        yield browser
        browser.close()


@dataclass
class Opened:
    """A page with everything that it said and asked for."""

    page: Any
    complaints: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def marks(self) -> dict[str, int]:
        """Points, bars and lines that are really drawn, for each figure."""
        script = f"plots => plots.map(p => [p.id, p.querySelectorAll('{MARKS}').length])"
        return dict(self.page.eval_on_selector_all(".plot", script))


def open_page(browser: Any, path: Path, *, width: int = 1400, scheme: str = "light", touch: bool = False) -> Opened:
    size = {"width": width, "height": 900}
    context = browser.new_context(viewport=size, color_scheme=scheme, has_touch=touch, is_mobile=touch)
    context.grant_permissions(["clipboard-read", "clipboard-write"])
    opened = Opened(context.new_page())
    opened.page.on("console", lambda message: opened.complaints.append(message.text))
    opened.page.on("pageerror", lambda error: opened.complaints.append(str(error)))
    opened.page.on("request", lambda request: opened.requests.append(request.url))
    opened.page.goto(path.as_uri())
    opened.page.wait_for_selector("body[data-drawn=yes]", timeout=60_000)
    return opened


@pytest.fixture(scope="module")
def report(study: Study) -> Path:
    return write_report(study.folder, gpu_price=2.5)


@pytest.fixture(scope="module")
def opened(browser: Any, report: Path) -> Opened:
    """The report, opened once for the tests that leave it as it was."""
    return open_page(browser, report)


def test_every_figure_draws_and_nothing_is_asked_for_or_complained_of(opened: Opened, report: Path) -> None:
    marks = opened.marks()
    assert len(marks) > 15
    assert all(marks.values()), marks
    assert opened.complaints == []
    outside = [url for url in opened.requests if not url.startswith(("data:", "blob:"))]
    assert outside == [report.as_uri()]


def test_the_copy_button_copies_the_command(opened: Opened, study: Study) -> None:
    found = read_study(study.folder)
    quoted = found.quoted(found.winner)
    assert quoted is not None
    button = opened.page.locator("button[data-copies=launch]")
    button.click()
    playwright_api.expect(button).to_have_text("Copied")
    copied = opened.page.evaluate("navigator.clipboard.readText()")
    assert copied == shell_lines(production(quoted, study.plan).specs)[0]
    playwright_api.expect(button).to_have_text("Copy", timeout=5000)


def test_without_a_clipboard_the_command_is_selected(browser: Any, report: Path) -> None:
    opened = open_page(browser, report)
    opened.page.evaluate("() => { navigator.clipboard.writeText = () => Promise.reject(new Error('no')); }")
    opened.page.locator("button[data-copies=launch]").click()
    selected = opened.page.evaluate("getSelection().toString()")
    assert selected.split() == opened.page.inner_text("#launch").split()


def test_a_copied_hostile_command_is_what_was_recorded(browser: Any, hostile_study: Study) -> None:
    opened = open_page(browser, write_report(hostile_study.folder))
    opened.page.locator("button[data-copies=launch]").click()
    copied = opened.page.evaluate("navigator.clipboard.readText()")
    words = subprocess.run(
        ["bash", "-c", f"env() {{ :; }}; numactl() {{ printf '%s\\0' \"$@\"; }}\n{copied}"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split("\0")[:-1]
    assert words[2:5] == ["vllm", "serve", HOSTILE]


def test_hostile_text_shows_as_text(browser: Any, hostile_study: Study) -> None:
    opened = open_page(browser, write_report(hostile_study.folder))
    assert opened.page.evaluate("window.pwned") is None
    assert opened.complaints == []
    assert one_line(HOSTILE) in opened.page.inner_text("body")
    figures = opened.page.eval_on_selector_all(".plot b, .plot [onmouseover], .plot script", "found => found.length")
    assert figures == 0


@pytest.mark.parametrize("width", [390, 1400])
def test_the_page_never_scrolls_sideways(browser: Any, report: Path, width: int) -> None:
    opened = open_page(browser, report, width=width)
    assert opened.page.evaluate("document.documentElement.scrollWidth") <= width
    wide = opened.page.eval_on_selector_all(".plot", f"plots => plots.filter(p => p.scrollWidth > {width}).length")
    assert wide == 0


def test_no_tool_bar_covers_the_legend_on_a_touch_screen(browser: Any, report: Path) -> None:
    opened = open_page(browser, report, width=390, touch=True)
    assert opened.page.evaluate("matchMedia('(hover: none)').matches")
    assert opened.page.locator(".modebar-btn").count() == 0


def test_the_tool_bar_offers_to_send_a_figure_nowhere(opened: Opened) -> None:
    opened.page.hover("#best-so-far")
    titles = opened.page.eval_on_selector_all("#best-so-far .modebar-btn", "all => all.map(b => b.dataset.title)")
    assert titles == ["Download plot as a PNG", "Zoom", "Pan", "Zoom in", "Zoom out", "Reset axes"]


def test_figures_follow_the_page_into_the_dark(browser: Any, report: Path) -> None:
    opened = open_page(browser, report)
    colour = "document.getElementById('best-so-far').layout.font.color"
    light = opened.page.evaluate(colour)
    opened.page.emulate_media(color_scheme="dark")
    for _ in range(100):
        opened.page.wait_for_timeout(100)  # the page's policy forbids wait_for_function, which evaluates strings
        if opened.page.evaluate(colour) != light:
            break
    assert opened.page.evaluate(colour) == "#e4e7ea"
    assert opened.page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(20, 23, 26)"


@pytest.mark.parametrize("trials", [0, 1, 500])
def test_studies_of_any_size_draw(browser: Any, tmp_path: Path, trials: int) -> None:
    opened = open_page(browser, write_report(build_study(tmp_path, trials=trials).folder))
    assert opened.complaints == []
    marks = opened.marks()
    assert (len(marks) > 0) == (trials > 0)
    assert all(marks.values()), marks


def test_chinese_draws_too(browser: Any, study: Study, tmp_path: Path) -> None:
    opened = open_page(browser, write_report(study.folder, language="zh"))
    assert opened.complaints == []
    assert "迄今最佳" in opened.page.inner_text("#best-so-far")


def test_a_comparison_draws(browser: Any, study: Study, hostile_study: Study, tmp_path: Path) -> None:
    path = tmp_path / "compare.html"
    path.write_text(compare(study.folder, hostile_study.folder), encoding="utf-8")
    opened = open_page(browser, path)
    assert opened.complaints == []
    assert all(opened.marks().values())
    assert len(opened.marks()) == 2

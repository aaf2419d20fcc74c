"""The page in a browser: charts are drawn, nothing is fetched, it is readable on a phone and in the dark."""

import re
import shutil
from collections.abc import Iterator
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch

from normscope.record.reader import Record
from normscope.record.writer import Writer
from normscope.report import page as report
from normscope.report.parts import Choice, HeatMap, Paragraph, Part
from normscope.stats.summary import Summary
from normscope.terms.finding import Diagnosis
from normscope.terms.site import Site

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
QUIET = ("background-networking", "quic", "component-update", "sync", "gpu")

pytestmark = [pytest.mark.browser, pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium to open pages in")]

# What was drawn in a figure: marks of data with some extent, not axes and legends.
DRAWN = """figure => [...figure.querySelectorAll('svg .role-mark :is(path, line, text)')]
    .filter(mark => { const box = mark.getBBox(); return box.width + box.height > 0; }).length"""


@pytest.fixture(scope="module")
def browser() -> Iterator:
    sync = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    arguments = ["--no-sandbox", "--no-first-run", *(f"--disable-{service}" for service in QUIET)]
    with sync.sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield running
        running.close()


@pytest.fixture(scope="module")
def pages(sick, tmp_path_factory):
    """The pages of the sick run, by language."""
    folder = tmp_path_factory.mktemp("pages")
    return {
        lang: report.write(sick.record, sick.diagnosis, folder / f"{lang}.html", lang=lang) for lang in ("en", "zh")
    }


@pytest.fixture
def opened(browser, pages):
    """Opens a page and waits for its charts; whatever it says or asks for is kept in `said` and `asked`."""
    contexts = []

    def open_(path=pages["en"], *, width=1280, **options):
        context = browser.new_context(viewport={"width": width, "height": 900}, **options)
        contexts.append(context)
        page = context.new_page()
        said, asked = [], []
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("dialog", lambda dialog: (said.append(dialog.message), dialog.dismiss()))
        context.route(re.compile("^(?!file:)"), lambda route: (asked.append(route.request.url), route.abort()))
        page.on("request", lambda request: asked.append(request.url) if request.url != path.as_uri() else None)
        page.goto(path.as_uri())
        drawn(page)
        return SimpleNamespace(page=page, said=said, asked=asked)

    yield open_
    for context in contexts:
        context.close()


def drawn(page) -> None:
    page.wait_for_selector("html[data-charts=drawn]", timeout=60_000, state="attached")


def choice(sick, anchor: str) -> dict[str, Part]:
    """What a reader can choose from in a section."""
    sections = report.tree(sick.record, sick.diagnosis).sections
    section = next(section for section in sections if section.anchor == anchor)
    return dict(next(part for part in section.parts if isinstance(part, Choice)).options)


def luminance(color: str) -> float:
    """WCAG 2.2 relative luminance of a computed color."""
    channels = [float(value) / 255 for value in re.findall(r"[\d.]+", color)[:3]]
    linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("lang", ["en", "zh"])
def test_every_chart_is_drawn_and_nothing_is_asked_of_the_network(opened, pages, sick, lang):
    view = opened(pages[lang])
    seen = 0
    for figure in view.page.query_selector_all("figure"):
        if figure.is_visible():
            assert figure.evaluate(DRAWN) > 0, figure.inner_text()
            seen += 1
    assert seen == 9  # two findings, two of the trial, and one for each of the five views
    assert view.page.query_selector(".undrawn") is None
    assert view.page.get_attribute("html", "lang") == {"en": "en", "zh": "zh-Hans"}[lang]
    assert (view.said, view.asked) == ([], [])


def test_every_choice_draws_what_it_names(opened, sick):
    view = opened()
    maps = choice(sick, "layers")
    for at, (name, chart) in enumerate(maps.items()):
        view.page.select_option("#layers select", str(at))
        drawn(view.page)
        panel = view.page.query_selector("#layers .panel:not([hidden])")
        if isinstance(chart, Paragraph):
            assert panel.inner_text() == chart.text == f"{name}: 0% at every layer and every sampled step."
            continue
        figure = panel.query_selector("figure")
        assert isinstance(chart, HeatMap) and figure.query_selector("figcaption").inner_text().startswith(name)
        known = [value for row in chart.values for value in row if value is not None]
        cells = [value for value in known if value > 0 or not chart.color.log]
        assert len(figure.query_selector_all("svg .mark-rect.role-mark path")) == len(cells), name
    names = list(choice(sick, "distribution"))
    for at in (1, len(names) - 1):
        view.page.select_option("#distribution select", str(at))
        drawn(view.page)
        figure = view.page.query_selector("#distribution .panel:not([hidden]) figure")
        assert names[at].split(" ", 2)[2] in figure.query_selector("figcaption").inner_text()
        assert len(figure.query_selector_all("svg .mark-area.role-mark path")) == 4
    assert (view.said, view.asked) == ([], [])


def test_a_choice_is_made_with_the_keyboard(opened):
    view = opened()
    view.page.focus("#layers select")
    before = view.page.inner_text("#layers .panel:not([hidden]) figcaption")
    view.page.keyboard.press("ArrowDown")
    drawn(view.page)
    assert view.page.inner_text("#layers .panel:not([hidden]) figcaption") != before
    assert view.page.evaluate("document.activeElement.matches('#layers select')")


def test_charts_and_choices_have_names_for_those_who_do_not_see_them(opened):
    view = opened()
    for figure in view.page.query_selector_all("figure:has(svg)"):
        chart = figure.query_selector("[role=graphics-document]:has(svg)")
        words = re.sub(r"[`\s]", "", chart.get_attribute("aria-label"))
        assert words == re.sub(r"\s", "", figure.query_selector("figcaption").inner_text())
    for select in view.page.query_selector_all("select"):
        assert select.evaluate("select => select.labels.length") == 1
    levels = view.page.eval_on_selector_all("h1, h2, h3, h4", "all => all.map(one => Number(one.tagName[1]))")
    assert levels.count(1) == 1 and all(after - before <= 1 for before, after in pairwise(levels))


@pytest.mark.parametrize("lang", ["en", "zh"])
def test_a_phone_shows_all_of_it(opened, pages, lang):
    view = opened(pages[lang], width=360)
    assert view.page.evaluate("document.documentElement.scrollWidth") <= 360
    outside = view.page.evaluate(
        """() => [...document.querySelectorAll('figure svg .role-mark, figure svg text, figcaption, pre, td, code')]
            .map(one => [one, one.getBoundingClientRect()])
            .filter(([one, box]) => box.width && (box.left < -0.5 || box.right > 360.5))
            .map(([one]) => one.textContent || one.className.baseVal)"""
    )
    assert outside == []
    assert min(view.page.eval_on_selector_all("select", "all => all.map(one => one.offsetHeight)")) >= 36


def test_long_names_leave_a_phone_room_for_the_chart(opened, tmp_path):
    with Writer(tmp_path / "run") as writer:
        for depth in range(3):
            site = Site(f"encoder.layers.{depth}.attention.projection", "gradient", role="producer", depth=depth)
            writer.summary(site, 0, "live", Summary.of(torch.full((4,), 10.0**depth)))
    page = report.write(Record(tmp_path / "run"), Diagnosis(), tmp_path / "page.html")
    for width, shown in ((360, "….projection"), (1280, "…yers.0.attention.projection")):
        view = opened(page, width=width)
        assert shown in view.page.text_content("#gradient svg")
        plot, marks = (
            view.page.query_selector(one).bounding_box() for one in ("#gradient .plot", "#gradient svg .background")
        )
        assert marks["width"] > 0.6 * plot["width"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_is_legible_in_both_schemes(opened, scheme):
    view = opened(color_scheme=scheme)
    ground = view.page.evaluate("getComputedStyle(document.documentElement).backgroundColor")
    sheet = view.page.evaluate("getComputedStyle(document.querySelector('.card')).backgroundColor")
    assert (luminance(ground) < 0.02) == (luminance(sheet) < 0.02) == (scheme == "dark")
    inks = view.page.eval_on_selector_all("svg text", "all => all.map(one => getComputedStyle(one).fill)")
    words = view.page.eval_on_selector_all(
        ".verdict, .run, .quiet, h4, .aside, .code, .lead a", "all => all.map(one => getComputedStyle(one).color)"
    )
    assert len(inks) > 100 and len(words) > 20
    assert min(contrast(ink, sheet) for ink in {*inks, *words}) >= 4.5
    pairs = "all => all.map(one => getComputedStyle(one)).map(one => [one.color, one.backgroundColor])"
    tags = view.page.eval_on_selector_all(".tag", pairs)
    assert min(contrast(ink, wash) for ink, wash in tags) >= 4.5


def test_the_charts_follow_the_scheme_while_the_page_is_open(opened):
    view = opened(color_scheme="light")
    fill = "getComputedStyle(document.querySelector('svg text')).fill"
    light = view.page.evaluate(fill)
    view.page.emulate_media(color_scheme="dark")
    for _ in range(200):  # the page allows no eval, which waiting for a function would be
        if view.page.evaluate(fill) != light:
            break
        view.page.wait_for_timeout(50)
    assert luminance(view.page.evaluate(fill)) > luminance(light)
    assert view.said == []


def test_paper_gets_no_buttons_and_motion_only_who_wants_it(opened):
    view = opened(reduced_motion="reduce")
    assert view.page.evaluate("getComputedStyle(document.documentElement).scrollBehavior") == "auto"
    view.page.emulate_media(media="print")
    assert not view.page.is_visible(".bar") and not view.page.is_visible("select")
    assert view.page.is_visible("#findings figure svg")


def test_a_strangers_record_is_only_text(opened, hostile, tmp_path):
    view = opened(report.write(hostile.record, hostile.diagnosis, tmp_path / "hostile.html"))
    assert view.page.query_selector("img") is None
    assert view.page.inner_text("h1").startswith("</script><img src=x onerror=alert(1)>")
    assert view.page.query_selector(".undrawn") is None
    box = view.page.query_selector("#loss figure, #layers figure").bounding_box()
    view.page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] - 60)
    view.page.wait_for_timeout(200)
    assert view.page.query_selector("img") is None
    assert (view.said, view.asked) == ([], [])

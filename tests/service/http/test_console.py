"""The console in headless Chromium: searching, comparing, deep links, keys, errors, and hostile documents."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
from support_service import LengthReranker, collection, fables, fables_app, pipeline, running_server

from chamfer.core.types import Document
from chamfer.service.search.pipeline import Pipeline
from chamfer.service.search.plans import Plan

pytestmark = pytest.mark.browser

HOSTILE = '<script>window.hacked = 1</script><img src=x onerror="window.hacked = 2">'
LEARNING = Plan.model_validate(
    {
        "channels": {"dense": {}, "lexical": {}},
        "feedback": {"channels": {"dense": {}}, "depth": 2, "guard": {"low": 0.0, "high": 5.0}},
    }
)
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--window-size=1300,1000",
)


def load(_: Path) -> Pipeline:
    hostile = Document(HOSTILE, f"{HOSTILE} text about a serpent", f"{HOSTILE} title", {HOSTILE: HOSTILE})
    long = Document("long", "The heron waited. " * 200, "The heron", {"lang": "en"})
    stored = collection([*fables(), hostile, long])
    return pipeline(collection=stored, rerankers={"length": LengthReranker()}, plans={"learning": LEARNING})


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    app = fables_app(load=load, examples={"fables": ["Why did the fox lose his tail?", "Who freed the lion?"]})
    with running_server(app) as running:
        yield running


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    chromedriver = shutil.which("chromedriver")
    if not chromium or not chromedriver:
        pytest.skip("the console is not tested: chromium or chromedriver is not installed")
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    driver = webdriver.Chrome(options=options, service=Service(chromedriver))
    yield driver
    driver.quit()


@pytest.fixture
def visit(browser: Any, address: str) -> Callable[..., Any]:
    def go(**address_parts: str) -> Any:
        browser.get(f"{address}/?{urlencode(address_parts)}")
        return browser

    return go


def wait(browser: Any, script: str) -> Any:
    """The value of an expression in the page, as soon as it is truthy."""
    from selenium.webdriver.support.ui import WebDriverWait

    return WebDriverWait(browser, 15, poll_frequency=0.02).until(lambda b: b.execute_script(f"return {script}"))


def texts(browser: Any, selector: str) -> list[str]:
    shown: list[str] = browser.execute_script(
        "return [...document.querySelectorAll(arguments[0])].map((e) => e.textContent)", selector
    )
    return shown


def press(browser: Any, *keys: str) -> None:
    from selenium.webdriver.common.action_chains import ActionChains

    ActionChains(browser).send_keys(*keys).perform()


def test_the_start_page_offers_examples_that_search_on_click(visit: Callable[..., Any]) -> None:
    browser = visit()
    wait(browser, "document.querySelectorAll('.examples button').length === 2")
    browser.execute_script("document.querySelector('.examples button').click()")
    wait(browser, "document.querySelectorAll('.hit').length === 10")
    assert "q=Why+did+the+fox" in browser.current_url
    assert "10 hits" in texts(browser, "#status")[0]


def test_typing_a_query_and_enter_searches_and_shows_each_stage_as_a_bar(visit: Callable[..., Any]) -> None:
    from selenium.webdriver.common.keys import Keys

    browser = visit(plan="best")
    wait(browser, "document.querySelector('#plan').value === 'best'")
    press(browser, "fox without a tail", Keys.ENTER)
    wait(browser, "document.querySelectorAll('.hit').length === 10")
    names = texts(browser, ".hit:first-child .stage .name")
    assert names == ["lexical", "dense", "fused", "rescored", "blended", "reranked", "blended"]
    widths = browser.execute_script(
        "return [...document.querySelectorAll('.stage.last .bar i')].map((e) => parseFloat(e.style.width))"
    )
    assert widths[0] == 100
    assert widths == sorted(widths, reverse=True)
    legend = " ".join(texts(browser, ".legend li"))
    assert all(stage in legend for stage in ("queue", "encode", "retrieve:dense", "rerank:length"))


def test_feedback_shows_its_documents_and_the_trust_in_them(visit: Callable[..., Any]) -> None:
    browser = visit(q="why did the fox lose his tail", plan="learning")
    wait(browser, "document.querySelectorAll('.hit').length === 10")
    names = texts(browser, ".hit:first-child .stage .name")
    assert names == ["dense", "lexical", "fused", "dense feedback", "dense again", "lexical", "fused again"]
    title = browser.execute_script("return document.querySelector('.hit:first-child .stage.feedback').title")
    assert title.startswith("feedback:dense: rocchio from long, fable-0 (fused ranking), z = 1.")
    assert texts(browser, ".hit:first-child .stage.feedback .summary") == ["from 2"]
    assert texts(browser, ".hit:first-child .stage.feedback .value")[0].startswith("× 0.")


def test_a_deep_link_compares_two_plans_and_marks_changed_ranks(visit: Callable[..., Any]) -> None:
    browser = visit(q="why did the fox lose his tail", plan="fast", compare="best", k="5")
    wait(browser, "document.querySelectorAll('.column').length === 2")
    left, right = (texts(browser, f".column:nth-child({n}) .hit .about span:first-child") for n in (1, 2))
    changes = texts(browser, ".column:nth-child(2) .hit .change")
    for rank, (doc_id, change) in enumerate(zip(right, changes, strict=True)):
        if doc_id not in left:
            assert change == "only"
        else:
            moved = left.index(doc_id) - rank
            assert change == ("=" if not moved else f"{'▲' if moved > 0 else '▼'}{abs(moved)}")
    assert any(change != "=" for change in changes)


def test_the_back_button_returns_to_the_previous_search(visit: Callable[..., Any]) -> None:
    from selenium.webdriver.common.keys import Keys

    browser = visit(q="fox", plan="balanced")
    wait(browser, "document.querySelectorAll('.hit').length === 10")
    press(browser, " tail", Keys.ENTER)
    wait(browser, "location.search.includes('fox+tail')")
    browser.back()
    assert wait(browser, "document.querySelector('#query').value === 'fox'")


def test_arrow_keys_select_hits_and_open_them(visit: Callable[..., Any]) -> None:
    from selenium.webdriver.common.keys import Keys

    browser = visit(q="the heron waited", plan="balanced")
    wait(browser, "document.querySelectorAll('.hit').length === 10")
    press(browser, Keys.ARROW_DOWN)
    assert wait(browser, "document.activeElement.classList.contains('hit')")
    assert "The heron" in browser.execute_script("return document.activeElement.textContent")
    assert texts(browser, ".hit:first-child .more") == ["full text"]
    press(browser, Keys.ENTER)
    assert wait(browser, "document.activeElement.classList.contains('open')")
    press(browser, Keys.ARROW_DOWN, Keys.ARROW_UP, Keys.ARROW_UP)
    assert wait(browser, "document.activeElement.id === 'query'")
    press(browser, Keys.ARROW_DOWN, "/")
    assert wait(browser, "document.activeElement.id === 'query'")


def test_a_document_full_of_markup_is_shown_as_text(visit: Callable[..., Any]) -> None:
    browser = visit(q="serpent", plan="best", compare="balanced")
    wait(browser, "document.querySelectorAll('.hit').length === 20")
    assert f"{HOSTILE} title" in texts(browser, ".hit h3")
    assert browser.execute_script("return window.hacked") is None
    assert browser.execute_script("return document.querySelectorAll('main script, main img').length") == 0


def test_a_link_full_of_markup_is_harmless(visit: Callable[..., Any]) -> None:
    browser = visit(q=HOSTILE, plan=HOSTILE, compare=HOSTILE, filter=HOSTILE)
    wait(browser, "document.querySelector('.failure')")
    assert browser.execute_script("return document.querySelector('#query').value") == HOSTILE
    assert browser.execute_script("return window.hacked") is None


def test_an_error_shows_the_problem_and_the_request_id(visit: Callable[..., Any]) -> None:
    browser = visit(q="fox", k="5000")
    wait(browser, "document.querySelector('.failure')")
    [card] = texts(browser, ".failure")
    assert "limits.max_k" in card
    assert "invalid_input · request " in card


def test_a_filter_in_the_link_is_applied(visit: Callable[..., Any]) -> None:
    browser = visit(q="fox", filter='{"field": "number", "equals": 3}')
    wait(browser, "document.querySelectorAll('.hit').length === 1")
    assert texts(browser, ".hit h3") == ["The lion and the mouse"]


def test_every_control_has_a_label(visit: Callable[..., Any]) -> None:
    browser = visit(q="fox")
    wait(browser, "document.querySelectorAll('.hit').length === 10")
    unnamed = browser.execute_script(
        "return [...document.querySelectorAll('input, select, textarea, button, a')]"
        ".filter((e) => !e.labels?.length && !e.textContent.trim() && !e.ariaLabel).map((e) => e.outerHTML)"
    )
    assert unnamed == []


@pytest.mark.parametrize("compare", ["", "best"])
def test_nothing_is_cut_off_at_phone_width(visit: Callable[..., Any], browser: Any, compare: str) -> None:
    metrics = {"width": 360, "height": 780, "deviceScaleFactor": 1, "mobile": True}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    try:
        visit(q="fox", plan="best", compare=compare)
        wait(browser, "document.querySelectorAll('.hit').length >= 10")
        assert browser.execute_script("return document.documentElement.scrollWidth") <= 360
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_the_page_does_not_violate_its_content_security_policy(visit: Callable[..., Any], browser: Any) -> None:
    browser.get_log("browser")
    visit(q="fox", plan="best", compare="fast")
    wait(browser, "document.querySelectorAll('.column').length === 2")
    assert browser.get_log("browser") == []

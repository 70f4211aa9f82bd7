"""The site of the boards as a person sees it: opened as files in a headless Chromium."""

from __future__ import annotations

import json
import threading
from types import SimpleNamespace

import chromium
import pytest
from factories import TEACHER_ARCH, make_record, signed
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.select import Select
from selenium.webdriver.support.wait import WebDriverWait

from kdbench.leaderboard.folder import load_folder
from kdbench.leaderboard.site.load import build_site
from kdbench.leaderboard.site.serve import make_server

pytestmark = pytest.mark.e2e

HOSTILE = "<script>alert(1)</script>"
METHODS = (("vanilla", 70.0, 10.0), ("kd", 72.0, 14.0), (HOSTILE, 71.0, 30.0), ("dkd", 74.0, 16.0))


def all_records():
    records = []
    for pair, student in enumerate(("timm:one", "timm:two")):
        for method, top1, step in METHODS:
            for seed in range(3):
                records.append(
                    make_record(
                        method=method,
                        student=student,
                        teacher=None if method == "vanilla" else TEACHER_ARCH,
                        seed=seed,
                        top1=top1 + 2 * pair + seed / 10,
                        step_ms=step,
                        message=HOSTILE,
                        status="diverged" if (method, pair, seed) == (HOSTILE, 1, 2) else "done",
                        environment={"precision": "bf16" if pair else "fp32"},
                        labels={"fidelity": "paper" if method == "kd" else "official-code"},
                        error=None,
                    )
                )
    for record in records:
        if record["status"] != "done":
            record["error"] = {"type": "Diverged", "message": HOSTILE, "traceback": f"line 1\n{HOSTILE}"}
    return records


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    root = tmp_path_factory.mktemp("boards")
    for name, records in ((HOSTILE.replace("/", "_"), all_records()), ("bare", all_records()[:6])):
        for part in ("records", "curves"):
            (root / name / part).mkdir(parents=True)
        (root / name / "board.yaml").write_text(f"title: {json.dumps(HOSTILE + name)}\n")
        for record in records:
            (root / name / "records" / f"{record['cell_id']}.json").write_text(json.dumps(signed(record)))
            if name != "bare" and record["status"] == "done":
                last = record["deployables"]["student"]["last"]["top1"]
                lines = [f"{e},{2 / e:.3f},{last - 9 / e:.2f},{last - 8 / e:.2f}" for e in range(1, 6)]
                text = "\n".join(["epoch,train_loss,val_top1,test_top1", *lines]) + "\n"
                (root / name / "curves" / f"{record['cell_id']}.csv").write_text(text)
    boards = [load_folder(root / name) for name in sorted(p.name for p in root.iterdir())]
    page = build_site(boards, root / "_site")
    full, bare = (page.parent / "boards" / b.folder.name / "index.html" for b in boards)
    return SimpleNamespace(home=page, board=full, bare=bare, root=page.parent)


@pytest.fixture(scope="module")
def browser():
    driver = chromium.start()
    yield driver
    driver.quit()


@pytest.fixture
def show(browser):
    """Open a page; at the end of the test no page may have complained."""
    browser.get_log("browser")

    def get(path, fragment="", *, width=1400, scheme="light"):
        chromium.screen(browser, width, 900)
        chromium.scheme(browser, scheme)
        browser.get("about:blank")
        browser.get(path.as_uri() + fragment)
        return browser

    yield get
    assert [line for line in browser.get_log("browser") if line["level"] in ("SEVERE", "WARNING")] == []


def wait(browser, until):
    return WebDriverWait(browser, 20).until(until)


def methods(browser, table=0):
    rows = browser.find_elements(By.CSS_SELECTOR, f"#table-{table} tbody tr[data-row]")
    return [r.find_element(By.CSS_SELECTOR, "button.row").text for r in rows if r.is_displayed()]


def heading(browser, text):
    heads = browser.find_elements(By.CSS_SELECTOR, "#table-0 thead button")
    return next(b for b in heads if b.text.startswith(text))


def scroll_to(browser, selector):
    browser.execute_script(
        "document.querySelector(arguments[0]).scrollIntoView({behavior: 'instant'})", selector
    )


def drawn(browser, canvas, what):
    """Elements of a plot, once there are any."""
    return wait(browser, lambda b: b.find_elements(By.CSS_SELECTOR, f"{canvas} svg {what}"))


def test_a_table_sorts_by_mouse_and_keyboard(show, site):
    page = show(site.board)
    ranked = methods(page)
    assert ranked == ["dkd", "kd", HOSTILE, "vanilla"]
    head = heading(page, "Top-1")
    head.click()
    assert methods(page) == ranked
    assert head.find_element(By.XPATH, "..").get_attribute("aria-sort") == "descending"
    head.send_keys(Keys.ENTER)
    assert methods(page) == ranked[::-1]
    assert head.find_element(By.XPATH, "..").get_attribute("aria-sort") == "ascending"
    heading(page, "Method").send_keys(Keys.SPACE)
    assert methods(page) == [HOSTILE, "dkd", "kd", "vanilla"]
    assert len(page.find_elements(By.CSS_SELECTOR, "#table-0 [aria-sort]")) == 1


def test_rows_without_a_value_stay_last(show, site):
    page = show(site.board)
    head = next(
        b for b in page.find_elements(By.CSS_SELECTOR, "#table-1 thead button") if b.text.startswith("Top-1")
    )
    for _ in range(2):
        head.click()
        assert methods(page, 1)[-1] == HOSTILE


def test_rows_are_searched_and_filtered(show, site):
    page = show(site.board)
    box = page.find_element(By.ID, "search")
    box.send_keys("one dkd")
    wait(page, lambda b: methods(b) == ["dkd"])
    assert not page.find_element(By.ID, "table-1").is_displayed()
    assert page.find_element(By.ID, "count").text == "1 of 8 rows"
    box.clear()
    box.send_keys(" ")
    wait(page, lambda b: len(methods(b)) == 4)
    chosen = {
        s.get_attribute("data-facet"): Select(s) for s in page.find_elements(By.CSS_SELECTOR, "[data-facet]")
    }
    assert set(chosen) == {"method", "pair", "fidelity", "precision"}
    chosen["precision"].select_by_visible_text("bf16")
    assert not page.find_element(By.ID, "table-0").is_displayed()
    assert len(methods(page, 1)) == 4
    chosen["fidelity"].select_by_visible_text("paper")
    assert methods(page, 1) == ["kd"]
    chosen["precision"].select_by_visible_text("all")
    chosen["fidelity"].select_by_visible_text("all")
    chosen["method"].select_by_visible_text(HOSTILE)
    assert (methods(page), methods(page, 1)) == ([HOSTILE], [HOSTILE])


def test_columns_are_shown_by_group(show, site):
    page = show(site.board)
    gap = heading(page, "Gap closed")
    assert gap.is_displayed()
    step = page.find_element(By.XPATH, "//section[@id='table-0']//th[contains(., 'Step, ms')]")
    assert not step.is_displayed()
    page.find_element(By.CSS_SELECTOR, "input[value=cost]").click()
    assert step.is_displayed()
    assert heading(page, "Top-1").is_displayed()
    assert not gap.is_displayed()


def test_a_row_opens_with_its_seeds_and_how_to_reproduce_and_cite_it(show, site):
    page = show(site.board)
    button = page.find_element(By.CSS_SELECTOR, "#table-0 button.row")
    button.send_keys(Keys.ENTER)
    assert button.get_attribute("aria-expanded") == "true"
    detail = page.find_element(By.CSS_SELECTOR, "tr.detail")
    assert len(detail.find_elements(By.CSS_SELECTOR, ".inside tbody tr")) == 3
    commands = [c.text for c in detail.find_elements(By.TAG_NAME, "pre")]
    assert commands[0].startswith("kdbench reproduce '")
    assert commands[0].endswith(".json'")
    assert commands[1].startswith("@misc{kdbench-")
    assert "sha256 of leaderboard.csv" in commands[1]
    button.send_keys(Keys.ENTER)
    assert page.find_elements(By.CSS_SELECTOR, "tr.detail") == []


def test_accuracy_over_cost_is_drawn_over_the_chosen_axis(show, site):
    page = show(site.board)
    assert page.find_elements(By.CSS_SELECTOR, "#pareto svg") == []
    scroll_to(page, "#accuracy-cost")
    assert len(drawn(page, "#pareto", ".points path.point")) == 4
    title = lambda b: b.find_element(By.CSS_SELECTOR, "#pareto .xtitle").text  # noqa: E731
    assert title(page) == "Training step, ms (less is better)"
    labels = {t.text for t in page.find_elements(By.CSS_SELECTOR, "#pareto .textpoint")}
    assert len(labels) == 4
    assert labels > {"vanilla", "kd", "dkd"}
    Select(page.find_element(By.ID, "pareto-axis")).select_by_visible_text("Training, images/s")
    wait(page, lambda b: title(b) == "Training, images/s (more is better)")
    Select(page.find_element(By.ID, "pareto-table")).select_by_index(1)
    wait(page, lambda b: len(b.find_elements(By.CSS_SELECTOR, "#pareto .points path.point")) == 3)
    page.find_element(By.CSS_SELECTOR, "#pareto-data summary").click()
    wait(page, lambda b: len(b.find_elements(By.CSS_SELECTOR, "#pareto-data tbody tr")) == 3)


def test_learning_curves_have_bands_and_numbers(show, site):
    page = show(site.board)
    scroll_to(page, "#curves")
    assert len(drawn(page, "#curves-plot", ".scatterlayer .lines path")) >= 4
    # of each of the four rows a line, and a band where there are several seeds
    fills = page.find_elements(By.CSS_SELECTOR, "#curves-plot .fills path")
    assert len(fills) == 4
    names = {t.text for t in page.find_elements(By.CSS_SELECTOR, "#curves-plot .annotation-text")}
    assert names == {"vanilla", "kd", "dkd", f"{HOSTILE[:21]}\N{HORIZONTAL ELLIPSIS}"}
    page.find_element(By.CSS_SELECTOR, "#curves-data summary").click()
    wait(page, lambda b: len(b.find_elements(By.CSS_SELECTOR, "#curves-data tbody tr")) == 5)
    page.find_elements(By.CSS_SELECTOR, "#curves-rows input")[0].send_keys(Keys.SPACE)
    wait(page, lambda b: len(b.find_elements(By.CSS_SELECTOR, "#curves-plot .fills path")) == 3)


def test_a_board_without_curves_says_so(show, site):
    page = show(site.bare)
    assert "keeps no learning curves" in page.find_element(By.ID, "curves").text
    assert HOSTILE in page.find_element(By.TAG_NAME, "h1").text


def test_gaps_are_numbers_with_shades(show, site):
    page = show(site.board)
    cells = page.find_elements(By.CSS_SELECTOR, "#gaps td")
    assert len(cells) == 6
    assert all("%" in c.text or c.text == "—" for c in cells)
    page.find_element(By.CSS_SELECTOR, "#gaps thead button").click()
    assert page.find_element(By.CSS_SELECTOR, "#gaps tbody th").text == HOSTILE


def test_a_failed_cell_is_told_with_its_traceback(show, site):
    page = show(site.board)
    link = page.find_element(By.CSS_SELECTOR, "#unfinished tbody a")
    assert "diverged" in page.find_element(By.CSS_SELECTOR, "#unfinished tbody").text
    scroll_to(page, "#unfinished")
    link.click()
    wait(page, lambda b: b.find_element(By.TAG_NAME, "h1").text == f"{HOSTILE}, seed 2")
    text = page.find_element(By.ID, "main").text
    assert f"Diverged: {HOSTILE}" in text
    assert f"line 1\n{HOSTILE}" in text


def test_a_cell_shows_its_record_and_the_curves_of_its_row(show, site):
    record = all_records()[3]
    page = show(site.board.parent / "cell.html", f"#{record['cell_id']}")
    wait(page, lambda b: b.find_element(By.TAG_NAME, "h1").text == "kd, seed 0")
    text = page.find_element(By.ID, "main").text
    words = ("training step, ms", "top-1, %", "latency, median, ms")
    for expected in ("Test CPU", "72", "Inference speed: student", "kdbench reproduce", "fp32", *words):
        assert expected in text
    assert "step_ms" not in text
    assert len(drawn(page, "#cell .canvas", ".scatterlayer .lines path")) >= 4
    names = {t.text for t in page.find_elements(By.CSS_SELECTOR, "#cell .annotation-text")}
    assert names == {"test, mean", "validation, mean", "test, seed 0", "validation, seed 0"}
    page.execute_script(f"location.hash = '{'0' * 64}'")
    wait(page, lambda b: "no such cell" in b.find_element(By.ID, "main").text)


def test_a_method_has_its_rows_of_all_boards(show, site):
    page = show(site.home)
    page.find_element(By.ID, "search").send_keys("kd")
    links = page.find_elements(By.CSS_SELECTOR, "section:nth-of-type(2) tbody a")
    next(a for a in links if a.is_displayed() and a.text == "kd").click()
    wait(page, lambda b: b.find_element(By.TAG_NAME, "h1").text == "kd")
    assert len(page.find_elements(By.CSS_SELECTOR, "tbody tr")) == 3
    scroll_to(page, "#curves")
    assert drawn(page, "#curves-plot", ".scatterlayer .lines path")
    page.find_element(By.CSS_SELECTOR, "tbody a").click()
    wait(page, lambda b: b.find_elements(By.ID, "table-0"))


def test_no_text_of_a_record_becomes_an_element(show, site):
    pages = [site.home, site.board, *sorted((site.root / "methods").glob("script*.html"))]
    assert len(pages) == 3
    for path in pages:
        page = show(path)
        assert HOSTILE in page.find_element(By.TAG_NAME, "body").text
        scripts = [s.get_attribute("src") for s in page.find_elements(By.CSS_SELECTOR, "script:not([type])")]
        assert all(src.startswith(site.root.as_uri()) for src in scripts)


def contrast(browser, selector):
    """WCAG's contrast ratio of an element's text and the first background behind it."""
    text, behind = browser.execute_script(
        """const e = document.querySelector(arguments[0]); let b = e;
        while (b && getComputedStyle(b).backgroundColor === "rgba(0, 0, 0, 0)") b = b.parentElement;
        return [getComputedStyle(e).color, getComputedStyle(b || document.body).backgroundColor];""",
        selector,
    )

    def light(colour):
        parts = [float(p) / 255 for p in colour[colour.index("(") + 1 : -1].split(",")[:3]]
        r, g, b = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * r + 0.7152 * g + 0.0722 * b

    a, b = sorted((light(text), light(behind)))
    return (b + 0.05) / (a + 0.05)


@pytest.mark.parametrize("name", ["light", "dark"])
def test_light_and_dark_have_contrast(show, site, name):
    page = show(site.board, scheme=name)
    behind = page.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert (behind == "rgb(255, 255, 255)") == (name == "light")
    for selector in (
        "h1",
        ".dim",
        ".chips .good",
        ".chips .bad",
        "button.row",
        "thead button",
        "#unfinished td.bad",
    ):
        assert contrast(page, selector) >= 4.5, selector


def test_pages_fit_a_phone(show, site):
    cell = f"#{all_records()[3]['cell_id']}"
    method = next((site.root / "methods").glob("kd.html"))
    for path, fragment in (
        (site.home, ""),
        (site.board, ""),
        (site.board.parent / "cell.html", cell),
        (method, ""),
    ):
        page = show(path, fragment, width=400)
        wait(page, lambda b: b.find_elements(By.CSS_SELECTOR, "h1"))
        for button in page.find_elements(By.CSS_SELECTOR, "#table-0 button.row")[:1]:
            button.click()
        if page.find_elements(By.ID, "pareto"):
            scroll_to(page, "#accuracy-cost")
            drawn(page, "#pareto", ".points path.point")
        assert page.execute_script("return document.documentElement.scrollWidth") <= 400, path


def test_the_site_is_served_too(browser, site):
    with make_server(site.root, 0) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            chromium.screen(browser, 1400, 900)
            browser.get(f"http://127.0.0.1:{server.server_address[1]}/boards/bare/index.html")
            scroll_to(browser, "#accuracy-cost")
            assert drawn(browser, "#pareto", ".points path.point")
        finally:
            server.shutdown()
            thread.join()

"""Generated pages of the site: one per method, complete, and safe whatever a plug-in writes."""

from __future__ import annotations

import csv
import re
from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("mkdocs", reason="the extra docs is not installed")

import hook
import markdown
from kdbench_docs import cli, markup, measured, methods, published
from pydantic import Field

from kdbench.cli import VERBS
from kdbench.hooks import MethodEntry
from kdbench.registry import describe_params

ROOT = Path(__file__).parents[2]
NASTY = "a|b <script>alert(1)</script> *x* _y_ [z](javascript:0) `q` & \\ {{ 1 }} # ~"


@pytest.fixture(scope="module")
def items():
    return {item.name: item for item in hook.shipped_methods()}


@pytest.fixture(scope="module")
def pages():
    return hook.generated_pages()


def html(text):
    return markdown.markdown(text, extensions=["tables", "attr_list"])


def seen(text):
    """What a reader sees of Markdown."""
    import html as entities

    return entities.unescape(re.sub(r"<[^>]+>", "", html(text)))


def test_every_shipped_method_has_a_page_and_is_in_the_index(items, pages):
    assert len(items) >= 30
    assert {f"methods/{name}.md" for name in items} < pages.keys()
    for name in items:
        assert f"]({name}.md)" in pages["methods/index.md"]


def test_a_page_has_all_that_the_method_tells(items, pages):
    for name, item in items.items():
        page, method = seen(pages[f"methods/{name}.md"]), item.load()
        for p in describe_params(method.Params):
            assert p.name in page, name
            assert " ".join(p.description.replace("`", "").split()) in " ".join(page.split()), name
        for preset in method.presets:
            assert preset in page, name
        assert f"check-method {name}" in page
        assert method.fidelity in page
        for phrase in item.entry.needs.describe():
            assert phrase in page, name
        for arxiv in re.findall(r"arXiv:([\d.]+\d)", item.entry.paper):
            assert f"https://arxiv.org/abs/{arxiv}" in pages[f"methods/{name}.md"]


def test_fidelity_that_is_not_stated_or_has_no_paper(items, monkeypatch):
    def row():
        page = methods.method_page(items["kd"], [], [])
        return next(line for line in page.splitlines() if line.startswith("| **Fidelity**"))

    cls = items["kd"].load()
    assert "<code>paper</code>: follows the paper." in row()
    monkeypatch.delattr(cls, "fidelity")
    assert "<code>not stated</code>: the method does not say what its code follows." in row()
    monkeypatch.setattr(cls, "fidelity", "", raising=False)
    assert row() == "| **Fidelity** | — |"


def test_a_page_tells_what_the_pair_must_have(items, pages):
    """Whoever copies the lines of a page gets cells that run."""
    assert {n for n, i in items.items() if i.entry.needs.assistants} == {"takd"}
    for item in items.values():
        page, needs = pages[f"methods/{item.name}.md"], item.entry.needs
        lines = page.partition("```yaml")[2].partition("```")[0]
        assert ("assistant:" in lines) == bool(needs.assistants), item.name
        assert ("a teacher from a file has none" in page) == bool(needs.route), item.name
        assert (f"it does so {needs.teachers} times" in page) == (needs.teachers > 1), item.name


def test_the_tables_of_all_pages_are_whole(pages):
    for name, page in pages.items():
        width = None
        for line in page.splitlines():
            if not line.startswith("|"):
                width = None
                continue
            cells = line.count("|") - 1
            assert cells == (width or cells), f"{name}: {line}"
            width = cells


def test_nothing_that_a_plug_in_writes_gets_out_of_its_place():
    class Params(SimpleNamespace):
        pass

    from kdbench.api import Method, MethodParams

    class Evil(Method):
        __doc__ = f"{NASTY}\n\n``{'x|<b>'}`` and :func:`~a.b.<i>`.\n\n- {NASTY}\n  goes on\n"

        class Params(MethodParams):
            weight: float = Field(1.0, ge=0, description=NASTY)
            word: str | None = Field(NASTY, description="text")

        presets = {NASTY: {"word": "|<u>"}}

    entry = MethodEntry(name=NASTY, target="x:Evil", summary=NASTY, paper=NASTY, tags=(NASTY,))
    item = SimpleNamespace(name="evil", entry=entry, version="1", load=lambda: Evil)
    texts = {field.name: NASTY for field in fields(published.Entry)}
    row = published.Entry(**{**texts, "method": "evil", "verified": True})
    page = methods.method_page(item, [], [row])
    made = html(page)
    tags = set(re.findall(r"</?([a-zA-Z]+\d?)", made))
    assert not tags & {"script", "b", "i", "u", "em"}
    assert "javascript:" not in "".join(re.findall(r'href="([^"]*)"', made))
    assert seen(page).count("<script>alert(1)</script>") >= 5
    for table in re.findall(r"<table>.*?</table>", made, flags=re.S):
        head = table.count("<th")
        head -= table.count("<thead")
        assert all(r.count("<td") == head for r in re.findall(r"<tr>.*?</tr>", table, flags=re.S)[1:])


def test_text_is_shown_as_it_was_written():
    assert " ".join(seen(f"| a |\n| --- |\n| {markup.escape(NASTY)} |\n").split()) == " ".join(
        f"a {NASTY}".split()
    )
    assert seen(markup.code(NASTY)) == NASTY


def test_docstrings_keep_lists_sections_and_formulas():
    text = """First ``L = a*b|c``.

        - one
          goes on
        - two

        Args:
            x: the `input`,
                (B, C).
            y: labels
        """
    made = html(markup.docstring(text))
    assert "<code>L = a*b|c</code>" in made.replace("&#42;", "*").replace("&#124;", "|").replace("&#61;", "=")
    assert made.count("<li>") == 4
    assert "one goes on" in made
    assert "<strong>Args" in made
    assert "(B, C)" in made


def test_rows_from_memory_are_never_shown(pages):
    file = ROOT / "kdbench/leaderboard/data/published_results.csv"
    rows = list(csv.DictReader(file.open()))
    unverified = [r for r in rows if r["verified"] != "file"]
    assert unverified, "the file has such rows; if no more, this test is idle"
    shown = published.published_rows()
    assert len(shown) == len(rows) - len(unverified)
    text = "".join(pages.values())
    for row in unverified:
        assert row["source"] not in text


@pytest.mark.parametrize(
    ("name", "method"),
    [("KD", "kd"), ("Tf-KD", "tfkd"), ("KD+LS", "kd-ls"), ("DKD+LS", "dkd"), ("ReviewKD", "reviewkd")],
)
def test_published_names_are_known(name, method):
    assert published.is_of(name, method)


@pytest.mark.parametrize("name", ["KD++", "KD+DOT", "DIST+", "PAD-L2", "KD+LS", "DKD"])
def test_another_method_is_not_taken_for_kd(name):
    assert not published.is_of(name, "kd")


def test_every_published_row_stands_on_one_page_or_none(items):
    for row in published.published_rows():
        assert sum(published.is_of(row.method, name) for name in items) <= 1


def test_a_published_row_is_on_the_page_as_it_is_in_the_file(pages):
    page = pages["methods/crd.md"]
    row = next(r for r in published.published_rows() if r.method == "CRD" and r.student == "resnet8x4")
    cells = [row.dataset, f"{row.teacher} ({row.teacher_top1})", str(row.top1)]
    assert any(all(markup.escape(c) in line for c in cells) for line in page.splitlines())


def board(**rows):
    keys = (*measured._SETTING, "method", "role", "baseline", "teacher", "variant", "n_done", "n_planned")
    keys += ("last_top1_mean", "last_top1_sd")
    usual = {"role": "student", "baseline": "vanilla", "student": "s", "n_done": "3", "n_planned": "3"}
    made = [
        {**dict.fromkeys(keys, ""), **usual, "method": m, "variant": m, **values}
        for m, values in rows.items()
    ]
    return measured.Board("mine", made)


def test_measured_values_have_the_difference_to_the_student_alone():
    found = board(
        vanilla={"last_top1_mean": "60.0", "last_top1_sd": "1.0"},
        kd={"last_top1_mean": "61.25", "last_top1_sd": "0.5", "teacher": "t"},
    )
    line = measured.measured_table("kd", [found], "../").splitlines()[-1]
    assert [c.strip() for c in line.strip("|").split("|")][3:] == [
        *("3/3", "61.25\u00a0±\u00a00.50", "+1.25", "[mine](../leaderboards/boards/mine/index.html)")
    ]


@pytest.mark.parametrize(
    "other", [{"recipe_digest": "x"}, {"limit_train": "5"}, {"student": "z"}, {"last_top1_mean": ""}]
)
def test_there_is_no_difference_between_settings(other):
    found = board(vanilla={"last_top1_mean": "60.0", **other}, kd={"last_top1_mean": "61.0"})
    assert "+1.00" not in measured.measured_table("kd", [found], "")


def test_a_row_that_is_not_done_has_no_mean():
    found = board(vanilla={"last_top1_mean": "60.0"}, kd={"n_done": "2"})
    assert "| 2/3 | — | — |" in measured.measured_table("kd", [found], "")


def test_measured_values_are_those_of_the_committed_boards(pages):
    boards = {b.name: b for b in measured.read_boards(ROOT / "leaderboards")}
    rows = [r for r in boards["quickstart"].rows if r["method"] == "dkd" and r["role"] == "student"]
    (row,) = rows
    shown = f"{float(row['last_top1_mean']):.2f}\u00a0±\u00a0{float(row['last_top1_sd']):.2f}"
    line = next(
        line for line in pages["methods/dkd.md"].splitlines() if "leaderboards/boards/quickstart" in line
    )
    assert shown in line


def test_the_cli_page_has_every_verb_and_option(pages):
    import click

    page = seen(pages["reference/cli.md"])
    for path, command in cli._commands(cli.main, "kdbench"):
        assert path in page
        for parameter in command.params:
            if isinstance(parameter, click.Option) and not parameter.hidden:
                for option in parameter.opts:
                    assert option in page, f"{path} {option}"
    assert len(list(cli._commands(cli.main, "kdbench"))) > len(VERBS)


def test_the_cli_page_has_defaults_in_their_own_column(pages):
    page = pages["reference/cli.md"]
    assert "[default" not in seen(page)
    device = f"| {markup.code('--device auto|cpu|cuda')}"
    lines = [line for line in page.splitlines() if line.startswith(device)]
    assert len(lines) == 5, "run-matrix, reproduce, tune, prepare and throughput"
    assert all(line.endswith(f"| {markup.code('auto')} |") for line in lines)


def test_the_cli_page_has_every_variable_that_the_code_reads():
    sources = [p.read_text() for p in (ROOT / "kdbench").rglob("*.py")]
    read = {name for text in sources for name in re.findall(r"\bKDBENCH_[A-Z_]+\b", text)}
    assert read <= set(cli.VARIABLES)


@pytest.mark.parametrize(
    ("link", "becomes"),
    [
        ("[`a`](../../plugins/template)", "`a`"),
        ("[b](../../leaderboards/quickstart/README.md)", "[b](../leaderboards/boards/quickstart/index.html)"),
        ("[c](../reference/hooks.md#needs)", "[c](../reference/hooks.md#needs)"),
        ("[d](https://example.org)", "[d](https://example.org)"),
        ("[e](#here)", "[e](#here)"),
    ],
)
def test_links_out_of_the_documents_are_mended(link, becomes):
    assert hook.relink(f"see {link}.", "how-to/page.md") == f"see {becomes}."


def test_every_page_by_hand_is_in_the_navigation():
    text = (ROOT / "mkdocs.yml").read_text()
    by_hand = sorted(p.relative_to(ROOT / "docs").as_posix() for p in (ROOT / "docs").rglob("*.md"))
    assert [page for page in by_hand if f": {page}\n" not in text] == []


def test_the_site_fails_when_a_page_loads_from_elsewhere(tmp_path):
    page = tmp_path / "index.html"
    page.write_text('<a href="https://example.org">x</a> <script src="own.js"></script>')
    hook.on_post_build(SimpleNamespace(site_dir=tmp_path))
    page.write_text('<script async src="https://cdn.example.org/x.js"></script>')
    with pytest.raises(hook.PluginError, match=r"cdn\.example\.org"):
        hook.on_post_build(SimpleNamespace(site_dir=tmp_path))


def test_a_target_that_cannot_be_loaded_is_an_error_of_the_build(items):
    from kdbench.errors import PluginError

    item = items["kd"]
    broken = replace(item, entry=replace(item.entry, target="kdbench_methods.kd:Nothing"))
    with pytest.raises(PluginError, match="Nothing"):
        methods.method_page(broken, [], [])

"""The site's files: links, what is escaped, what stays and what goes when it is built again."""

import html.parser
import json
import os
import posixpath
import threading
import urllib.request
from urllib.parse import unquote, urlsplit

import pytest
from click.testing import CliRunner
from factories import TEACHER_ARCH, make_record, make_speed_record, signed, write_run

from kdbench.cli.leaderboard import leaderboard
from kdbench.errors import KdbenchError
from kdbench.leaderboard.board import make_board
from kdbench.leaderboard.build import build_board
from kdbench.leaderboard.curves import Curve
from kdbench.leaderboard.site import SiteBoard, render_site, write_site
from kdbench.leaderboard.site.cells import prefix_length
from kdbench.leaderboard.site.model import method_slug
from kdbench.leaderboard.site.serve import make_server
from kdbench.leaderboard.site.write import MANIFEST
from kdbench.results.schema import Record

HOSTILE = [
    "<script>alert(1)</script>",
    "</script><img src=x onerror=alert(1)>",
    '" onmouseover="alert(1)',
    "{{ 7 * 7 }}{% raw %}",
    "&lt;b&gt; <!-- --> \u202e\x00\x1b[31m",
    "../../../etc/passwd",
]


class Page(html.parser.HTMLParser):
    """Elements with their attributes, and the texts by enclosing element."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.texts, self._open = [], [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, k, v) for k, v in attrs]
        self._open.append(tag)

    def handle_endtag(self, tag):
        if tag in self._open:
            while self._open.pop() != tag:
                pass

    def handle_data(self, data):
        self.texts.append((self._open[-1] if self._open else "", data))

    def data(self):
        return json.loads("".join(text for tag, text in self.texts if tag == "script"))


def records(text="hint", **kw):
    labels = dict.fromkeys(("dataset", "variant", "recipe", "fidelity", "preset"), text)
    made = [make_record(method="plain", teacher=None, seed=seed, top1=70 + seed / 10) for seed in range(3)]
    for seed in range(3):
        made.append(
            make_record(
                method=text,
                seed=seed,
                top1=72 + seed,
                status="failed" if kw.get("fails") and seed == 2 else "done",
                message=text,
                labels=labels | {"teacher": TEACHER_ARCH},
                environment={"device_name": text, "precision": text},
                plugins={"method": {"distribution": text, "version": text}},
                warnings=[text],
            )
        )
    return [Record.model_validate(r) for r in made]


def site_board(name="b", home="boards/b", found=None, title="T", **kw):
    found = records() if found is None else found
    return SiteBoard(
        name, make_board(found, title=title, description=kw.pop("about", ""), notes=kw.pop("notes", ())),
        home=home, records=f"leaderboards/{name}/records/{{id}}.json", **kw,
    )  # fmt: skip


def some_curves(found):
    columns = {"train_loss": (1.0, 0.5), "val_top1": (None, 60.0), "test_top1": (50.0, 61.0)}
    return {r.cell_id: Curve((1, 2), columns) for r in found if r.status == "done"}


def render(*boards):
    return {
        name: content.decode() for name, content in render_site(boards) if not name.endswith("plotly.min.js")
    }


def pages(files):
    return {name: Page(text) for name, text in files.items() if name.endswith(".html")}


def several():
    found = records(fails=True)
    speeds = [Record.model_validate(make_speed_record(n)) for n in ("small", "large")]
    return render(
        site_board("b", "boards/b", found, curves=some_curves(found)),
        site_board("ü & <x>", "boards/ü & <x>"),
        site_board("speeds", "boards/speeds", speeds),
    )


def test_a_cell_has_its_own_curves_and_a_long_one_is_thinned():
    found = records()
    long = Curve(
        tuple(range(1, 241)),
        {
            "train_loss": (1.0,) * 240,
            "val_top1": (None,) * 240,
            "test_top1": tuple(e / 4 for e in range(240)),
        },
    )
    first = found[0].cell_id
    files = render(site_board("b", "boards/b", found, curves={first: long}))
    shared = json.loads(files["boards/b/cells/shared.js"].removeprefix("kdbench.put(").removesuffix(");\n"))
    cells = json.loads(files["boards/b/cells/all.js"].removeprefix("kdbench.put(").removesuffix(");\n"))
    assert [cell for cell in cells if "curve" in cells[cell]] == [first]
    number, values = cells[first]["curve"].pop("test_top1")
    epochs = shared[number]
    assert not cells[first]["curve"]
    assert (epochs[0], epochs[-1], len(epochs), len(values)) == (1, 240, 32, 32)
    assert values == [round((e - 1) / 4, 2) for e in epochs]


def test_every_link_leads_to_a_file_of_the_site():
    files = several()
    present = {*files, "assets/plotly.min.js"}
    seen = 0
    for name, page in pages(files).items():
        for _, key, value in page.attributes:
            if key in ("href", "src", "data-plotly"):
                address = urlsplit(value)
                assert not address.scheme
                assert not address.netloc
                if address.path:
                    seen += 1
                    target = posixpath.normpath(
                        posixpath.join(posixpath.dirname(name), unquote(address.path))
                    )
                    assert target in present, (name, value)
    assert seen > 40


def test_anchors_lead_to_a_place_of_their_page():
    files = several()
    found = pages(files)
    for name, page in found.items():
        for tag, key, value in page.attributes:
            if (tag, key) == ("a", "href") and "#" in value and "cell.html" not in value:
                path, _, anchor = value.partition("#")
                target = (
                    posixpath.normpath(posixpath.join(posixpath.dirname(name), unquote(path)))
                    if path
                    else name
                )
                ids = {v for _, k, v in found[target].attributes if k == "id"}
                assert anchor in ids, (name, value)


def test_pages_have_a_policy_no_handlers_and_no_foreign_address():
    for name, page in pages(several()).items():
        policy = next(
            v for t, k, v in page.attributes if t == "meta" and k == "content" and "default-src" in v
        )
        assert "default-src 'none'" in policy
        script = next(part for part in policy.split("; ") if part.startswith("script-src"))
        assert "unsafe" not in script
        assert not [a for a in page.attributes if a[1].startswith("on")], name
        assert not {"iframe", "base", "style"} & set(page.tags)
        texts = [text for tag, text in page.texts if tag == "script" and text.strip()]
        assert len(texts) <= 1, "only data, which the policy does not run"
    for name, text in several().items():
        if name.startswith("assets/"):
            assert "http" not in text.replace("http-equiv", ""), name


def test_what_a_plot_needs_is_loaded_where_there_are_plots():
    files = several()
    assert "plots.js" in files["boards/b/index.html"]
    assert "plots.js" not in files["index.html"]
    assert [name for name in files if name.endswith("plotly.min.js")] == []
    assert "plots.js" in files["methods/hint.html"]


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_texts_are_harmless(text):
    def made(word):
        found = records(word, fails=True)
        board = site_board(
            "b", "boards/b", found, title=word, about=word, notes=[word], curves=some_curves(found)
        )
        return render(board)

    plain, hostile = made("hint"), made(text)
    by_kind = lambda files: sorted(name.rsplit("/", 1)[0] for name in files)  # noqa: E731
    assert by_kind(hostile) == by_kind(plain)
    for name in hostile:
        assert ".." not in name
    reference = pages(plain)
    for name, page in pages(hostile).items():
        other = reference.get(name) or reference["methods/hint.html"]
        # sorted: another name stands elsewhere in lists of options and methods
        assert sorted(page.tags) == sorted(other.tags), name
        assert sorted(a[:2] for a in page.attributes) == sorted(a[:2] for a in other.attributes)
        assert "49" not in [t.strip() for _, t in page.texts]
    for name, content in hostile.items():
        assert "\x1b" not in content, name
        assert "\u202e" not in content, name
        if name.endswith(".js") and not name.startswith("assets/"):
            assert "\x00" not in content


def test_pages_are_the_same_for_any_order_of_records():
    found = records()
    assert render(site_board(found=found)) == render(site_board(found=found[::-1]))


def test_data_of_a_board_is_enough_for_rows_and_plots():
    found = records(fails=True)
    data = pages(render(site_board(found=found)))["boards/b/index.html"].data()
    (hint,) = [row for row in data["rows"] if row["v"] == "hint"]
    assert [seed[:2] for seed in hint["s"]] == [[0, "done"], [1, "done"], [2, "failed"]]
    assert hint["s"][2][3] == "hint"
    assert hint["w"] == "seed 2 failed"
    assert hint["f"]["track"] == "default"
    assert data["records"] == "leaderboards/b/records/{id}.json"
    assert data["cite"].startswith("@misc{kdbench-b,")


def test_cells_are_in_the_file_that_their_id_names():
    found = records()
    files = render(site_board(found=found))
    text = files["boards/b/cells/all.js"]
    assert text.startswith("kdbench.put({")
    cells = json.loads(text[len("kdbench.put(") : -len(");\n")])
    shared = json.loads(files["boards/b/cells/shared.js"][len("kdbench.put(") : -len(");\n")])
    assert set(cells) == {r.cell_id for r in found}
    for record in found:
        cell = cells[record.cell_id]
        assert cell["seed"] == record.labels.seed
        assert shared[cell["labels"]]["variant"] == record.labels.variant
        identity = {key: shared[n] for key, n in cell["identity"].items()}
        assert {**identity, "seed": cell["seed"]} == record.identity
        assert shared[cell["environment"]] == record.environment
        assert (
            cell["numbers"]["deployables"]["student"]["last"]["top1"]
            == record.deployables["student"].last["top1"]
        )


@pytest.mark.parametrize(("cells", "digits"), [(0, 0), (60, 0), (61, 1), (960, 1), (10_000, 2), (10**7, 3)])
def test_files_of_cells_stay_small(cells, digits):
    assert prefix_length(cells) == digits


def test_two_methods_never_share_a_page():
    names = ["kd", "KD", "k d", "k-d", "k/d", "", "é", "è", "x" * 50, "x" * 51]
    assert len({method_slug(n) for n in names}) == len(names)
    assert method_slug("kd-ls") == "kd-ls"


def test_the_site_of_one_board_starts_with_it(tmp_path):
    run = write_run(tmp_path / "runs" / "r", [make_record(seed=s) for s in range(3)])
    *_, page = build_board([make_record(seed=s) for s in range(3)], run / "board", title="T", run=run)
    assert page == run / "board" / "index.html"
    assert (run / "board" / "README.md").exists()
    found = Page(page.read_text())
    assert found.data()["records"] == "runs/r/cells/{id}/result.json"
    assert "T" in [text for tag, text in found.texts if tag == "h1"]


def test_building_again_removes_only_what_the_last_build_wrote(tmp_path):
    write_site([site_board(), site_board("c", "boards/c")], tmp_path)
    (tmp_path / "boards" / "c" / "mine.txt").write_text("mine")
    outside = tmp_path.parent / "outside.txt"
    outside.write_text("mine")
    names = json.loads((tmp_path / MANIFEST).read_text())
    (tmp_path / MANIFEST).write_text(json.dumps([*names, "../outside.txt", str(outside), 3]))
    write_site([site_board(), site_board("d", "boards/d")], tmp_path)
    assert not (tmp_path / "boards" / "c" / "index.html").exists()
    assert (tmp_path / "boards" / "c" / "mine.txt").exists()
    assert (tmp_path / "boards" / "d" / "index.html").exists()
    assert outside.exists()
    (tmp_path / MANIFEST).write_text("{")
    write_site([site_board()], tmp_path)


def call(*args):
    return CliRunner().invoke(leaderboard, [str(a) for a in args])


@pytest.fixture
def boards(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("one", "two"):
        folder = tmp_path / "leaderboards" / name / "records"
        folder.mkdir(parents=True)
        for record in (make_record(seed=s) for s in range(3)):
            (folder / f"{record['cell_id']}.json").write_text(json.dumps(signed(record)))
    return tmp_path / "leaderboards"


def test_a_build_of_one_board_builds_the_site_of_all(boards):
    result = call("build", "leaderboards/one")
    assert result.exit_code == 0, result.output
    assert not (boards / "two" / "README.md").exists()
    assert (boards / "_site" / "boards" / "two" / "index.html").exists()
    assert call("build", "--no-site").output.count("\n") == 2
    assert "site: elsewhere/index.html" in call("build", "--site", "elsewhere").output


def test_open_builds_only_where_records_are_newer(boards, monkeypatch):
    import webbrowser

    opened = []
    monkeypatch.setattr(webbrowser, "open", lambda address: opened.append(address) or True)
    assert call("open").output == "leaderboards/_site/index.html\n"
    manifest = boards / "_site" / MANIFEST
    built = manifest.stat().st_mtime_ns
    assert opened == [(boards / "_site" / "index.html").as_uri()]
    call("open")
    assert manifest.stat().st_mtime_ns == built
    (boards / "one" / "board.yaml").write_text("title: Other\n")
    os.utime(boards / "one" / "board.yaml", (built / 1e9 + 5, built / 1e9 + 5))
    call("open")
    assert manifest.stat().st_mtime_ns > built
    assert "Other" in (boards / "_site" / "index.html").read_text()
    monkeypatch.setattr(webbrowser, "open", lambda address: False)
    assert "no browser found" in call("open").output


def test_serve_is_local_and_names_a_taken_port(boards):
    call("build")
    with make_server(boards / "_site", 0) as server:
        host, port = server.server_address[:2]
        assert host == "127.0.0.1"
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            with urllib.request.urlopen(
                f"http://127.0.0.1:{port}/boards/one/index.html", timeout=10
            ) as answer:
                assert b"<h1>one</h1>" in answer.read()
        finally:
            server.shutdown()
            thread.join()
        with pytest.raises(KdbenchError, match=f"--port {port}: .*give another"):
            make_server(boards / "_site", port)

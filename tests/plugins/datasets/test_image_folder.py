"""Image folders: layouts, fingerprint, decoding, the cache of decoded splits, and every error."""

from __future__ import annotations

import os
import struct
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from kdbench.api import DataError
from kdbench_datasets import decode_cache, image_folder
from kdbench_datasets.folder_scan import scan
from kdbench_datasets.image_folder import ImageFolder


def write(path: Path, colour: tuple[int, int, int] = (10, 20, 30), size: tuple[int, int] = (8, 8)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)


def tree(root: Path, splits: tuple[str, ...] = ("train", "test"), per_class: int = 3) -> Path:
    for s, split in enumerate(splits):
        for c, name in enumerate(("cat", "dog")):
            for i in range(per_class):
                write(root / split / name / f"{i}.png", (100 * c + 10 * i, 50 * s, i))
    return root


def folder(root: Path, **kw: object) -> ImageFolder:
    return ImageFolder(ImageFolder.Params(root=root, **kw))


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    path = tmp_path / "cache"
    monkeypatch.setenv("KDBENCH_CACHE", str(path))
    return path


@pytest.fixture
def root(tmp_path):
    return tree(tmp_path / "pets")


def test_facts(root):
    info = folder(root).describe()
    assert info.name == "pets"
    assert info.class_names == ("cat", "dog")
    assert info.num_classes == 2
    assert (info.n_train, info.n_val, info.n_test, info.image_size) == (6, 0, 6, 8)
    assert info.mean == (0.4914, 0.4822, 0.4465)
    assert info.flip
    assert info.revision.startswith("folder-")
    assert len(info.revision) == len("folder-") + 16


def test_parameters(root, monkeypatch):
    info = folder(root, image_size=96, flip=False).describe()
    assert info.image_size == 96
    assert not info.flip
    assert info.mean == (0.485, 0.456, 0.406)
    info = folder(root, mean=(0.1, 0.2, 0.3), std=(1, 1, 2)).describe()
    assert info.mean == (0.1, 0.2, 0.3)
    assert info.std == (1, 1, 2)
    monkeypatch.setenv("HOME", str(root.parent))
    assert folder(Path("~/pets")).describe().n_train == 6
    assert "root" in ImageFolder.location
    for bad in ({"std": (1, 0, 1)}, {"image_size": 0}, {"rooot": "x"}):
        with pytest.raises(ValidationError):
            folder(root, **bad)


@pytest.mark.parametrize(
    ("splits", "n_val"), [(("train", "val"), 0), (("train", "valid"), 0), (("train", "test", "valid"), 6)]
)
def test_layouts_of_the_validation_split(tmp_path, splits, n_val):
    data = folder(tree(tmp_path / "x", splits))
    info = data.describe()
    assert (info.n_train, info.n_val, info.n_test) == (6, n_val, 6)
    assert len(data.labels("test")) == 6
    if n_val:
        assert data.image("val", 0).getpixel((0, 0)) == (0, 100, 0)
    else:
        with pytest.raises(DataError, match="no split 'val'"):
            data.labels("val")


def test_labels_and_images_are_in_order_of_class_and_file(root):
    data = folder(root)
    assert data.labels("train").tolist() == [0, 0, 0, 1, 1, 1]
    assert data.labels("train").dtype == np.int64
    x = data.arrays("test", np.array([4, 0]))
    assert x.shape == (2, 8, 8, 3)
    assert x.dtype == np.uint8
    assert x[0, 0, 0].tolist() == [110, 50, 1]
    assert x[1, 0, 0].tolist() == [0, 50, 0]
    assert np.array_equal(np.asarray(data.image("test", 4)), x[0])


def test_what_counts_as_an_image(root):
    write(root / "train" / "cat" / "more" / "a.JPG")
    write(root / "train" / "cat" / "b.webp")
    write(root / "train" / "cat" / "c.bmp")
    (root / "train" / "cat" / "notes.txt").write_text("no image")
    (root / "train" / "cat" / "._0.png").write_text("no image")
    (root / "train" / ".hidden").mkdir()
    assert folder(root).describe().n_train == 9


def test_an_image_of_another_shape_is_resized_and_cropped_at_the_centre(root):
    wide = np.zeros((8, 24, 3), np.uint8)
    wide[:, 8:16] = 200
    Image.fromarray(wide).save(root / "test" / "cat" / "0.png")
    assert (folder(root).arrays("test", np.array([0])) == 200).all()
    assert folder(root, image_size=16).arrays("test", np.array([0, 1])).shape == (2, 16, 16, 3)


def test_grey_palette_and_alpha_become_rgb(root):
    for i, mode in enumerate(("L", "P", "RGBA")):
        Image.new(mode, (8, 8), 7).save(root / "test" / "cat" / f"{i}.png")
    assert folder(root).image("test", 0).mode == "RGB"
    assert folder(root).arrays("test", np.arange(3)).shape == (3, 8, 8, 3)


class TestRevision:
    def of(self, root: Path) -> str:
        scan.cache_clear()
        return folder(root).describe().revision

    def test_it_does_not_depend_on_the_place(self, tmp_path):
        a, b = tree(tmp_path / "a"), tree(tmp_path / "elsewhere" / "b")
        assert self.of(a) == self.of(b)

    @pytest.mark.parametrize("change", ["rename", "size", "move", "add", "class", "remove"])
    def test_it_follows_every_change(self, root, change):
        before = self.of(root)
        image = root / "train" / "cat" / "0.png"
        if change == "rename":
            image.rename(image.with_name("9.png"))
        elif change == "size":
            image.write_bytes(image.read_bytes() + b"x")
        elif change == "move":
            image.rename(root / "train" / "dog" / "7.png")
        elif change == "add":
            write(root / "test" / "cat" / "7.png")
        elif change == "class":
            write(root / "train" / "eel" / "0.png")
        else:
            image.unlink()
        assert self.of(root) != before


class TestDecodeCache:
    def path(self, data: ImageFolder, cache: Path, split: str = "train") -> Path:
        info = data.describe()
        return cache / "decoded" / info.revision / f"{split}-{info.image_size}.npy"

    def test_the_second_reader_decodes_nothing(self, root, cache, monkeypatch):
        data = folder(root)
        first = data.arrays("train", np.array([5, 1]))
        assert [p.name for p in self.path(data, cache).parent.iterdir()] == ["train-8.npy"]
        monkeypatch.setattr(image_folder, "_read", lambda path: pytest.fail(f"decoded {path} again"))
        assert np.array_equal(folder(root).arrays("train", np.array([5, 1])), first)
        again = folder(root).arrays("train", np.arange(6))
        again[:] = 0
        assert folder(root).arrays("train", np.array([5, 1])).any()

    @pytest.mark.parametrize("damage", ["empty", "cut", "shape", "noise"])
    def test_a_damaged_file_is_made_again(self, root, cache, damage):
        data = folder(root)
        expected = data.arrays("train", np.arange(6))
        path = self.path(data, cache)
        raw = path.read_bytes()
        if damage == "shape":
            np.save(path, np.zeros((5, 8, 8, 3), np.uint8))
        else:
            path.write_bytes({"empty": b"", "cut": raw[:-10], "noise": b"x" * len(raw)}[damage])
        assert np.array_equal(data.arrays("train", np.arange(6)), expected)
        assert path.read_bytes() == raw

    def test_an_unusable_cache_never_fails_the_run(self, root, cache):
        expected = folder(root).arrays("train", np.arange(6))
        for p in sorted(cache.rglob("*"), reverse=True):
            p.unlink() if p.is_file() else p.rmdir()
        cache.rmdir()
        cache.write_text("a file where the folder should be")
        assert np.array_equal(folder(root).arrays("train", np.arange(6)), expected)

    def test_a_full_disk_never_fails_the_run(self, root, cache, monkeypatch):
        def full(fd: int) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(decode_cache.os, "fsync", full)
        data = folder(root)
        assert data.arrays("train", np.arange(6)).shape == (6, 8, 8, 3)
        assert list(self.path(data, cache).parent.iterdir()) == []

    def test_large_splits_and_small_requests_are_not_kept(self, root, cache, monkeypatch):
        monkeypatch.setattr(decode_cache, "WORTH_ONE_IN", 2)
        assert len(folder(root).arrays("train", np.arange(2))) == 2
        monkeypatch.setattr(decode_cache, "MAX_BYTES", 6 * 8 * 8 * 3 - 1)
        assert len(folder(root).arrays("train", np.arange(6))) == 6
        assert not cache.exists()


class TestErrors:
    def fails(self, root: Path, *words: str) -> None:
        with pytest.raises(DataError) as e:
            folder(root).describe()
        self.check(e.value, *words)

    def check(self, error: DataError, *words: str) -> None:
        assert "\n" not in str(error)
        for word in words:
            assert word in str(error)

    def test_missing_root(self, tmp_path):
        self.fails(tmp_path / "nowhere", "nowhere", "not found")

    def test_no_train(self, tmp_path):
        self.fails(tree(tmp_path / "x", ("test",)), "no folder 'train'")

    def test_no_test(self, tmp_path):
        self.fails(tree(tmp_path / "x", ("train",)), "no folder 'test'")

    def test_two_validation_folders(self, tmp_path):
        self.fails(tree(tmp_path / "x", ("train", "val", "valid")), "both 'val' and 'valid'")

    def test_empty_split(self, root):
        for path in sorted((root / "test").rglob("*"), reverse=True):
            path.unlink() if path.is_file() else path.rmdir()
        self.fails(root, str(root / "test"), "no class folders")

    def test_class_without_images(self, root):
        (root / "train" / "cow").mkdir()
        self.fails(root, str(root / "train" / "cow"), "without images")

    def test_class_only_in_test(self, root):
        write(root / "test" / "cow" / "0.png")
        self.fails(root, str(root / "test" / "cow"), "'cow' is not in")

    @pytest.mark.parametrize("content", [b"", b"not an image", None])
    def test_corrupt_image(self, root, content):
        path = root / "train" / "dog" / "2.png"
        raw = path.read_bytes()
        path.write_bytes(raw[: len(raw) // 2] if content is None else content)
        for ask in (lambda d: d.image("train", 5), lambda d: d.arrays("train", np.arange(6))):
            with pytest.raises(DataError) as e:
                ask(folder(root))
            self.check(e.value, str(path), "not a readable image")

    def test_corrupt_first_image(self, root):
        (root / "train" / "cat" / "0.png").write_bytes(b"GIF89a")
        self.fails(root, str(root / "train" / "cat" / "0.png"), "not a readable image")

    def test_too_large_image(self, root, monkeypatch):
        write(root / "train" / "dog" / "9.png", size=(40, 40))
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
        with pytest.raises(DataError) as e:
            folder(root).image("train", 6)
        self.check(e.value, str(root / "train" / "dog" / "9.png"), "too large")


class TestLinks:
    def test_inside_the_root_they_are_followed(self, root):
        (root / "store").mkdir()
        write(root / "store" / "x.png")
        (root / "train" / "cat" / "x.png").symlink_to(root / "store" / "x.png")
        (root / "train" / "cow").symlink_to(root / "store")
        info = folder(root).describe()
        assert info.n_train == 8
        assert info.class_names == ("cat", "cow", "dog")

    def test_the_root_itself_may_be_one(self, root, tmp_path):
        (tmp_path / "link").symlink_to(root)
        assert folder(tmp_path / "link").describe().revision == folder(root).describe().revision

    @pytest.mark.parametrize("what", ["file", "class", "split", "nested"])
    def test_out_of_the_root_they_are_refused(self, root, tmp_path, what):
        outside = tmp_path / "pets-outside"
        write(outside / "cat" / "x.png")
        link, target = {
            "file": (root / "train" / "cat" / "x.png", outside / "cat" / "x.png"),
            "class": (root / "train" / "cow", outside / "cat"),
            "split": (root / "val", outside),
            "nested": (root / "train" / "cat" / "more", outside / "cat"),
        }[what]
        link.symlink_to(target)
        with pytest.raises(DataError, match="leaves the image folder") as e:
            folder(root).describe()
        assert str(link) in str(e.value)

    def test_a_circle_is_refused(self, root):
        (root / "train" / "cat" / "round").symlink_to(root / "train" / "cat")
        with pytest.raises(DataError, match="link to a folder that holds it"):
            folder(root).describe()

    def test_a_dangling_link_is_named(self, root):
        link = root / "train" / "cat" / "gone.png"
        link.symlink_to(root / "nowhere.png")
        with pytest.raises(DataError, match=r"gone\.png"):
            folder(root).describe()


def test_a_scan_is_made_once_per_process(root, monkeypatch):
    folder(root).describe()
    monkeypatch.setattr(os, "scandir", lambda path: pytest.fail(f"scanned {path} again"))
    assert folder(root).describe().n_train == 6


def test_twelve_thousand_files_are_described_in_a_fifth_of_the_allowed_time(tmp_path):
    # 60,000 files have 1.5 s
    root = tmp_path / "many"
    for split in ("train", "test"):
        for c in range(10):
            write(root / split / f"c{c}" / "0.png")
            for i in range(1, 600):
                (root / split / f"c{c}" / f"{i}.png").touch()
    times = []
    for _ in range(3):
        scan.cache_clear()
        start = time.perf_counter()
        assert folder(root).describe().n_train == 6000
        times.append(time.perf_counter() - start)
    assert min(times) < 0.3


def test_a_pipe_is_not_waited_for(root):
    os.mkfifo(root / "train" / "cat" / "pipe.png")
    with pytest.raises(DataError, match=r"pipe\.png: not a regular file"):
        folder(root).describe()


def test_links_that_double_at_every_level(root):
    """Thirty folders whose links make a tree of 2 ** 30 files."""
    levels = root / "train" / ".levels"
    for k in range(30):
        (levels / str(k)).mkdir(parents=True)
        for name in "ab":
            (levels / str(k) / name).symlink_to(levels / str(k + 1))
    write(levels / "30" / "x.png")
    (root / "train" / "cat" / "bomb").symlink_to(levels / "0")
    with pytest.raises(DataError, match="twice, by links"):
        folder(root).describe()


def test_folders_without_end(root):
    write(root.joinpath("train", "cat", *["d"] * 40, "x.png"))
    with pytest.raises(DataError, match="more than 32 folders deep"):
        folder(root).describe()


def bomb(width: int, height: int) -> bytes:
    """A PNG of some hundred bytes that says to be of a size."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    body = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0" * 10_000)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


@pytest.mark.filterwarnings("ignore:Image size")
@pytest.mark.parametrize("size", [(60_000, 60_000), (10_000, 9_000), (3, 2**31 - 1)])
def test_images_that_would_fill_the_memory(root, size):
    (root / "train" / "cat" / "0.png").write_bytes(bomb(*size))
    with pytest.raises(DataError, match=r"0\.png: (image too large|not a readable image)"):
        folder(root).image("train", 0)


def test_a_side_that_no_network_takes_is_asked_for(root):
    (root / "train" / "cat" / "0.png").write_bytes(bomb(5000, 5000))
    with pytest.raises(DataError, match="5000 pixels on its shorter side; give an image_size"):
        folder(root).describe()


def test_names_of_files_stay_on_the_line(root):
    (root / "train" / "cat" / "a\n\x1b[2Jb.png").write_bytes(b"no image")
    with pytest.raises(DataError) as caught:
        folder(root, image_size=8).image("train", 3)
    assert str(caught.value).isprintable()
    assert "a\\n\\x1b[2Jb.png" in str(caught.value)

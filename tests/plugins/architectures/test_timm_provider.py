"""The timm namespace: construction, input sizes, errors in one line, and the cached list of names."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import timm
import torch

from kdbench.api import KdbenchError
from kdbench_architectures import timm_provider


def build(model: str, **kw: object) -> torch.nn.Module:
    return timm_provider.build(**({"model": model, "num_classes": 10, "in_chans": 3, "image_size": 32} | kw))


@pytest.mark.parametrize("model", ["test_resnet", "test_vit", "test_efficientnet", "test_convnext.r160_in1k"])
def test_small_models_at_32_pixels(model):
    torch.manual_seed(0)
    net = build(model)
    assert net(torch.randn(2, 3, 32, 32)).shape == (2, 10)
    assert net.num_classes == 10


def test_fixed_size_models_follow_the_image_size():
    net = build("test_vit", image_size=64)
    assert net.patch_embed.img_size == (64, 64)
    assert build("test_vit", image_size=160).patch_embed.img_size == (160, 160)


def test_a_user_may_set_the_size_and_other_constructor_arguments():
    net = build("test_vit", img_size=48, depth=2, in_chans=1)
    assert net.patch_embed.img_size == (48, 48)
    assert len(net.blocks) == 2
    assert net(torch.randn(2, 1, 48, 48)).shape == (2, 10)


def test_a_constructor_without_img_size_is_built_without(monkeypatch):
    calls = []

    def create(model, **kw):
        calls.append(kw)
        if "img_size" in kw:
            raise TypeError("__init__() got an unexpected keyword argument 'img_size'")
        return torch.nn.Identity()

    monkeypatch.setattr(timm, "create_model", create)
    assert isinstance(build("test_vit"), torch.nn.Identity)
    assert ["img_size" in kw for kw in calls] == [True, False]


def test_same_seed_same_weights():
    nets = []
    for _ in range(2):
        torch.manual_seed(3)
        nets.append(build("test_resnet"))
    pairs = zip(nets[0].parameters(), nets[1].parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize(
    ("model", "kw", "words"),
    [
        ("resnet81", {}, ["resnet81", "did you mean", "resnet18"]),
        ("hf-hub:someone/model", {}, ["hf-hub:someone/model"]),
        ("resnet18.nonsense", {}, ["resnet18.nonsense", "tag", "resnet18.a1_in1k"]),
        ("resnet18", {"blockz": 3}, ["timm:resnet18", "blockz"]),
        ("test_vit", {"depth": "x"}, ["timm:test_vit", "depth: 'x'"]),
        ("resnet10t", {"pretrained": True}, ["timm:resnet10t"]),
    ],
)
def test_errors_are_one_line(monkeypatch, model, kw, words):
    if kw.get("pretrained"):

        def offline(*_a, **_k):
            raise OSError("no route\nto the hub")

        monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(KdbenchError) as e:
        build(model, **kw)
    text = str(e.value)
    assert "\n" not in text
    for word in words:
        assert word in text


def test_pretrained_is_refused_where_timm_has_no_weights(monkeypatch):
    monkeypatch.setattr(timm, "create_model", lambda *a, **k: pytest.fail("must not be built"))
    with_weights = {name.split(".")[0] for name in timm.list_models(pretrained=True)}
    bare = min(set(timm.list_models()) - with_weights)
    with pytest.raises(KdbenchError, match=f"timm:{bare}: pretrained: true, but timm has no weights"):
        build(bare, pretrained=True)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("KDBENCH_CACHE", str(tmp_path))
    return tmp_path / f"timm-names-{timm.__version__}.json"


def test_names_are_listed_once_by_a_child_and_then_read(cache, monkeypatch):
    found = timm_provider.names()
    assert found == timm.list_models()
    assert json.loads(cache.read_text()) == found
    assert [p.name for p in cache.parent.iterdir()] == [cache.name]
    monkeypatch.setattr(subprocess, "run", lambda *a, **k: pytest.fail("the list was cached"))
    assert timm_provider.names() == found


@pytest.mark.parametrize("text", ["", "{", "[]", "[1, 2]", '{"a": 1}'])
def test_a_damaged_list_is_made_again(cache, monkeypatch, text):
    cache.write_text(text)
    done = subprocess.CompletedProcess([], 0, stdout='noise\n["a", "b"]\n', stderr="")
    monkeypatch.setattr(subprocess, "run", lambda *a, **k: done)
    assert timm_provider.names() == ["a", "b"] == json.loads(cache.read_text())


def test_names_need_no_writable_cache(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("KDBENCH_CACHE", str(tmp_path / "file"))
    done = subprocess.CompletedProcess([], 0, stdout='["a"]\n', stderr="")
    monkeypatch.setattr(subprocess, "run", lambda *a, **k: done)
    assert timm_provider.names() == ["a"]


def test_a_failing_child_is_told_in_one_line(cache, monkeypatch):
    done = subprocess.CompletedProcess([], 1, stdout="", stderr="Traceback\nImportError: broken torch\n")
    monkeypatch.setattr(subprocess, "run", lambda *a, **k: done)
    with pytest.raises(KdbenchError, match=r"cannot list its models: ImportError: broken torch$"):
        timm_provider.names()


def test_listing_imports_no_torch(cache):
    cache.write_text('["a"]')
    program = (
        "import sys, kdbench_architectures as p; from kdbench_architectures.timm_provider import names;"
        "p.kdbench_architectures(); assert names() == ['a'];"
        "sys.exit(str(sorted({'torch', 'timm'} & set(sys.modules)) or ''))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.stderr.strip() == ""

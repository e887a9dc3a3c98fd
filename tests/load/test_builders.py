"""A builder is given the classes by whatever name it knows them, and finds what lies beside it."""

from __future__ import annotations

import dataclasses
import py_compile
import re
import sys
from pathlib import Path

import pytest
from torch import nn

from edgeclean.errors import UsageError
from edgeclean.load.architectures import build_architecture
from edgeclean.load.architectures.builders import CHANNELS, CLASSES
from edgeclean.load.architectures.named_code import build_named, code_file
from edgeclean.networks.state import ModelSpec

SPEC = ModelSpec(
    architecture="net.py:make", input_shape=(1, 8, 8), classes=7, mean=(0.0,), std=(1.0,)
)


def built(text: str, folder: Path, name: str = "make") -> tuple[int, ...]:
    """The shape of the weights of the linear layer that the text makes."""
    (folder / "net.py").write_text(f"from torch import nn\n{text}\n", encoding="utf-8")
    module = build_named(f"net.py:{name}", SPEC, folder)
    assert isinstance(module, nn.Linear)
    return tuple(module.weight.shape)


@pytest.mark.parametrize("word", CLASSES)
@pytest.mark.parametrize(
    "form",
    [
        "def make({}): return nn.Linear(2, {})",
        "def make(wide=2, *, {}=10): return nn.Linear(wide, {})",
        "def make({}, /): return nn.Linear(2, {})",
        "def make(**settings): return inner(**settings)\ndef inner({}=10): return nn.Linear(2, {})",
        "def make(pretrained=False, **others): return inner(2, **others)\n"
        "def inner(wide, {}=10): return nn.Linear(wide, {})",
        "def make(**settings): return nn.Linear(2, settings['{}'])",
        "def make(**settings): return nn.Linear(2, settings.get('{}', 10))",
    ],
)
def test_the_classes_arrive_under_every_name(word: str, form: str, tmp_path: Path) -> None:
    assert built(form.replace("{}", word), tmp_path) == (7, 2)


FORMS = {
    "class": "class make(nn.Linear):\n    def __init__(self, num_classes=10):\n"
    "        super().__init__(2, num_classes)",
    "partial": "import functools\nmake = functools.partial(nn.Linear, 2, 7)",
    "partial of a word": "import functools\ndef inner(wide, num_classes): "
    "return nn.Linear(wide, num_classes)\nmake = functools.partial(inner, 2)",
    "a network": "make = nn.Linear(2, 7)",
    "defaults alone": "def make(a=2, b=7): return nn.Linear(a, b)",
    "outputs": "def make(out_features): return nn.Linear(2, out_features)",
    "shape": "def make(input_shape, classes): return nn.Linear(input_shape[2] - 6, classes)",
    "side": "def make(img_size, num_classes): return nn.Linear(img_size - 6, num_classes)",
    "not downloaded": "def make(pretrained=True, num_classes=10):\n    assert not pretrained\n"
    "    return nn.Linear(2, num_classes)",
    "weights not downloaded": "def make(weights='DEFAULT', num_classes=10):\n"
    "    assert weights is None\n    return nn.Linear(2, num_classes)",
    "strict kwargs": "def make(**kwargs):\n    classes = kwargs.pop('num_classes', 10)\n"
    "    if kwargs: raise ValueError('unexpected')\n    return nn.Linear(2, classes)",
    "own in kwargs": "def make(**kwargs): return inner(num_classes=7, **kwargs)\n"
    "def inner(num_classes): return nn.Linear(2, num_classes)",
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_a_builder(form: str, tmp_path: Path) -> None:
    assert built(FORMS[form], tmp_path) == (7, 2)


@pytest.mark.parametrize("word", CHANNELS)
def test_channels_arrive_where_they_are_asked_for(word: str, tmp_path: Path) -> None:
    assert built(f"def make({word}=3, classes=2): return nn.Linear({word}, 2)", tmp_path) == (2, 1)
    assert built(f"def make({word}): return nn.Linear({word}, 2)", tmp_path) == (2, 1)
    inner = f"\ndef inner({word}=3, num_classes=10): return nn.Linear({word}, num_classes)"
    assert built(f"def make(**more): return inner(**more){inner}", tmp_path) == (7, 1)
    # With another default it is a width.
    assert built(f"def make({word}=64): return nn.Linear({word}, 2)", tmp_path) == (2, 64)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def make(depth): return nn.Linear(2, 2)", "it may ask for num_classes or input_shape"),
        ("def make(**more): return inner(**more)\ndef inner(depth): pass", "missing 1 required"),
        ("def make(**more): raise TypeError('unexpected keyword argument')", "unexpected keyword"),
        ("def make(**more): raise ValueError(sorted(more))", "raised ValueError: []"),
        ("def make(config): return nn.Linear(2, 2)", "return Net(Config(num_classes))"),
        ("import sys\ndef make(): sys.exit(0)", "its code ended the program (sys.exit)"),
        ("raise SystemExit", "importing net.py: its code ended the program"),
        ("class Own(BaseException): pass\nraise Own", "importing net.py raised Own"),
        ("class Own(BaseException): pass\ndef make(): raise Own", "net.py:make': raised Own"),
        ("def make(): raise AssertionError('not compiled with CUDA')", "leave .cuda() and device"),
    ],
)
def test_a_builder_that_asks_for_more_is_refused(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=re.escape(message)):
        built(text, tmp_path)


# Several files.

PARTS = "from torch import nn\nSIDE = {}\n"
FILES = {
    "parts.py": PARTS.format(3),
    "nets/__init__.py": "from . import inside\n",
    "nets/layers.py": PARTS.format(4),
    "nets/inside.py": "from .layers import SIDE, nn\ndef make(): return nn.Linear(SIDE, 2)\n",
    "nets/deep/__init__.py": "",
    "nets/deep/more.py": "from ..layers import SIDE, nn\ndef make(): return nn.Linear(SIDE, 5)\n",
    "nets/own.py": "from nets.layers import SIDE, nn\ndef make(): return nn.Linear(SIDE, 3)\n",
    "loose/layers.py": PARTS.format(6),
    "loose/relative.py": "from .layers import SIDE, nn\ndef make(): return nn.Linear(SIDE, 2)\n",
    "loose/plain.py": "from layers import SIDE, nn\ndef make(): return nn.Linear(SIDE, 2)\n",
    "loose/root.py": "from loose.layers import SIDE, nn\ndef make(): return nn.Linear(SIDE, 2)\n",
    "beside.py": "from parts import SIDE, nn\ndef make(): return nn.Linear(SIDE, 2)\n",
    "late.py": "def make():\n    from parts import SIDE, nn\n    return nn.Linear(SIDE, 2)\n",
    "code/layers.py": PARTS.format(8),
    "code/__init__.py": "",
    "code/net.py": "from .layers import SIDE, nn\ndef make(): return nn.Linear(SIDE, 2)\n",
    "with-dash/layers.py": PARTS.format(9),
    "with-dash/net.py": "from .layers import SIDE, nn\ndef make(): return nn.Linear(SIDE, 2)\n",
}
WAYS = {
    "beside.py:make": (2, 3),
    "late.py:make": (2, 3),
    "nets/inside.py:make": (2, 4),
    "nets/deep/more.py:make": (5, 4),
    "nets/own.py:make": (3, 4),
    "nets.inside:make": (2, 4),
    "nets.deep.more:make": (5, 4),
    "beside:make": (2, 3),
    "loose/relative.py:make": (2, 6),
    "loose/plain.py:make": (2, 6),
    "loose/root.py:make": (2, 6),
    "loose.root:make": (2, 6),
    "code/net.py:make": (2, 8),
    "with-dash/net.py:make": (2, 9),
}


@pytest.fixture
def project(tmp_path: Path) -> Path:
    for name, text in FILES.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize("name", WAYS)
def test_code_in_several_files_is_found_and_leaves_no_trace(
    name: str, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    before, path = dict(sys.modules), list(sys.path)
    for folder in (None, project):  # the current folder, or one that is named
        monkeypatch.chdir(project if folder is None else project.parent)
        module = build_architecture(name, SPEC, (), code_folder=folder)
        assert isinstance(module, nn.Linear)
        assert tuple(module.weight.shape) == WAYS[name]
    assert dict(sys.modules) == before
    assert sys.path == path
    assert not list(project.rglob("__pycache__"))
    found = code_file(name, project)
    assert found is not None
    assert found.is_file()


def test_two_folders_with_modules_of_one_name_are_not_mixed_up(tmp_path: Path) -> None:
    for index in (1, 2):
        folder = tmp_path / str(index)
        folder.mkdir()
        (folder / "parts.py").write_text(PARTS.format(index), encoding="utf-8")
        (folder / "beside.py").write_text(FILES["beside.py"], encoding="utf-8")
    for index in (1, 2, 1):
        module = build_named("beside.py:make", SPEC, tmp_path / str(index))
        assert isinstance(module, nn.Linear)
        assert module.in_features == index


def test_modules_of_python_and_bytecode_beside_are_not_taken(project: Path) -> None:
    (project / "colorsys.py").write_text(
        "raise SystemExit('not the one of Python')", encoding="utf-8"
    )
    (project / "hidden.py").write_text("SIDE = 3", encoding="utf-8")
    py_compile.compile(str(project / "hidden.py"), cfile=str(project / "hidden.pyc"))
    (project / "hidden.py").unlink()
    text = (
        "import json, torch\nfrom torch import nn\ndef make():\n    {}\n    return nn.Linear(2, 2)"
    )
    (project / "net.py").write_text(
        text.format("import colorsys; colorsys.rgb_to_hsv(1, 1, 1)"), encoding="utf-8"
    )
    assert isinstance(build_named("net.py:make", SPEC, project), nn.Linear)
    (project / "net.py").write_text(text.format("import hidden"), encoding="utf-8")
    with pytest.raises(UsageError, match="No module named 'hidden'"):
        build_named("net.py:make", SPEC, project)


DATACLASSES = """
from __future__ import annotations
from dataclasses import dataclass
from torch import nn
@dataclass
class Settings:
    sides: int = 2
def make():
    return nn.Linear(Settings().sides, 2)
"""


@pytest.mark.parametrize("name", ["net", "json", "code", "this"])
def test_dataclasses_work_in_a_file_of_any_name(name: str, tmp_path: Path) -> None:
    (tmp_path / f"{name}.py").write_text(DATACLASSES, encoding="utf-8")
    assert isinstance(build_named(f"{name}.py:make", SPEC, tmp_path), nn.Linear)


# Libraries.


@pytest.mark.parametrize("library", ["timm", "torchvision"])
def test_a_library_that_is_not_there_is_named(
    library: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(UsageError, match=rf"{library} cannot be imported .*pip install {library}"):
        build_architecture(f"{library}:resnet18", SPEC, ())


@pytest.mark.parametrize("name", ["timm:", "timm:../x", "timm:hf-hub:a/b", "torchvision:a b"])
def test_a_name_that_no_library_has_is_refused_before_it_is_asked(name: str) -> None:
    with pytest.raises(UsageError, match="is no name of a network of"):
        build_architecture(name, SPEC, ())


def test_networks_of_timm_and_torchvision() -> None:
    reason = "needs timm and torchvision, which do not import with this PyTorch"
    try:
        import timm  # noqa: F401
    except Exception:  # noqa: BLE001 - a torchvision of another PyTorch raises RuntimeError
        pytest.skip(reason)
    for name in ("timm:mobilenetv3_small_050", "torchvision:resnet18"):
        spec = SPEC if name.startswith("timm") else dataclasses.replace(SPEC, input_shape=(3, 8, 8))
        module = build_architecture(name, spec, ())
        assert any(getattr(layer, "out_features", 0) == 7 for layer in module.modules())
    with pytest.raises(UsageError, match="has no such network"):
        build_architecture("timm:no_such_network", SPEC, ())
    with pytest.raises(UsageError, match="has no such classifier"):
        build_architecture("torchvision:fasterrcnn_resnet50_fpn", SPEC, ())

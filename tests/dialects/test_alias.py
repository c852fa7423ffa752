import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from variform.dialects import alias
from variform.errors import ConfigError

# Runs in a process of its own, in which the real packages cannot be found: the paths they lie in are cut out of the
# finder's answer, as they would be if they were not installed.
HIDE = """
import sys
from importlib.machinery import PathFinder

class Hidden(PathFinder):
    @classmethod
    def find_spec(cls, fullname, path=None, target=None):
        if fullname.partition(".")[0] in {"x_transformers", "xformers"}:
            return None
        return PathFinder.find_spec(fullname, path, target)

sys.meta_path = [Hidden if finder is PathFinder else finder for finder in sys.meta_path]
"""


def fresh(code: str) -> str:
    """What a new process prints."""
    script = HIDE + textwrap.dedent(code)
    source = str(Path(__file__).parents[2] / "src")
    run = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {source!r})\n{script}"], capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    return run.stdout.strip()


def test_an_unmodified_file_finds_the_dialect() -> None:
    printed = fresh("""
        from variform.dialects import alias
        try:
            import x_transformers
        except ModuleNotFoundError:
            print("hidden")
        alias("x_transformers")
        import torch
        import x_transformers
        from x_transformers import Decoder, TransformerWrapper
        from x_transformers.x_transformers import Encoder
        from x_transformers.autoregressive_wrapper import AutoregressiveWrapper, top_k
        import variform.dialects.x_transformers as ours
        assert x_transformers is ours and Decoder is ours.Decoder and Encoder is ours.Encoder
        assert ours.__name__ == ours.__spec__.name == "variform.dialects.x_transformers"
        layers = Decoder(dim=16, depth=1, heads=2)
        model = TransformerWrapper(num_tokens=10, max_seq_len=8, attn_layers=layers)
        print(tuple(model(torch.zeros(1, 5, dtype=torch.long)).shape))
    """)
    assert printed == "hidden\n(1, 5, 10)"


def test_modules_that_lie_flat() -> None:
    printed = fresh("""
        from variform.dialects import alias
        alias("configaformers")
        import model_builder
        from attention_offset_module import get_alibi
        from prebuilt_blocks import transformer_block
        from model_builder import ConfigaFormer
        blocks = [{"config": transformer_block(2, 8), "repeat": 2}]
        shapes = {"x": ["B", "L", 8], "attn_offset": [1, 2, "L", "L"]}
        model = ConfigaFormer({"blocks": blocks}, shapes, verbose=False)
        import torch
        out = model({"x": torch.zeros(3, 5, 8), "attn_offset": get_alibi(2, max_length=5)})
        print(model_builder.__name__, tuple(out["x"].shape))
    """)
    assert printed == "variform.dialects.configaformers.model_builder (3, 5, 8)"


def test_the_other_package() -> None:
    printed = fresh("""
        from variform.dialects import alias
        alias("xformers")
        from xformers.components import build_attention
        print(build_attention.__module__.split(".")[:3])
    """)
    assert printed == "['variform', 'dialects', 'xformers']"


def test_it_can_be_undone() -> None:
    printed = fresh("""
        from variform.dialects import alias
        with alias("x_transformers") as placed:
            import x_transformers.x_transformers
            assert alias("x_transformers") is placed
        for name in ("x_transformers", "x_transformers.x_transformers"):
            try:
                __import__(name)
            except ModuleNotFoundError:
                print("gone")
        alias("x_transformers")
        import x_transformers
        print("back")
    """)
    assert printed == "gone\ngone\nback"


def test_a_module_we_do_not_have_is_not_found() -> None:
    printed = fresh("""
        from variform.dialects import alias
        alias("x_transformers")
        try:
            import x_transformers.nothing_of_the_kind
        except ModuleNotFoundError as error:
            print(error)
    """)
    assert printed == "No module named 'x_transformers.nothing_of_the_kind'"


def test_the_real_package_is_not_shadowed() -> None:
    pytest.importorskip("x_transformers", reason="x-transformers is not installed (extra dev)")
    with pytest.raises(ConfigError, match="imported already"):
        alias("x_transformers")


def test_an_installed_package_is_not_shadowed(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("x_transformers", reason="x-transformers is not installed (extra dev)")
    for name in [name for name in sys.modules if name.partition(".")[0] == "x_transformers"]:
        monkeypatch.delitem(sys.modules, name)
    before = list(sys.meta_path)
    with pytest.raises(ConfigError, match="the real x_transformers is installed"):
        alias("x_transformers")
    assert sys.meta_path == before


def test_a_module_of_the_user_is_not_shadowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model_builder.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ConfigError, match="the real model_builder is installed"):
        alias("configaformers")


def test_an_unknown_dialect() -> None:
    with pytest.raises(ConfigError, match="did you mean 'x_transformers'"):
        alias("x-transformers")

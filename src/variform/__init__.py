"""variform: a transformer architecture as data: describe it, check it, know its cost, build it, train it, decode.

import variform as vf

spec = vf.models.gpt(vocab_size=65, dim=128, depth=4, heads=4, max_seq_len=64)
model = vf.build(spec)
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from variform import models
from variform.core.build import build, materialise
from variform.core.codec import diff, from_dict, from_json, from_yaml, load, override, save, to_dict, to_json, to_yaml
from variform.core.inherit import INHERIT, inherit
from variform.core.part import Can, Part, use
from variform.core.registry import parts, preset, presets, register
from variform.core.resolve import resolve
from variform.core.spec import Shared, Spec
from variform.dialects.configaformers import layer as _program_layer
from variform.errors import BackendError, ConfigError, ShapeError
from variform.generate.beam import beam_search
from variform.generate.loop import generate, stream
from variform.library import load_parts
from variform.weights import load_model, load_weights, save_weights

if TYPE_CHECKING:
    from variform import interop
    from variform.inspect import capture, check, compare, costs, describe, diagram, explain, plot_mask

load_parts()

_LOOKING = frozenset({"capture", "check", "compare", "costs", "describe", "diagram", "explain", "plot_mask"})


def __getattr__(name: str) -> Any:
    """What looks at models is imported when it is first asked for: most programs build and run one."""
    if name == "interop":
        return import_module("variform.interop")
    if name not in _LOOKING:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from variform import inspect

    found = globals()[name] = getattr(inspect, name)
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *_LOOKING, "interop"})


__version__ = "0.1.0"

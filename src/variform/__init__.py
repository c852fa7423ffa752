"""variform: a transformer architecture as data: describe it, check it, know its cost, build it, train it, decode.

import variform as vf

spec = vf.models.gpt(vocab_size=65, dim=128, depth=4, heads=4, max_seq_len=64)
model = vf.build(spec)
"""

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
from variform.generate.loop import generate, stream
from variform.inspect import capture, check, compare, costs, describe, diagram, explain
from variform.library import load_parts
from variform.weights import load_model, load_weights, save_weights

load_parts()

__version__ = "0.1.0"

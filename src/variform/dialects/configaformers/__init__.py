"""The configaformers dialect: a model is a list of small modules over named streams, with every shape printed.

from variform.dialects.configaformers.model_builder import ConfigaFormer
from variform.dialects.configaformers.attention_offset_module import get_alibi
"""

from variform.dialects.configaformers.attention_offset_module import get_alibi
from variform.dialects.configaformers.errors import ConfigaformersError
from variform.dialects.configaformers.files import load_program, program_of
from variform.dialects.configaformers.layer import program_layer
from variform.dialects.configaformers.model_builder import ConfigaFormer, program_spec

__all__ = [
    "ConfigaFormer",
    "ConfigaformersError",
    "get_alibi",
    "load_program",
    "program_layer",
    "program_of",
    "program_spec",
]

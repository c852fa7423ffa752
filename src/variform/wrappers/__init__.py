"""Objectives around a model: what is predicted from what, and how the model is used afterwards."""

from variform.wrappers.belief import BeliefState
from variform.wrappers.best_latents import BestLatents
from variform.wrappers.entropy import EntropyTokenizer
from variform.wrappers.feedback import Feedback
from variform.wrappers.latent_prediction import LatentPrediction
from variform.wrappers.masked import MaskedDiffusion
from variform.wrappers.next_features import NextFeatures
from variform.wrappers.next_latent import NextLatent
from variform.wrappers.numbers import NextTokensAndNumbers
from variform.wrappers.preference import Preference
from variform.wrappers.reading import Reading
from variform.wrappers.recirculation import Recirculation
from variform.wrappers.segments import Segments
from variform.wrappers.synthetic import SyntheticPretraining

__all__ = [
    "BeliefState",
    "BestLatents",
    "EntropyTokenizer",
    "Feedback",
    "LatentPrediction",
    "MaskedDiffusion",
    "NextFeatures",
    "NextLatent",
    "NextTokensAndNumbers",
    "Preference",
    "Reading",
    "Recirculation",
    "Segments",
    "SyntheticPretraining",
]

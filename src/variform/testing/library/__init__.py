"""Instances of the library's own parts that cannot be guessed, and further variants of the important ones."""

from variform.testing.library import attentions as attentions
from variform.testing.library import embeddings as embeddings
from variform.testing.library import feedforwards as feedforwards
from variform.testing.library import heads as heads
from variform.testing.library import images as images
from variform.testing.library import mixers as mixers
from variform.testing.library import positions as positions
from variform.testing.library import stacks as stacks
from variform.testing.library import whole as whole

"""Looking at models: what they cost, which backends serve them, whether a description is sound."""

from variform.inspect.capture import capture
from variform.inspect.check import Report, check
from variform.inspect.compare import Comparison, compare
from variform.inspect.costing import costs
from variform.inspect.costs import Costs
from variform.inspect.describe import Description, Memory, describe
from variform.inspect.diagram import Diagram, diagram
from variform.inspect.explain import Choice, Explanation, explain, explaining
from variform.inspect.plot import plot_mask
from variform.inspect.rows import Row

__all__ = [
    "Choice",
    "Comparison",
    "Costs",
    "Description",
    "Diagram",
    "Explanation",
    "Memory",
    "Report",
    "Row",
    "capture",
    "check",
    "compare",
    "costs",
    "describe",
    "diagram",
    "explain",
    "explaining",
    "plot_mask",
]

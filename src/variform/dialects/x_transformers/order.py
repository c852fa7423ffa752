"""Which sublayers a stack has ('a' attention, 'c' cross attention, 'f' feedforward), and in which order they run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from variform.core.spec import Shared, Spec
from variform.dialects.x_transformers.history import beginnings, with_skips
from variform.errors import Problem
from variform.stack.pool import LayerPool
from variform.stack.sublayer import TransformerLayer

if TYPE_CHECKING:
    from variform.dialects.x_transformers.layers import LayersDraft


def layer_types(draft: LayersDraft) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """The sublayers that exist, and the order in which they run, as indices into them.

    Problems are added to the draft.
    """
    block = _block(draft)
    found = _problems(draft, block)
    draft.problems += found
    if found:
        return (), ()
    depth = draft.depth or 0
    if draft.weight_tie_layers:
        return block, tuple(range(len(block))) * depth
    if draft.custom_layers is not None:
        types = tuple(draft.custom_layers)
    elif draft.par_ratio is not None:
        types = _par(block, depth, draft.par_ratio)
    elif draft.sandwich_coef is not None:
        edge = draft.sandwich_coef
        types = ("a",) * edge + block * (depth - edge) + ("f",) * edge
    else:
        types = block * depth
    if draft.only_attn:
        types = tuple(letter for letter in types if letter != "f")
    order = tuple(range(len(types))) if draft.layers_execute_order is None else tuple(draft.layers_execute_order)
    draft.problems += _order_problems(types, order)
    return types, order


def arranged(
    draft: LayersDraft, types: tuple[str, ...], order: tuple[int, ...], steps: Sequence[Spec]
) -> list[Spec | Shared]:
    """The layers of the stack: blocks of steps, or single steps in an order of their own."""
    begin = beginnings(draft)
    if draft.weight_tie_layers:
        block = Shared("block", TransformerLayer.spec(sublayers=steps))
        return [*begin, *[block] * (draft.depth or 0)]
    if not draft.ordered and order == tuple(range(len(types))):
        size = len(types) // (draft.depth or 1)
        first, *rest = with_skips(draft, [steps[start : start + size] for start in range(0, len(types), size)])
        return [TransformerLayer.spec(sublayers=block) for block in ([*begin, *first], *rest)]
    if list(dict.fromkeys(order)) != list(range(len(types))):
        # Some do not run, or are met in another order: all are held, in the order in which they are numbered.
        shared = [Shared(f"layers.{i}", step) for i, step in enumerate(steps)]
        return [*begin, LayerPool.spec(layers=shared), *(shared[i] for i in order)]
    again = {index for index in order if order.count(index) > 1}
    return [*begin, *(Shared(f"layers.{i}", steps[i]) if i in again else steps[i] for i in order)]


def letters_of(draft: LayersDraft) -> set[str]:
    """The kinds of sublayers that there are."""
    chosen = set(_block(draft)) if draft.custom_layers is None else set(draft.custom_layers)
    if draft.sandwich_coef is not None:  # no block is whole where the ends are all there is
        chosen = {"a", "f"} | (chosen if draft.sandwich_coef != draft.depth else set())
    return chosen - ({"f"} if draft.only_attn else set())


def _block(draft: LayersDraft) -> tuple[str, ...]:
    block = ("c", "f") if draft.only_cross else ("a", "c", "f") if draft.cross_attend else ("a", "f")
    if draft.macaron:
        block = ("f", *block)
    return tuple(letter for letter in block if letter != "f") if draft.only_attn else block


def _par(block: tuple[str, ...], depth: int, ratio: int) -> tuple[str, ...]:
    """The PAR arrangement (Mandava et al. 2020, arXiv:2009.04534): attention in the first two thirds only."""
    total = depth * len(block)
    mixers = tuple(letter for letter in block if letter != "f")
    count = total // ratio
    cut = total * 2 // 3
    width = (cut + cut // count) // count
    head = (mixers + ("f",) * (width - len(mixers))) * count
    return head + ("f",) * (total - len(head))


def _problems(draft: LayersDraft, block: tuple[str, ...]) -> list[Problem]:
    found = []
    ways: dict[str, object] = {"weight_tie_layers": draft.weight_tie_layers or None}
    ways |= {name: getattr(draft, name) for name in ("custom_layers", "par_ratio", "sandwich_coef")}
    chosen = [name for name, value in ways.items() if value is not None]
    if len(chosen) > 1:
        found.append(Problem(chosen[1], f"only one arrangement of layers can be chosen: {' or '.join(chosen)}"))
    if draft.weight_tie_layers and draft.layers_execute_order is not None:
        message = "tied layers have an order already"
        found.append(Problem("layers_execute_order", message, draft.layers_execute_order))
    if draft.depth is None and draft.custom_layers is None:
        found.append(Problem("depth", "depth must be given: how many blocks there are"))
    if draft.depth is not None and draft.custom_layers is not None:
        found.append(Problem("depth", "custom_layers says how many layers there are; leave depth out", draft.depth))
    if draft.depth is not None and draft.depth < 1:
        found.append(Problem("depth", "at least one block is needed", draft.depth))
    elif draft.sandwich_coef is not None and not 0 < draft.sandwich_coef <= (draft.depth or 0):
        found.append(Problem("sandwich_coef", f"must lie in 1..depth = {draft.depth}", draft.sandwich_coef))
    elif draft.par_ratio is not None and not 1 < draft.par_ratio <= (draft.depth or 0) * len(block):
        found.append(Problem("par_ratio", f"must lie in 2..{(draft.depth or 0) * len(block)}", draft.par_ratio))
    return found + _letters(draft)


def _letters(draft: LayersDraft) -> list[Problem]:
    allowed = {"f", *(() if draft.only_cross else "a"), *("c" if draft.cross_attend else ())}
    wrong = [letter for letter in draft.custom_layers or () if letter not in allowed]
    if wrong:
        hint = "'c' needs cross_attend=True" if "c" in wrong else ""
        return [Problem("custom_layers", f"the letters are {', '.join(sorted(allowed))}", wrong[0], hint)]
    return []


def _order_problems(types: tuple[str, ...], order: tuple[int, ...]) -> list[Problem]:
    if not order:
        return [Problem("layers_execute_order", "at least one sublayer has to run", order)]
    if not all(0 <= index < len(types) for index in order):
        return [Problem("layers_execute_order", f"indices lie in 0..{len(types) - 1}", order)]
    return []

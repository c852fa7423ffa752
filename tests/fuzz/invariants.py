"""What holds for every architecture: each function checks one promise of a drawn one, and fails with what broke."""

from __future__ import annotations

import copy
import pickle
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import variform as vf
from tests.fuzz.architectures import Drawn
from variform.stack.decodable import undecodable
from variform.testing.numbers import identical, same

BATCH, LENGTH, SOURCE = 3, 11, 7

Inputs = dict[str, Tensor]
"""Keyword arguments; the main input is `inputs`, and a source or context stands beside it."""


def built(drawn: Drawn, dtype: torch.dtype = torch.float64, seed: int = 0) -> Any:
    """The model in evaluation, with every parameter moved away from its initial value."""
    torch.manual_seed(seed)
    model = vf.build(drawn.spec, dtype=dtype).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.2)
    return model


def inputs_for(drawn: Drawn, dtype: torch.dtype = torch.float64, seed: int = 1, batch: int = BATCH) -> Inputs:
    """Random inputs."""
    generator = torch.Generator().manual_seed(seed)
    found: Inputs = {}
    if drawn.family == "images":
        found["inputs"] = torch.randn(batch, 2, 6, 6, generator=generator, dtype=dtype)
    elif drawn.vocab is None:
        found["inputs"] = torch.randn(batch, LENGTH, drawn.dim, generator=generator, dtype=dtype)
    else:
        found["inputs"] = torch.randint(0, 11, (batch, LENGTH), generator=generator)
    if drawn.family == "seq2seq":
        found["source"] = torch.randint(0, 11, (batch, SOURCE), generator=generator)
    if drawn.family == "context":
        found["context"] = torch.randn(batch, SOURCE, drawn.dim_context or 0, generator=generator, dtype=dtype)
    return found


def run(model: Any, given: Inputs, **more: Any) -> Any:
    """Call the model."""
    rest = {**given, **more}
    x = rest.pop("inputs")
    return model(rest.pop("source"), x, **rest) if "source" in rest else model(x, **rest)


def tokens(given: Inputs, change: Callable[[Tensor], Tensor]) -> Inputs:
    """The same inputs with the main one changed."""
    return {**given, "inputs": change(given["inputs"])}


def filler(x: Tensor, length: int, value: float = 3) -> Tensor:
    """`length` tokens or features of no meaning, shaped like `x`."""
    return torch.full((x.shape[0], length, *x.shape[2:]), value, dtype=x.dtype)


@contextmanager
def untouched(*values: Any) -> Iterator[None]:
    """Fail when a tensor of these is changed."""
    before = [leaf.clone() for leaf in pytree.tree_leaves(values) if isinstance(leaf, Tensor)]
    yield
    after = [leaf for leaf in pytree.tree_leaves(values) if isinstance(leaf, Tensor)]
    for old, new in zip(before, after, strict=True):
        identical(new, old, "an input was changed")


def codec(drawn: Drawn) -> None:
    """Every written form reads back equal, and resolving is idempotent."""
    data = copy.deepcopy(drawn.data)
    spec = drawn.spec
    resolved = vf.resolve(spec)
    assert data == drawn.data, "reading a config changed it"
    for form in (spec, resolved):
        for full in (False, True):
            assert vf.from_dict(vf.to_dict(form, full=full)) == form
            assert vf.from_yaml(vf.to_yaml(form, full=full)) == form
            assert vf.from_json(vf.to_json(form, full=full)) == form
        assert pickle.loads(pickle.dumps(form)) == form
        assert hash(pickle.loads(pickle.dumps(form))) == hash(form)
    assert vf.resolve(resolved) == resolved
    assert not vf.diff(resolved, vf.resolve(resolved))


def rebuild(drawn: Drawn) -> None:
    """The same seed gives the same model from the spec, its YAML and the built model's spec."""
    states = []
    torch.manual_seed(5)
    first = vf.build(drawn.spec)
    for source in (drawn.spec, vf.from_yaml(vf.to_yaml(vf.resolve(drawn.spec))), first.spec, first):
        torch.manual_seed(5)
        states.append(vf.build(source).state_dict())
    for other in states:
        assert list(other) == list(states[0])
        for name, value in first.state_dict().items():
            identical(other[name], value, name)


def described(drawn: Drawn) -> None:
    """Predicted parameters, output shape and decode state are the real ones."""
    description = vf.describe(drawn.spec, batch=BATCH, length=None if drawn.family == "images" else LENGTH)
    model, given = vf.build(drawn.spec).eval(), inputs_for(drawn, torch.float32)
    assert description.params == sum(p.numel() for p in model.parameters())
    out, shown = run(model, given), description.rows[0].outputs[0]
    assert _substituted(shown, out.shape), f"described {shown}, really {list(out.shape)}"
    assert (description.state_bytes is not None) == decodes(drawn)
    if description.state_bytes is not None:
        side = {name: given[name].repeat(1, 2, *[1] * (given[name].dim() - 2))[:, :LENGTH] for name in _sides(given)}
        state = model.init_state(BATCH, LENGTH, **side)
        tensors = {id(leaf): leaf for leaf in pytree.tree_leaves(state) if isinstance(leaf, Tensor)}
        real = sum(leaf.numel() * leaf.element_size() for leaf in tensors.values())
        assert description.state_bytes == real, f"state: described {description.state_bytes}, really {real}"


def _sides(given: Inputs) -> list[str]:
    return [name for name in ("source", "context") if name in given]


def _substituted(shown: str, shape: torch.Size) -> bool:
    """Whether a printed shape, `(B, L, 13)`, is this one."""
    sizes = {"B": BATCH, "L": LENGTH}
    inner = shown.strip().removeprefix("(").removesuffix(")").removeprefix("[").removesuffix("]")
    return [eval(part, {}, sizes) for part in inner.split(",") if part.strip()] == list(shape)


def causality(drawn: Drawn) -> None:
    """Changing the future leaves every past output bit-equal."""
    if not drawn.causal:
        return
    model, given = built(drawn), inputs_for(drawn)
    with torch.no_grad():
        base = run(model, given)
        for cut in (1, 4, LENGTH - 1):

            def changed(x: Tensor, cut: int = cut) -> Tensor:
                x = x.clone()
                x[:, cut:] = (x[:, cut:] + 1) % 11 if x.dtype == torch.long else x[:, cut:] * -2 + 1
                return x

            other = run(model, tokens(given, changed))
            identical(other[:, :cut], base[:, :cut], f"outputs before a change at {cut}")
            assert not torch.equal(other[:, cut:], base[:, cut:]), "the change has no effect at all"


def padding(drawn: Drawn) -> None:
    """Padding on either side, and rows of other lengths, change no real token."""
    if drawn.family == "images":
        return
    model, given = built(drawn), inputs_for(drawn)
    one_answer = drawn.family == "classifier"
    with torch.no_grad():
        base = run(model, given)
        for left, right in ((0, 3), (4, 0), (2, 2)):
            x = given["inputs"]
            parts = (filler(x, left), x, filler(x, right, 7))
            valid = torch.zeros(BATCH, left + LENGTH + right, dtype=torch.bool)
            valid[:, left : left + LENGTH] = True
            padded = {**given, "inputs": torch.cat(parts, 1), "valid": valid}
            if "source" in given:
                source = given["source"]
                padded["source"] = torch.cat((filler(source, left), source, filler(source, right)), 1)
                padded["source_valid"] = torch.ones(BATCH, left + SOURCE + right, dtype=torch.bool)
                padded["source_valid"][:, :left] = False
                padded["source_valid"][:, left + SOURCE :] = False
            if "context" in given:
                padded["context"] = torch.cat((given["context"], filler(given["context"], 2)), 1)
                padded["context_mask"] = torch.arange(SOURCE + 2).expand(BATCH, -1) < SOURCE
            out = run(model, padded)
            same(out if one_answer else out[:, left : left + LENGTH], base, f"padding {left} left, {right} right")


def packing(drawn: Drawn) -> None:
    """Documents packed into one row give what they give alone."""
    if not drawn.packs or drawn.family in ("images", "classifier"):
        return
    model, given = built(drawn), inputs_for(drawn)
    sizes = (4, 1, 6)
    segments = torch.tensor([5] * 4 + [2] + [9] * 6).expand(BATCH, -1)
    with torch.no_grad():
        packed = run(model, given, segments=segments)
        start = 0
        for size in sizes:
            alone = run(model, tokens(given, lambda x, a=start, b=start + size: x[:, a:b]))  # type: ignore[misc]
            same(packed[:, start : start + size], alone, f"the document at {start}")
            start += size


def masking(drawn: Drawn) -> None:
    """A mask in any form is the same mask; one that hides everything gives finite numbers."""
    if not drawn.masks or drawn.family in ("images", "seq2seq") or drawn.vocab is None:
        return
    model, given = built(drawn), inputs_for(drawn)
    keep = torch.rand(LENGTH, LENGTH, generator=torch.Generator().manual_seed(3)) < 0.6
    with torch.no_grad():
        base = run(model, given, mask=keep)
        same(run(model, given, mask=keep.expand(BATCH, 1, -1, -1)), base, "a mask of four axes")
    out = run(model, given, mask=torch.zeros(LENGTH, LENGTH, dtype=torch.bool))
    assert bool(torch.isfinite(out).all())
    out.sum().backward()
    assert all(bool(torch.isfinite(p.grad).all()) for p in model.parameters() if p.grad is not None)


def _state(model: Any, drawn: Drawn, given: Inputs, room: int, rows: int = BATCH, **more: Any) -> Any:
    return model.init_state(rows, room, **{name: given[name] for name in _sides(given)}, **more)


def decodes(drawn: Drawn) -> bool:
    """Whether cached decoding is on offer."""
    return drawn.causal and not undecodable(vf.resolve(drawn.spec))


def decoding(drawn: Drawn, steps: int = LENGTH) -> None:
    """Ragged chunks with a state give what one run gives, in float64."""
    if not decodes(drawn):
        return
    model, given = built(drawn), inputs_for(drawn)
    x = given["inputs"]
    rest = {name: value for name, value in given.items() if name != "inputs"}
    chance = random.Random(drawn.seed)
    with torch.no_grad():
        whole = run(model, given)
        for bucket, ragged in ((0, False), (0, True), (4, True)):
            state = _state(model, drawn, given, LENGTH + 2, bucket=bucket)
            done = [0] * BATCH
            got: list[list[Tensor]] = [[] for _ in range(BATCH)]
            while min(done) < steps:
                chunk, valid, sizes = _chunk(x, done, chance, ragged)
                call = {**rest, "inputs": chunk} if valid is None else {**rest, "inputs": chunk, "valid": valid}
                call.pop("context", None)
                if "source" in call:
                    call["source"] = None  # type: ignore[assignment]
                out, state = run(model, call, state=state)
                for row in range(BATCH):
                    got[row].append(out[row] if valid is None else out[row, valid[row]])
                    done[row] += sizes[row]
            rows = torch.stack([torch.cat(parts) for parts in got])
            same(rows, whole, f"decoding in chunks, ragged={ragged}, bucket={bucket}")


def _chunk(x: Tensor, done: list[int], chance: random.Random, ragged: bool) -> tuple[Tensor, Tensor | None, list[int]]:
    """The next tokens of each row: equally many, or any number with padding on either side."""
    left = [x.shape[1] - n for n in done]
    if not ragged:
        size = min(chance.choice([1, 1, 2, 5]), left[0])
        return x[:, done[0] : done[0] + size], None, [size] * len(done)
    sizes = [min(chance.choice([0, 1, 2, 4]), n) for n in left]
    if not any(sizes):
        sizes[left.index(max(left))] = 1
    width = max(sizes) + chance.choice([0, 1])
    chunk, valid = filler(x, width), torch.zeros(len(done), width, dtype=torch.bool)
    for row, size in enumerate(sizes):
        start = chance.choice([0, width - size])
        chunk[row, start : start + size] = x[row, done[row] : done[row] + size]
        valid[row, start : start + size] = True
    return chunk, valid, sizes


def checkpointing(drawn: Drawn) -> None:
    """The checkpoint executor gives the gradients of the plain one, dropout included."""
    results = []
    for executor in ("plain", "checkpoint"):
        model = vf.build(_with_executor(vf.resolve(drawn.spec), executor)).double().train()
        torch.manual_seed(0)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_(torch.randn_like(parameter) * 0.3)
        given = inputs_for(drawn)
        torch.manual_seed(9)
        run(model, given).square().mean().backward()
        results.append({name: p.grad for name, p in model.named_parameters()})
    plain, recomputed = results
    assert list(plain) == list(recomputed)
    for name, gradient in plain.items():
        other = recomputed[name]
        assert (gradient is None) == (other is None), f"{name} has a gradient under one executor alone"
        if gradient is not None and other is not None:
            same(other, gradient, name)


def _with_executor(spec: vf.Spec, executor: str) -> vf.Spec:
    def walk(value: Any) -> Any:
        if isinstance(value, vf.Shared):
            return vf.Shared(value.name, walk(value.spec))
        if isinstance(value, tuple):
            return tuple(walk(item) for item in value)
        if not isinstance(value, vf.Spec):
            return value
        args = {name: walk(item) for name, item in value.args.items()}
        return vf.Spec(value.part, {**args, "executor": executor} if "executor" in args else args)

    changed = walk(spec)
    assert isinstance(changed, vf.Spec)
    return changed


def training(drawn: Drawn) -> None:
    """A training step has finite gradients for every parameter, and a seed fixes it; evaluation has no chance in it."""
    model, given = vf.build(drawn.spec, dtype=torch.float64), inputs_for(drawn)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.2)
    outs = []
    for _ in range(2):
        torch.manual_seed(4)
        with untouched(given):
            outs.append(run(model.train(), given))
    identical(outs[0], outs[1], "two training runs of one seed")
    model.eval()
    identical(run(model, given), run(model, given), "two evaluations")
    run(model, given).square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, f"{name} gets no gradient"
        assert bool(torch.isfinite(parameter.grad).all()), f"{name} has a gradient that is not finite"


def copies(drawn: Drawn) -> None:
    """Copies compute the same and share nothing, and keep what is tied tied."""
    model, given = built(drawn), inputs_for(drawn)
    base = run(model, given).detach()
    for what, other in (("deepcopy", copy.deepcopy(model)), ("pickle", pickle.loads(pickle.dumps(model)))):
        identical(run(other, given), base, what)
        assert other.spec == model.spec
        assert len(list(other.parameters())) == len(list(model.parameters())), f"{what} untied something"
        own = {p.data_ptr() for p in model.parameters()}
        assert not any(p.data_ptr() in own for p in other.parameters()), f"{what} shares a parameter"
        with torch.no_grad():
            for parameter in other.parameters():
                parameter.add_(1.0)
        identical(run(model, given), base, f"the original after its {what} was changed")


def meta(drawn: Drawn) -> None:
    """Built without memory and then given some, it starts like one that was built in place."""
    model = vf.materialise(vf.build(drawn.spec, device="meta"), "cpu")
    fresh = vf.build(drawn.spec)
    assert dict(_shapes(model)) == dict(_shapes(fresh))
    values = dict(model.named_parameters()) | dict(model.named_buffers())
    for name, wanted in (dict(fresh.named_parameters()) | dict(fresh.named_buffers())).items():
        got = values[name].detach().float()
        assert bool(torch.isfinite(got).all()), f"{name} is not initialised"
        wanted = wanted.detach().float()
        if wanted.numel() > 1 and float(wanted.std(correction=0)) == 0.0:
            identical(got, wanted, name)
        elif wanted.numel() >= 64:
            ratio = float(got.std()) / float(wanted.std())
            assert 0.5 < ratio < 2.0, f"{name}: spread {float(got.std()):.3g}, built in place {float(wanted.std()):.3g}"
    out = run(model.eval(), inputs_for(drawn, torch.float32))
    assert bool(torch.isfinite(out).all())


def _shapes(model: nn.Module) -> Iterator[tuple[str, torch.Size]]:
    for name, value in model.state_dict().items():
        yield name, value.shape


def explained(drawn: Drawn) -> None:
    """Every attention with a choice of backends has one chosen."""
    length = None if drawn.family == "images" else LENGTH
    for more in ({}, {"training": False}, {"decode": True}):
        if more.get("decode") and not decodes(drawn):
            continue
        found = vf.explain(drawn.spec, batch=BATCH, length=length, **more)
        for row in found.rows:
            assert row.chosen is not None, f"no backend for {row.path}: {row.candidates}"
        written = vf.to_json(drawn.spec, full=True)
        if not more and ('"attention/softmax"' in written or '"attention/local"' in written):
            assert found.rows, "no attention was found"


def compiled(drawn: Drawn) -> None:
    """One graph, no breaks, the same values."""
    model, given = built(drawn), inputs_for(drawn)
    with torch.no_grad():
        wanted = run(model, given)
        torch._dynamo.reset()
        graph = torch.compile(model, backend="aot_eager", fullgraph=True)
        same(run(graph, given), wanted, "the compiled model", 1e-8)


INVARIANTS = (
    codec,
    rebuild,
    causality,
    padding,
    packing,
    masking,
    decoding,
    checkpointing,
    training,
    copies,
    meta,
)

SLOW_INVARIANTS = (described, explained)

import copy
import pickle
from typing import Any

import pytest
import torch

import variform as vf
from variform.dialects.x_transformers import (
    AutoregressiveWrapper,
    ContinuousAutoregressiveWrapper,
    ContinuousTransformerWrapper,
    Decoder,
    Encoder,
    TransformerWrapper,
    ViTransformerWrapper,
    XTransformer,
    XValAutoregressiveWrapper,
    XValTransformerWrapper,
)
from variform.dialects.x_transformers.errors import InputError, KeywordError
from variform.weights import load_x_transformers, to_x_transformers

SMALL: dict[str, Any] = {"dim": 16, "depth": 2, "heads": 4, "attn_dim_head": 4}


def language(stack: type = Decoder, options: dict[str, Any] | None = None, **model: Any) -> TransformerWrapper:
    layers = stack(**{**SMALL, **(options or {})})
    return TransformerWrapper(**{"num_tokens": 11, "max_seq_len": 9, "attn_layers": layers, **model})


def ids(batch: int = 2, length: int = 7) -> torch.Tensor:
    return torch.randint(0, 11, (batch, length))


def models() -> dict[str, Any]:
    sides = {"num_tokens": 11, "max_seq_len": 9, "depth": 1, "heads": 2}
    both = {f"{side}_{name}": value for side in ("enc", "dec") for name, value in sides.items()}
    return {
        "stack": Encoder(**SMALL),
        "language": language(),
        "tied": language(tie_embedding=True),
        "memory": language(num_memory_tokens=2),
        "vision": ViTransformerWrapper(image_size=8, patch_size=4, num_classes=3, attn_layers=Encoder(**SMALL)),
        "seq2seq": XTransformer(dim=16, tie_token_emb=True, **both),
        "autoregressive": AutoregressiveWrapper(language()),
    }


def inputs_of(name: str) -> tuple[torch.Tensor, ...]:
    torch.manual_seed(1)
    if name == "stack":
        return (torch.randn(2, 7, 16),)
    return (torch.randn(2, 3, 8, 8),) if name == "vision" else (ids(), ids(2, 5)) if name == "seq2seq" else (ids(),)


@pytest.mark.parametrize("name", list(models()))
def test_a_model_is_its_spec(name: str) -> None:
    model = models()[name]
    assert vf.resolve(model.spec) == model.spec
    assert vf.from_yaml(vf.to_yaml(model.spec)) == model.spec
    rebuilt = vf.build(model.spec)
    native = getattr(model, "native", model)
    assert [n for n, _ in rebuilt.named_parameters()] == [n for n, _ in native.named_parameters()]


@pytest.mark.parametrize("name", list(models()))
@pytest.mark.parametrize("again", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_are_equal_and_independent(name: str, again: Any) -> None:
    model = models()[name].eval()
    x = inputs_of(name)
    twin = again(model)
    before = model(*x)
    torch.testing.assert_close(twin(*x), before, rtol=0, atol=0)
    with torch.no_grad():
        for param in model.parameters():
            param.zero_()
    torch.testing.assert_close(twin(*x), before, rtol=0, atol=0)
    assert len(twin.state_dict()) == len(model.state_dict())


def test_the_stack_that_was_passed_in_is_the_one_that_runs() -> None:
    layers = Decoder(**SMALL)
    model = TransformerWrapper(num_tokens=11, max_seq_len=9, attn_layers=layers)
    assert model.native.stacks[0] is layers.native
    assert model.attn_layers is layers
    names = [name for name, _ in model.named_parameters(remove_duplicate=False)]
    assert len(names) == len(set(names)) == len(dict(model.named_parameters()))


@pytest.mark.parametrize("name", list(models()))
def test_every_parameter_has_a_gradient(name: str) -> None:
    model = models()[name]
    out = model(*inputs_of(name))
    out.square().sum().backward()
    assert [n for n, p in model.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize("name", list(models()))
def test_weights_survive_the_other_layout(name: str) -> None:
    model, other = models()[name], models()[name]
    load_x_transformers(other, to_x_transformers(model))
    for (key, a), b in zip(model.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6, msg=key)


def test_the_cost_of_a_model_of_the_dialect() -> None:
    model = language()
    assert vf.describe(model.spec, batch=2, length=7).params == sum(p.numel() for p in model.parameters())
    assert vf.describe(model, batch=2, length=7).params == sum(p.numel() for p in model.parameters())


def test_the_cost_of_a_model_with_a_context_of_another_width() -> None:
    layers = Decoder(dim=32, depth=2, heads=2, cross_attend=True, cross_attn_dim_context=24)
    model = TransformerWrapper(num_tokens=20, max_seq_len=16, attn_layers=layers)
    assert vf.describe(model, batch=3, length=11).params == sum(weight.numel() for weight in model.parameters())


def test_the_cost_of_wrapped_models() -> None:
    layers: Any = {"dim": 16, "depth": 1, "heads": 2}
    for wrapper, net in (
        (ContinuousAutoregressiveWrapper, ContinuousTransformerWrapper(max_seq_len=8, attn_layers=Decoder(**layers))),
        (
            XValAutoregressiveWrapper,
            XValTransformerWrapper(num_tokens=9, numerical_token_id=3, max_seq_len=8, attn_layers=Decoder(**layers)),
        ),
    ):
        found = vf.describe(wrapper(net), batch=2, length=7)
        assert found.params == sum(weight.numel() for weight in net.parameters())


def test_the_same_gpt_natively() -> None:
    """A GPT written natively and by keywords computes one function."""
    native = vf.build(vf.models.gpt(vocab_size=11, dim=16, depth=2, heads=4, max_seq_len=9)).double().eval()
    dialect = language(options={"ff_no_bias": True}).double().eval()
    for param in native.parameters():
        param.data += 0.1 * torch.randn_like(param)
    load_x_transformers(dialect, to_x_transformers(native))
    x = ids()
    torch.testing.assert_close(dialect(x), native(x), rtol=0, atol=1e-6)


def test_layers_are_dropped_whole_in_training_alone() -> None:
    layers = Encoder(**SMALL, layer_dropout=0.5, pre_norm_has_final_norm=False)
    x = torch.randn(2, 7, 16)
    assert torch.equal(layers.eval()(x), layers(x))
    layers.train()
    torch.manual_seed(0)
    outs = [layers(x) for _ in range(64)]
    kept = sum(torch.equal(out, x) for out in outs)
    assert 0 < kept < 20  # each of four sublayers is dropped with 1/2: 4 of 64 on average
    torch.manual_seed(0)
    assert torch.equal(layers(x), outs[0])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: m(ids(2, 10)), "the absolute positions end at 9"),
        (lambda m: m(ids()[0]), r"\[batch, length\]"),
        (lambda m: m(torch.randn(2, 7)), "integers"),
        (lambda m: m(torch.full((2, 7), 11)), r"\[0, 11\)"),
        (lambda m: m(ids(), mask=torch.ones(2, 6).bool()), "mask is bool of shape"),
        (lambda m: m(ids(), mask=torch.ones(2, 7)), "float32"),
        (lambda m: m(ids(), attn_mask=torch.ones(7, 7)), "attn_mask is bool"),
        (lambda m: m(ids(), attn_mask=torch.ones(6, 6).bool()), "6, 6"),
        (lambda m: m(ids(), context=torch.randn(2, 3, 16)), "no layer cross attends"),
        (lambda m: m(ids(), prepend_mask=torch.ones(2, 3).bool()), "without prepend_embeds"),
        (lambda m: m(ids(), prepend_embeds=torch.randn(2, 3, 8)), r"\[2, length, 16\]"),
        (lambda m: m(ids(), pos=torch.tensor([0, 1, 2, 0, 1, 2, 3])), "must grow"),
    ],
)
def test_bad_calls(call: Any, message: str) -> None:
    with pytest.raises(vf.ShapeError, match=message):
        call(language())


def test_cross_attention_needs_a_context() -> None:
    with pytest.raises(AssertionError, match="pass context"):
        language(options={"cross_attend": True})(ids())


def test_unknown_and_unsupported_arguments_of_a_call() -> None:
    with pytest.raises(TypeError, match="did you mean 'return_embeddings'"):
        language()(ids(), return_embedings=True)
    with pytest.raises(InputError, match="a module that was given as token_emb"):
        language()(ids(), token_emb_kwargs={"scale": 2})
    language()(ids(), return_attn=False, mems=None)


class TestGeneration:
    def wrapper(self, options: dict[str, Any] | None = None, **model: Any) -> AutoregressiveWrapper:
        return AutoregressiveWrapper(language(options=options, **model), pad_value=7)

    def test_shapes_of_prompts(self) -> None:
        model = self.wrapper()
        assert model.generate(ids(2, 4), 5).shape == (2, 5)
        assert model.generate(ids(1, 4)[0], 5).shape == (5,)
        assert model.generate([ids(1, 4)[0], ids(1, 2)[0]], 5).shape == (2, 5)
        assert not model.generate(ids(2, 4), 5).requires_grad

    def test_the_default_filter_leaves_a_tenth_of_the_vocabulary(self) -> None:
        model = self.wrapper()  # a tenth of 11 tokens, rounded up: 2
        prompt = ids(1, 3)
        logits = model.net.eval()(prompt)[0, -1]
        drawn = {int(model.generate(prompt, 1)[0, 0]) for _ in range(60)}
        assert drawn <= set(logits.topk(2).indices.tolist())

    def test_filters_and_temperature(self) -> None:
        model = self.wrapper()
        greedy = model.generate(ids(2, 4), 5, temperature=0.0)
        for options in (
            {"filter_logits_fn": "top_k", "filter_kwargs": {"k": 1}},
            {"filter_logits_fn": "min_p", "filter_kwargs": {"min_p": 1.0}},
            {"filter_logits_fn": lambda logits: logits, "temperature": 1e-6},
        ):
            torch.manual_seed(0)
            x = ids(2, 4)
            assert torch.equal(model.generate(x, 5, **options), model.generate(x, 5, temperature=0.0))
        assert greedy.shape == (2, 5)
        with pytest.raises(KeywordError, match="did you mean 'top_p'"):
            model.generate(ids(), 2, filter_logits_fn="topp")

    def test_rows_of_unequal_length_give_what_each_gives_alone(self) -> None:
        model = self.wrapper({"rotary_pos_emb": True})
        prompts = [ids(1, 4)[0], ids(1, 2)[0]]
        together = model.generate(prompts, 5, temperature=0.0)
        for row, prompt in zip(together, prompts, strict=True):
            assert torch.equal(row, model.generate(prompt, 5, temperature=0.0))
        padded = torch.nn.utils.rnn.pad_sequence(prompts, batch_first=True)
        lengths = torch.tensor([4, 2])
        assert torch.equal(model.generate(padded, 5, temperature=0.0, prompt_lens=lengths), together)

    def test_an_ended_row_is_padded(self) -> None:
        model = self.wrapper()
        prompt = ids(1, 3)
        free = model.generate(prompt, 6, temperature=0.0)[0].tolist()
        end = free[2]
        first = free.index(end)
        assert model.generate(prompt, 6, temperature=0.0, eos_token=end)[0].tolist() == free[: first + 1]


class TestLoss:
    def test_ignored_targets_do_not_count(self) -> None:
        model = AutoregressiveWrapper(language()).eval()
        x = ids(1, 7)
        whole, lens = model(x[:, :4]), torch.tensor([4])
        torch.testing.assert_close(model(x, lens=lens), whole)
        marked = x.clone()
        marked[:, 4:] = -100
        torch.testing.assert_close(model(marked), whole)

    def test_outputs(self) -> None:
        loss, (logits, found) = AutoregressiveWrapper(language())(ids(), return_outputs=True)
        assert loss.ndim == 0
        assert logits.shape == (2, 6, 11)
        assert len(found.hiddens) == 2

    def test_features_in_front_have_no_targets(self) -> None:
        model = AutoregressiveWrapper(language()).eval()
        front = torch.randn(2, 3, 16)
        x = ids()
        logits = model.net(x, prepend_embeds=front)[:, 3:-1]
        expected = torch.nn.functional.cross_entropy(logits.transpose(1, 2), x[:, 1:])
        torch.testing.assert_close(model(x, prepend_embeds=front), expected)
        further = AutoregressiveWrapper(language(add_continuous_pred_head=True)).eval()
        assert further(x, prepend_embeds=front).isfinite()

    def test_forgetting_hides_keys_but_never_the_first(self) -> None:
        model = AutoregressiveWrapper(language(), mask_prob=0.5)
        kept = torch.stack([model._forget(ids(4, 8)) for _ in range(20)])
        assert kept[..., 0].all()
        assert (kept.sum(-1) == 4).all()
        assert model(ids()).isfinite()
        assert model(ids(), prepend_embeds=torch.randn(2, 3, 16)).isfinite()
        model = AutoregressiveWrapper(language(num_memory_tokens=3), mask_prob=0.5)
        assert model(ids(), prepend_embeds=torch.randn(2, 3, 16)).isfinite()

    @pytest.mark.parametrize(
        "keywords", [{"next_embed_loss_weight": 0.3}, {"looped_loss_slope": 3}, {"looped_exit_loss_weight": 0.5}]
    )
    def test_a_keyword_without_effect_is_refused(self, keywords: dict[str, Any]) -> None:
        with pytest.raises(KeywordError, match="has no effect on a model without"):
            AutoregressiveWrapper(language(), **keywords)

    def test_several_heads_are_no_language_model(self) -> None:
        for model in ({"num_output_heads": 2}, {"return_only_embed": True}):
            with pytest.raises(KeywordError, match="one head of logits"):
                AutoregressiveWrapper(language(**model))

    def test_a_row_of_one_token_has_nothing_to_learn(self) -> None:
        with pytest.raises(InputError, match="at least two tokens"):
            AutoregressiveWrapper(language())(ids(1, 1))

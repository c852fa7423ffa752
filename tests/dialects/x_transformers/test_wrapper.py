"""What `TransformerWrapper` returns, and what it does right where upstream does not."""

from typing import Any

import pytest
import torch
from torch import Tensor

import variform as vf
from variform.dialects.x_transformers import AutoregressiveWrapper, Decoder, Encoder, TransformerWrapper
from variform.dialects.x_transformers.errors import InputError, KeywordError
from variform.dialects.x_transformers.intermediates import LayerIntermediates

SMALL: dict[str, Any] = {"dim": 16, "depth": 2, "heads": 4, "attn_dim_head": 4}


def built(stack: type = Decoder, options: dict[str, Any] | None = None, **model: Any) -> TransformerWrapper:
    torch.manual_seed(0)
    layers = stack(**SMALL, **(options or {}))
    wrapper = (
        TransformerWrapper(**{"num_tokens": 11, "max_seq_len": 16, "attn_layers": layers, **model}).double().eval()
    )
    with torch.no_grad():
        for param in wrapper.parameters():
            param += 0.1 * torch.randn_like(param)
    return wrapper


def ids(batch: int = 2, length: int = 7) -> Tensor:
    return torch.randint(0, 11, (batch, length), generator=torch.Generator().manual_seed(1))


def front(batch: int = 2, length: int = 3, dim: int = 16) -> Tensor:
    return torch.randn(batch, length, dim, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


@pytest.fixture(autouse=True)
def _without_gradients() -> Any:
    with torch.no_grad():
        yield


def close(found: Any, expected: Any) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)


MASK = torch.tensor([[True] * 7, [True] * 4 + [False] * 3])


class TestReturns:
    def test_intermediates_are_upstreams(self) -> None:
        model = built(options={"cross_attend": True})
        logits, found = model(ids(), context=front(), return_intermediates=True)
        close(logits, model(ids(), context=front()))
        assert isinstance(found, LayerIntermediates)
        assert [one.layer_type for one in found.attn_intermediates] == ["a", "c", "a", "c"]
        assert len(found.hiddens) == 2
        assert len(found.layer_hiddens) == 7
        layers = model.__dict__["attn_layers"].native
        close(layers.norm(found.layer_hiddens[-1]), found.last_hidden)
        close(found.last_hidden, model(ids(), context=front(), return_embeddings=True))
        close(found.hiddens[0], found.layer_hiddens[0])
        close(found.initial_embeds, found.hiddens[0])
        assert found.cache_length == 7
        first = found.attn_intermediates[0]
        assert first.values.shape == (2, 4, 7, 4)
        close(first.pre_softmax_attn.softmax(-1), first.post_softmax_attn)
        assert first.qk_similarities.isfinite().all()

    @pytest.mark.parametrize("flash", [False, True])
    def test_maps_with_and_without_flash(self, flash: bool) -> None:
        model = built(options={"attn_flash": flash, "attn_num_mem_kv": 2})
        logits, maps = model(ids(), return_attn=True)
        close(logits, model(ids()))
        assert [tuple(one.shape) for one in maps] == [(2, 4, 7, 9)] * 2
        close(maps[0].sum(-1), torch.ones(2, 4, 7, dtype=torch.float64))
        other = built(options={"attn_num_mem_kv": 2})
        close(maps, other(ids(), return_attn=True)[1])

    def test_embeddings_of_every_head(self) -> None:
        for options in (
            {"sigsoftmax_logits": True},
            {"logits_dim": 1, "squeeze_out_last_dim": True},
            {"mixture_of_softmax": True},
            {"num_output_heads": 2},
            {"add_continuous_pred_head": True},
        ):
            model = built(**options)
            hidden = model(ids(), return_embeddings=True)
            assert hidden.shape == (2, 7, 16)
            logits, same = model(ids(), return_logits_and_embeddings=True)
            close(same, hidden)
            close(logits, model(ids()))
            assert model(ids(), return_embeddings_and_intermediates=True)[0].shape == (2, 7, 16)
            (same, told), maps = model(ids(), return_embeddings_and_intermediates=True, return_attn=True)
            close(same, hidden)
            close(maps[0], told.attn_intermediates[0].post_softmax_attn)
            (same, told), again = model(ids(), return_embeddings_and_intermediates=True, return_attn_z_loss=True)
            close(same, hidden)
            assert again is told
            excised = model(ids(), prepend_embeds=front(), return_embeddings=True, excise_prepend_embeds=True)
            assert excised.shape == (2, 7, 16)

    def test_entropies(self) -> None:
        model = built()
        logits, found = model(ids(), return_logit_entropies=True)
        chances = logits.softmax(-1)
        close(found.logit_entropies, -(chances * chances.log()).sum(-1))
        several = built(num_output_heads=2)(ids(), return_logit_entropies=True)[1].logit_entropies
        assert [tuple(one.shape) for one in several] == [(2, 7), (2, 7)]

    def test_the_weight_of_the_z_loss(self) -> None:
        loss = built()(ids(), return_attn_z_loss=True)[1].attn_z_loss
        twice = built(attn_z_loss_weight=2e-4)
        close(twice(ids(), return_attn_z_loss=True)[1].attn_z_loss, 2 * loss)
        close(twice(ids(), return_attn_z_loss=True, attn_z_loss_weight=1e-4)[1].attn_z_loss, loss)

    @pytest.mark.parametrize("flash", [False, True])
    def test_the_z_loss_of_real_tokens(self, flash: bool) -> None:
        model = built(Encoder, {"attn_flash": flash})
        alone = [model(ids()[row : row + 1, :n], return_attn_z_loss=True)[1] for row, n in ((0, 7), (1, 4))]
        together = model(ids(), mask=MASK, return_attn_z_loss=True)[1].attn_z_loss
        close(together, (7 * alone[0].attn_z_loss + 4 * alone[1].attn_z_loss) / 11)
        sums = sum(one.pre_softmax_attn.logsumexp(-1) for one in alone[0].attn_intermediates)
        close(alone[0].attn_z_loss, sums.square().sum(1).mean() * 1e-4)  # type: ignore[union-attr]

    @pytest.mark.parametrize(
        "added",
        [{"num_memory_tokens": 2}, {"use_cls_token": True}, {"num_memory_tokens": 2, "max_mem_len": 3}],
        ids="-".join,
    )
    def test_the_z_loss_counts_added_tokens(self, added: dict[str, Any]) -> None:
        model = built(Encoder, **added)
        extra = 2 if "num_memory_tokens" in added else 1
        alone = [model(ids()[row : row + 1, :n], return_attn_z_loss=True)[1] for row, n in ((0, 7), (1, 4))]
        together = model(ids(), mask=MASK, return_attn_z_loss=True)[1].attn_z_loss
        sizes = 7 + extra, 4 + extra
        close(together, sum(n * one.attn_z_loss for n, one in zip(sizes, alone, strict=True)) / sum(sizes))

    def test_the_z_loss_of_interspersed_tokens(self) -> None:
        model = built(num_memory_tokens=2, memory_tokens_interspersed_every=3)
        assert model(ids(), mask=MASK, return_attn_z_loss=True)[1].attn_z_loss > 0

    def test_the_z_loss_of_no_scores_is_refused(self) -> None:
        with pytest.raises(InputError, match="no layer here has softmax attention"):
            built(options={"attn_part": "linear"})(ids(), return_attn_z_loss=True)

    def test_the_z_loss_has_gradients(self) -> None:
        with torch.enable_grad():
            model = built(options={"attn_flash": True}).train()
            model(ids(), return_attn_z_loss=True)[1].attn_z_loss.backward()
        assert all(mixer.q.weight.grad.any() for mixer in model.modules() if hasattr(mixer, "q_norm"))

    def test_the_next_embedding(self) -> None:
        model = built(add_continuous_pred_head=True, emb_dropout=0.5, emb_dim=8)
        logits, (guess, embedded) = model(ids(), return_next_embed_pred=True, prepend_embeds=front(dim=8))
        assert logits.shape == (2, 10, 11)
        assert guess.shape == (2, 10, 16)
        close(embedded[:, :3], front(dim=8))
        with pytest.raises(InputError, match="add_continuous_pred_head=True"):
            built()(ids(), return_next_embed_pred=True)

    def test_memory_and_class_tokens_are_told(self) -> None:
        model = built(Encoder, use_cls_token=True, num_cls_tokens=2, num_memory_tokens=3)
        logits, found = model(ids(), return_intermediates=True)
        assert logits.shape == (2, 2, 11)
        assert found.memory_tokens.shape == (2, 3, 16)
        assert found.last_layer_hiddens.shape == (2, 7, 16)

    def test_what_the_model_does_not_have_is_refused(self) -> None:
        model = built(return_only_embed=True)
        for asked, message in (
            ({"return_logits_and_embeddings": True}, "no logits"),
            ({"return_logit_entropies": True}, "no logits"),
            ({"recycle_steps": 2}, "recycling=True"),
            ({"looped_steps": 2}, "looped=True"),
            ({"looped_inference": True}, "looped=True"),
        ):
            with pytest.raises(InputError, match=message):
                model(ids(), **asked)
        with pytest.raises(InputError, match="to_logits_kwargs are for a module"):
            built()(ids(), to_logits_kwargs={"scale": 2})


def test_hidden_states_of_a_stack_alone() -> None:
    layers = Decoder(**SMALL).double().eval()
    x = front(length=7)
    y, found = layers(x, return_hiddens=True)
    close(y, layers(x))
    close(found.last_hidden, y)
    assert (len(found.hiddens), len(found.layer_hiddens), len(found.attn_intermediates)) == (2, 5, 2)
    bias = torch.randn(4, 7, 7, dtype=torch.float64)
    moved, told = layers(x, attn_bias=bias, return_hiddens=True)
    assert float((moved - y).abs().max()) > 1e-3
    plain = found.attn_intermediates[0].pre_softmax_attn + bias
    close(told.attn_intermediates[0].pre_softmax_attn, plain)


class TestCaches:
    @pytest.mark.parametrize(
        "options",
        [
            {},
            {"use_abs_pos_emb": False, "max_seq_len": 4},
            {"num_memory_tokens": 2},
            {"recycling": True, "train_max_recycle_steps": 2},
            {"scaled_sinu_pos_emb": True, "emb_dim": 8},
        ],
        ids=lambda options: "-".join(options) or "plain",
    )
    def test_a_cache_goes_on(self, options: dict[str, Any]) -> None:
        model = built(**options)
        whole = model(ids())
        _, cache = model(ids()[:, :3], return_intermediates=True)
        for end in (4, 5, 7):
            count = end - cache.cache_length
            logits, cache = model(ids()[:, :end], cache=cache, return_intermediates=True, cache_age=count)
            close(logits, whole[:, end - count : end])
        assert cache.cache_length == 7

    def test_new_tokens_alone(self) -> None:
        model = built(input_not_include_cache=True)
        whole = model(ids())
        _, cache = model(ids()[:, :3], return_intermediates=True)
        logits, cache = model(ids()[:, 3:5], cache=cache, return_intermediates=True)
        close(logits, whole[:, 3:5])
        close(model(ids()[:, 5:], cache=cache), whole[:, 5:])
        close(model(ids()[:, :], cache=cache, input_not_include_cache=False), whole[:, 5:])

    def test_a_cache_may_be_used_again(self) -> None:
        model = built()
        _, cache = model(ids()[:, :5], return_intermediates=True)
        first = model(ids(), cache=cache)
        close(first, model(ids())[:, 5:])
        other = ids().clone()
        other[:, 5:] = 3
        close(model(other, cache=cache), model(other)[:, 5:])
        close(model(ids(), cache=cache), first)

    @pytest.mark.parametrize("start", [True, False])
    def test_rows_of_different_lengths(self, start: bool) -> None:
        model = built(options={"rotary_pos_emb": True})
        given = {"seq_start_pos": torch.tensor([0, 3])} if start else {"mask": ~MASK.flip(1) | MASK}
        whole = model(ids(), **given)
        cut = {name: x if start else x[:, :5] for name, x in given.items()}
        _, cache = model(ids()[:, :5], return_intermediates=True, **cut)
        found = model(ids(), cache=cache, **given)
        close(found, whole[:, 5:])

    def test_features_in_front_and_a_context(self) -> None:
        model = built(options={"cross_attend": True})
        given = {"context": front(length=5), "prepend_embeds": front()}
        whole = model(ids(), **given)
        _, cache = model(ids()[:, :4], return_intermediates=True, **given)
        close(model(ids(), cache=cache, **given), whole[:, 3 + 4 :])

    def test_further_ids_and_summed_features(self) -> None:
        model = built(embed_num_tokens={"kind": 3})
        given = {"embed_ids": {"kind": ids() % 3}, "sum_embeds": front(length=7)}
        whole = model(ids(), **given)
        cut = {"embed_ids": {"kind": ids()[:, :4] % 3}, "sum_embeds": front(length=7)[:, :4]}
        _, cache = model(ids()[:, :4], return_intermediates=True, **cut)
        close(model(ids(), cache=cache, **given), whole[:, 4:])

    @pytest.mark.parametrize("model", [{}, {"emb_dim": 8}, {"add_continuous_pred_head": True}])
    def test_deep_embeddings_leave_a_cache(self, model: dict[str, Any]) -> None:
        net = built(ff_deep_embed=True, **model)
        _, told = net(ids()[:, :4], return_intermediates=True)
        close(net(ids(), cache=told), net(ids())[:, 4:])
        assert told.initial_embeds.shape == (2, 4, model.get("emb_dim", 16))
        if "add_continuous_pred_head" in model:
            close(net(ids()[:, :4], return_next_embed_pred=True)[1][1], told.initial_embeds)

    def test_a_cache_is_of_one_context(self) -> None:
        model, context = built(options={"cross_attend": True}), front()
        _, cache = model(ids()[:, :4], context=context, return_intermediates=True)
        close(model(ids(), cache=cache, context=context.clone()), model(ids(), context=context)[:, 4:])
        for other in ({"context": context + 1}, {"context_mask": torch.ones(2, 3, dtype=torch.bool)}):
            with pytest.raises(InputError, match="of the first call"):
                model(ids(), cache=cache, **{"context": context, **other})

    def test_documents_are_of_whole_sequences(self) -> None:
        model, packed = built(), {"cu_seqlens_q": torch.tensor([0, 3, 7])}
        _, cache = model(ids(1)[:, :4], return_intermediates=True)
        with pytest.raises(InputError, match="leave the cache out"):
            model(ids(1), cache=cache, flash_pack_seq_kwargs=packed)

    def test_a_cache_keeps_the_places_of_a_context(self) -> None:
        model = built(options={"cross_attend": True, "rotary_pos_emb": True})
        given = {"context": front(), "context_pos": torch.arange(3) + 4}
        _, cache = model(ids()[:, :4], return_intermediates=True, **given)
        close(model(ids(), cache=cache, **given), model(ids(), **given)[:, 4:])
        with pytest.raises(InputError, match="the context_pos of the first call"):
            model(ids(), cache=cache, context=given["context"], context_pos=torch.arange(3))

    def test_a_cache_is_of_one_order(self) -> None:
        model, order = built(), (0, 1, 0, 1, 2, 3)
        _, cache = model(ids()[:, :4], layers_execute_order=order, return_intermediates=True)
        close(model(ids(), cache=cache, layers_execute_order=order), model(ids(), layers_execute_order=order)[:, 4:])
        for other in ({}, {"layers_execute_order": (0, 1)}):
            with pytest.raises(InputError, match="give the same order"):
                model(ids(), cache=cache, **other)
        _, cache = model(ids()[:, :4], return_intermediates=True)
        with pytest.raises(InputError, match="give the same order"):
            model(ids(), cache=cache, repeat_blocks=(0, 2))

    def test_no_cache_is_of_another_causality(self) -> None:
        model = built()
        _, cache = model(ids()[:, :4], causal=False, return_intermediates=True)
        with pytest.raises(InputError, match="without causal"):
            model(ids(), cache=cache)

    @pytest.mark.parametrize("each", [False, True])
    @pytest.mark.parametrize("name", ["condition", "in_attn_cond"])
    def test_a_cache_that_is_used_again_knows_what_tokens_went_by(self, name: str, each: bool) -> None:
        kind = {"use_adaptive_layernorm": True, "dim_condition": 16} if name == "condition" else {}
        model = built(options=kind)
        given = torch.randn(2, 3, 16).double()
        whole = model(ids()[:, :3], **{name: given})
        cut = [given[:, i : i + 1] if each else given[:, i] for i in range(3)]
        _, cache = model(ids()[:, :1], return_intermediates=True, **{name: cut[0]})
        _, cache = model(ids()[:, :2], return_intermediates=True, cache=cache, **{name: cut[1]})
        for _ in range(2):  # the second time everything is read again
            close(model(ids()[:, :3], cache=cache, **{name: cut[2]}), whole[:, 2:])

    def test_what_no_cache_does(self) -> None:
        _, cache = built(Encoder)(ids(), return_intermediates=True)
        with pytest.raises(InputError, match="only causal layers"):
            built(Encoder)(ids(), cache=cache)
        model = built()
        _, cache = model(ids(), return_intermediates=True)
        longer = torch.cat((ids(), ids(2, 13)), 1)
        with pytest.raises(InputError, match="hold no new ones"):
            model(ids(), cache=cache)
        with pytest.raises(InputError, match="takes no attn_mask"):
            model(longer[:, :8], cache=cache, attn_mask=torch.ones(8, 8, dtype=torch.bool))
        with pytest.raises(InputError, match="return_intermediates=True"):
            model(ids(), cache=3)
        with pytest.raises(InputError, match="cache_age = 4"):
            model(longer[:, :9], cache=cache, cache_age=4)
        with pytest.raises(InputError, match="positions end at 16"):
            model(longer, cache=cache)


def test_further_ids_are_needed_and_known() -> None:
    model = built(embed_num_tokens={"kind": 3, "speaker": 2})
    given = {"kind": ids() % 3, "speaker": ids() % 2}
    assert model(ids(), embed_ids=given).shape == (2, 7, 11)
    with pytest.raises(vf.ShapeError, match="needed in every call: speaker"):
        model(ids(), embed_ids={"kind": ids() % 3})
    with pytest.raises(vf.ShapeError, match="no further ids 'kinds'"):
        model(ids(), embed_ids={"kinds": ids(), "speaker": ids()})
    with pytest.raises(vf.ShapeError, match="further ids 'kind' have shape"):
        model(ids(), embed_ids={**given, "kind": ids()[:, 1:]})
    with pytest.raises(vf.ShapeError, match="no part of this model reads it"):
        built()(ids(), embed_ids=given)


def test_sinusoidal_positions_of_ragged_prompts() -> None:
    model = AutoregressiveWrapper(built(scaled_sinu_pos_emb=True))
    prompts = [ids()[0, :6], ids()[1, :2]]
    together = model.generate(prompts, 6, temperature=0.0)
    for row, prompt in enumerate(prompts):
        assert torch.equal(together[row], model.generate(prompt, 6, temperature=0.0))


def test_the_cache_of_memory_tokens_changes_nothing() -> None:
    for options in ({}, {"memory_tokens_interspersed_every": 3}):
        model = AutoregressiveWrapper(built(num_memory_tokens=2, **options))
        assert model.net.can_cache_kv
        prompts = [ids()[0, :6], ids()[1, :2]]
        found = model.generate(prompts, 6, temperature=0.0)
        assert torch.equal(found, model.generate(prompts, 6, temperature=0.0, cache_kv=False))
        for row, prompt in enumerate(prompts):
            assert torch.equal(found[row], model.generate(prompt, 6, temperature=0.0))


def test_recycling_draws_by_the_generator_of_torch() -> None:
    model = built(recycling=True, train_max_recycle_steps=3).train()
    outs = []
    for seed in (0, 0, 1, 2, 3, 4, 5, 6):
        torch.manual_seed(seed)
        outs.append(model(ids()))
    close(outs[0], outs[1])
    choices = [model(ids(), recycle_steps=n) for n in (1, 2, 3)]
    drawn = [next(n for n, one in enumerate(choices) if torch.equal(one, out)) for out in outs]
    assert len(set(drawn)) > 1
    close(built(recycling=True, train_max_recycle_steps=3)(ids()), choices[2])
    with pytest.raises(vf.ShapeError, match="passes is a number"):
        model(ids(), recycle_steps=0)


@pytest.mark.parametrize(
    ("asked", "named"),
    [
        ({"looped_exit_prob_threshold": 0.5}, "looped_exit_prob_threshold"),
        ({"attn_z_loss_weight": 0.5}, "return_attn_z_loss"),
        ({"to_logits_kwargs": {"a": 1}, "return_embeddings": True}, "to_logits_kwargs"),
    ],
)
def test_what_has_no_effect_is_refused(asked: dict[str, Any], named: str) -> None:
    with pytest.raises(InputError, match=named):
        built()(ids(), **asked)


@pytest.mark.parametrize(
    ("asked", "named"),
    [
        ({"looped_steps": 2, "max_looped_steps": 3}, "choose one"),
        ({"looped_steps": 2, "looped_exit_prob_threshold": 0.5}, "no effect"),
        ({"recycle_steps": 2}, "recycling=True"),
    ],
)
def test_how_often_layers_run_is_said_once_for_generation(asked: dict[str, Any], named: str) -> None:
    model = AutoregressiveWrapper(built(options={"pre_and_post_norm": True}, looped=True))
    with pytest.raises(InputError, match=named):
        model.generate(ids(), 2, **asked)


def test_contrast_needs_an_amateur() -> None:
    with pytest.raises(KeywordError, match="amateur_model"):
        AutoregressiveWrapper(built()).generate(ids(), 2, contrastive_decode_kwargs={"beta": 0.1})


def test_a_mask_of_no_context_is_refused() -> None:
    with pytest.raises(InputError, match="without context"):
        built().attn_layers(front(), context_mask=torch.ones(2, 3, dtype=torch.bool))

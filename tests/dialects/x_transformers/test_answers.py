"""What models around layers answer with instead of the logits of one pass: pools, loops, modules of the user's."""

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import variform as vf
from tests.dialects.x_transformers.test_wrapper import MASK, built, close, front, ids
from variform.dialects.x_transformers import AutoregressiveWrapper, Encoder, PrefixDecoder, TransformerWrapper
from variform.dialects.x_transformers.errors import InputError
from variform.weights.x_transformers import load_x_transformers, to_x_transformers


@pytest.fixture(autouse=True)
def _without_gradients() -> Any:
    with torch.no_grad():
        yield


class TestPools:
    def test_means_over_features_in_front(self) -> None:
        model = built(Encoder, average_pool_embed=True)
        hidden = built(Encoder)(ids(), prepend_embeds=front(), mask=MASK, return_embeddings=True)
        found = model(ids(), prepend_embeds=front(), mask=MASK, return_embeddings=True)
        close(found[0], hidden[0].mean(0))
        close(found[1], hidden[1, :7].mean(0))
        assert model(ids()).shape == (2, 11)

    @pytest.mark.parametrize("depth", [1, 2])
    def test_pooling_with_memory_tokens_and_a_mask(self, depth: int) -> None:
        model = built(Encoder, attn_pool=True, attn_pool_depth=depth, num_pooled_tokens=3, num_memory_tokens=2)
        found = model(ids(), mask=MASK)
        assert found.shape == (2, 3, 16)
        close(found[1:], model(ids()[1:, :4]))
        pooled, told = model(ids(), mask=MASK, return_intermediates=True)
        close(told.attn_pooled_tokens, pooled)
        assert told.logits.shape == (2, 7, 11)
        assert model(ids(), causal=True).shape == (2, 3, 16)  # an encoder, whatever a call asks of its attention

    def test_of_a_decoder_it_is_told_on_request(self) -> None:
        model = built(attn_pool=True, num_pooled_tokens=2, dim_pooled_tokens=8)
        logits, told = model(ids(), return_intermediates=True)
        assert logits.shape == (2, 7, 11)
        assert told.attn_pooled_tokens.shape == (2, 2, 8)
        tokens = AutoregressiveWrapper(model).generate(ids(), 3, temperature=0.0)
        assert tokens.shape == (2, 3)

    def test_of_a_prefix_decoder_it_is_the_answer(self) -> None:
        model = built(PrefixDecoder, attn_pool=True, num_pooled_tokens=2)
        pooled, told = model(ids(), prefix_attn_len=3, return_intermediates=True)
        assert pooled.shape == (2, 2, 16)
        close(told.attn_pooled_tokens, pooled)

    def test_pools_do_not_decode(self) -> None:
        model = built(average_pool_embed=True)
        assert not model.can_cache_kv
        with pytest.raises(vf.ConfigError, match="has no decode state"):
            model.native.init_state(2, 9)


class TestOwnModules:
    def model(self) -> TransformerWrapper:
        torch.manual_seed(3)
        return built(token_emb=nn.Embedding(11, 16), to_logits=nn.Linear(16, 5), post_emb_norm=True)

    def test_they_are_used_and_decode(self) -> None:
        model = self.model()
        assert model(ids()).shape == (2, 7, 5)
        assert model(ids(), sum_embeds=front(length=7)).shape == (2, 7, 5)
        whole = model(ids())
        _, cache = model(ids()[:, :5], return_intermediates=True)
        close(model(ids(), cache=cache), whole[:, 5:])

    def test_copies_and_weights(self) -> None:
        model = self.model()
        expected = model(ids())
        twins = [copy.deepcopy(model), pickle.loads(pickle.dumps(model))]
        tensors = to_x_transformers(model)
        assert {"token_emb.weight", "to_logits.weight", "to_logits.bias", "post_emb_norm.gamma"} <= set(tensors)
        other = self.model()
        load_x_transformers(other, {name: tensor.clone() for name, tensor in tensors.items()})
        for param in model.parameters():
            param.data.zero_()
        for twin in (*twins, other):
            close(twin(ids()), expected)

    def test_arguments_for_a_head(self) -> None:
        class Scaled(nn.Linear):
            def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
                return super().forward(x) * scale

        model = built(to_logits=Scaled(16, 5))
        close(model(ids(), to_logits_kwargs={"scale": 2.0}), 2 * model(ids()))

    def test_they_are_not_saved_as_files(self) -> None:
        with pytest.raises(vf.ConfigError, match="not registered"):
            vf.to_yaml(self.model().spec)

    def test_a_module_of_another_width(self) -> None:
        with pytest.raises(vf.ShapeError, match=r"\[B, L, 16\] is needed"):
            built(token_emb=nn.Embedding(11, 8))(ids())


class TestLoops:
    def model(self, **model: Any) -> TransformerWrapper:
        return built(options={"pre_and_post_norm": True}, looped=True, **model)

    def test_tokens_leave_loops_by_the_gate(self) -> None:
        model = self.model()
        _, found = model(ids(), return_intermediates=True, looped_pred_all_logits=True)
        assert len(found.exit_logits) == len(found.all_pred_logits) == 4
        close(found.all_pred_logits[-1], model(ids()))
        logits, early = model(ids(), return_intermediates=True, looped_inference=True, looped_exit_prob_threshold=0.6)
        left = torch.zeros(2, 7, dtype=torch.float64)
        stay = torch.ones(2, 7, dtype=torch.float64)
        expected, when = found.all_pred_logits[-1].clone(), torch.full((2, 7), 3)
        for place, gate in reversed(list(enumerate(found.exit_logits[:-1]))):
            stay = torch.stack([torch.sigmoid(-g[..., 0]) for g in found.exit_logits[: place + 1]]).prod(0)
            left = 1 - stay
            when = torch.where(left >= 0.6, place, when)
            expected = torch.where((left >= 0.6).unsqueeze(-1), found.all_pred_logits[place], expected)
            assert gate.shape == (2, 7, 1)
        assert len(when.unique()) > 1
        assert torch.equal(early.exit_indices, when)
        close(logits, expected)

    def test_passes_of_one_call(self) -> None:
        model = self.model(num_memory_tokens=2)
        _, found = model(ids(), return_intermediates=True, looped_pred_all_logits=True)
        close(model(ids(), looped_steps=2), found.all_pred_logits[1])
        close(model(ids(), max_looped_steps=3), found.all_pred_logits[2])
        assert model(ids(), return_intermediates=True)[1].all_pred_logits == []
        with pytest.raises(InputError, match="choose one"):
            model(ids(), looped_steps=2, max_looped_steps=3)

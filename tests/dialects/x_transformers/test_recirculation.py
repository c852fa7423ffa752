"""`Recirculation`: chunks, padding, generation, learned factors, errors, copies."""

import copy
import pickle
from typing import Any

import pytest
import torch

from tests.dialects.x_transformers.test_full_bandwidth import net as deep
from tests.dialects.x_transformers.test_next_latent_wrapper import ids
from tests.dialects.x_transformers.test_next_latent_wrapper import net as shallow
from variform.dialects.x_transformers import AutoregressiveWrapper, Decoder, Encoder, TransformerWrapper
from variform.dialects.x_transformers.errors import InputError, KeywordError
from variform.dialects.x_transformers.recirculation import Recirculation
from variform.weights.x_transformers import load_x_transformers, to_x_transformers


def model(inner: Any = None, *routes: Any, **keywords: Any) -> Recirculation:
    torch.manual_seed(0)
    made = Recirculation(deep() if inner is None else inner, *(routes or (1, 0)), **{"ramp_steps": 2, **keywords})
    return made.double().eval()


@pytest.mark.parametrize("keywords", [{}, {"use_learned": True}])
def test_chunks_and_padding_change_nothing(keywords: dict[str, Any]) -> None:
    wrapper = model(**keywords)
    whole = wrapper(ids())
    with torch.no_grad():
        torch.testing.assert_close(wrapper(ids()), whole)
        first, cache = wrapper(ids()[:, :3], return_intermediates=True)
        second, cache = wrapper(ids()[:, 3:5], cache=cache, return_intermediates=True, input_not_include_cache=True)
        third = wrapper(ids(), cache=cache)
        torch.testing.assert_close(torch.cat((first, second, third), 1), whole)
        other = torch.cat((torch.zeros(2, 3).long(), ids()), 1)
        torch.testing.assert_close(wrapper(other, seq_start_pos=torch.tensor([3, 3]))[:, 3:], whole)
    assert not torch.allclose(wrapper.net(ids())[:, 1:], whole[:, 1:])


def test_it_stands_in_the_place_of_its_model() -> None:
    wrapper = model()
    language = AutoregressiveWrapper(wrapper)
    seq = ids()
    expected = torch.nn.functional.cross_entropy(wrapper(seq)[:, :-1].transpose(1, 2), seq[:, 1:])
    torch.testing.assert_close(language(seq), expected)
    made = [language.generate(seq[:, :3], 5, temperature=0.0, cache_kv=cached) for cached in (True, False)]
    assert torch.equal(*made)
    whole = wrapper(torch.cat((seq[:, :3], made[0]), 1))
    assert torch.equal(whole[:, 2:-1].argmax(-1), made[0])
    ragged = language.generate([seq[0, :3], seq[1, :2]], 5, temperature=0.0)
    assert torch.equal(ragged[0], made[0][0])
    assert torch.equal(ragged[1], language.generate(seq[1, :2], 5, temperature=0.0))


def test_factors_are_learned_and_the_model_is_not() -> None:
    wrapper = model(use_learned=True)
    seq = torch.randint(1, 9, (4, 6), generator=torch.Generator().manual_seed(2))
    before = [param.clone() for param in wrapper.net.parameters()]
    losses = [wrapper.learn_parameters(seq, steps, batch_size=16, optimizer_kwargs={"lr": 1e-2}) for steps in (1, 12)]
    assert losses[1] < losses[0]
    assert all(torch.equal(*pair) for pair in zip(before, wrapper.net.parameters(), strict=True))
    assert all(param.grad is None for param in wrapper.net.parameters())


@pytest.mark.parametrize(
    ("build", "named"),
    [
        (lambda: model(ramp_step=1), "ramp_steps"),
        (lambda: model(None, 0, 1), "shallower"),
        (lambda: model(None, 2, 0), "out of range"),
        (lambda: model(None, (1, 1), (0, 0)), "unique"),
        (lambda: model(None, (1, 1), 0), "as many as"),
        (lambda: model(None, (1,), (0,), alpha=(0.1, 0.2)), "each of the 1"),
        (lambda: model(learned_hidden=3), "use_learned"),
        (lambda: model(shallow(Encoder)), "layers that see it"),
        (lambda: model(deep(looped=True)), "looped"),
    ],
)
def test_keywords_are_checked(build: Any, named: str) -> None:
    with pytest.raises(KeywordError, match=named):
        build()


def test_calls_are_checked() -> None:
    wrapper = model()
    with pytest.raises(KeywordError, match="not supported"):
        wrapper(ids(), prepend_embeds=torch.zeros(2, 1, 16))
    with pytest.raises(InputError, match="nothing to learn"):
        wrapper.learn_parameters(ids())
    with pytest.raises(InputError, match="at least"):
        wrapper(ids()[:, :0])


@pytest.mark.parametrize("again", [copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))])
@pytest.mark.parametrize("keywords", [{}, {"use_learned": True}])
def test_copies_and_weights(keywords: dict[str, Any], again: Any) -> None:
    wrapper = model(**keywords)
    before, twin, tensors = wrapper(ids()), again(wrapper), to_x_transformers(wrapper)
    with torch.no_grad():
        for param in wrapper.parameters():
            param.zero_()
    torch.testing.assert_close(twin(ids()), before, rtol=0, atol=0)
    load_x_transformers(wrapper, tensors)
    torch.testing.assert_close(wrapper(ids()), before)


def test_new_tokens_alone_may_be_more_than_were_read() -> None:
    torch.manual_seed(0)
    layers = Decoder(dim=16, depth=2, heads=2, attn_dim_head=8)
    net = Recirculation(TransformerWrapper(num_tokens=11, max_seq_len=12, attn_layers=layers), 1, 0).eval()
    ids = torch.tensor([[1, 5, 3, 8, 2, 7]])
    with torch.no_grad():
        whole = net(ids)
        for new in (ids[:, 2:], ids[:, 2:5]):
            _, cache = net(ids[:, :2], return_intermediates=True)
            answer = net(new, cache=cache, input_not_include_cache=True)
            torch.testing.assert_close(answer, whole[:, 2 : 2 + new.shape[1]])
        with pytest.raises(InputError, match="no new ones"):
            net(ids[:, :2], cache=cache)

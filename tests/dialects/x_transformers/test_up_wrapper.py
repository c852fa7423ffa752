"""`UniversalPretrainWrapper`: the buffer becomes richer, networks are drawn anew, errors, copies."""

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.dialects.x_transformers.test_next_latent_wrapper import net
from variform.dialects.x_transformers import Encoder
from variform.dialects.x_transformers.errors import InputError, KeywordError
from variform.dialects.x_transformers.up_wrapper import (
    SyntheticDataGenerator,
    UniversalPretrainWrapper,
    random_sequences,
)
from variform.weights.x_transformers import load_x_transformers, to_x_transformers

SIZE: dict[str, Any] = {"batch_size": 4, "seq_len": 10, "seed_length": 2, "buffer_size": 12, "num_reset": 2}


def model(inner: Any = None, **keywords: Any) -> UniversalPretrainWrapper:
    torch.manual_seed(0)
    return UniversalPretrainWrapper(net() if inner is None else inner, **{**SIZE, **keywords})


class Sevens(nn.Module):
    """Writes sevens, and counts how often it is drawn anew."""

    redrawn = 0

    def generate(self, length: int, *, seed: Tensor, condition: Tensor) -> Tensor:
        assert seed.shape == (4, 2)
        return torch.full_like(condition, 7)

    def reset_(self) -> None:
        self.redrawn += 1


def test_what_is_written_stands_in_the_buffer() -> None:
    """Upstream writes into a copy: its buffer stays as it was."""
    wrapper = model(data_generator=Sevens(), num_reset=0)
    wrapper.objective.buffer.zero_()
    wrapper()
    assert wrapper.synth_data_buffer.eq(7).all(1).sum() == 4
    assert int(wrapper.step) == 1


def test_rows_begin_anew() -> None:
    wrapper = model(data_generator=Sevens(), num_reset=12)
    before = wrapper.synth_data_buffer.clone()
    wrapper()
    assert (wrapper.synth_data_buffer != before).any(1).all()


def test_the_writer_is_drawn_anew() -> None:
    writer = Sevens()
    wrapper = model(data_generator=writer, reset_turing_machine_every=2)
    for _ in range(5):
        wrapper()
    assert writer.redrawn == 2
    own = SyntheticDataGenerator(8, 9)
    before = own.inner.net.weight_ih_l0.clone()
    own.reset_()
    assert not torch.equal(own.inner.net.weight_ih_l0, before)


def test_training_learns_what_is_written() -> None:
    wrapper = model()
    optimiser = torch.optim.Adam(wrapper.model.native.parameters(), lr=1e-2)
    losses = []
    for _ in range(25):
        optimiser.zero_grad()
        loss = wrapper()
        loss.backward()
        optimiser.step()
        losses.append(loss.detach())
    assert torch.stack(losses[-5:]).mean() < 0.8 * losses[0]
    assert all(param.grad is None for param in wrapper.data_generator.parameters())


def test_another_size_of_the_state() -> None:
    """Upstream's map to logits takes the features of a token."""
    made = SyntheticDataGenerator(8, 9, max_seq_len=6, hidden_size=5, use_gru=True)
    assert made.generate(3, seed=torch.zeros(2, 4).long()).shape == (2, 6)


def test_random_sequences() -> None:
    rows = random_sequences(9, 6, 3, 2, shuffle=False)
    assert rows.shape == (5, 6)
    assert (rows[3:] == rows[3:, :1]).all()
    assert not (rows[:3] == rows[:3, :1]).all(1).any()
    with pytest.raises(InputError, match="at least one"):
        random_sequences(9, 6, 0, 0)


@pytest.mark.parametrize(
    ("keywords", "named"),
    [
        ({"num_resets": 1}, "num_reset"),
        ({"num_reset": 3}, "even"),
        ({"buffer_size": 4}, "greater than the batch size"),
        ({"seed_length": 10}, "between 0 and the 10"),
        ({"seq_len": 13}, "end at 12"),
        ({"inner": net(Encoder)}, "layers that see it"),
    ],
)
def test_keywords_are_checked(keywords: dict[str, Any], named: str) -> None:
    with pytest.raises(KeywordError, match=named):
        model(**keywords)


def test_keywords_of_the_generator_are_checked() -> None:
    for keywords, named in (({"use_gry": True}, "use_gru"), ({"hidden_size": 0}, "positive")):
        with pytest.raises(KeywordError, match=named):
            SyntheticDataGenerator(8, 9, **keywords)
    with pytest.raises(KeywordError, match="seed and condition"):
        SyntheticDataGenerator(8, 9).generate(3)


@pytest.mark.parametrize("again", [copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))])
@pytest.mark.parametrize("kept", [False, True])
def test_copies_and_weights(kept: bool, again: Any) -> None:
    wrapper = model(keep_buffer_on_cpu=kept)
    twin, tensors = again(wrapper), to_x_transformers(wrapper)
    assert ("synth_data_buffer" in tensors) != kept
    other = model()
    torch.manual_seed(4)
    expected = wrapper()
    torch.manual_seed(4)
    torch.testing.assert_close(twin(), expected, rtol=0, atol=0)
    assert torch.equal(twin.synth_data_buffer, wrapper.synth_data_buffer)
    if not kept:
        other()
        load_x_transformers(other, tensors)
        torch.manual_seed(4)
        torch.testing.assert_close(other(), expected)

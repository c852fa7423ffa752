"""Generation with compiled steps."""

import copy
import pickle

import pytest
import torch
from torch._dynamo.testing import CompileCounter

import variform as vf
from variform.generate import compiled


def model(**more):
    torch.manual_seed(0)
    sizes = {"vocab_size": 17, "dim": 16, "depth": 1, "heads": 2, "max_seq_len": 32}
    return vf.build(vf.models.gpt(**sizes, **more)).eval()


@pytest.fixture
def backend():
    counter = CompileCounter()
    torch._dynamo.reset()
    torch._dynamo.register_backend(counter, name="counted")
    yield counter
    from torch._dynamo.backends import registry

    registry._BACKENDS.pop("counted"), registry._COMPILER_FNS.pop("counted")
    torch._dynamo.reset()


def test_compiled_steps_write_the_same_tokens_with_one_graph_for_all_calls(backend):
    net = model()
    for length, seed in ((5, 1), (7, 2)):
        prompt = torch.randint(17, (2, length))
        expected = vf.generate(net, prompt, 9, temperature=0.7, seed=seed)
        assert vf.generate(net, prompt, 9, temperature=0.7, seed=seed, compile="counted", bucket=8).equal(expected)
    assert 1 <= backend.frame_count <= 3  # not one a token, nor one a prompt


def test_other_weights_get_a_step_of_their_own():
    net, prompt = model(), torch.randint(17, (1, 5))
    one = compiled.with_compiled_steps(net, "aot_eager")
    assert compiled.with_compiled_steps(net, "aot_eager") is one
    assert vf.generate(net, prompt, 6, greedy=True, compile="aot_eager").equal(vf.generate(net, prompt, 6, greedy=True))
    with torch.no_grad():
        net.head.project.weight.neg_()
    assert compiled.with_compiled_steps(net, "aot_eager") is not one
    assert vf.generate(net, prompt, 6, greedy=True, compile="aot_eager").equal(vf.generate(net, prompt, 6, greedy=True))


def test_a_model_with_a_compiled_step_can_be_copied_and_pickled():
    net = model()
    compiled.with_compiled_steps(net, "aot_eager")
    for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert not other.__dict__["_compiled_steps"].steps
    assert "_compiled_steps" not in net.state_dict()


def test_prompts_of_unequal_length_and_ends_are_read_as_without():
    net, prompts = model(), [torch.randint(17, (n,)) for n in (3, 6)]
    expected, kept = vf.generate(net, prompts, 8, greedy=True, eos=3, max_len=30, return_state=True)
    given = {"greedy": True, "eos": 3, "max_len": 30, "return_state": True, "compile": "aot_eager"}
    tokens, state = vf.generate(net, prompts, 8, **given)
    assert tokens.equal(expected)
    assert state["count"] == kept["count"]


@pytest.mark.parametrize(
    ("options", "text"),
    [({"compile": "aot_eagre"}, "aot_eager"), ({"compile": True, "use_cache": False}, "needs the cache")],
)
def test_what_cannot_be_compiled_is_refused(options, text):
    with pytest.raises(vf.ConfigError, match=text):
        vf.generate(model(), torch.zeros(1, 3, dtype=torch.long), 4, **options)


def test_a_model_that_is_compiled_already_is_refused():
    with pytest.raises(vf.ConfigError, match="compiled already"):
        vf.generate(torch.compile(model(), backend="eager"), torch.zeros(1, 3, dtype=torch.long), 4, compile="eager")


@pytest.mark.slow
@pytest.mark.filterwarnings(
    "ignore:.torch.jit.script_method. is deprecated:DeprecationWarning"
)  # torch's own, while it compiles
def test_weights_are_constants_under_inductor_until_they_change():
    net, prompt = model(), torch.randint(17, (1, 5))
    for _ in range(2):
        expected = vf.generate(net, prompt, 6, greedy=True)
        assert vf.generate(net, prompt, 6, greedy=True, compile=True).equal(expected)
        with torch.no_grad():
            net.head.project.weight.neg_()

from variform.core.superset import set_aside


def test_keys_of_other_parts_of_the_kind_are_set_aside() -> None:
    data = {"part": "softmax", "window": 9, "dropout": 0.1}
    assert set_aside(data, ("attention",)) == ({"part": "softmax", "dropout": 0.1}, ("window",))
    assert data["window"] == 9


def test_causal_and_unknown_keys_stay() -> None:
    data = {"part": "attention/softmax", "causal": True, "windwo": 9}
    assert set_aside(data) == (data, ())
    data = {"part": "norm/layer_norm", "causal": True}
    assert set_aside(data) == (data, ())


def test_inside_lists_repeats_and_shared_parts() -> None:
    inner = {"part": "softmax", "window": 9}
    mixer = {"part": "mixer/multi_head", "attention": inner}
    step = {"part": "sublayer", "body": {"shared": "m", "of": mixer}}
    data = {"part": "layer/layer", "sublayers": [{"repeat": 2, "of": step}, "sublayer"]}
    kept, dropped = set_aside(data)
    assert dropped == ("sublayers.0.of.body.of.attention.window",)
    assert kept["sublayers"][0]["of"]["body"]["of"]["attention"] == {"part": "softmax"}
    assert kept["sublayers"][1] == "sublayer"


def test_what_is_no_part_is_left_for_the_reader() -> None:
    for data in (7, "softmax", {"part": "nonsense", "x": 1}, {"preset": "gpt", "dim": 8}):
        assert set_aside(data) == (data, ())

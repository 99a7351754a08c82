"""Recorded experts: what each layer chose, and nothing changed by it."""

import mlx.core as mx
import pytest

from mlx_mixtral.experts.recorded import recorded
from mlx_mixtral.loading import load
from mlx_mixtral.model.moe import route
from mlx_mixtral.network import arrays


@pytest.fixture(scope="module")
def model():
    return load("demo").model


def test_each_layer_tells_what_it_chose(model):
    ids = mx.array([[1, 40, 41, 42], [1, 50, 51, 52]])
    plain = model(ids)
    with recorded(model.model.layers) as records:
        assert [record.indices for record in records] == [None] * len(records)
        assert (model(ids) == plain).all()
        chosen = [record.indices for record in records]
    assert {indices.shape for indices in chosen} == {(8, 2)}
    # The first layer's, computed another way.
    layer = model.model.layers[0]
    x = model.model.embed_tokens(ids)
    x = x + layer.self_attn(layer.input_layernorm(x), "causal", None)
    logits = layer.block_sparse_moe.gate(layer.post_attention_layernorm(x).flatten(0, 1))
    assert chosen[0].tolist() == route(logits, 2)[0].tolist()


def test_afterwards_all_is_as_before(model):
    names = set(arrays(model))
    with pytest.raises(KeyError), recorded(model.model.layers):
        raise KeyError
    assert set(arrays(model)) == names


def test_a_record_is_no_weight(model):
    count = len(arrays(model))
    with recorded(model.model.layers):
        model(mx.array([[1, 40]]))
        assert len(arrays(model)) == count

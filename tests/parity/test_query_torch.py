"""The query decoder beside PyTorch's own decoder layer, with ML-Decoder's and GLoRI's changes."""

import dataclasses

import numpy as np
import pytest
from flax import nnx

from tests.heads.made import WIDTH, as_function, features_of, flat, head_of
from tests.heads.test_query import ML_DECODER, SMALL
from xmae_jax.heads.query import GroupReadout

torch = pytest.importorskip("torch")


class Decoder(torch.nn.TransformerDecoderLayer):
    """Post-norm, as by default; for self-attention, the queries themselves."""

    def _sa_block(self, x, *args, **kwargs):
        return self.dropout1(x)


def reference(config, p):
    """Return (memory map, decoder layer) with our parameters, in PyTorch's layout."""
    memory = torch.nn.Linear(config.layers * WIDTH, config.width)
    layer = Decoder(config.width, config.heads, config.hidden, config.dropout, batch_first=True)

    def matrix(name):
        kernel = p[f"{name}/kernel"]
        return torch.tensor(kernel.reshape(kernel.shape[0], -1).T)

    def vector(name):
        return torch.tensor(p[name].reshape(-1))

    attention = {
        "in_proj_weight": torch.cat([matrix(f"attention/{n}") for n in "qkv"]),
        "in_proj_bias": torch.cat([vector(f"attention/{n}/bias") for n in "qkv"]),
        "out_proj.weight": matrix("attention/out"),
        "out_proj.bias": vector("attention/out/bias"),
    }
    state = {f"multihead_attn.{name}": value for name, value in attention.items()}
    for theirs, ours in (("linear1", "up"), ("linear2", "down")):
        state |= {f"{theirs}.weight": matrix(ours), f"{theirs}.bias": vector(f"{ours}/bias")}
    for n in ("norm1", "norm2", "norm3"):
        state |= {f"{n}.weight": vector(f"{n}/scale"), f"{n}.bias": vector(f"{n}/bias")}
    missing, extra = layer.load_state_dict(state, strict=False)
    assert not extra and all(name.startswith("self_attn.") for name in missing)
    memory.load_state_dict({"weight": matrix("memory"), "bias": vector("memory/bias")})
    return memory, layer.eval()


@pytest.mark.parametrize(
    ("config", "findings"),
    [(SMALL, 5), (dataclasses.replace(SMALL, cls_skip=False), 5), (ML_DECODER, 5)],
    ids=["glori", "glori_without_cls", "ml_decoder"],
)
def test_against_pytorchs_decoder_layer(config, findings):
    apply, params = as_function(head_of(config, findings))
    features = features_of()
    p = {name: np.array(value) for name, value in flat(params).items()}
    memory, layer = reference(config, p)
    cls, patches = (
        torch.tensor(np.concatenate([np.asarray(x) for x in parts], axis=-1))
        for parts in zip(*features.layers[-config.layers :], strict=True)
    )
    with torch.no_grad():
        queries = torch.tensor(p["queries"]).expand(len(cls), -1, -1)
        h = layer(queries, torch.relu(memory(patches)))
        if config.cls_skip:
            h = torch.cat([cls[:, None].expand(-1, h.shape[1], -1), h], dim=-1)
        out = torch.einsum("bqd,qdf->bqf", h, torch.tensor(p["readout/kernel"])).flatten(1)
        want = out[:, :findings] + torch.tensor(p["readout/bias"])
    np.testing.assert_allclose(apply(params, features)["logits"], want, rtol=1e-5, atol=1e-5)


def test_initial_spread_of_the_readout_is_pytorchs():
    # What xavier_normal takes for inputs and outputs of a tensor of three axes.
    want = torch.nn.init.xavier_normal_(torch.empty(50, 400, 3)).std()
    made = GroupReadout(50, 400, 150, rngs=nnx.Rngs(0)).kernel[...]
    assert float(np.std(made)) == pytest.approx(float(want), rel=0.02)

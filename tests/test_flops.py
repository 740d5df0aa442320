"""FLOPs counted from a jaxpr, beside formulas written by hand."""

import jax
import jax.numpy as jnp
import pytest

from configs import pretrain_1280
from xmae_jax import flops, sharding
from xmae_jax.chips import CHIPS, chip_of
from xmae_jax.config import resolve
from xmae_jax.tasks.film import film_flops, mfu_of_speed, one_film


def config(*, kind="self", remat="none", keep=736):
    c = pretrain_1280.get_config()
    c.objective.decoder.kind, c.remat, c.objective.mask.keep = kind, remat, keep
    return resolve(c)


def by_hand(tokens, *, width, depth, context=None):
    """Forward FLOPs of a stack: qkv and out, scores and their use, the MLP."""
    seen = tokens if context is None else context
    projections = 2 * width * width * (2 * tokens + 2 * seen)
    attention = 2 * 2 * tokens * seen * width
    mlp = 2 * 2 * tokens * width * 4 * width
    return depth * (projections + mlp), depth * attention


@pytest.mark.parametrize("kind", ["self", "cross"])
def test_pretrain_1280_by_hand(kind):
    counted = film_flops(config(kind=kind))
    encoder, encoder_attention = by_hand(737, width=1024, depth=24)
    encoder += 2 * 736 * 256 * 1024
    if kind == "self":
        decoder, decoder_attention = by_hand(6401, width=512, depth=8)
    else:
        decoder, decoder_attention = by_hand(5664, width=512, depth=8, context=737)
    decoder += 2 * 737 * 1024 * 512 + 2 * 5664 * 512 * 256
    assert counted == {
        "encoder": encoder,
        "encoder/attention": encoder_attention,
        "decoder": decoder,
        "decoder/attention": decoder_attention,
    }


def test_the_cross_decoder_saves_what_is_claimed():
    """CrossMAE's decoder at 1280 px, every hidden patch predicted."""
    whole, cut = (sum(film_flops(config(kind=kind)).values()) for kind in ("self", "cross"))
    assert whole / cut >= 1.7


def test_recomputation_is_counted_where_it_is_asked_for():
    def all_of(remat):
        fn, args = one_film(config(remat=remat), gradient=True)
        return sum(flops.matmul_flops(fn, *args).values())

    forward = sum(film_flops(config()).values())
    scores = sum(v for n, v in film_flops(config()).items() if n.endswith("attention")) / 2
    # Scores are always computed again. Pixels need no gradient, which saves a product of a layer.
    assert all_of("none") == pytest.approx(3 * forward + scores, rel=2e-3)
    # What attention gave is kept, and so are matrix products: nothing of them is computed again.
    assert all_of("dots") == all_of("none") < all_of("full") < 4 * forward + scores


def test_narrow_products_fill_a_matrix_unit_in_part():
    x = jax.ShapeDtypeStruct((2, 64, 32), jnp.float32)

    def scores(x):
        return jnp.einsum("bnd,bmd->bnm", x, x)

    assert sum(flops.matmul_flops(scores, x).values()) == 2 * 2 * 64 * 64 * 32
    assert sum(flops.matmul_flops(scores, x, unit=128).values()) == 2 * 2 * 64 * 128 * 128


def test_chips_by_the_names_that_jax_gives():
    names = {
        "TPU v5 lite": "v5e", "TPU v5": "v5p", "TPU v5p": "v5p", "TPU v6 lite": "v6e",
        "TPU v4": "v4", "NVIDIA H100 80GB HBM3": "h100", "NVIDIA A100-SXM4-80GB": "a100",
    }  # fmt: skip
    for kind, name in names.items():
        assert chip_of(kind) is CHIPS[name]
    for other in ("cpu", "TPU v4 lite", "NVIDIA A100-SXM4-40GB", "NVIDIA H200 NVL"):
        assert chip_of(other) is None


def test_mfu_of_a_known_chip(monkeypatch):
    mesh = sharding.make_mesh(data=4, fsdp=1)
    assert mfu_of_speed(config(), mesh) is None
    monkeypatch.setattr("xmae_jax.tasks.film.chip_of", lambda kind: CHIPS["h100"])
    want = 3 * sum(film_flops(config()).values()) / (4 * 989e12)
    assert mfu_of_speed(config(), mesh) == pytest.approx(want)


@pytest.mark.parametrize(("kind", "tokens"), [("self", 6401), ("cross", 5664)])
def test_stacks_are_found(kind, tokens):
    fn, args = one_film(config(kind=kind), gradient=False)
    assert flops.stacks(fn, *args) == [
        flops.Stack(24, 737, 1024),
        flops.Stack(8, tokens, 512),
    ]


def test_a_convolution_by_hand():
    def loss(kernel, x):
        numbers = ("NHWC", "HWIO", "NHWC")
        y = jax.lax.conv_general_dilated(x, kernel, (2, 2), "VALID", dimension_numbers=numbers)
        return y.sum()

    kernel, x = jnp.zeros((3, 3, 5, 7)), jnp.zeros((2, 9, 9, 5))
    assert flops.matmul_flops(loss, kernel, x) == {"other": 2 * 2 * 4 * 4 * 7 * 3 * 3 * 5}

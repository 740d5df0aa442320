"""Hugging Face's ViTMAE against our masked auto-encoder: latents, reconstruction and loss."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers import small_encoder, small_mae
from tests.parity.shared import IMAGENET, assert_same, encoded, films, jittered, theirs
from xmae_jax.digest import flatten, nested
from xmae_jax.models.convert import fit, read_foreign
from xmae_jax.models.pixel_decoder import DecoderConfig
from xmae_jax.models.position import sincos_2d
from xmae_jax.objectives.mae import MaskConfig

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

SIZES = dict(
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=128,
    image_size=32,
    patch_size=8,
    decoder_hidden_size=16,
    decoder_num_hidden_layers=2,
    decoder_num_attention_heads=2,
    decoder_intermediate_size=64,
    mask_ratio=0.75,
)


def made(folder, *, mean, std, **more):
    """Make and save a model whose positions are those of released files.

    Fresh ones of transformers 5 have row and column exchanged; He et al.'s and the hub's have not.
    """
    torch.manual_seed(0)
    config = transformers.ViTMAEConfig(**SIZES, num_channels=len(mean), **more)
    model = jittered(transformers.ViTMAEForPreTraining(config))
    for part, width in ((model.vit.embeddings, 32), (model.decoder, 16)):
        name = "position_embeddings" if width == 32 else "decoder_pos_embed"
        table = np.vstack([np.zeros((1, width)), sincos_2d((4, 4), width, base_grid=4)])
        getattr(part, name).data = torch.tensor(table[None], dtype=torch.float32)
    model.save_pretrained(folder)
    preprocessor = {"image_mean": mean, "image_std": std}
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    return model


def masked(rows: int):
    """Draw noise, from which ViTMAE masks, and the ids that it keeps, ascending."""
    noise = np.random.default_rng(1).random((rows, 16))
    keep_ids = np.sort(np.argsort(noise, axis=1)[:, :4], axis=1)
    hidden = np.ones((rows, 16), bool)
    hidden[np.arange(rows)[:, None], keep_ids] = False
    return torch.tensor(noise, dtype=torch.float32), keep_ids, hidden


def as_mae(folder, *, norm_pix_loss):
    """Read the folder into our objective."""
    foreign = read_foreign(folder)
    settings = {**foreign.encoder, "layer_scale": None}
    mae = small_mae(
        encoder=small_encoder(**settings),
        decoder=DecoderConfig(kind="self", predict_share=1.0, width=16, depth=2, heads=2),
        mask=MaskConfig(kind="random", keep=4, ratio_inside=0.0, ratio_outside=0.0),
        norm_pix_loss=norm_pix_loss,
    )
    shapes = jax.eval_shape(mae.init, jax.random.key(0))
    wanted = {name: leaf.shape for name, leaf in flatten(shapes).items()}
    params, told = fit(foreign, wanted, encoder=mae.encoder, decoder_heads=2)
    assert not told
    return mae, nested({name: jnp.asarray(x) for name, x in params.items()})


@pytest.mark.parametrize("norm_pix_loss", [False, True])
def test_latents_reconstruction_and_loss_of_one_channel(tmp_path, norm_pix_loss):
    half = dict(mean=[0.5], std=[0.5])
    theirs_ = made(tmp_path, **half, norm_pix_loss=norm_pix_loss)
    image, (noise, keep_ids, hidden) = films(3, 32), masked(3)
    pixels = theirs(image, **half)
    want = theirs_(pixels, noise=noise)
    mae, params = as_mae(tmp_path, norm_pix_loss=norm_pix_loss)
    ids = np.nonzero(hidden)[1].reshape(3, 12)
    batch = {
        "image": image,
        "mask": np.ones(3, bool),
        "keep_ids": keep_ids,
        "hidden": hidden,
        "ids": ids,
        "target": hidden,
        "inside": hidden,
        "uniform": np.zeros(3, bool),
    }
    batch = {name: jnp.asarray(x) for name, x in batch.items()}
    predicted = mae._predict(mae.model(params, {}), batch)
    logits = want.logits.detach().numpy()[np.arange(3)[:, None], ids]
    np.testing.assert_allclose(predicted, logits, atol=1e-4)
    loss = mae.loss(params, {}, {}, batch, jax.random.key(0), jnp.zeros((), int))
    total = float(loss.totals["reconstruction"]) / 36
    np.testing.assert_allclose(total, float(want.loss.detach()), rtol=1e-4)


def test_latents_and_reconstruction_of_rgb(tmp_path):
    mean, std = (list(part) for part in IMAGENET)
    model = made(tmp_path, mean=mean, std=std)
    image, (noise, keep_ids, hidden) = films(3, 32), masked(3)
    pixels = theirs(image, mean, std)
    want = model(pixels, noise=noise)
    mae, params = as_mae(tmp_path, norm_pix_loss=False)
    ids = np.nonzero(hidden)[1].reshape(3, 12)
    batch = dict(image=image, keep_ids=keep_ids, hidden=hidden, ids=ids)
    batch = {name: jnp.asarray(x) for name, x in batch.items()}
    predicted = mae._predict(mae.model(params, {}), batch)
    # What it predicts of the three channels, as grey values from 0 to 1 and their mean.
    logits = want.logits.detach().numpy()[np.arange(3)[:, None], ids].reshape(3, 12, 64, 3)
    grey = (logits * np.array(std) + np.array(mean)).mean(axis=-1)
    np.testing.assert_allclose((predicted + 1) / 2, grey, atol=1e-4)
    model.vit.embeddings.config.mask_ratio = 0.0
    ordered = torch.arange(16).float()[None].repeat(3, 1)
    latents = model.vit(pixels, noise=ordered).last_hidden_state
    assert_same(encoded(tmp_path, image), latents)


def test_a_decoder_with_other_positions_is_refused_and_its_encoder_is_not(tmp_path):
    torch.manual_seed(0)
    model = transformers.ViTMAEForPreTraining(transformers.ViTMAEConfig(**SIZES))
    model.save_pretrained(tmp_path)
    foreign = read_foreign(tmp_path)
    # Row and column exchanged: no table of ours, and so learned for all that we know.
    assert foreign.encoder["positions"] == "learned"
    assert "decoder_pos_embed is not the fixed table" in foreign.faults["decoder"][0]
    noise = torch.arange(16).float()[None].repeat(2, 1)
    model.vit.embeddings.config.mask_ratio = 0.0
    image = films(2, 32)
    want = model.eval().vit(theirs(image, *IMAGENET), noise=noise).last_hidden_state
    assert_same(encoded(tmp_path, image), want)

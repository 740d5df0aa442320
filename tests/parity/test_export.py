"""What is exported gives our outputs in other people's libraries: 1e-4 in float32."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data_prep import phantoms
from tests.made_runs import make_run
from xmae_jax.config import ExportConfig
from xmae_jax.objectives.mae import normalise
from xmae_jax.tasks import export
from xmae_jax.tasks.model import load_run

SIZE = 64
CLS = dict(kind="linear", pool="cls", layers=1)
QUERY = dict(
    kind="query",
    queries="fixed",
    text=None,
    groups=None,
    layers=2,
    cls_skip=True,
    width=16,
    heads=2,
    hidden=24,
    dropout=0.1,
)
FOREIGN = dict(
    objective__encoder__registers=3,
    objective__encoder__layer_scale=0.3,
    objective__encoder__positions="learned",
    objective__encoder__base_grid=6,
)


@pytest.fixture(scope="module")
def films() -> np.ndarray:
    """Draw three films, uint8 [b h w]."""
    return np.stack([phantoms.draw(0, index, size=SIZE).image for index in range(3)])


def exported(workdir, format, config="finetune_full", **changes):
    """Write a run with random weights, and export it; return what was loaded, and the folder."""
    made = make_run(workdir, config, compute_dtype="float32", **changes)
    export.run(dataclasses.replace(made, export=ExportConfig(format, False, "model")), workdir)
    run = load_run(workdir)
    arrays = {k: jax.tree.map(jnp.asarray, getattr(run, k)) for k in ("params", "frozen", "extra")}
    return dataclasses.replace(run, **arrays), workdir / "export" / format


def encoded(run, films):
    """Encode films by our own code."""
    model = run.objective.averaged(run.params, run.frozen, run.extra)
    return model.encoder(normalise(jnp.asarray(films)[..., None]), last=2)


def classified(run, films, valid):
    """Classify films as evaluation does."""
    batch = {"image": jnp.asarray(films)[..., None], "valid": jnp.asarray(valid)}
    predict = run.objective.predict_fns()["classify"]
    return predict(run.params, run.frozen, run.extra, batch, jax.random.key(0))


def loaded(name, folder):
    """Load a folder without our code; every key has its place."""
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("torch")
    model, told = getattr(transformers, name).from_pretrained(folder, output_loading_info=True)
    assert not any(told.values()), told
    return model.eval()


def pixel_values(folder, films):
    """Preprocess films as the folder says."""
    import transformers

    process = transformers.AutoImageProcessor.from_pretrained(folder)
    # A channel of its own, and of twice the size, which is to be resized.
    given = list(films[:, None].repeat(2, axis=2).repeat(2, axis=3))
    resized = process(given, return_tensors="pt")["pixel_values"]
    plain = process(list(films[:, None]), return_tensors="pt")["pixel_values"]
    assert resized.shape == plain.shape == (len(films), 1, SIZE, SIZE)
    return plain


def assert_same(got, want):
    np.testing.assert_allclose(np.asarray(got), np.asarray(want), rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("ViTModel", {}),
        (
            "ViTModel",
            dict(objective__encoder__positions="learned", objective__encoder__base_grid=6),
        ),
        ("Dinov2WithRegistersModel", FOREIGN),
        ("Dinov2WithRegistersModel", FOREIGN | dict(objective__encoder__mlp="swiglu")),
        ("Dinov2Model", dict(objective__encoder__layer_scale=0.3)),
    ],
)
def test_hugging_face_encoders(tmp_path, films, name, changes):
    torch = pytest.importorskip("torch")
    run, folder = exported(tmp_path / "run", "hf", **changes)
    model = loaded(name, folder)
    with torch.no_grad():
        out = model(pixel_values(folder, films), output_hidden_states=True)
    want = encoded(run, films)
    registers = run.objective.encoder.registers
    assert_same(out.last_hidden_state[:, 0], want.cls)
    assert_same(out.last_hidden_state[:, 1 + registers :], want.patches)
    assert_same(out.pooler_output, want.cls)


def test_hugging_face_classifier(tmp_path, films):
    torch = pytest.importorskip("torch")
    run, folder = exported(tmp_path / "run", "hf", objective__head=CLS)
    model = loaded("ViTForImageClassification", folder)
    with torch.no_grad():
        out = model(pixel_values(folder, films), labels=torch.zeros(3, 7))
    assert_same(out.logits, classified(run, films, np.ones((3, 16), bool))["logits"])
    assert list(model.config.id2label.values()) == list(run.objective.findings)
    assert out.loss == pytest.approx(float(np.logaddexp(0, out.logits.numpy()).mean()), rel=1e-5)


def test_hugging_face_masked_auto_encoder(tmp_path, films):
    torch = pytest.importorskip("torch")
    run, folder = exported(tmp_path / "run", "hf", "quickstart")
    model = loaded("ViTMAEForPreTraining", folder)
    order = np.stack([np.random.default_rng(i).permutation(16) for i in range(3)])
    noise = torch.tensor(np.argsort(order).astype(np.float32))
    with torch.no_grad():
        out = model(pixel_values(folder, films), noise=noise)
    keep = run.objective.mask.keep
    hidden = np.ones((3, 16), bool)
    for row, ids in enumerate(order):
        hidden[row, ids[:keep]] = False
    assert np.array_equal(out.mask.numpy() > 0, hidden)
    ours = run.objective.averaged(run.params, run.frozen, run.extra)
    kept, gone = (jnp.asarray(np.nonzero(m)[1].reshape(3, -1)) for m in (~hidden, hidden))
    features = ours.encoder(normalise(jnp.asarray(films)[..., None]), kept)
    predicted = ours.decoder(features, jnp.asarray(hidden), gone)
    assert_same(np.take_along_axis(out.logits.numpy(), np.asarray(gone)[..., None], 1), predicted)


def session(folder):
    """Open an ONNX file."""
    onnxruntime = pytest.importorskip("onnxruntime")
    return onnxruntime.InferenceSession(folder / "model.onnx")


def outputs(opened, **feed):
    feed = {one.name: feed[one.name] for one in opened.get_inputs()}
    names = [one.name for one in opened.get_outputs()]
    return dict(zip(names, opened.run(None, feed), strict=True))


@pytest.mark.parametrize(
    ("changes", "reads_valid"),
    [
        ({"objective__head": CLS}, False),
        ({}, True),
        ({"objective__head": dict(kind="linear", pool="mean_max", layers=2)}, True),
        ({"objective__head": dict(kind="attentive", layers=2, width=16, heads=2)}, True),
        ({"objective__head": QUERY}, True),
        ({"objective__head": QUERY | dict(groups=3, queries="learned", cls_skip=False)}, True),
        (FOREIGN | {"objective__encoder__mlp": "swiglu", "objective__head": QUERY}, True),
    ],
)
def test_onnx_classifiers(tmp_path, films, changes, reads_valid):
    pytest.importorskip("onnx")
    run, folder = exported(tmp_path / "run", "onnx", **changes)
    opened = session(folder)
    assert ("valid" in {one.name for one in opened.get_inputs()}) == reads_valid
    values = (films[:, None].astype(np.float32) / 127.5) - 1
    valid = np.ones((3, 16), bool)
    valid[1:, 10:] = False
    for rows in (1, 3):
        got = outputs(opened, pixel_values=values[:rows], valid=valid[:rows])
        want = encoded_by_head(run, films[:rows], valid[:rows])
        assert got.keys() == want.keys()
        for name, array in want.items():
            assert got[name].shape == array.shape
            assert_same(got[name], array)
        logits = classified(run, films[:rows], valid[:rows])["logits"]
        assert_same(got["logits"], logits)


def encoded_by_head(run, films, valid):
    """Return all that the head gives."""
    model = run.objective.averaged(run.params, run.frozen, run.extra)
    image = normalise(jnp.asarray(films)[..., None])
    features = model.encoder(image, last=run.objective.head.layers)
    return model.head(features._replace(valid=jnp.asarray(valid)))


def test_onnx_features_of_a_masked_auto_encoder(tmp_path, films):
    onnx = pytest.importorskip("onnx")
    run, folder = exported(tmp_path / "run", "onnx", "quickstart")
    values = (films[:, None].astype(np.float32) / 127.5) - 1
    opened = session(folder)
    for rows in (1, 3):
        got, want = outputs(opened, pixel_values=values[:rows]), encoded(run, films[:rows])
        assert_same(got["cls"], want.cls)
        assert_same(got["patches"], want.patches)
    model = onnx.load(folder / "model.onnx")
    told = {one.key: one.value for one in model.metadata_props}
    assert told["name"] == "model" and "xmae_jax" in told
    assert {one.domain for one in model.opset_import} == {""}


def test_onnx_of_more_than_a_file_may_hold(tmp_path, films, monkeypatch):
    pytest.importorskip("onnx")
    from xmae_jax.exports import graph

    monkeypatch.setattr(graph, "EXTERNAL", 1 << 10)
    run, folder = exported(tmp_path / "run", "onnx", "quickstart")
    assert {p.name for p in folder.iterdir()} == {"README.md", "model.onnx", "model.onnx.data"}
    assert "model.onnx.data" in (folder / "README.md").read_text()
    values = (films[:, None].astype(np.float32) / 127.5) - 1
    assert_same(outputs(session(folder), pixel_values=values)["cls"], encoded(run, films).cls)


def test_an_operation_without_a_counterpart_is_named():
    pytest.importorskip("onnx")
    from xmae_jax.exports import graph

    with pytest.raises(graph.NotConvertible, match="'sort'"):
        graph.to_onnx(
            lambda x: {"y": jnp.sort(x, axis=1)}, {"x": ((4,), jnp.float32)}, name="sorted"
        )


@pytest.mark.parametrize(
    "fn",
    [
        lambda x, y: jnp.einsum("bij,bkj->bik", x, y),
        lambda x, y: jnp.einsum("bij,cij->bc", x, jnp.ones((5, 3, 4)) * 0.5),
        lambda x, y: jnp.einsum("cj,bij->cbi", jnp.arange(8.0).reshape(2, 4), x).swapaxes(0, 1),
        lambda x, y: sum(one * i for i, one in enumerate(x.swapaxes(0, 1))),
        lambda x, y: jnp.repeat(x, 3, axis=1)[:, 1:5, 1:3],
        lambda x, y: jnp.where(x > y, jnp.maximum(x, 0.5) ** 3, jnp.tanh(-x) - jnp.abs(y)),
        lambda x, y: jnp.concatenate(
            [x, jnp.broadcast_to(jnp.ones((1, 3, 1)), (*x.shape[:2], 1))], 2
        ),
        lambda x, y: jax.lax.scan(
            lambda c, v: (c + v * x[:, 1], c * v), x[:, 0], y.swapaxes(0, 1), reverse=True
        )[1].swapaxes(0, 1),
        lambda x, y: jax.nn.softmax(x, axis=-1) + jax.nn.sigmoid(y) * (x != y),
        lambda x, y: x.sum(axis=(1, 2)) + jnp.sqrt(y.max(axis=1).min(axis=1) ** 2 + 1),
        lambda x, y: (
            sum(jnp.split(x, [1, 3], axis=2)[1:2]) * x.mean(axis=1, keepdims=True)[..., :2]
        ),
        lambda x, y: (
            jnp.clip(x, -0.5, 0.5) + jax.nn.silu(y) + jax.nn.relu(x) + x.var(axis=-1)[..., None]
        ),
    ],
)
def test_operations(fn):
    pytest.importorskip("onnx")
    onnxruntime = pytest.importorskip("onnxruntime")
    from xmae_jax.exports import graph

    inputs = {name: ((3, 4), jnp.float32) for name in "xy"}
    model = graph.to_onnx(lambda x, y: {"z": fn(x, y)}, inputs, name="one")
    opened = onnxruntime.InferenceSession(model.SerializeToString())
    draw = np.random.default_rng(0)
    for rows in (1, 5):
        feed = {name: draw.standard_normal((rows, 3, 4), np.float32) for name in "xy"}
        want = np.asarray(fn(*map(jnp.asarray, feed.values())))
        got = outputs(opened, **feed)["z"]
        assert got.shape == want.shape
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)

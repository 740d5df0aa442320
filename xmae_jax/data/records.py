"""One film on disk: its schema, the shards that hold it, a random-access reader and the writer.

A data set is a directory of ArrayRecord files of `tf.train.Example` protos, named as TFDS names
them, with TFDS's `features.json` and `dataset_info.json` beside them, so that
`tfds.builder_from_directory(directory).as_data_source(split)` reads it without TensorFlow, and
the `manifest.json` of `manifest.py`.

Differs from TFDS's own reader: an Example is parsed straight into a dict and pictures stay
encoded, so importing TensorFlow Datasets is not needed to train.
"""

import io
import math
import os
import struct
import threading
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from itertools import accumulate
from pathlib import Path
from typing import Any, TypedDict, cast

import cv2
import numpy as np
import simplejpeg
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from jaxtyping import Bool, Float32, Int32, UInt, UInt8
from PIL import Image

from xmae_jax.data.findings import FINDINGS as FINDINGS
from xmae_jax.data.manifest import DataError, check, file_digest, load_manifest
from xmae_jax.seal import json_digest

SPLITS = ("train", "val", "test")

MASK_SIDE = 320  # px, long side of a stored mask: 4 px of a 1280 px film, a quarter of a patch
CODECS = {"jpeg": np.uint8, "png": np.uint8, "png16": np.uint16}
JPEG_FROM = 512  # px: films of this side and more are JPEG q95, smaller ones PNG


class Report(TypedDict):
    """The sections of a report; empty where there is none."""

    findings: str
    impression: str
    indication: str
    comparison: str


NO_REPORT = Report(findings="", impression="", indication="", comparison="")


class Record(TypedDict):
    """One film as stored; s is the side of the stored (square) film in pixels."""

    image: bytes  # JPEG or PNG, one channel, s x s; empty where there is a report alone
    lung_mask: bytes | None  # 1-bit PNG over the same square, at most MASK_SIDE px
    lung_hull: bytes | None  # convex hull of the mask, stored likewise
    mask_source: (
        str  # "given:<name>", "model", "model:with_heart", "heuristic", "rectangle", "none"
    )
    mask_quality: float  # 0 (none, or useless) to 1
    id: str  # 16 hex digits, keyed; likewise patient and study
    patient: str
    study: str
    view: str  # "PA", "AP", "AP Supine", "L", ...; empty if unknown
    sex: str  # "F", "M", or empty if unknown
    age: float  # years, 90 above 89; NaN if unknown
    source: str
    split: str
    labels: Float32[np.ndarray, "c"]  # 1 present, 0 absent, -1 uncertain, NaN unknown
    report: Report
    spacing: Float32[np.ndarray, "2"]  # mm between stored pixels (row, column); NaN if unknown
    original_size: Int32[np.ndarray, "2"]  # height, width of the film that was read
    valid_box: Int32[np.ndarray, "4"]  # y0, x0, y1, x1 of the film in the square, half open


def _example_type() -> Any:
    """Build `tf.train.Example` in a pool of its own, so that it meets no other copy of it."""
    fields = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(
        name="xmae_jax/example.proto", package="xmae_jax", syntax="proto3"
    )

    def message(name: str, *entries: tuple[str, int, int, str]) -> Any:
        made = file.message_type.add(name=name)
        for number, (field, label, kind, type_name) in enumerate(entries, start=1):
            type_name = type_name or None
            made.field.add(name=field, number=number, label=label, type=kind, type_name=type_name)
        return made

    one, many = fields.LABEL_OPTIONAL, fields.LABEL_REPEATED
    message("BytesList", ("value", many, fields.TYPE_BYTES, ""))
    message("FloatList", ("value", many, fields.TYPE_FLOAT, ""))
    message("Int64List", ("value", many, fields.TYPE_INT64, ""))
    message(
        "Feature",
        ("bytes_list", one, fields.TYPE_MESSAGE, ".xmae_jax.BytesList"),
        ("float_list", one, fields.TYPE_MESSAGE, ".xmae_jax.FloatList"),
        ("int64_list", one, fields.TYPE_MESSAGE, ".xmae_jax.Int64List"),
    )
    features = message(
        "Features", ("feature", many, fields.TYPE_MESSAGE, ".xmae_jax.Features.FeatureEntry")
    )
    entry = features.nested_type.add(name="FeatureEntry")
    entry.options.map_entry = True
    entry.field.add(name="key", number=1, label=one, type=fields.TYPE_STRING)
    entry.field.add(
        name="value", number=2, label=one, type=fields.TYPE_MESSAGE, type_name=".xmae_jax.Feature"
    )
    message("Example", ("features", one, fields.TYPE_MESSAGE, ".xmae_jax.Features"))
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("xmae_jax.Example"))


_Example = _example_type()
_TEXTS = ("mask_source", "id", "patient", "study", "view", "sex", "source", "split")
_MASKS = ("lung_mask", "lung_hull")
_NUMBERS = ("mask_quality", "age")
_PNG, _ONE_BIT_GREY = b"\x89PNG\r\n\x1a\n", b"\x01\x00"  # bit depth and colour type in IHDR


def encode(record: Record) -> bytes:
    """Serialise a record as an Example; equal records give equal bytes."""
    example = _Example()
    feature = example.features.feature
    feature["image"].bytes_list.value.append(record["image"])
    for name in _MASKS:
        # A length of 0 or 1 stands for the optional feature that TFDS has not.
        feature[name].bytes_list.value.extend([] if record[name] is None else [record[name]])
    for name in _TEXTS:
        feature[name].bytes_list.value.append(record[name].encode())
    for name, text in record["report"].items():
        feature[f"report/{name}"].bytes_list.value.append(str(text).encode())
    for name in _NUMBERS:
        feature[name].float_list.value.append(record[name])
    feature["labels"].float_list.value.extend(record["labels"].tolist())
    feature["spacing"].float_list.value.extend(record["spacing"].tolist())
    feature["original_size"].int64_list.value.extend(record["original_size"].tolist())
    feature["valid_box"].int64_list.value.extend(record["valid_box"].tolist())
    return example.SerializeToString(deterministic=True)


def decode(data: bytes) -> Record:
    """Parse an Example; pictures stay encoded."""
    feature = _Example.FromString(data).features.feature

    def text(name: str) -> str:
        return feature[name].bytes_list.value[0].decode()

    def section(name: str) -> str:
        found = feature[f"report/{name}"].bytes_list.value  # older records have fewer sections
        return found[0].decode() if found else ""

    def mask(name: str) -> bytes | None:
        found = feature[name].bytes_list.value
        return found[0] if found else None

    def floats(name: str) -> np.ndarray:
        return np.array(feature[name].float_list.value, np.float32)

    def ints(name: str) -> np.ndarray:
        return np.array(feature[name].int64_list.value, np.int32)

    return Record(
        image=feature["image"].bytes_list.value[0],
        lung_mask=mask("lung_mask"),
        lung_hull=mask("lung_hull"),
        mask_source=text("mask_source"),
        mask_quality=feature["mask_quality"].float_list.value[0],
        id=text("id"),
        patient=text("patient"),
        study=text("study"),
        view=text("view"),
        sex=text("sex"),
        age=feature["age"].float_list.value[0],
        source=text("source"),
        split=text("split"),
        labels=floats("labels"),
        report=cast(Report, {name: section(name) for name in NO_REPORT}),
        spacing=floats("spacing"),
        original_size=ints("original_size"),
        valid_box=ints("valid_box"),
    )


def encode_image(pixels: UInt[np.ndarray, "h w"], codec: str = "jpeg") -> bytes:
    """Encode a film, of 16 bits for "png16" and of 8 else.

    "jpeg" is JPEG of quality 95 if the long side is JPEG_FROM px or more, else PNG.
    """
    out = io.BytesIO()
    if codec == "jpeg" and max(pixels.shape) >= JPEG_FROM:
        Image.fromarray(pixels).save(out, "JPEG", quality=95)
    else:
        Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def encode_mask(mask: Bool[np.ndarray, "h w"]) -> bytes:
    """Encode a mask as a 1-bit PNG."""
    out = io.BytesIO()
    Image.fromarray(mask).save(out, "PNG", optimize=True)
    return out.getvalue()


def decode_image(
    data: bytes, into: UInt8[np.ndarray, "_ _"] | None = None
) -> UInt8[np.ndarray, "h w"]:
    """Decode a stored film, `into` an array if its size fits; raise DataError if it is no film.

    Of 16 bits the upper ones are returned.
    """
    if not data:
        raise DataError("there is no film, but a report alone")
    if not data.startswith(b"\xff\xd8"):
        try:
            picture = Image.open(io.BytesIO(data), formats=["PNG"])
            pixels = np.asarray(picture)
        except Exception as error:  # Pillow raises many kinds
            raise DataError(f"a picture does not decode ({type(error).__name__})") from error
        if picture.mode == "I;16":
            return (pixels >> 8).astype(np.uint8)
        if picture.mode != "L":
            raise DataError(f"a picture is of mode {picture.mode}, not L")
        return pixels
    # Pillow's pixels, but straight into the array and with the GIL released throughout; a warning
    # of libjpeg-turbo is an error.
    try:
        height, width, space, _ = simplejpeg.decode_jpeg_header(data)
        if int(height) * int(width) > (Image.MAX_IMAGE_PIXELS or math.inf):
            raise ValueError("more pixels than any film has")
        fits = into is not None and into.shape == (height, width)
        pixels = simplejpeg.decode_jpeg(data, colorspace="GRAY", buffer=into if fits else None)
    except ValueError as error:
        raise DataError(f"a picture does not decode ({type(error).__name__})") from error
    if space != "Gray":
        raise DataError(f"a picture is of mode {space}, not L")
    return pixels[:, :, 0]


def decode_mask(data: bytes) -> Bool[np.ndarray, "h w"]:
    """Decode a stored mask; raise DataError if it is none."""
    # OpenCV decodes in one go without the GIL, for which Pillow makes two threads wait.
    if data[:8] != _PNG or data[24:26] != _ONE_BIT_GREY:
        raise DataError("a picture does not decode (no 1-bit PNG)")
    if max(struct.unpack(">II", data[16:24])) > MASK_SIDE:
        raise DataError(f"a picture of a mask is larger than {MASK_SIDE} px")
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if pixels is None:
        raise DataError("a picture does not decode")
    return pixels > 0


def open_shard(path: str | os.PathLike) -> ArrayRecordReader:
    """Open an ArrayRecord file for random access."""
    # No read-ahead and no threads: what ArrayRecord advises for random access.
    options = "readahead_buffer_size:0,max_parallelism:0"
    return ArrayRecordReader(os.fspath(path), options, file_reader_buffer_size=32768)


class Records:
    """Random access to the records of one split.

    Thread-safe; a pickled copy reopens its files, so worker processes share nothing.
    """

    labels: tuple[str, ...]
    digest: str  # sha256 over the manifest's entries of this split
    size: int  # side of a stored film in pixels; 0 of reports alone

    def __init__(self, directory: str | os.PathLike, split: str) -> None:
        """Compare all shards with the manifest, cheaply; open none for reading yet.

        Raises ValueError naming the splits there are if `split` is none of them, and DataError
        naming the file if the manifest or a shard, of any split, is not as it was written.
        """
        self.directory = Path(directory)
        self.split = split
        manifest = load_manifest(directory)
        self._files = [entry for entry in manifest["files"] if entry["split"] == split]
        if not self._files:
            there = ", ".join(sorted({entry["split"] for entry in manifest["files"]}))
            raise ValueError(f"split {split!r} is not in {self.directory}; there are: {there}")
        check(self.directory, manifest)
        self.labels = tuple(manifest["labels"])
        self.size = int(manifest["size"])
        self.digest = json_digest(self._files)
        self._ends = list(accumulate(entry["records"] for entry in self._files))
        self._forget()

    def _forget(self) -> None:
        self._readers: dict[int, ArrayRecordReader] = {}
        self._lock = threading.Lock()
        self._process = os.getpid()

    def __getstate__(self) -> dict[str, Any]:
        hidden = ("_readers", "_lock", "_process")
        return {name: value for name, value in self.__dict__.items() if name not in hidden}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._forget()

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Read record `index`; DataError names the shard and the record if it is damaged."""
        shard, position = self._locate(index)
        try:
            return dict(decode(self._reader(shard).read([position])[0]))
        except (MemoryError, OSError):  # not the record's fault
            raise
        except Exception as error:  # the reader and the parser raise several kinds
            raise self.damage(index, error) from error

    def damage(self, index: int, error: Exception) -> DataError:
        """Name a record that is damaged by its shard and its place there."""
        shard, position = self._locate(index)
        path = self.directory / self._files[shard]["file"]
        return DataError(f"{path}: record {position} is damaged ({error})")

    def where(self, index: int) -> str:
        """Say in which shard a record lies, and at which place."""
        shard, position = self._locate(index)
        return f"{self._files[shard]['file']}, record {position}"

    def _locate(self, index: int) -> tuple[int, int]:
        if not 0 <= index < len(self):
            raise IndexError(f"record {index} of {len(self)} in split {self.split!r}")
        shard = bisect_right(self._ends, index)
        return shard, index - (self._ends[shard - 1] if shard else 0)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (self[index] for index in range(len(self)))

    def _reader(self, shard: int) -> ArrayRecordReader:
        if self._process != os.getpid():  # a forked child must not share file positions
            self._forget()
        reader = self._readers.get(shard)
        if reader is None:
            with self._lock:
                reader = self._readers.get(shard)
                if reader is None:
                    reader = open_shard(self.directory / self._files[shard]["file"])
                    self._readers[shard] = reader
        return reader


def write_shard(path: str | os.PathLike, examples: Iterable[bytes]) -> int:
    """Write encoded records to one ArrayRecord file, holding one at a time; return their number.

    One record a chunk makes random access cheap; no compression, since pictures are packed
    already. The same records give the same bytes.
    """
    writer = ArrayRecordWriter(os.fspath(path), "group_size:1,uncompressed")
    count = 0
    for example in examples:
        try:
            writer.write(example)
        except RuntimeError as error:  # of a full disk
            raise OSError(f"{path}: {error}") from None
        count += 1
    try:
        writer.close()
    except RuntimeError as error:
        raise OSError(f"{path}: {error}") from None
    return count


def shard_name(name: str, *, split: str, index: int, total: int) -> str:
    """Name a shard as TFDS does."""
    return f"{name}-{split}.array_record-{index:05d}-of-{total:05d}"


def write_tfds_metadata(
    directory: str | os.PathLike,
    *,
    name: str,
    files: list[dict[str, Any]],
    labels: int,
    codec: str = "jpeg",
) -> dict[str, str]:
    """Write features.json and dataset_info.json; return file -> sha256 for the manifest.

    name: the data set's name, lower case with underscores; files: the manifest's entries of the
    shards; labels: length of the label vector; codec: of the films, "none" if there are none.
    """
    import tensorflow_datasets as tfds  # slow to import, and only the writer needs it

    template = tfds.core.ShardedFileTemplate(
        data_dir=tfds.core.Path(directory),
        template="{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
        dataset_name=name,
        filetype_suffix="array_record",
    )
    splits = []
    for split in sorted({entry["split"] for entry in files}):
        of_split = [entry for entry in files if entry["split"] == split]
        splits.append(
            tfds.core.SplitInfo(
                name=split,
                shard_lengths=[entry["records"] for entry in of_split],
                num_bytes=sum(entry["bytes"] for entry in of_split),
                filename_template=template,
            )
        )
    tfds.folder_dataset.write_metadata(
        data_dir=os.fspath(directory),
        features=_tfds_features(labels, CODECS.get(codec)),
        split_infos=splits,
        filename_template=template,
        check_data=False,  # the check needs TensorFlow
    )
    written = ("dataset_info.json", "features.json")
    return {file: file_digest(Path(directory) / file) for file in written}


def _tfds_features(labels: int, dtype: Any) -> Any:
    import tensorflow_datasets as tfds

    features = tfds.features
    film = features.Image(shape=(None, None, 1), dtype=dtype or np.uint8)
    mask = features.Sequence(features.Image(shape=(None, None, 1), encoding_format="png"))
    return features.FeaturesDict(
        {
            "image": features.Text() if dtype is None else film,
            **{key: mask for key in _MASKS},
            **{key: features.Text() for key in _TEXTS},
            **{key: np.float32 for key in _NUMBERS},
            "labels": features.Tensor(shape=(labels,), dtype=np.float32),
            "report": features.FeaturesDict({name: features.Text() for name in NO_REPORT}),
            "spacing": features.Tensor(shape=(2,), dtype=np.float32),
            "original_size": features.Tensor(shape=(2,), dtype=np.int32),
            "valid_box": features.Tensor(shape=(4,), dtype=np.int32),
        }
    )

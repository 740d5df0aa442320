"""A phantom as a DICOM file: uncompressed, 12 bits in 16, some of them inverted (MONOCHROME1).

Every byte follows from the draw: identifiers are hashes of it, and no date or clock is written.
"""

from __future__ import annotations

import io

import numpy as np
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import DigitalXRayImageStorageForPresentation, ExplicitVRLittleEndian, generate_uid

from data_prep.phantom_raster import FILM_MM, Draws

_HEADER = 13
_INVERTED = 0.33


def encode(
    film: np.ndarray,
    *,
    source: str,
    seed: int,
    index: int,
    patient: str,
    study: str,
    view: str,
    sex: str,
    age: int,
) -> bytes:
    """Encode a film [h w] in [0, 1] as a DX object."""
    inverted = Draws(seed, _HEADER, index).chance(_INVERTED)
    stored = np.round(film * 4095).astype("<u2")
    data = _header(source, seed, index, study)
    data.PatientID, data.PatientName = patient, "PHANTOM"
    data.PatientSex, data.PatientAge = sex, f"{age:03d}Y"
    data.ViewPosition = "LL" if view == "LATERAL" else view
    data.Rows, data.Columns = stored.shape
    data.SamplesPerPixel, data.PixelRepresentation = 1, 0
    data.BitsAllocated, data.BitsStored, data.HighBit = 16, 12, 11
    data.PhotometricInterpretation = "MONOCHROME1" if inverted else "MONOCHROME2"
    data.PresentationLUTShape = "INVERSE" if inverted else "IDENTITY"
    data.WindowCenter, data.WindowWidth = "2048", "4096"
    spacing = f"{FILM_MM / stored.shape[0]:.6g}"
    data.PixelSpacing = data.ImagerPixelSpacing = [spacing, spacing]
    data.PixelData = (4095 - stored if inverted else stored).tobytes()
    buffer = io.BytesIO()
    data.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def _header(source: str, seed: int, index: int, study: str) -> FileDataset:
    """Return the data set with its identifiers; type 2 elements that we have not are empty."""

    def uid(*parts: object) -> str:
        return generate_uid(entropy_srcs=[source, *map(str, parts)])

    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = DigitalXRayImageStorageForPresentation
    meta.MediaStorageSOPInstanceUID = uid("film", seed, index)
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data = FileDataset("", Dataset(), file_meta=meta, preamble=b"\0" * 128)
    data.SOPClassUID = meta.MediaStorageSOPClassUID
    data.SOPInstanceUID = meta.MediaStorageSOPInstanceUID
    data.StudyInstanceUID = uid("study", study)
    data.SeriesInstanceUID = uid("series", study, index)
    data.StudyID = data.StudyDate = data.StudyTime = data.PatientBirthDate = ""
    data.AccessionNumber = data.ReferringPhysicianName = ""
    data.Modality, data.BodyPartExamined = "DX", "CHEST"
    data.Manufacturer, data.ManufacturerModelName = "xmae_jax phantoms", source
    data.SeriesNumber = data.InstanceNumber = "1"
    return data

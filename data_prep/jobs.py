"""The films of an archive, each with what its tables and its header say, as jobs to be done."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from data_prep import splits
from data_prep.films import Job, patients_of, unknown_patient
from data_prep.inputs import Inputs, Row
from data_prep.parts import Workers
from xmae_jax.data.film import FilmError
from xmae_jax.data.manifest import DataError
from xmae_jax.data.records import NO_REPORT
from xmae_jax.data.sandbox import Sandbox


def licensed(inputs: Inputs, licences: Sequence[str] | None) -> Inputs:
    """Leave out films, and masks, that are not of these licences; None takes all."""
    if licences is None:
        return inputs
    rows, empty = inputs.rows, Row()
    films = [film for film in inputs.films if rows.get(film, empty).licence in licences]
    masks = {
        film: mask
        for film, mask in inputs.masks.items()
        if rows.get(film, empty).mask_licence in licences
    }
    if not films:
        there = sorted({row.licence for row in rows.values()} - {""}) or ["none"]
        raise DataError(f"{inputs.root}: no film of such a licence; there are: {'; '.join(there)}")
    others = dict.fromkeys(set(inputs.films) - set(films), "licence not among those asked for")
    left = len(inputs.masks.keys() & set(films)) - len(masks.keys() & set(films))
    note = f"{left:,} masks left out, whose licence is not among those asked for"
    return dataclasses.replace(
        inputs,
        films=tuple(films),
        masks=masks,
        refused={**inputs.refused, **others},
        notes=inputs.notes + (note,) * bool(left),
    )


def notes_of(jobs: Sequence[Job], inputs: Inputs) -> list[str]:
    """Say what whoever builds should know of patients and reports."""
    notes = list(inputs.notes)
    alone = sum(job.patient == unknown_patient(job.film, job.row.study) for job in jobs)
    if alone:
        notes.append(
            f"of {alone:,} of {len(jobs):,} films no patient is known (a column patient_id, a"
            " header or an adapter would tell): each, or its study, passes for a patient of its"
            " own, so films of one patient may stand in two splits"
        )
    if inputs.reports:
        with_text = sum(job.row.study in inputs.reports for job in jobs if job.row.study)
        notes.append(f"{with_text:,} films have one of the {len(inputs.reports):,} reports")
    return notes


def jobs_of(inputs: Inputs, workers: Workers) -> list[Job]:
    """Join each film with its tables; a patient known to DICOM only is read from the header."""
    empty = Row()
    unknown = [film for film in inputs.films if not inputs.rows.get(film, empty).patient]
    chunks = [
        [inputs.root / film for film in unknown[start : start + 256]]
        for start in range(0, len(unknown), 256)
    ]
    found = workers.map(_patients, chunks)
    patients = dict(zip(unknown, (name for names in found for name in names), strict=True))
    for film in inputs.films:
        row = inputs.rows.get(film, empty)
        patients[film] = row.patient or patients[film] or unknown_patient(film, row.study)
    official: dict[str, str] = {}  # patient -> split, for films that no table names too
    for film, row in inputs.rows.items():
        if row.split and film in patients:
            if official.setdefault(patients[film], row.split) != row.split:
                raise DataError(f"{inputs.root}: a patient has films in two of the given splits")
    jobs = []
    for film in inputs.films:
        row, patient = inputs.rows.get(film, empty), patients[film]
        jobs.append(
            Job(
                film=film,
                path=inputs.root / film,
                mask=inputs.masks.get(film),
                row=row,
                report=inputs.reports.get(row.study, NO_REPORT) if row.study else NO_REPORT,
                patient=patient,
                split=official.get(patient) or splits.split_of(patient),
            )
        )
    return jobs


def _patients(paths: list[Path], sandbox: Sandbox) -> list[str]:
    """Read the patients of many files at once; one by one where one of them stops the others."""
    try:
        return sandbox.call(patients_of, paths)
    except FilmError:
        if len(paths) == 1:
            return [""]
        return [name for path in paths for name in _patients([path], sandbox)]

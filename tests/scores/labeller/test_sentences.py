"""What single sentences say: one line a rule, so that a rule that is lost is told by name."""

import pytest

from xmae_jax.scores.labeller import CHEXPERT, FURTHER, label, sides

ABSENT, PRESENT, UNCERTAIN = 0, 1, -1
EFFUSION = "Pleural Effusion"
LUNGS = ("Lung Opacity", "Consolidation", "Edema", "Pneumonia", "Atelectasis", "Lung Lesion")


@pytest.mark.parametrize(
    ("text", "finding", "expected"),
    [
        # negation before, over lists, to the end of its clause
        ("No pneumothorax.", "Pneumothorax", ABSENT),
        ("No focal consolidation, pleural effusion, or pneumothorax.", "Pneumothorax", ABSENT),
        ("Without evidence of a pleural effusion.", EFFUSION, ABSENT),
        ("The lungs are free of consolidation.", "Consolidation", ABSENT),
        ("Negative for pneumothorax or effusion.", EFFUSION, ABSENT),
        ("Neither effusion nor pneumothorax.", "Pneumothorax", ABSENT),
        ("No pneumothorax, but a small effusion.", EFFUSION, PRESENT),
        ("No pneumothorax, although there is an effusion.", EFFUSION, PRESENT),
        ("No pneumothorax, small left effusion.", EFFUSION, PRESENT),
        ("No consolidation; small effusion.", EFFUSION, PRESENT),
        ("No pneumothorax is seen and the heart is enlarged.", "Cardiomegaly", PRESENT),
        ("No pneumothorax. Effusion.", EFFUSION, PRESENT),
        ("No opacity to suggest pneumonia.", "Pneumonia", ABSENT),
        ("No opacity concerning for pneumonia.", "Pneumonia", ABSENT),
        ("No evidence for pneumonia or CHF.", "Edema", ABSENT),
        ("There are no signs of congestive heart failure.", "Edema", ABSENT),
        ("No XXXX of a pleural effusion.", EFFUSION, ABSENT),
        # negation behind
        ("Pleural effusion is not seen.", EFFUSION, ABSENT),
        ("Pneumothorax and effusion are not identified.", "Pneumothorax", ABSENT),
        ("The pneumothorax has resolved.", "Pneumothorax", ABSENT),
        ("The effusion is no longer seen.", EFFUSION, ABSENT),
        ("Resolution of the effusion.", EFFUSION, ABSENT),
        ("The endotracheal tube has been removed.", "Support Devices", ABSENT),
        ("An effusion is not seen and there is a nodule.", "Nodule", PRESENT),
        # two negations, and those of a change
        ("The effusion has not resolved.", EFFUSION, PRESENT),
        ("Not without a pleural effusion.", EFFUSION, PRESENT),
        ("No change in the left pleural effusion.", EFFUSION, PRESENT),
        ("No significant interval change in cardiomegaly.", "Cardiomegaly", PRESENT),
        ("No interval increase in the effusion.", EFFUSION, PRESENT),
        ("The effusion has not significantly changed.", EFFUSION, PRESENT),
        ("The effusion is not improved.", EFFUSION, PRESENT),
        ("Effusion, without change.", EFFUSION, PRESENT),
        ("No new consolidation.", "Consolidation", ABSENT),
        ("No longer any pneumothorax.", "Pneumothorax", ABSENT),
        # uncertainty
        ("Possible small effusion.", EFFUSION, UNCERTAIN),
        ("A pneumonia cannot be excluded.", "Pneumonia", UNCERTAIN),
        ("Cannot exclude pneumonia.", "Pneumonia", UNCERTAIN),
        ("It is not possible to exclude pneumonia.", "Pneumonia", UNCERTAIN),
        ("Pneumonia is not excluded.", "Pneumonia", UNCERTAIN),
        ("Opacity may represent atelectasis or pneumonia.", "Pneumonia", UNCERTAIN),
        ("Opacity may represent atelectasis or pneumonia.", "Atelectasis", UNCERTAIN),
        ("Opacity may represent atelectasis or pneumonia.", "Lung Opacity", PRESENT),
        ("Atelectasis versus pneumonia.", "Atelectasis", UNCERTAIN),
        ("Left base opacity, atelectasis vs. pneumonia.", "Lung Opacity", PRESENT),
        ("Left base opacity, atelectasis vs. pneumonia.", "Pneumonia", UNCERTAIN),
        ("Opacity worrisome for malignancy.", "Lung Lesion", UNCERTAIN),
        ("Pneumonia is suspected.", "Pneumonia", UNCERTAIN),
        ("Findings could be compatible with pneumonia.", "Pneumonia", UNCERTAIN),
        ("Borderline cardiomegaly.", "Cardiomegaly", UNCERTAIN),
        ("The heart is borderline enlarged.", "Cardiomegaly", UNCERTAIN),
        ("Borderline heart size.", "Cardiomegaly", UNCERTAIN),
        # what is likely is held to be there
        ("Opacity, likely atelectasis.", "Atelectasis", PRESENT),
        ("Opacity consistent with pneumonia.", "Pneumonia", PRESENT),
        ("Thin opacity, in keeping with atelectasis.", "Atelectasis", PRESENT),
        # another time, another question
        ("History of pneumonia.", "Pneumonia", None),
        ("Status post pneumothorax.", "Pneumothorax", None),
        ("History of pneumonia, now with an effusion.", EFFUSION, PRESENT),
        ("Evaluation for pneumothorax is limited.", "Pneumothorax", None),
        ("INDICATION: Rule out pneumonia. FINDINGS: Effusion.", "Pneumonia", None),
        ("INDICATION: Rule out pneumonia. FINDINGS: Effusion.", EFFUSION, PRESENT),
        ("Comparison: Effusion of last week.\nImpression: No effusion.", EFFUSION, ABSENT),
        ("Comparison: None. Small effusion.", EFFUSION, PRESENT),
        # a part and its state
        ("Heart: Enlarged. Lungs: Clear.", "Cardiomegaly", PRESENT),
        ("Heart: Enlarged. Lungs: Clear.", "Consolidation", ABSENT),
        ("The heart is enlarged.", "Cardiomegaly", PRESENT),
        ("Heart size is mildly enlarged.", "Cardiomegaly", PRESENT),
        ("Enlarged cardiac silhouette.", "Cardiomegaly", PRESENT),
        ("There is enlargement of the heart.", "Cardiomegaly", PRESENT),
        ("Cardiac enlargement.", "Cardiomegaly", PRESENT),
        ("The heart remains enlarged.", "Cardiomegaly", PRESENT),
        ("The heart is XXXX enlarged.", "Cardiomegaly", PRESENT),
        ("The heart is not enlarged.", "Cardiomegaly", ABSENT),
        ("No cardiac enlargement.", "Cardiomegaly", ABSENT),
        ("Heart size is normal.", "Cardiomegaly", ABSENT),
        ("Normal heart size.", "Cardiomegaly", ABSENT),
        ("Heart size within normal limits.", "Cardiomegaly", ABSENT),
        ("Heart size is at the upper limits of normal.", "Cardiomegaly", ABSENT),
        ("The heart and lungs are unremarkable.", "Cardiomegaly", ABSENT),
        ("The heart is stable in size.", "Cardiomegaly", None),
        ("Heart is normal without large effusion.", "Cardiomegaly", ABSENT),
        ("Normal heart size with a large effusion.", EFFUSION, PRESENT),
        ("The mediastinum is widened.", "Enlarged Cardiomediastinum", PRESENT),
        ("No widening of the mediastinum.", "Enlarged Cardiomediastinum", ABSENT),
        ("Mediastinal contours are normal.", "Enlarged Cardiomediastinum", ABSENT),
        ("The cardiomediastinal silhouette is normal.", "Cardiomegaly", ABSENT),
        ("The costophrenic angles are sharp.", EFFUSION, ABSENT),
        ("Blunting of the left costophrenic angle.", EFFUSION, UNCERTAIN),
        ("Pulmonary vascularity is normal.", "Edema", ABSENT),
        ("The bones are intact.", "Fracture", ABSENT),
        ("The lungs are not clear.", "Lung Opacity", None),
        ("The left lung is clear.", "Lung Opacity", None),
        # words that are others' too
        ("Large pericardial effusion.", EFFUSION, None),
        ("Subcutaneous emphysema.", "Emphysema", None),
        ("Pleuroparenchymal thickening.", "Pleural Other", PRESENT),
        ("Multiple nodules.", "Lung Lesion", PRESENT),
        ("A 3 cm mass.", "Lung Lesion", PRESENT),
        ("Old healed rib fractures.", "Fracture", PRESENT),
        ("Right-sided PICC line in place.", "Support Devices", PRESENT),
        ("Air-space opacities.", "Lung Opacity", PRESENT),
    ],
)  # fmt: skip
def test_sentence(text, finding, expected):
    assert label(text)[finding] == expected


def test_clear_lungs_have_no_finding_of_the_lungs():
    found = label("The lungs are clear.")
    assert {name: found[name] for name in LUNGS} == dict.fromkeys(LUNGS, ABSENT)
    assert label("The lungs are clear except for a left opacity.")["Lung Opacity"] == PRESENT


def test_present_beats_uncertain_and_that_absent():
    text = "No effusion. Possible effusion."
    assert label(text)[EFFUSION] == UNCERTAIN
    assert label(f"Small effusion. {text}")[EFFUSION] == PRESENT


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("No acute disease.", PRESENT),
        ("No effusion. Heart size is normal.", PRESENT),
        ("Right PICC line. No pneumothorax.", PRESENT),
        ("Small effusion.", ABSENT),
        ("Possible effusion.", ABSENT),
        ("Calcified granuloma.", ABSENT),  # no finding of the 14, but no normal film either
        ("Low lung volumes.", ABSENT),
        ("", None),
        (" \n", None),
        ("...", None),
    ],
)
def test_no_finding_is_derived(text, expected):
    assert label(text)["No Finding"] == expected


def test_every_report_has_every_name():
    for text in ("", "No effusion.", "胸片未见异常", "X" * 10_000, "(" * 500, "\x00"):
        assert tuple(label(text)) == (*CHEXPERT, *FURTHER)
        assert sides(text) == {}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Left effusion and right atelectasis.", {EFFUSION: "left", "Atelectasis": "right"}),
        (
            "Effusion on the right, atelectasis on the left.",
            {EFFUSION: "right", "Atelectasis": "left"},
        ),
        ("Right-sided effusion.", {EFFUSION: "right"}),
        ("Bilateral effusions, right greater than left.", {EFFUSION: "both"}),
        ("Right and left effusions.", {EFFUSION: "both"}),
        ("Left upper and right lower lobe opacities.", {"Lung Opacity": "both"}),
        ("Cardiomegaly, right and left effusions.", {EFFUSION: "both"}),
        ("Opacities at the right and left bases.", {"Lung Opacity": "both"}),
        ("Left effusion with adjacent atelectasis.", {EFFUSION: "left", "Atelectasis": "left"}),
        ("Atelectasis and effusion on the left.", {EFFUSION: "left", "Atelectasis": "left"}),
        (
            "Opacity at the left base, in keeping with atelectasis.",
            {"Lung Opacity": "left", "Atelectasis": "left"},
        ),
        ("Left lung is clear; right effusion.", {EFFUSION: "right"}),
        (
            "A nodule in the right lung and a left effusion.",
            {"Nodule": "right", "Lung Lesion": "right", EFFUSION: "left"},
        ),
        ("Bibasilar atelectasis.", {"Atelectasis": "both"}),
        ("No left effusion. Right pneumothorax.", {"Pneumothorax": "right"}),
        ("No right pneumothorax or left effusion.", {}),
        ("Possible left effusion.", {}),
        ("The left heart is enlarged.", {}),
        ("Effusion. Right basal opacity.", {"Lung Opacity": "right"}),
        ("Small right effusion. Large left effusion.", {EFFUSION: "both"}),
        (
            "Opacity in the left lower lobe representing atelectasis.",
            {"Lung Opacity": "left", "Atelectasis": "left"},
        ),
    ],
)  # fmt: skip
def test_sides(text, expected):
    both = {"both": {"left", "right"}}
    assert sides(text) == {name: both.get(side, {side}) for name, side in expected.items()}

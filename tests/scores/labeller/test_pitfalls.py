"""Sentences on which rules like these are known to err, a line each: text | finding=label ..."""

import re

import pytest

from xmae_jax.scores.labeller import label, sides

# negation ends where something new begins
ENDS = """
No pneumothorax, moderate left effusion.|Pneumothorax=0 Pleural Effusion=1 No Finding=0
No pneumothorax, left effusion present.|Pneumothorax=0 Pleural Effusion=1
No pneumothorax, bibasilar atelectasis.|Pneumothorax=0 Atelectasis=1
No pneumothorax and small left effusion.|Pneumothorax=0 Pleural Effusion=1
No lateral view was obtained, left lower lobe pneumonia.|Pneumonia=1
No prior films for comparison, effusion is noted.|Pleural Effusion=1
Without comparison, effusion is noted.|Pleural Effusion=1
Resolved pneumothorax, new small effusion.|Pneumothorax=0 Pleural Effusion=1
Removal of the ET tube and new left effusion.|Support Devices=0 Pleural Effusion=1
Interval removal of the endotracheal tube, and a right pleural effusion is noted.|\
Support Devices=0 Pleural Effusion=1
No consolidation, large effusion, or pneumothorax.|Pleural Effusion=0 Pneumothorax=0
No consolidation, small effusion, or pneumothorax.|Pleural Effusion=0 Pneumothorax=0
Removal of the endotracheal tube and nasogastric tube.|Support Devices=0
"""
DENIALS = """
Pneumonia is unlikely.|Pneumonia=0
Pneumonia is thought unlikely.|Pneumonia=0
Unlikely to represent pneumonia.|Pneumonia=0
Left basilar opacity, pneumonia is unlikely.|Lung Opacity=1 Pneumonia=0
There isn't any pneumothorax.|Pneumothorax=0
Haven't seen a pneumothorax.|Pneumothorax=0
Pneumothorax: none.|Pneumothorax=0
Pleural effusion: No.|Pleural Effusion=0
Pleura: No effusion.|Pleural Effusion=0
Tubes and lines: None.|Support Devices=0
Clear lungs w/o effusion.|Pleural Effusion=0
Lungs clear; neg for pneumothorax.|Pneumothorax=0
Neither pneumothorax nor effusion is seen.|Pneumothorax=0 Pleural Effusion=0
Pneumothorax has not recurred.|Pneumothorax=0
Pneumothorax or effusion is not seen.|Pneumothorax=0 Pleural Effusion=0
"""
STILL_THERE = """
Fracture cannot be ruled out.|Fracture=-1
Pneumonia can't be excluded.|Pneumonia=-1
Can't exclude pneumonia.|Pneumonia=-1
Left effusion has nearly resolved.|Pleural Effusion=1
Near-complete resolution of the left pleural effusion.|Pleural Effusion=1
Partial resolution of pneumonia.|Pneumonia=1
Right lower lobe consolidation, not present on the prior study.|Consolidation=1
Opacity not seen on prior exam.|Lung Opacity=1
New right lower lobe opacity, not seen previously.|Lung Opacity=1
The nodule was not visible on the prior study.|Nodule=1
ET tube tip not visualized.|Support Devices=1
"""
OPEN = """
Left basilar opacity, atelectasis or pneumonia.|Lung Opacity=1 Atelectasis=-1 Pneumonia=-1
Either atelectasis or pneumonia.|Atelectasis=-1 Pneumonia=-1
Opacity consistent with atelectasis or pneumonia.|Lung Opacity=1 Atelectasis=-1 Pneumonia=-1
Asymmetric edema or multifocal pneumonia.|Edema=-1 Pneumonia=-1
Atelectasis cannot be differentiated from pneumonia.|Atelectasis=-1 Pneumonia=-1
Superimposed pneumonia should be considered.|Pneumonia=-1
Early pneumonia is in the differential.|Pneumonia=-1
Early pneumonia is a consideration.|Pneumonia=-1
Doubt pneumonia.|Pneumonia=-1
It is unclear if there is a pneumothorax.|Pneumothorax=-1
Clinical correlation for pneumonia is advised.|Pneumonia=-1
Opacity in the left or right base and effusion.|Lung Opacity=1 Pleural Effusion=1
"""
WORDS = """
Pneumomediastinum.|No Finding=0
Pneumoperitoneum.|No Finding=0
Tuberculosis.|No Finding=0
Honeycombing.|No Finding=0
Dextrocardia.|No Finding=0
Foreign body in the right main bronchus.|No Finding=0
Pulmonary hemorrhage.|No Finding=0
ARDS.|No Finding=0
Rib destruction.|No Finding=0
Vascular engorgement.|No Finding=0
Cephalization of vessels.|No Finding=0
Abnormal chest radiograph.|No Finding=0
The heart size is abnormal.|No Finding=0
PTX on the left.|Pneumothorax=1
Tree-in-bud nodularity.|Lung Lesion=1
Left retrocardiac density.|Lung Opacity=1
There is increased density in the left base.|Lung Opacity=1
Layering fluid on the left.|Pleural Effusion=1
Infection is not excluded.|Pneumonia=-1
ETT in standard position.|Support Devices=1
NGT below the diaphragm.|Support Devices=1
Swan-Ganz is unchanged.|Support Devices=1
Dobbhoff in the stomach.|Support Devices=1
IABP tip.|Support Devices=1
Tracheostomy in place.|Support Devices=1
Aortic valve replacement.|Support Devices=1
Left subclavian line.|Support Devices=1
Right internal jugular line terminates in the SVC.|Support Devices=1
Mass effect on the trachea.|Mass=None Lung Lesion=None
This may lead to confusion.|Support Devices=None
Vertebral body collapse.|Atelectasis=None
"""
LAYOUT = r"""
No effusion\nLeft lower lobe pneumonia\nCardiomegaly|Pleural Effusion=0 Pneumonia=1 Cardiomegaly=1
- No pneumothorax - Rib fracture|Pneumothorax=0 Fracture=1
- No effusion\n- Pneumonia|Pleural Effusion=0 Pneumonia=1
Mild cardiomegaly,\nno effusion.|Cardiomegaly=1 Pleural Effusion=0
There is no\nsign of an effusion.|Pleural Effusion=0
Examination limited by rotation: bilateral effusions are present.|Pleural Effusion=1
Clinical impression: pneumonia.|Pneumonia=1
FINDINGS: Limited. EXAM LIMITED: Left effusion.|Pleural Effusion=1
indication: pneumothorax? findings: the lungs are clear.|Pneumothorax=None Consolidation=0
COMPARISON: Pneumothorax. Mass.\n\nThere is a left effusion.|Mass=None Pleural Effusion=1
REASON FOR EXAM: Pneumothorax. FINDINGS: Effusion.|Pneumothorax=None Pleural Effusion=1
"""
UNKNOWN = """
the the the|No Finding=None
xyz qwerty.|No Finding=None
双肺未见异常。|No Finding=None
左侧胸腔积液。|No Finding=None
Normal chest.|No Finding=1
Negative chest.|No Finding=1
No acute cardiopulmonary process.|No Finding=1
"""
KNOWN_ERRORS = """
No pneumothorax, cardiomegaly.|Cardiomegaly=1
No pneumothorax Left effusion Cardiomegaly|Pleural Effusion=1 Cardiomegaly=1
The tip of the catheter is not seen.|Support Devices=1
No pneumothorax, left basilar atelectasis or pneumonia.|Atelectasis=-1 Pneumonia=-1
Rule out pneumonia.|Pneumonia=None
EKG leads overlie the chest.|Support Devices=None
Aspiration is possible.|Pneumonia=-1
Compression deformity of T8.|Fracture=1
Heart size at the upper limits of normal or slightly enlarged.|Cardiomegaly=-1
"""


def _cases(*tables):
    return list(_each(tables))


def _each(tables):
    for table in tables:
        for line in filter(None, table.splitlines()):
            text, wanted = line.split("|")
            for name, value in re.findall(r"([A-Z][A-Za-z ]+?)=(None|-?\d)", wanted):
                expected = None if value == "None" else int(value)
                yield text.replace("\\n", "\n"), name.strip(), expected


@pytest.mark.parametrize(
    ("text", "finding", "expected"),
    _cases(ENDS, DENIALS, STILL_THERE, OPEN, WORDS, LAYOUT, UNKNOWN),
)
def test_pitfall(text, finding, expected):
    assert label(text)[finding] == expected


@pytest.mark.xfail(strict=True, reason="in docs/labeller.md under known errors")
@pytest.mark.parametrize(("text", "finding", "expected"), _cases(KNOWN_ERRORS))
def test_known_error(text, finding, expected):
    assert label(text)[finding] == expected


@pytest.mark.parametrize(
    ("text", "finding", "expected"),
    [
        ("RLL consolidation.", "Consolidation", {"right"}),
        ("LLL atelectasis and R effusion.", "Atelectasis", {"left"}),
        ("LLL atelectasis and R effusion.", "Pleural Effusion", {"right"}),
        ("Left lung is clear and right lung has an opacity.", "Lung Opacity", {"right"}),
        ("Heart is shifted to the right, effusion on left.", "Pleural Effusion", {"left"}),
    ],
)
def test_side(text, finding, expected):
    assert sides(text)[finding] == expected

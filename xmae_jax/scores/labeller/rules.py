"""What the labeller knows: tables of phrases, read by `engine.py`, which knows no word of its own.

A phrase is a row of places, each a word, or words to choose from as `a|b`. A word that ends with
`*` stands for all that begin with it, a place that begins with `?` may be empty, and `~` is up to
three words of any kind, none of them a stop. Case, hyphens, and the marks of de-identification make
no difference. Of the phrases that begin at a word, the longest holds.

The phrases are written from scratch in the terms of CheXpert's labeller (Irvin et al. 2019,
https://arxiv.org/abs/1901.07031) and NegEx (Chapman et al. 2001, doi:10.1006/jbin.2001.1029).
"""

from __future__ import annotations

CHEXPERT = (
    "No Finding",
    "Enlarged Cardiomediastinum",
    "Cardiomegaly",
    "Lung Opacity",
    "Lung Lesion",
    "Edema",
    "Consolidation",
    "Pneumonia",
    "Atelectasis",
    "Pneumothorax",
    "Pleural Effusion",
    "Pleural Other",
    "Fracture",
    "Support Devices",
)
FURTHER = (
    "Nodule",
    "Mass",
    "Pleural Thickening",
    "Infiltration",
    "Emphysema",
    "Fibrosis",
    "Hernia",
)
"""Labelled beside CheXpert's 14; the first three are kinds of `Lung Lesion` and `Pleural Other`."""
OTHER = "other"
"""A finding without a name here: it is not reported, but there is something on the film."""

KINDS = {
    "Nodule": "Lung Lesion",
    "Mass": "Lung Lesion",
    "Pleural Thickening": "Pleural Other",
}
"""Finding -> the one that it is a kind of, which gets its label too."""

# Findings by name -----------------------------------------------------------------------------

FINDINGS: dict[str, tuple[str, ...]] = {
    "Enlarged Cardiomediastinum": (
        "mediastinal|cardiomediastinal widening|enlargement|fullness|prominence",
    ),
    "Cardiomegaly": (
        "cardiomegal*",
        "megalocardia",
        "cardiac|heart|ventricular|atrial enlargement|hypertrophy",
    ),
    "Lung Opacity": (
        "opacit*",
        "opacif*",
        "airspace disease|process|density|densities",
        "air space disease|process|density|densities",
        "hazy|ground",
        "retrocardiac|basilar|bibasilar|basal|increased density|densities",
        "haziness",
        "haze",
    ),
    "Infiltration": ("infiltrat*",),
    "Nodule": ("nodule|nodules", "micronodul*"),
    "Mass": (
        "mass",
        "masses",
        "mass like",
        "masslike",
    ),
    "Lung Lesion": (
        "nodular|nodularity",
        "tree in bud ?nodularity|nodules|opacities",
        "lesion|lesions",
        "cavit*",
        "lung cancer",
        "tumor|tumour|tumors|tumours",
        "neoplas*",
        "carcinoma",
        "malignan*",
        "metasta*",
    ),
    "Edema": (
        "edema|oedema",
        "pulmonary|interstitial|alveolar edema|oedema",
        "heart failure",
        "chf",
        "fluid overload",
        "volume overload",
        "kerley ?b lines",
        "septal lines",
        "perihilar haze|haziness",
    ),
    "Consolidation": ("consolidat*",),
    "Pneumonia": (
        "pneumonia*",
        "bronchopneumonia*",
        "infectious process|processes|etiolog*",
        "infection",
    ),
    "Atelectasis": (
        "atelecta*",
        "collapse|collapsed",
        "volume loss",
        "loss of volume",
    ),
    "Pneumothorax": ("pneumothora*", "ptx", "hydropneumothora*", "pleural line"),
    "Pleural Effusion": (
        "effusion|effusions",
        "pleural effusion|effusions|fluid",
        "fluid ~ fissure*",
        "layering|loculated ?pleural fluid",
        "hydrothora*",
        "hydropneumothora*",
        "hemothora*",
    ),
    "Pleural Thickening": (
        "pleural|pleuroparenchymal|biapical|apical|fissural thickening",
        "thickening of the ?right|left pleura*",
    ),
    "Pleural Other": ("pleural plaque*", "fibrothora*", "pleural scar*", "pleural based"),
    "Fracture": ("fractur*", "vertebral|vertebra ?body|bodies collapse|collapsed"),
    "Support Devices": (
        "catheter*",
        "picc",
        "tube|tubes",
        "pacemaker*",
        "pacer",
        "icd|aicd",
        "defibrillator*",
        "port",
        "portacath|mediport",
        "sternotomy wires",
        "wire|wires",
        "leads",
        "pacemaker|pacer|pacing|ventricular|atrial|icd|aicd|single|cardiac lead",
        "clips",
        "stent|stents",
        "prosthe*",
        "hardware",
        "drain",
        "screw|screws",
        "device|devices",
        "central|venous|subclavian|jugular|ij|femoral line|lines",
        "ett|ngt|ogt|iabp|ecmo|impella",
        "swan ganz",
        "dobhoff|dobbhoff",
        "balloon pump",
        "tracheostomy",
        "valve replacement|replacements",
    ),
    "Emphysema": ("emphysema*", "bulla", "bullae", "bullous"),
    "Fibrosis": ("fibrosis", "fibrotic"),
    "Hernia": ("hernia*",),
    OTHER: (
        "pericardial effusion*",
        "subcutaneous|mediastinal|tissue emphysema",
        "granulom* ?infection",
        "old|prior|previous|remote|healed infection",
        "mass effect",
        "pneumomediastin*",
        "pneumoperiton*",
        "tubercul*",
        "tb",
        "pneumonitis",
        "honeycomb*",
        "dextrocardia",
        "situs inversus",
        "miliary",
        "foreign body|bodies",
        "hemorrhag*|haemorrhag*",
        "ards",
        "destruct*",
        "engorge*",
        "cephali*",
        "abnormal ?frontal|portable ?chest radiograph|study|film|exam|examination|chest",
        "calcif*",
        "scar|scars|scarring",
        "degenerat*",
        "spondyl*",
        "osteophyt*",
        "scolio*",
        "kypho*",
        "tortuo*",
        "ectasia|ectatic",
        "atheroscl*",
        "aneurysm*",
        "hyperinflat*",
        "hyperexpan*",
        "copd",
        "bronchi*",
        "eventration",
        "osteopeni*",
        "demineraliz*",
        "deformity|deformities",
        "arthritis|arthritic|arthrop*",
        "adenopathy|lymphadenopathy",
        "crowding",
        "congestion",
        "thickening",
        "free air",
        "hypoinflat*",
        "sarcoid*",
        "cyst|cysts",
        "elevat* ~ diaphragm|hemidiaphragm|diaphragms",
        "diaphragm|hemidiaphragm ?is|remains ?mildly|slightly elevat*",
        "curvature|dextrocurvature|levocurvature",
        "dextroscolio*|levoscolio*",
        "lucency|lucencies|lucent",
        "hyperlucen*",
        "hyperdisten*",
        "unfold*",
        "lobectomy|pneumonectomy",
        "endplate changes",
        "hypoventilat*",
        "sclerotic|sclerosis",
        "interstitial prominence|thickening",
        "interstitial lung disease",
    ),
}

# A part of the chest with a state -------------------------------------------------------------

PARTS: dict[str, tuple[str, ...]] = {
    "heart": (
        "heart",
        "cardiac size|silhouette|contour|contours|shadow",
        "heart size|silhouette|contour|contours|shadow",
        "cardiac",
        "cardiothoracic ratio",
    ),
    "mediastinum": (
        "mediastin*",
        "mediastinal silhouette|contour|contours|structures|borders|width",
    ),
    "cardiomediastinum": (
        "cardiomediastin*",
        "cardiomediastinal silhouette|contour|contours|structures",
        "cardio mediastinal ?silhouette|contour|contours",
    ),
    "lungs": ("lung|lungs", "lung fields|zones|parenchyma", "pulmonary parenchyma"),
    "vessels": (
        "pulmonary artery|arteries",
        "pulmonary ?interstitial vascularity|vasculature|vascularities|vessels|vascular",
        "vascularity|vasculature",
    ),
    "volumes": ("lung volumes|volume",),
    "markings": ("interstitial ?lung markings|pattern|changes", "interstitium"),
    "hilum": ("hilum|hila|hilar", "hilar contour|contours"),
    "aorta": ("aorta|aortic",),
    "pleura": (
        "costophrenic angles|angle|sulci|sulcus|recess|recesses",
        "costophrenic",
        "pleural space|spaces|surfaces",
        "pleura",
    ),
    "bones": (
        "bones",
        "bony ?thorax|structures",
        "osseous structures",
        "ribs",
        "skeletal structures",
    ),
}

STATES: dict[str, tuple[str, ...]] = {
    "normal": (
        "normal",
        "unremarkable",
        "clear",
        "within normal ?size limits",
        "within limits of normal",
        "intact",
        "sharp",
        "upper limits of normal ?size",
        "upper limit of normal ?size",
        "upper|top|low normal",
        "not enlarged",
    ),
    "large": (
        "enlarg*",
        "large",
        "widened",
        "widening",
        "prominent",
        "prominence",
        "increased",
        "coarse|coarsened",
        "dilated",
    ),
    "small": ("low", "diminished", "reduced", "decreased", "small"),
    "borderline": ("borderline",),
    "blunted": ("blunt*",),
    "abnormal": ("abnormal",),
}

ABNORMAL: dict[tuple[str, str], tuple[str, ...]] = {
    ("heart", "large"): ("Cardiomegaly",),
    ("heart", "abnormal"): ("Cardiomegaly",),
    ("heart", "borderline"): ("Cardiomegaly",),
    ("cardiomediastinum", "large"): ("Enlarged Cardiomediastinum", "Cardiomegaly"),
    ("cardiomediastinum", "borderline"): ("Enlarged Cardiomediastinum", "Cardiomegaly"),
    ("mediastinum", "large"): ("Enlarged Cardiomediastinum",),
    ("vessels", "large"): (OTHER,),
    ("pleura", "blunted"): ("Pleural Effusion",),
    ("volumes", "small"): (OTHER,),
    ("markings", "large"): (OTHER,),
    ("hilum", "large"): (OTHER,),
    ("aorta", "large"): (OTHER,),
}
UNSURE_STATES = ("borderline", "blunted")
"""States of which a part makes a finding that is not sure."""

_LUNGS = (
    "Lung Opacity",
    "Infiltration",
    "Consolidation",
    "Pneumonia",
    "Edema",
    "Atelectasis",
    "Nodule",
    "Mass",
)
NORMAL: dict[str, tuple[str, ...]] = {
    "heart": ("Cardiomegaly",),
    "mediastinum": ("Enlarged Cardiomediastinum",),
    "cardiomediastinum": ("Enlarged Cardiomediastinum", "Cardiomegaly"),
    "lungs": _LUNGS,
    "vessels": ("Edema",),
    "pleura": ("Pleural Effusion",),
    "bones": ("Fracture",),
    "volumes": (),
    "markings": (),
    "hilum": (),
    "aorta": (),
}
"""What a normal part of the chest has not."""

# Cues -----------------------------------------------------------------------------------------

CUES: dict[str, tuple[str, ...]] = {
    # what follows is absent
    "no": (
        "no",
        "not",
        "nor",
        "without",
        "absent",
        "absence of",
        "negative for",
        "free of",
        "clear of",
        "no evidence of",
        "resolution|removal of",
        "rather than",
        "resolved",
        "neither",
        "neg for",
        "w / o",
        "unlikely to be|represent|reflect|indicate",
        "have|has not seen|identified|noted",
    ),
    # what stands before is absent
    "none": (
        "not ?well|clearly|definitely seen|identified|visualized|present|appreciated|evident",
        "not ?well|clearly|definitely demonstrated|noted|detected|visible|visualised",
        "?has|have resolved|cleared",
        "?has|have ?been removed",
        "absent",
        "excluded",
        "ruled out",
        "no longer seen|identified|visualized|present|appreciated|evident|visible",
        "?has|have not recurred",
        ": none|no|absent|negative .",
        ": none|negative ,",
    ),
    # what stands before in this chunk is absent
    "unlikely": ("?is|are ?thought|felt|considered|very|highly unlikely",),
    # what follows may be
    "maybe": (
        "may|could|might",
        "may|could|might be|represent|reflect|indicate|suggest",
        "possible|possibly",
        "questionable|question|equivocal",
        "cannot exclude",
        "?can not ?possible ?to exclude",
        "not possible to exclude",
        "unable to exclude",
        "suspicious for",
        "concern for",
        "concerning for",
        "worrisome for",
        "suggest*",
        "differential ?diagnosis",
        "suspicion ?for|of",
        "rule out",
        "borderline",
        "perhaps",
        "doubt",
        "unclear if|whether ?there ?is",
        "not clear|certain|sure if|whether ?there|this ?is",
        "correlation|correlate ?clinically for",
    ),
    # what stands before may be
    "unsure": (
        "?is|are possible",
        "?can not ?be ?entirely|completely excluded",
        "not ruled out",
        "cannot ?entirely|completely be ?entirely|completely excluded",
        "?is|are questioned",
        "cannot|not ?be ?entirely|completely|definitely|definitively|confidently ruled out",
        "cannot|not be ?entirely|completely|definitely|definitively|confidently excluded",
        "should|would|could|must|has|have ?also ?to ?be considered",
        "?is|are|remains|remain a|an ?also ?diagnostic consideration|possibility|concern",
        "?is|are|remains|remain ?also|still in the differential ?diagnosis",
        "?is|are doubtful",
    ),
    # what follows is of another time
    "history": (
        "history of",
        "status post",
        "s p",
        "history of",
        "evaluat* for",
        "assess* for|of",
    ),
    # what follows is what the finding before means
    "means": (
        "consistent|compatible with",
        "in keeping with",
        "represent*",
        "reflect*",
        "likely",
        "probably|probable",
        "favor*|favour*",
    ),
    # no cue, though it holds the words of one
    "nothing": (
        "associated|correlate|correlation|comparison|compared|along with",
        "to suggest|indicate",
        "no|without ?significant|definite|appreciable ?interval|acute|further change|changes",
        "no|without ?significant ?interval increase|decrease|improvement|worsening",
        "not ?significantly changed|improved|increased|decreased",
        "not only|without|absent",
        "not ?yet|completely|fully|entirely resolved|cleared",
        "heart and lungs have ~ interval",
        # resolution that is not whole
        "?has|have|is|are nearly|almost|partially|partly|mostly|largely|incompletely"
        " ?completely|entirely resolved|cleared|gone",
        "near|partial|incomplete ?complete ?interval resolution|clearing of",
        # what was not there before is there now
        "not ?well|clearly|definitely seen|present|visible|identified|noted|evident|visualized"
        " ?on|in|at ?the|a|her|his ?most ?recent|immediate prior|previous|previously|earlier|old",
        "not previously|formerly seen|present|visible|identified|noted|evident|visualized",
        "tip|tips ?is|are|was not ?well|clearly seen|visible|identified|visualized|visualised",
        # what is not there is no finding
        "no|without ?a|any ?prior|previous|old|lateral|frontal|recent|additional|relevant|other"
        " ?lateral|frontal|chest|comparison|imaging film|films|view|views|study|studies|exam|exams"
        "|examination|examinations|radiograph|radiographs|comparison|comparisons|priors|images"
        " ?for ?comparison",
        "lead|leads to",
        "engorgement ?is|are|appear|appears within ?normal limits ?of ?normal",
    ),
    # a new clause that goes on about the same
    "with": ("with",),
    # a new clause
    "stop": (
        "but",
        "however",
        "except",
        "although",
        "though",
        "apart from",
        "aside from",
        "other than",
        "there is|are|has|have",
        "which",
        "while",
        "whereas",
        ";",
    ),
    # either of two
    "either": (
        "versus|vs",
        "suspected",
        "difficult to ?entirely exclude",
        "?is|are less likely",
        "cannot be differentiated|distinguished|separated from",
        "?can not be differentiated|distinguished|separated from",
    ),
    "verb": (
        "is|are|was|were|appears|appear|remains|remain|has|have|seen|demonstrate|demonstrates",
    ),
    "comma": (",", "(", ")"),
    "and": ("and", "and or", "and / or", "/"),
    # either of two findings, where it joins such; else as "and"
    "or": ("or",),
    # where something is
    "at": ("in|at|on|of|within|over|to|along|near|from|throughout",),
}

NEW = (
    "stable|unchanged|mild|mildly|minimal|persistent|small|probable",
    "moderate|moderately|severe|trace|tiny|new|decreased|increased|a|an",
    "left|right|bilateral|bibasilar|bibasal|biapical",
)
"""Words with which, behind a comma or "and", something new begins if no list with "or" goes on."""

ALL = (
    "normal|negative|unremarkable|clear|stable chest|study|film|films|exam|examination|radiograph",
    "acute|active|acutely ?intrathoracic ?cardiopulmonary|pulmonary|cardiac|chest|thoracic"
    " ?or ?and ?pulmonary disease|process|processes|abnormality|abnormalities|finding|findings",
    "cardiopulmonary|pulmonary|cardiac|cardiothoracic|intrathoracic|radiographic|significant|bony"
    " ?cardiopulmonary|pulmonary disease|process|abnormality|abnormalities|finding|findings",
    "evidence ?of|for ?active|acute disease|abnormality|abnormalities",
    "abnormality|abnormalities|disease|process|pathology",
    "acute|active ?preoperative|thoracic|traumatic finding|findings|injury|change|changes",
    "negative .",
    "has|have cleared",
)
"""What is said, or denied, of the whole chest."""

SIDES: dict[str, tuple[str, ...]] = {
    "left": ("left", "lingula*", "lll|lul|l"),
    "right": ("right", "rll|rml|rul|r"),
    "both": ("bilateral*", "both", "bibasilar", "bibasal", "biapical"),
}

UNSIDED = ("Cardiomegaly", "Enlarged Cardiomediastinum", "Hernia", OTHER)
"""Findings whose side is not asked for."""

NEAR = 3
"""Words that may stand between a state and its part or finding."""

OTHER_SECTIONS = (
    "clinical indication",
    "clinical history",
    "clinical information",
    "clinical data",
    "clinical details",
    "clinical statement",
    "indication",
    "indications",
    "history",
    "patient history",
    "comparison",
    "comparisons",
    "technique",
    "exam",
    "examination",
    "exam type",
    "type of exam",
    "type of examination",
    "reason",
    "reason for exam",
    "reason for examination",
    "reason for this exam",
    "reason for this examination",
    "reason for study",
    "procedure",
    "procedures",
)
"""Headers of sections that do not tell of the film."""
OWN_SECTIONS = ("findings", "impression", "conclusion")
"""Headers of those that do, which are known in lower case too."""

REPORTED = (*CHEXPERT, *FURTHER)

CHUNKS = ("no", "maybe", "history", "stop", "with", "comma")
"""Cues that part findings from each other, where only those at hand are left open."""

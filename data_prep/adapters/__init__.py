"""One small module for the published layout of each data set: a folder as it is unpacked -> Inputs.

Each takes `scan(folder, masks=, labels=, reports=)`; what is None is looked for where the data set
has it. Patients carry the name of their data set, so that two sets' patient "1" are two patients,
and one patient in two sets of the same hospital is one.
"""

from collections.abc import Callable

from data_prep.adapters import chestxray14, chexpert, mimic, nlm_tb, openi, rsna, vindr
from data_prep.inputs import Inputs, scan

ADAPTERS: dict[str, Callable[..., Inputs]] = {
    "plain": scan,
    "chestx-ray14": chestxray14.scan,
    "chexpert": chexpert.scan,
    "cxr-lt-2024": mimic.scan_cxr_lt,
    "mimic-cxr-jpg": mimic.scan,
    "montgomery": nlm_tb.scan_montgomery,
    "open-i": openi.scan,
    "rsna-pneumonia": rsna.scan,
    "shenzhen": nlm_tb.scan_shenzhen,
    "vindr-cxr": vindr.scan,
}

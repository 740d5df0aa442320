"""Reports as text: sections of two layouts, one written form, sentences, and tokens."""

import copy
import random

import pytest

from xmae_jax.data import text
from xmae_jax.data.manifest import DataError
from xmae_jax.data.records import NO_REPORT
from xmae_jax.data.text import Tokenizer, by_sentence, fertility, normalise, sections, sentences
from xmae_jax.data.tokenizer_training import train_tokenizer

MIMIC = """                                 FINAL REPORT
 EXAMINATION:  CHEST (PA AND LAT)
 INDICATION:  ___ year old woman with cough  // eval for pneumonia
 COMPARISON:  Chest radiograph ___
 FINDINGS:
 Small left pleural effusion.
 LUNGS: clear.

 IMPRESSION:
 1.  No pneumonia.
 NOTIFICATION: Dr. ___ was told at 3 pm.
"""
OPEN_I = """<Abstract><AbstractText Label="COMPARISON">None.</AbstractText>
<AbstractText Label="INDICATION">Cough &amp; fever</AbstractText><AbstractText Label="FINDINGS">
 Heart size normal. </AbstractText><AbstractText Label="IMPRESSION"/></Abstract>"""
PAGE = (
    "<p><b>Comparison: </b>None.</p><p><b>Indication: </b>Cough</p><p><b>Findings: </b>Clear.</p>"
)

_PHRASES = (
    "Heart size is normal|The cardiac silhouette is enlarged|Small left pleural effusion|"
    "Moderate right pleural effusion|No pneumothorax|No focal consolidation|The lungs are clear|"
    "Mild pulmonary edema|Right lower zone nodule, 8 mm|Left basal atelectasis|"
    "No displaced rib fracture|Degenerative change of the thoracic spine|Chest x-XXXX|"
    "Mediastinal contours are within normal limits|Right internal jugular catheter"
)
_CHINESE = (
    "双肺纹理清晰|双肺纹理增多、紊乱|左肺下野见小片状密度增高影|右肺上野见结节影|心影不大|心影增大|"
    "双侧肋膈角锐利|左侧肋膈角变钝|未见气胸|未见胸腔积液|主动脉弓迂曲|纵隔居中|膈面光整|胸廓对称|"
    "双肺门影不大|所示骨质未见异常|右肺中野见片状影|左侧少量胸腔积液"
)
VOCAB = 340  # 256 of them are bytes
_DRAWS = random.Random(0)
ENGLISH = [". ".join(_DRAWS.sample(_PHRASES.split("|"), 4)) + "." for _ in range(200)]
CHINESE = ["，".join(_DRAWS.sample(_CHINESE.split("|"), 5)) + "。" for _ in range(200)]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return load(tmp_path_factory.mktemp("en"), train_tokenizer(ENGLISH, vocab=VOCAB, language="en"))


@pytest.fixture(scope="module")
def chinese(tmp_path_factory):
    return load(tmp_path_factory.mktemp("zh"), train_tokenizer(CHINESE, vocab=VOCAB, language="zh"))


def load(folder, model: bytes) -> Tokenizer:
    (folder / "t.model").write_bytes(model)
    return Tokenizer.load(folder / "t.model")


def test_sections_of_mimics_layout():
    found = sections(MIMIC)
    assert found["findings"] == "Small left pleural effusion.\nLUNGS: clear."
    assert found["impression"] == "1. No pneumonia."
    assert found["indication"] == "___ year old woman with cough // eval for pneumonia"
    assert found["comparison"] == "Chest radiograph ___"
    for heading in ("REASON FOR EXAM", "CLINICAL HISTORY", "HISTORY", "PATIENT HISTORY"):
        assert sections(f"{heading}: cough")["indication"] == "cough"
    assert sections("FINDINGS AND IMPRESSION: clear")["findings"] == "clear"
    assert sections("No headings here.") == sections("") == NO_REPORT


def test_findings_without_a_heading_are_no_prefix():
    told = "Large right effusion.\n LUNGS: hyperinflated.\n\n IMPRESSION:  Effusion.\n"
    for before in ("COMPARISON:  ___.\n \n", "COMPARISON:\n\n ___.\n\n"):
        found = sections(f" INDICATION:  Cough\n and fever.\n\n {before} PA view. {told}")
        assert found == {
            "findings": "PA view. Large right effusion.\nLUNGS: hyperinflated.",
            "impression": "Effusion.",
            "indication": "Cough and fever.",
            "comparison": "___.",
        }
    with_heading = sections(f"COMPARISON: ___.\n\nPA view.\n\nFINDINGS:\n\n {told}")
    assert with_heading["findings"] == "Large right effusion.\nLUNGS: hyperinflated."
    assert with_heading["comparison"] == "___."


def test_sections_of_open_is_layouts():
    assert sections(OPEN_I) == {
        "findings": "Heart size normal.",
        "impression": "",
        "indication": "Cough & fever",
        "comparison": "None.",
    }
    assert sections(PAGE)["findings"] == "Clear." and sections(PAGE)["indication"] == "Cough"


@pytest.mark.parametrize(
    ("raw", "kept"),
    [
        ("Seen. . Clear..", "Seen. Clear."),
        ("  No\n\tacute\u00a0disease .. ", "No acute disease."),
        ("\ufeff\u201cCafe\u0301\u201d \u2013\x1f0.5\u200b\x00\u00ad cm", '"Café" - 0.5 cm'),
        (
            "1.No effusion. 2) Heart normal. 3.5 cm mass.",
            "No effusion. Heart normal. 3.5 cm mass.",
        ),
        ("双肺 清晰。\n 未见 effusion ，心影不大。", "双肺清晰。未见 effusion ，心影不大。"),
        ("____ year, XXX and xxxxx, not XX", "XXXX year, XXXX and XXXX, not XX"),
    ],
)
def test_one_written_form(raw, kept):
    assert normalise(raw, "keep") == kept
    assert normalise(kept, "keep") == kept


def test_marks_of_de_identification():
    raw = "Normal chest x-XXXX. There are no XXXX of effusion.  Dr. ___ was called. Clear."
    kept = "Normal chest x-XXXX. There are no XXXX of effusion. Dr. XXXX was called. Clear."
    assert normalise(raw, "keep") == kept
    dropped = "Normal chest. There are no of effusion. Dr. was called. Clear."
    assert normalise(raw, "drop_word") == dropped
    assert normalise(raw, "drop_sentence") == "Clear."
    assert normalise("___ XXXX.", "drop_word") == normalise("___", "drop_sentence") == ""
    assert normalise("患者XXXX双肺清晰。未见积液。", "drop_word") == "患者双肺清晰。未见积液。"
    assert normalise("患者XXXX双肺清晰。未见积液。", "drop_sentence") == "未见积液。"


def test_a_long_word_of_marks_takes_no_time():
    assert normalise("aXXXX_b" * 20_000, "drop_word") == ""


def test_sentences():
    english = "Heart is 1.5 cm larger vs. prior. Seen by Dr. A. Clear? 2. No effusion."
    assert sentences(english) == [
        "Heart is 1.5 cm larger vs. prior.",
        "Seen by Dr. A.",
        "Clear?",
        "2. No effusion.",
    ]
    assert sentences("双肺清晰。未见气胸；心影不大。") == ["双肺清晰。", "未见气胸；", "心影不大。"]
    assert sentences(" ") == []


def test_words_and_languages():
    assert text.words("右肺 CT 结节 5 mm.") == ["右", "肺", "CT", "结", "节", "5", "mm."]
    assert text.language_of(CHINESE[0]) == "zh" and text.language_of(ENGLISH[0]) == "en"
    assert text.language_of("") == "en"


def test_any_text_comes_back(tokenizer, chinese):
    draws = random.Random(0)
    letters = "aZ09.,-()/%αé°肺影，。🫁XXXX"
    for _ in range(200):
        made = normalise("".join(draws.choices(letters + "  ", k=30)), "keep")
        for one in (tokenizer, chinese):
            assert one.decode(one.encode(made)) == made
    for made in (*ENGLISH, *CHINESE):
        assert tokenizer.decode(tokenizer.encode(made)) == made
        assert chinese.decode(chinese.encode(made)) == made


def test_ids_are_those_of_t5_and_a_mark_is_one_token(tokenizer):
    assert (tokenizer.pad, tokenizer.end, tokenizer.unknown, tokenizer.vocab) == (0, 1, 2, VOCAB)
    marks = [tokenizer.model.piece_to_id(mark) for mark in ("▁XXXX", "XXXX")]
    ids = tokenizer.encode("no x-XXXX-ray XXXX.")
    assert [one for one in ids if one in marks] == marks[::-1] and ids[-2] == marks[0]
    assert not {0, 1, 2} & set(tokenizer.encode("</s> <pad> <unk>"))
    ids = tokenizer.encode("left")
    assert tokenizer.decode([0, *ids, 9_999, 1, *ids, 0]) == "left"


def test_chinese_has_words_and_no_blank_before_it(chinese, tokenizer):
    fits, other = fertility(chinese, CHINESE), fertility(tokenizer, CHINESE)
    assert fits["covered"] == 1 and fits["per_word"] < 0.9 and fits["bytes"] == 0
    assert other["covered"] < 0.1 and other["per_word"] > 2.5 and other["unknown"] == 0
    assert "▁" not in "".join(chinese.model.encode(CHINESE[0], out_type=str))


def test_fertility_counts(tokenizer):
    found = fertility(tokenizer, ["left pleural", "影 left"])
    assert (found["texts"], found["words"]) == (2, 4)
    assert found["tokens"] == sum(len(tokenizer.encode(t)) for t in ("left pleural", "影 left"))
    assert found["bytes"] == 3 / found["tokens"] and found["covered"] == 15 / 16
    assert fertility(tokenizer, [])["tokens"] == 0


def test_ids_of_a_text_go_with_its_sentences(tokenizer, chinese):
    wholes = "No effusion. Dr. A. saw 影! Left lung é", "双肺清晰。未见气胸；心影不大。", "é"
    for one in (tokenizer, chinese):
        for whole in wholes:
            ids = [*one.encode(whole), 1, 0, 7]
            found, place = by_sentence(one, ids)
            assert found == sentences(whole) and (place[-3:] == -1).all()
            for number, sentence in enumerate(found):  # ids of a sentence alone spell it
                own = [i for i, of in zip(ids, place, strict=True) if of == number]
                assert one.decode(own).strip() == sentence
    for ids in ([1, 0], [0, 0], []):
        found, place = by_sentence(tokenizer, ids)
        assert found == [] and place.tolist() == [-1] * len(ids)


def test_a_copy_is_the_same(tokenizer):
    # A copy goes by the state that a worker process is sent.
    other = copy.deepcopy(tokenizer)
    assert other == tokenizer and other.encode(ENGLISH[0]) == tokenizer.encode(ENGLISH[0])


def test_what_is_no_tokenizer_is_named(tmp_path, tokenizer):
    import io

    import sentencepiece

    with pytest.raises(DataError, match="missing.model: no SentencePiece model"):
        Tokenizer.load(tmp_path / "missing.model")
    (tmp_path / "junk.model").write_bytes(b"junk")
    with pytest.raises(DataError, match="junk.model: no SentencePiece model"):
        Tokenizer.load(tmp_path / "junk.model")
    out = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(ENGLISH), model_writer=out, vocab_size=60, minloglevel=3
    )
    (tmp_path / "other.model").write_bytes(out.getvalue())
    with pytest.raises(DataError, match=r"other.model: its ids .* are \(-1, 2, 0\), not"):
        Tokenizer.load(tmp_path / "other.model")

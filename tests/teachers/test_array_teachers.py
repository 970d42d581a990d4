"""Teachers of images, sound and features: each gives what its own engine gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.multioutput import MultiOutputClassifier
from sklearn.neighbors import KNeighborsClassifier
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC

import softlabels as sl
from softlabels import teachers
from softlabels.errors import TeacherError
from softlabels.teachers.estimators import state_digest
from softlabels.teachers.traits import kind_of, positions_in, ready

FOUND = load_digits()
FEATURES, CLASSES = FOUND.images[:200].astype(np.float32), FOUND.target[:200]
FLAT = FEATURES.reshape(200, -1)


def answers(teacher: Any, arrays: np.ndarray) -> torch.Tensor:
    """All of a teacher's rows for arrays of one shape."""
    inputs = torch.from_numpy(np.stack([ready(teacher, array) for array in arrays]))
    positions = positions_in(teacher, tuple(inputs.shape[1:]))
    wanted = torch.ones(len(arrays), positions, dtype=torch.bool)
    return torch.cat(list(teacher.logits(inputs, wanted, padding=~wanted)))


ESTIMATORS = {
    "logistic": lambda: LogisticRegression(max_iter=50),
    "forest": lambda: RandomForestClassifier(5, random_state=0),
    "boosting": lambda: HistGradientBoostingClassifier(max_iter=3, random_state=0),
    "neighbours": lambda: KNeighborsClassifier(3),
    "network": lambda: MLPClassifier((8,), max_iter=20, random_state=0, tol=1.0),
    "pipeline": lambda: make_pipeline(StandardScaler(), LogisticRegression(max_iter=50)),
}


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("name", ESTIMATORS)
def test_an_estimator_gives_its_own_probabilities_and_is_known_again(name: str) -> None:
    fitted = ESTIMATORS[name]().fit(FLAT, CLASSES)
    teacher: Any = teachers.resolve(fitted)
    found = answers(teacher, FEATURES[:20])
    expected = torch.from_numpy(fitted.predict_proba(FLAT[:20])).float()
    torch.testing.assert_close(found.softmax(-1), expected, atol=1e-5, rtol=1e-4)
    assert bool(found.isfinite().all())
    assert teacher.class_names == tuple("0123456789")
    assert teacher.identity.logits_known == (name == "logistic")
    assert teacher.identity.weights == state_digest(ESTIMATORS[name]().fit(FLAT, CLASSES))
    other = ESTIMATORS[name]().fit(FLAT[:150], CLASSES[:150])
    assert teacher.identity.weights != state_digest(other)


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_two_classes_and_several_labels_a_sample() -> None:
    two = LogisticRegression().fit(FLAT, CLASSES > 4)
    found = answers(teachers.sklearn(two), FEATURES[:9]).softmax(-1)
    np.testing.assert_allclose(found, two.predict_proba(FLAT[:9]), atol=1e-5)
    many = np.stack([CLASSES > 4, CLASSES % 2 == 0, CLASSES == 3], 1)
    for model in (
        MultiOutputClassifier(LogisticRegression(max_iter=50)),
        RandomForestClassifier(5, random_state=0),
    ):
        fitted = model.fit(FLAT, many)
        teacher = teachers.sklearn(fitted)
        assert (kind_of(teacher), teacher.classes) == ("binary", 3)
        expected = np.stack([p[:, 1] for p in fitted.predict_proba(FLAT[:9])], 1)
        np.testing.assert_allclose(answers(teacher, FEATURES[:9]).sigmoid(), expected, atol=1e-6)


def test_what_gives_no_probabilities_is_refused() -> None:
    with pytest.raises(TeacherError, match=r"is not fitted"):
        teachers.sklearn(LogisticRegression())
    with pytest.raises(TeacherError, match="gives no probabilities"):
        teachers.sklearn(LinearSVC().fit(FLAT[:50], CLASSES[:50]))
    with pytest.raises(TeacherError, match="no classifier"):
        teachers.sklearn(StandardScaler().fit(FLAT))


def test_an_estimator_labels_rows(tmp_path: Path) -> None:
    rows = [{"id": i, "x": FEATURES[i], "y": str(CLASSES[i])} for i in range(30)]
    fitted = RandomForestClassifier(5, random_state=0).fit(FLAT, CLASSES)
    labels = sl.precompute(rows, fitted, tmp_path / "a", column="x", key="id", label="y")
    assert labels.plan.class_names == tuple("0123456789")
    assert not labels.plan.teacher.logits_known
    batch = next(iter(sl.loader(labels, rows, batch_size=30, shuffle=False)))
    y = batch["soft_labels"]
    probs = torch.zeros(30, 10).scatter(-1, y.ids, y.log_probs.exp())
    expected = torch.from_numpy(fitted.predict_proba(FLAT[:30])).float()
    torch.testing.assert_close(probs, expected, atol=0.02, rtol=0)
    assert batch["y"] == [row["y"] for row in rows]


def onnx_file(folder: Path, *, batch: int | None = None, kind: int = 1) -> Path:
    """A linear model of 8 × 8 arrays, with weights of its own."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    weights = np.random.default_rng(0).normal(size=(64, 5)).astype(np.float32)
    size = "n" if batch is None else batch
    nodes = [
        helper.make_node("Flatten", ["x"], ["flat"], axis=1),
        helper.make_node("MatMul", ["flat", "w"], ["logits"]),
    ]
    given = [helper.make_tensor_value_info("x", kind, [size, 8, 8])]
    made = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [size, 5])]
    graph = helper.make_graph(nodes, "g", given, made, [numpy_helper.from_array(weights, "w")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, folder / "linear.onnx")
    return folder / "linear.onnx"


@pytest.mark.parametrize("batch", [None, 1])
def test_an_onnx_model_gives_its_own_logits(batch: int | None, tmp_path: Path) -> None:
    path = onnx_file(tmp_path, batch=batch)
    teacher: Any = teachers.resolve(str(path))
    weights = np.random.default_rng(0).normal(size=(64, 5)).astype(np.float32)
    np.testing.assert_allclose(answers(teacher, FEATURES[:4]), FLAT[:4] @ weights, rtol=1e-4)
    assert (teacher.classes, teacher.identity.engine) == (5, "onnxruntime")
    rows = [{"x": FEATURES[i]} for i in range(6)]
    assert len(sl.precompute(rows, str(path), tmp_path / "a", column="x")) == 6


def test_an_onnx_model_that_cannot_be_a_teacher_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TeacherError, match="no such file"):
        teachers.onnx(tmp_path / "none.onnx")
    (tmp_path / "bad.onnx").write_bytes(b"no model")
    with pytest.raises(TeacherError, match="cannot be loaded"):
        teachers.onnx(tmp_path / "bad.onnx")
    with pytest.raises(TeacherError, match=r'gives "logits"; say which'):
        teachers.onnx(onnx_file(tmp_path), output="scores")


def image_model(**changes: Any) -> Any:
    from transformers import ViTConfig, ViTForImageClassification

    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        image_size=16, patch_size=8, id2label={0: "cat", 1: "dog", 2: "owl"},
        label2id={"cat": 0, "dog": 1, "owl": 2}, **changes,
    )  # fmt: skip
    return ViTForImageClassification(config).eval()


def test_an_image_classifier_runs_behind_its_processor(tmp_path: Path) -> None:
    from transformers import ViTImageProcessor

    model, processor = image_model(), ViTImageProcessor(size={"height": 16, "width": 16})
    model.save_pretrained(tmp_path / "m")
    processor.save_pretrained(tmp_path / "m")
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (h, 20, 3), np.uint8) for h in (12, 40, 9)]
    rows = [{"id": i, "image": image} for i, image in enumerate(images)]
    teacher: Any = teachers.resolve(str(tmp_path / "m"))
    assert teacher.task.name == "image_classifier"
    labels = sl.precompute(rows, teacher, tmp_path / "a", column="image", key="id", codec="plain")
    assert labels.plan.class_names == ("cat", "dog", "owl")
    with torch.no_grad():
        for image, found in zip(images, labels[:], strict=True):
            pixels = processor(images=image, return_tensors="pt")["pixel_values"]
            expected = torch.log_softmax(model(pixels).logits, -1)
            torch.testing.assert_close(found.log_probs, expected.gather(-1, found.ids))
    with pytest.raises(TeacherError, match="is an image classifier and not"):
        teachers.sequence_classifier(tmp_path / "m")


def test_a_classifier_of_several_labels_has_labels_of_the_kind_binary(tmp_path: Path) -> None:
    model = image_model(problem_type="multi_label_classification")
    rows = [{"image": np.zeros((3, 16, 16), np.float32) + i} for i in range(3)]
    labels = sl.precompute(
        rows, teachers.image_classifier(model), tmp_path / "a", column="image",
        codec="binary_plain",
    )  # fmt: skip
    assert labels.plan.kind == "binary"
    with torch.no_grad():
        expected = model(torch.stack([torch.from_numpy(row["image"]) for row in rows])).logits
    found = torch.cat([y.log_odds.gather(-1, y.ids.argsort(-1)) for y in labels[:]])
    torch.testing.assert_close(found, expected)


def speech_model(kind: str) -> Any:
    from transformers import Wav2Vec2Config, Wav2Vec2ForCTC, Wav2Vec2ForSequenceClassification

    torch.manual_seed(0)
    config = Wav2Vec2Config(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        conv_dim=(8, 8), conv_stride=(5, 2), conv_kernel=(10, 3), num_feat_extract_layers=2,
        num_conv_pos_embeddings=4, num_conv_pos_embedding_groups=2, vocab_size=7, num_labels=3,
        classifier_proj_size=8,
    )  # fmt: skip
    kinds = {"ctc": Wav2Vec2ForCTC, "audio_classifier": Wav2Vec2ForSequenceClassification}
    return kinds[kind](config).eval()


@pytest.mark.parametrize("kind", ["ctc", "audio_classifier"])
def test_models_of_sound_label_waveforms_of_any_length(kind: str, tmp_path: Path) -> None:
    from transformers import Wav2Vec2FeatureExtractor

    model, extractor = speech_model(kind), Wav2Vec2FeatureExtractor(do_normalize=True)
    model.save_pretrained(tmp_path / "m")
    extractor.save_pretrained(tmp_path / "m")
    rng = np.random.default_rng(0)
    sounds = [rng.normal(size=n).astype(np.float32) for n in (200, 350, 200, 2)]
    rows = [{"id": i, "sound": sound} for i, sound in enumerate(sounds)]
    short = 3 if kind == "ctc" else 4
    labels = sl.precompute(
        rows[:short], str(tmp_path / "m"), tmp_path / "a", column="sound", key="id", codec="plain",
        on_error="skip",
    )  # fmt: skip
    assert len(labels) == 3
    with torch.no_grad():
        for sound, found in zip(sounds, labels[:], strict=False):
            values = extractor(sound, sampling_rate=16_000, return_tensors="pt")["input_values"]
            expected = torch.log_softmax(model(values).logits, -1).view(
                -1, labels.plan.teacher.classes
            )
            torch.testing.assert_close(
                found.log_probs, expected.gather(-1, found.ids), atol=1e-5, rtol=1e-5
            )
    if kind == "ctc":
        with pytest.raises(sl.errors.LabellingError, match="too short"):
            sl.precompute(rows, str(tmp_path / "m"), tmp_path / "b", column="sound", key="id")


@pytest.mark.parametrize("pooling", [None, "cls", "none"])
def test_an_encoder_gives_vectors_as_its_folder_pools_them(
    pooling: str | None, tmp_path: Path, tokenizer: Any
) -> None:
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=512, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=16,
    )  # fmt: skip
    model = BertModel(config, add_pooling_layer=False).eval()
    model.save_pretrained(tmp_path / "m")
    tokenizer.save_pretrained(tmp_path / "m")
    (tmp_path / "m" / "modules.json").write_text(
        '[{"type": "sentence_transformers.models.Transformer", "path": ""},'
        '{"type": "sentence_transformers.models.Pooling", "path": "1_Pooling"},'
        '{"type": "sentence_transformers.models.Normalize", "path": "2_Normalize"}]'
    )
    (tmp_path / "m" / "1_Pooling").mkdir()
    (tmp_path / "m" / "1_Pooling" / "config.json").write_text(
        '{"word_embedding_dimension": 16, "pooling_mode_mean_tokens": true}'
    )
    teacher: Any = teachers.encoder(tmp_path / "m", pooling=pooling)
    rows = [{"id": i, "text": text} for i, text in enumerate(["a b", "the quick brown fox", "b"])]
    labels = sl.precompute(rows, teacher, tmp_path / "a", key="id", codec="float32")
    assert (labels.plan.kind, labels.plan.teacher.classes) == ("embedding", 16)
    for batch in sl.loader(labels, batch_size=1):
        y = batch["soft_labels"]
        with torch.no_grad():
            hidden = model(input_ids=batch["input_ids"]).last_hidden_state[0]
        expected = {None: hidden.mean(0, keepdim=True), "cls": hidden[:1], "none": hidden}[pooling]
        expected = torch.nn.functional.normalize(expected, dim=-1)
        torch.testing.assert_close(y.vectors[y.mask], expected, atol=1e-5, rtol=1e-5)


def test_a_folder_that_pools_in_a_way_that_is_not_known_is_refused(tmp_path: Path) -> None:
    from transformers import BertConfig, BertModel

    BertModel(
        BertConfig(hidden_size=16, num_attention_heads=2, num_hidden_layers=1)
    ).save_pretrained(tmp_path)
    (tmp_path / "modules.json").write_text(
        '[{"type": "a.Transformer", "path": ""}, {"type": "a.Dense", "path": "2_Dense"}]'
    )
    with pytest.raises(TeacherError, match='goes on with a module "Dense"'):
        teachers.encoder(tmp_path)
    with pytest.raises(TeacherError, match="pooling is"):
        teachers.encoder(tmp_path, pooling="max")

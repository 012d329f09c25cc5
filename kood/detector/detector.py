"""The detector: a classifier, a score of its outputs, and a calibrated decision."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np

from kood.classifier import Classifier
from kood.conformal import Calibration, doubted, refuse_too_few
from kood.data.copies import whole
from kood.data.elsewhere import read_otherwise
from kood.data.image_set import ImageSet
from kood.detector import export, file
from kood.detector.choosing import validation_images
from kood.detector.figures import figures_of
from kood.detector.images import Batch, are_files, regrouped
from kood.detector.measuring import Measuring
from kood.detector.passing import Aside, Known, among, seen_before, unreadable
from kood.errors import UserError, in_words
from kood.outputs import Outputs, softmax
from kood.scorer import Scorer
from kood.text import clean

__all__ = ["Answers", "Detector"]


@dataclass(frozen=True)
class Answers:
    """What a detector says of N images.

    Attributes:
        label: int64 (N,), the class; -1 for what no threshold can judge.
        class_name: Its name (N,); "" likewise.
        probabilities: float64 (N, K), the softmax; 0 likewise.
        ood_score: float64 (N,), higher = more out-of-distribution; the largest float32 likewise.
        p_value: float64 (N,), see `kood.conformal.p_values`; 0 likewise.
        is_ood: bool (N,), whether the image is flagged; true likewise.
        threshold: float64 (N,), what the score was compared with.
        files: The N files, of files; else None.
        unreadable: A message for each file that could not be read; there is no answer for these.
    """

    label: np.ndarray
    class_name: np.ndarray
    probabilities: np.ndarray
    ood_score: np.ndarray
    p_value: np.ndarray
    is_ood: np.ndarray
    threshold: np.ndarray
    files: list[str] | None = None
    unreadable: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.label)


class Detector(Measuring):
    """A classifier that says of an image whether it is of one of its classes.

    Nothing is trained. The classifier's outputs give a score, `fit` fits it where it has a state, `calibrate` sets a
    threshold by split conformal prediction: an image like the calibration images is accepted with probability at least
    `accept`.

    Images are arrays (N, H, W, C), a `tf.data.Dataset`, a folder, a list of files, a table of them (.csv) or an
    iterator of batches; a batch is in memory at a time. Files and uint8 arrays are pixels of 0..255, as `preprocess`
    takes them; a float array is what the model itself takes where no `preprocess` is given, and pixels of 0..255 where
    one is.

    Example:
        ```python
        import keras
        import numpy as np
        import kood

        pixels = keras.Input((8, 8, 3))
        pooled = keras.layers.GlobalAveragePooling2D()(keras.layers.Rescaling(1 / 255)(pixels))
        model = keras.Model(pixels, keras.layers.Dense(3, activation="softmax")(pooled))  # Yours has been trained.

        images = np.random.default_rng(0).integers(0, 256, (60, 8, 8, 3), "uint8")
        detector = kood.Detector(model, score="energy").calibrate(images[:40], accept=0.9)
        detector.predict(images[40:]).is_ood  # (20,) bool
        ```

    Args:
        model: A Keras classifier, or its `.keras` file: kood's own, or one that ends in a dense layer (softmax, logits,
            or one sigmoid unit for two classes), or one whose outputs name `logits` and `features`.
        score: Its name (`kood list scores`), with options as in "knn:k=10"; or "auto", which `fit` then chooses on
            known images against pixel mixups and patch shuffles of them and against drawn pictures.
        class_names: K names; "0", "1", ... where not given.
        features: The layer whose outputs are the features; the input of the last dense layer where not given.
        preprocess: What makes the model's pixels of those of 0..255: "none", "0..1", "-1..1", "caffe", "torch", a
            Keras layer or a function; where not given, pixels stay as they are.
        scores: The scores to measure; where not given, `score`, or with "auto" all that apply.
        image_shape: (H, W, C) of images of files, for a model that takes any size.
        resize: What becomes of images of files of other proportions, and of those of a SavedModel: "stretch", "crop" or
            "pad", see `kood.data.rules.Framing`; what is padded stands on white.
        antialias: Whether images of files that are made smaller are antialiased; the networks of Keras's and
            TensorFlow's loaders (`image_dataset_from_directory`) learnt from images that were not.
        batch_size: Images a forward pass, at most; fewer where they are larger than 90 x 90.
        key: What messages call the score.

    Raises:
        UserError: the model cannot be taken apart; a score that it cannot give.
    """

    decision: Calibration | None = None
    #: A few known images, to compare an export on.
    some: np.ndarray = np.empty(0)

    def fit(self, images: Any, labels: Any = None, *, seed: int = 0) -> "Detector":
        """Fits the scores that have a state and, where the score is "auto", chooses one; nothing is trained.

        A choice is made on a fifth of the images, or of many on 128 to 256 from all over them, which no score is fitted
        on: the score with the largest mean AUROC of these against pixel mixups and patch shuffles of them and drawn
        pictures, as `kood run` chooses. `told` says which and why.

        Args:
            images: Known images.
            labels: Their classes, integers (N,) or one-hot; or None, where each counts as what it is labelled as. A
                data set, an iterator or a folder of class folders may bring its own.
            seed: Decides the mixups and shuffles.

        Returns:
            Itself.

        Raises:
            UserError: images that cannot be read or are not what the model takes; labels that the model hardly ever
                gives, or far more often under another preprocessing; a named score that so many images cannot fit, or
                that decides and cannot be fitted to what the model says of them.
        """
        known, aside = Known(), Aside()
        found = self._noted(self._batches(images, labels, "fit"), known)
        passed = self._run(regrouped(aside.of(found), self.batch_size) if self.chooses else found)
        some = [*known.labelled.values()]
        doubts = self.suits("fit", passed.outputs["logits"].argmax(axis=1), passed.labels, some)
        self._fit_tried = bool(some)
        # All that an earlier fit found goes.
        self.decision, self.doubts = None, {"fit": [*doubts, *unreadable(passed, "fit"), *self._otherwise(known)]}
        self._fit_read = bool(known.files)
        if self.chooses:
            self.choice = None
        self.scorers = {name: Scorer(name, key=self.key) for name in self.every}
        self.digests, self.range = {"trained": known.digests}, known.range
        self._fit(passed.outputs, passed.labels)
        if self.chooses:
            sets = self._validation(aside.kept, seed)
            measured = self.measure(sets)
            self.doubts["fit"] = measured.warnings
            self.choose(measured, "validation", [name for name in sets if name != "validation"])
        return self

    def _otherwise(self, known: Known) -> list[str]:
        """That Keras's loaders make other pixels of known images' files; networks of our own learnt from ours."""
        return [] if self.is_own else read_otherwise(known.files)

    def _validation(self, kept: Sequence[Batch], seed: int) -> dict[str, Any]:
        """The images that were set aside, and what is made of them to be told from them, in the same range."""
        pixels = np.concatenate([batch.pixels for batch in kept]) if kept else np.empty(0)
        if len(pixels) < 2:
            raise UserError(
                'fit: score = "auto" sets a fifth of the images aside to choose on, and there are too few; give at '
                "least 10 images, or name a score"
            )
        low, high = (0.0, 255.0) if pixels.dtype == np.uint8 else (float(pixels.min()), float(pixels.max()))
        whole = np.rint((pixels - low) * (255.0 / max(high - low, 1e-12))).astype(np.uint8)
        given = [batch.labels for batch in kept if batch.labels is not None]
        labels = np.concatenate(given) if len(given) == len(kept) else self.outputs(pixels)["logits"].argmax(axis=1)
        held = ImageSet(whole, labels.astype(np.int64), tuple(self.class_names))
        try:
            sets = validation_images(held, None, seed)
        except ValueError as error:
            raise UserError(f'fit: score = "auto" cannot choose on these images ({error}); name a score') from error
        if pixels.dtype == np.uint8:
            return dict(sets)
        factor = np.float32((high - low) / 255.0)
        return {name: np.asarray(one.images) * factor + np.float32(low) for name, one in sets.items()}

    def calibrate(self, images: Any, labels: Any = None, accept: float = 0.95, by_class: bool = False) -> "Detector":
        """Sets the threshold: split conformal prediction on known images that neither the model nor `fit` has seen.

        Where there was a threshold before, `warnings` says what is strange about the images under it.

        Args:
            images: Known images; of copies one counts.
            labels: Their classes, which only serve to refuse images that the model hardly ever labels rightly.
            accept: Share of images like these to accept, in (0, 1).
            by_class: Whether each class that the model labels has a threshold of its own, see
                `kood.conformal.Calibration`.

        Returns:
            Itself.

        Raises:
            UserError: no score has been chosen or fitted; images that `fit` has seen; too few images for this share.
        """
        if not (isinstance(accept, Real) and 0 < accept < 1):
            raise UserError(f"accept = {accept}: write a share between 0 and 1, such as 0.95")
        accept, by_class = float(accept), bool(by_class)
        scorer = self._ready()
        known = Known()
        passed = self._run(self._noted(self._batches(images, labels, "calibrate"), known))
        outputs, digests = passed.outputs, known.digests
        label = outputs["logits"].argmax(axis=1)
        if "trained" in self.digests and (again := among(digests, self.digests["trained"])):
            raise UserError(
                f"calibrate: fit has seen {again} of these {len(digests)} images; a threshold set on them accepts less "
                "than it promises, so give images that it has not seen"
            )
        doubts = self.suits("calibrate", label, passed.labels, [] if self._fit_tried else [*known.labelled.values()])
        once = np.sort(np.unique(whole(digests), return_index=True)[1])
        refuse_too_few(len(once), accept, len(digests) - len(once), key="accept", fix="give more images")
        scores, label, old = self._scored(scorer, outputs)[once], label[once], self.decision
        self.decide_by(scores, label, accept, by_class)
        told = self.doubts["calibrate"]
        if old is not None:
            its, flags = old.p_values(scores, label), old.flagged(scores, label)
            told += [doubted(scores, its, flags, label, old.groups, old.accept)]
        told += [*doubts, *unreadable(passed, "calibrate"), *([] if self._fit_read else self._otherwise(known))]
        if len(once) < len(digests):
            told.append(
                f"{len(digests) - len(once):,} calibration images are copies of others, which say nothing new, and are "
                "left out"
            )
        self.doubts["calibrate"] = [text for text in told if text]
        self.digests["calibrated"], self.some = digests, known.some[0]
        low, high = (self.range if "trained" in self.digests else None) or known.range
        self.range = min(low, known.range[0]), max(high, known.range[1])
        return self

    def decide_by(self, scores: np.ndarray, labels: np.ndarray, accept: float, by_class: bool) -> Calibration:
        """Sets the threshold by scores of known images and what these are labelled as.

        Raises:
            UserError: too few for this share, or too many of them without a finite score.
        """
        decision = Calibration(scores, labels, self.num_classes, accept, by_class)
        # Of scores that are no numbers, what is said begins with how many; of too few images, with a key.
        with in_words({r"^(?=\d)": f"{self.key}: {self.score}: "}):
            decision.groups  # noqa: B018 - made here, which refuses too few images.
        lost = int(np.sum(~np.isfinite(scores)))
        told = f"{lost:,} of {len(scores):,} calibration images have no finite {self.score} and count as flagged"
        self.decision, self.doubts["calibrate"] = decision, [told] if lost else []
        return decision

    def _ready(self) -> Scorer:
        scorer = self.scorer
        if not scorer.is_ready:
            raise UserError(f"{self.score} is fitted to known images; call fit(images) first")
        return scorer

    def predict(self, images: Any) -> Answers:
        """What the detector says of images.

        Args:
            images: As the class takes them.

        Raises:
            UserError: it has not been calibrated; images that cannot be read, or of another range than it was
                calibrated on.
        """
        self._ready()
        passed = self._run(self._batches(images))
        told = self.answers(passed.outputs)
        return replace(told, files=passed.files, unreadable=tuple(passed.unreadable))

    def answers(self, outputs: Outputs) -> Answers:
        """What the detector says of outputs that `outputs` gave.

        Raises:
            UserError: it has not been calibrated.
        """
        decision = self._calibrated()
        scores = self._scored(self._ready(), outputs)
        probabilities = softmax(outputs["logits"].astype("float64"))
        label = outputs["logits"].argmax(axis=1)
        judged = np.isfinite(scores) & np.isfinite(probabilities).all(axis=1)
        known = np.where(judged, label, -1)
        names = np.array([*self.class_names, ""], object)
        return Answers(
            label=known,
            class_name=names[known],
            probabilities=np.where(judged[:, None], probabilities, 0.0),
            ood_score=np.where(judged, scores, float(np.finfo(np.float32).max)),
            p_value=np.where(judged, decision.p_values(scores, known), 0.0),
            is_ood=~judged | decision.flagged(scores, label),
            threshold=decision.thresholds[label],
        )

    @property
    def is_own(self) -> bool:
        """Whether the classifier is one of kood's own, which take images in [-1, 1]."""
        return isinstance(self.classifier, Classifier)

    def _calibrated(self) -> Calibration:
        if self.decision is None:
            raise UserError("the detector has no threshold yet; call calibrate(images) first")
        return self.decision

    def evaluate(
        self,
        known: Any,
        near: Mapping[str, Any] | None = None,
        far: Mapping[str, Any] | None = None,
        labels: Any = None,
    ) -> dict[str, Any]:
        """Measures the detector on test images that nothing else has seen.

        Args:
            known: Known images.
            near: Out-of-distribution images that resemble them, by name.
            far: Those that do not.
            labels: The classes of `known`, where it does not bring them.

        Returns:
            {"id", "classes", "scores", "headline_score", "validation", "validation_sets", "threshold", "warnings",
            "notes"} as `report.json` has them. The first warnings are of images that `fit` or `calibrate` has seen, and
            of out-of-distribution images that are among the known ones.

        Raises:
            UserError: as `predict`, or `known` has no labels.
        """
        for kind, given in (("near", near), ("far", far)):
            if given is not None and not isinstance(given, Mapping):
                told = f'give images by name, {kind}={{"name": images}}, not {type(given).__name__}'
                raise UserError(f"evaluate: {kind}: {told}")
        near, far = dict(near or {}), dict(far or {})
        decision = self._calibrated()
        both = {*near} & {*far} | ({*near, *far} & {"id", "near", "far"})
        if both:
            raise UserError(f"evaluate: {', '.join(map(repr, sorted(both)))} cannot name a set here; give another name")
        if labels is not None and isinstance(known, tuple) and not are_files(known):
            raise UserError(
                "evaluate: known is a pair of images and labels, and there are other labels; give one of them"
            )
        if labels is not None:
            known = (known.images if isinstance(known, ImageSet) else known, labels)
        noted: dict[str, np.ndarray] = {}
        measured = self.measure({"id": known, **near, **far}, noted=noted)
        if "id" not in measured.labels:
            raise UserError("evaluate: the known images have no labels; give labels=..., or a folder of class folders")
        self.suits("evaluate", measured.outputs["id"]["logits"].argmax(axis=1), measured.labels["id"])
        assert self.choice is not None
        figures = figures_of(measured, self.choice, decision, self.class_names, list(near), list(far))
        del figures["at_chance"]  # Such a one is refused above.
        return {**figures, "warnings": [*seen_before(noted, self.digests), *figures["warnings"]]}

    def save(self, path: str | Path) -> None:
        """Writes the detector to one file: its classifier, its scores, its threshold.

        Args:
            path: Usually NAME.kood; a file that is there is written over.

        Raises:
            UserError: the name is one of a Keras model, an export or a SavedModel; it cannot be written there; or the
                classifier cannot be saved, or holds Python code (a Lambda layer), which `load` would not run.
        """
        file.write(self, Path(path))

    @classmethod
    def load(
        cls, path: str | Path, custom_objects: Mapping[str, Any] | None = None, preprocess: Any = None
    ) -> "Detector":
        """Reads what `save` wrote. Nothing that a stranger wrote into the file is run.

        Args:
            path: The file.
            custom_objects: Layers and functions of your own that the classifier is made of, by name.
            preprocess: Where the detector was made with a function, that function again; nothing otherwise.

        Raises:
            UserError: it is no such file, it is damaged, it holds a layer that is not known here, or `preprocess` is
                given and it names no function.
        """
        return file.read(cls, Path(path), custom_objects, preprocess)

    def export(self, path: str | Path, format: str | None = None) -> None:
        """Writes the whole decision for a runtime, and reads it back: it must answer as the detector does, in float32.

        OpenVINO computes in bfloat16 where the processor has it, and answers otherwise then. Its files cannot ask for
        float32, so whoever opens one does:
        `openvino.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})`.

        Args:
            path: A folder that is not there yet, for the SavedModel that `kood run` writes too, such as
                "serving/flowers/1"; or a file that ends in .onnx, .tflite or .xml (OpenVINO).
            format: "tf_saved_model", "onnx", "litert" or "openvino"; by the path where not given.

        Raises:
            UserError: it has not been calibrated, the path is taken or cannot be written, what the format needs is not
                installed, or the export answers otherwise; nothing is left behind then.
        """
        try:
            export.write(self, Path(path), format)
        except OSError as error:
            raise UserError(f"{clean(path)}: cannot be written: {error.strerror}", exit_code=1) from error

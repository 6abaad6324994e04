"""The methods that can label images: CLIPer, and the baselines beside it."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from typing import Any

from cliper.asked import flag
from cliper.baseline_settings import BaselineMethod, BaselineSettings
from cliper.models import ClipSpec, ModelError
from cliper.preprocess import InputSpec
from cliper.protocols import OWN_DATA, find_protocol
from cliper.proxy import proxy_patch_size_px
from cliper.published import Benchmark
from cliper.settings import MethodSettings
from cliper.specs import BaselineSpec, SegmenterSpec
from jobs.common.options import MethodChoice, MethodOptions
from jobs.common.request import find_models
from schemas.embeddings import VocabularyEmbeddings
from schemas.errors import RequestError
from schemas.settings_file import SettingsFile

BASELINE_OPTIONS = {
    "shorter_side_px": "shorter_side_px", "logit_scale": "logit_scale", "background_threshold": "background_threshold",
    "sliding_crop_px": "crop_px",
}  # fmt: skip
"""The options for settings that baselines have too, and the settings' names there."""
SHARED_BACKGROUND_THRESHOLD = 0.1
"""Of all baselines in harness ``shared``: SCLIP's."""


@dataclass(frozen=True)
class Method:
    """A method whose models and settings were found and checked.

    Attributes:
        clip: the CLIP model.
        models: names and revisions of all models, for the manifest.
        settings: all settings, for the manifest.
        cliper: CLIPer's settings; for a baseline those of preset ``release``.
        file: the settings file's content.
        inputs: how images are prepared for CLIP.
        spec: from the vocabulary's embeddings to what the labelling actors need.
        score_thresholds: per class, the score above which it is taken for present.
    """

    clip: ClipSpec
    models: dict[str, object]
    settings: dict[str, Any]
    cliper: MethodSettings
    file: SettingsFile
    inputs: InputSpec
    spec: Callable[[VocabularyEmbeddings], SegmenterSpec]
    score_thresholds: tuple[float, ...]


def find_method(
    choice: MethodChoice,
    options: MethodOptions,
    class_names: Sequence[str],
    background: bool = True,
    benchmark: Benchmark | None = None,
    file: SettingsFile | None = None,
) -> Method:
    """Find a method's models and check its settings.

    Args:
        choice: which method.
        options: models and settings that were given.
        class_names: the vocabulary.
        background: label 0 is a class of its own. Otherwise a baseline gives every pixel a class.
        benchmark: a data set with published settings.
        file: in place of the settings file of the options.

    Raises:
        RequestError: a model cannot be found or a setting does not fit.
    """
    classes, precision = len(class_names), options.precision
    if choice.baseline is None:
        models = find_models(options, class_names, benchmark, file)
        spec = partial(models.spec, precision=precision)
        settings, thresholds = models.settings, models.settings.score_thresholds(classes)
        return Method(
            models.clip, models.manifest(), settings.document(), settings, models.file, models.inputs, spec, thresholds
        )
    given = given_settings(choice, options)
    clip_alone: dict[str, Any] = {"diffusion": "none", "preset": "release", "sliding_crop_px": 0}
    models = find_models(replace(options, **clip_alone), class_names, benchmark, file)
    used_proxy = choice.proxy if choice.method == "proxyclip" else None
    try:
        baseline = replace(default_settings(choice, models.settings, background, benchmark), **given)
        if used_proxy:
            proxy_patch_size_px(used_proxy)
    except ModelError as error:
        raise RequestError(f"--proxy: {error}") from error
    except ValueError as error:
        raise RequestError(str(error)) from error
    manifest = models.manifest() | ({"proxy": used_proxy} if used_proxy else {})
    return Method(
        models.clip, manifest, asdict(baseline), models.settings, models.file,
        baseline.inputs(models.clip.patch_size_px, None),
        partial(baseline_spec, choice.baseline, models.clip, baseline, precision, used_proxy),
        (baseline.score_threshold,) * classes,
    )  # fmt: skip


def baseline_spec(
    method: BaselineMethod, clip: ClipSpec, settings: BaselineSettings, precision: str, proxy: str | None,
    embeddings: VocabularyEmbeddings,
) -> BaselineSpec:  # fmt: skip
    """Raises RequestError: the embeddings have what only CLIPer uses."""
    if embeddings.visual is not None:
        raise RequestError(f"--text-embeddings has what examples show, which is for --method cliper, not {method}")
    return BaselineSpec(method, clip, embeddings, settings, precision, proxy)


def given_settings(choice: MethodChoice, options: MethodOptions) -> dict[str, Any]:
    """The settings of a baseline that were given.

    Raises:
        RequestError: a setting that was given has no effect with the baseline.
    """
    defaults = {option.name: option.default for option in fields(options)}
    models = {"clip", "diffusion", "precision", "preset"}
    given = {
        name: getattr(options, name) for name in defaults.keys() - models if getattr(options, name) != defaults[name]
    }
    unused = given.keys() - BASELINE_OPTIONS.keys()
    if choice.harness == "shared":
        unused |= given.keys() & {"sliding_crop_px"}
    if unused:
        raise RequestError(f"{flag(min(unused))} has no effect with --method {choice.title}")
    return {BASELINE_OPTIONS[name]: value for name, value in given.items()}


def default_settings(
    choice: MethodChoice, cliper: MethodSettings, background: bool, benchmark: Benchmark | None
) -> BaselineSettings:
    """The settings of a baseline in a harness."""
    assert choice.baseline is not None, "CLIPer has settings of its own"
    if choice.harness == "published":
        return find_protocol(choice.baseline, benchmark.name if benchmark else OWN_DATA[background]).settings
    threshold = SHARED_BACKGROUND_THRESHOLD if background else 0.0
    return BaselineSettings(shorter_side_px=cliper.shorter_side_px, background_threshold=threshold)

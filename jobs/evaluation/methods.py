"""The methods that can be evaluated: CLIPer, and the baselines beside it."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, Literal

from cliper.baselines import BaselineMethod, BaselineSettings
from cliper.models import ClipSpec, ModelError
from cliper.proxy import proxy_patch_size_px
from cluster.actors import BaselineSpec, SegmenterSpec
from jobs.common.options import MethodOptions
from jobs.common.request import find_models
from jobs.evaluation.datasets import Dataset
from schemas.embeddings import VocabularyEmbeddings
from schemas.errors import RequestError
from schemas.settings_file import SettingsFile

MethodName = Literal["cliper"] | BaselineMethod
PRESENT_PROBABILITY = 0.5
"""A baseline takes a class for present where its largest probability is above this."""


@dataclass(frozen=True)
class Method:
    """A method whose models and settings were found and checked.

    Attributes:
        clip: the CLIP model.
        models: names and revisions of all models, for the manifest.
        settings: all settings, for the manifest.
        file: the settings file's content.
        spec: from the vocabulary's embeddings to what the labelling actors need.
        score_thresholds: per class, the score above which it is taken for present.
    """

    clip: ClipSpec
    models: dict[str, object]
    settings: dict[str, Any]
    file: SettingsFile
    spec: Callable[[VocabularyEmbeddings], SegmenterSpec]
    score_thresholds: tuple[float, ...]


def find_method(
    name: MethodName, options: MethodOptions, proxy: str, dataset: Dataset, file: SettingsFile | None = None
) -> Method:
    """Find a method's models and check its settings.

    Args:
        name: ``cliper``, or a baseline's.
        options: models and settings that were given. Baselines take SCLIP's and ProxyCLIP's where nothing was given: a
            threshold of 0.1 where background counts.
        proxy: timm's name or folder of ProxyCLIP's second model.
        dataset: the data set.
        file: in place of the settings file of the options.

    Raises:
        RequestError: a model cannot be found or a setting does not fit.
    """
    changes: dict[str, Any] = {} if name == "cliper" else {"diffusion": "none", "preset": "release"}
    models = find_models(replace(options, **changes), dataset.class_names, dataset.benchmark, file)
    classes, settings, precision = len(dataset.classes), models.settings, options.precision
    if name == "cliper":
        thresholds = settings.score_thresholds(classes)
        spec = partial(models.spec, precision=precision)
        return Method(models.clip, models.manifest(), settings.document(), models.file, spec, thresholds)
    given = {"logit_scale": options.logit_scale, "background_threshold": options.background_threshold}
    chosen = {setting: value for setting, value in given.items() if value is not None}
    defaults = {"background_threshold": 0.1 if dataset.background else 0.0}
    used_proxy = proxy if name == "proxyclip" else None
    try:
        baseline = BaselineSettings(shorter_side_px=settings.shorter_side_px, **(defaults | chosen))
        if used_proxy:
            proxy_patch_size_px(used_proxy)
    except ModelError as error:
        raise RequestError(f"--proxy: {error}") from error
    except ValueError as error:
        raise RequestError(str(error)) from error
    manifest = models.manifest() | ({"proxy": used_proxy} if used_proxy else {})
    return Method(
        models.clip, manifest, asdict(baseline), models.file,
        lambda embeddings: BaselineSpec(name, models.clip, embeddings, baseline, precision, used_proxy),
        (PRESENT_PROBABILITY,) * classes,
    )  # fmt: skip

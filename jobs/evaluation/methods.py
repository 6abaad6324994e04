"""The methods that can be evaluated: CLIPer, and the baselines beside it."""

from dataclasses import asdict, dataclass
from typing import Any, Literal, Protocol

from cliper.baselines import BaselineMethod, BaselineSettings
from cliper.models import ClipSpec, ModelError
from cliper.proxy import proxy_patch_size_px
from cliper.settings import class_thresholds
from cluster.actors import BaselineSpec, SegmenterSpec
from jobs.common.options import MethodOptions
from jobs.common.request import Models, find_models
from jobs.evaluation.datasets import Dataset
from schemas.embeddings import VocabularyEmbeddings
from schemas.errors import RequestError
from schemas.settings_file import SettingsFile

MethodName = Literal["cliper"] | BaselineMethod
PRESENT_PROBABILITY = 0.5
"""A baseline takes a class for present where its largest probability is above this."""


class Method(Protocol):
    """A method with its models and settings, found and checked before anything runs."""

    @property
    def clip(self) -> ClipSpec: ...

    def models_manifest(self) -> dict[str, object]:
        """Models and revisions."""

    def settings(self) -> dict[str, Any]:
        """All settings."""

    def spec(self, embeddings: VocabularyEmbeddings) -> SegmenterSpec:
        """What the labelling actors need."""

    def score_thresholds(self, classes: int) -> tuple[float, ...]:
        """Per class, the score above which it is taken for present."""

    def published(self, dataset: Dataset) -> float | None:
        """The published mean IoU in percent; None if there is none."""


@dataclass(frozen=True)
class CliperMethod:
    """CLIPer."""

    models: Models
    precision: str

    @property
    def clip(self) -> ClipSpec:
        return self.models.clip

    def models_manifest(self) -> dict[str, object]:
        return self.models.manifest()

    def settings(self) -> dict[str, Any]:
        return asdict(self.models.settings)

    def spec(self, embeddings: VocabularyEmbeddings) -> SegmenterSpec:
        return self.models.spec(embeddings, self.precision)

    def score_thresholds(self, classes: int) -> tuple[float, ...]:
        settings = self.models.settings
        return class_thresholds(settings.class_score_thresholds, settings.score_threshold, classes)

    def published(self, dataset: Dataset) -> float | None:
        return dataset.published(self.clip, self.models.settings)


@dataclass(frozen=True)
class BaselineRequest:
    """A baseline; nothing is published for it in this harness."""

    method: BaselineMethod
    models: Models
    own: BaselineSettings
    precision: str
    proxy: str | None

    @property
    def clip(self) -> ClipSpec:
        return self.models.clip

    def models_manifest(self) -> dict[str, object]:
        return self.models.manifest() | ({"proxy": self.proxy} if self.proxy else {})

    def settings(self) -> dict[str, Any]:
        return asdict(self.own)

    def spec(self, embeddings: VocabularyEmbeddings) -> SegmenterSpec:
        return BaselineSpec(self.method, self.clip, embeddings, self.own, self.precision, self.proxy)

    def score_thresholds(self, classes: int) -> tuple[float, ...]:
        return (PRESENT_PROBABILITY,) * classes

    def published(self, dataset: Dataset) -> None:
        return None


def find_method(
    name: MethodName, options: MethodOptions, proxy: str, dataset: Dataset, file: SettingsFile | None = None
) -> CliperMethod | BaselineRequest:
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
    if name == "cliper":
        return CliperMethod(find_models(options, dataset.class_names, dataset.benchmark, file), options.precision)
    without_diffusion: dict[str, Any] = vars(options) | {"diffusion": "none"}
    models = find_models(MethodOptions(**without_diffusion), dataset.class_names, dataset.benchmark, file)
    given = {"logit_scale": options.logit_scale, "background_threshold": options.background_threshold}
    chosen = {setting: value for setting, value in given.items() if value is not None}
    defaults = {"background_threshold": 0.1 if dataset.background else 0.0}
    needs_proxy = name == "proxyclip"
    try:
        own = BaselineSettings(shorter_side_px=models.settings.shorter_side_px, **(defaults | chosen))
        if needs_proxy:
            proxy_patch_size_px(proxy)
    except ModelError as error:
        raise RequestError(f"--proxy: {error}") from error
    except ValueError as error:
        raise RequestError(str(error)) from error
    return BaselineRequest(name, models, own, options.precision, proxy if needs_proxy else None)

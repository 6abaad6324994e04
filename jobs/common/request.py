"""The models of a labelling request, found and checked before Ray starts."""

from collections.abc import Sequence

from cliper import resolve
from cliper.published import Benchmark
from cliper.resolve import Models, read_settings_file
from jobs.common.options import MethodOptions
from schemas.settings_file import SettingsFile


def find_models(
    options: MethodOptions,
    class_names: Sequence[str] = (),
    benchmark: Benchmark | None = None,
    file: SettingsFile | None = None,
) -> Models:
    """`cliper.resolve.find_models` for options of the command line.

    Args:
        options: models and settings.
        class_names, benchmark: as there.
        file: replaces the settings file of the options.

    Raises:
        RequestError: a model cannot be found, or a setting does not fit it.
    """
    file = file or read_settings_file(options.settings, class_names)
    return resolve.find_models(options.asked(), file, class_names, benchmark)

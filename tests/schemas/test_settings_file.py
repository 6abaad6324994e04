"""Settings files: written, read again, and refused with a sentence."""

import pytest

from schemas.settings_file import SettingsFile, parse_settings_file

TYPES: dict[str, type] = {"select_layer": int, "logit_scale": float, "normalize_maps": bool}
THRESHOLDS = ("score_threshold", "background_threshold")


def test_what_is_written_is_read_again() -> None:
    classes = {"sky, blue": {"score_threshold": 0.5}, "ü": {"background_threshold": 1.0}}
    file = SettingsFile({"logit_scale": 50}, classes, [{"masks": "/m", "images": ["a.jpg", "ü.jpg"]}])
    assert parse_settings_file(file.to_json(), TYPES, THRESHOLDS) == file


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "it is not JSON"),
        ("[]", "it must be an object with settings, classes or both"),
        ('{"other": {}}', "it must be an object"),
        ('{"settings": []}', "must be objects"),
        (
            '{"settings": {"logit_scal": 5}}',
            "there is no setting 'logit_scal': choose from select_layer, logit_scale, normalize_maps",
        ),
        ('{"settings": {"logit_scale": "5"}}', "logit_scale must be of type float, not '5'"),
        ('{"settings": {"logit_scale": true}}', "logit_scale must be of type float"),
        ('{"settings": {"select_layer": 1.5}}', "select_layer must be of type int"),
        ('{"settings": {"normalize_maps": 1}}', "normalize_maps must be of type bool"),
        ('{"classes": {"cat": 0.5}}', "class 'cat' can have score_threshold and background_threshold"),
        ('{"classes": {"cat": {"score": 0.5}}}', "class 'cat' can have"),
        ('{"classes": {"cat": {"score_threshold": null}}}', "thresholds of class 'cat' must be numbers"),
        ('{"tuned_on": {}}', "tuned_on must be a list of objects with masks and images"),
        ('{"tuned_on": [{"masks": "/m", "images": "all"}]}', "tuned_on must be a list"),
        ('{"tuned_on": [{"masks": "/m", "images": [1]}]}', "tuned_on must be a list"),
    ],
)
def test_wrong_files_are_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_settings_file(text, TYPES, THRESHOLDS)


def test_images_that_a_file_was_tuned_on_are_known_again() -> None:
    file = SettingsFile(tuned_on=[{"masks": "/m", "images": ["a", "b"]}, {"masks": "/m", "images": ["c"]}])
    assert file.images_seen("/m", ["b", "c", "d"]) == 2
    assert file.images_seen("/other", ["a", "b"]) == 0

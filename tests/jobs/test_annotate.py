"""Wrong requests: one sentence, exit code 2, no traceback, and Ray is never started."""

from pathlib import Path

import numpy as np
import pytest

from cliper.vocabulary import read_vocabulary
from jobs.annotate import main
from schemas.embeddings import VocabularyEmbeddings, embeddings_to_bytes
from schemas.vocabulary import packaged_background, parse_vocabulary
from tests.support.corpora import sample_images, write_folder
from tests.support.jobs import VOCABULARY, refusal, tiny_flags


@pytest.fixture
def request_flags(tmp_path: Path, tiny_clip: Path, tiny_diffusion: Path) -> list[str]:
    """A request that is right."""
    corpus = write_folder(tmp_path / "in", sample_images(2))
    flags = tiny_flags(tmp_path, tiny_clip, tiny_diffusion)
    return ["--input", str(corpus), "--output", str(tmp_path / "out"), *flags]


def wide_embeddings() -> bytes:
    names = tuple(entry.name for entry in parse_vocabulary(VOCABULARY))
    rows = np.eye(len(names), 5, dtype=np.float32)
    return embeddings_to_bytes(VocabularyEmbeddings(rows, names, rows[:1], ("wall",)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["--vocab", "{tmp}/missing.txt"], "--vocab {tmp}/missing.txt cannot be read: it does not exist"),
        (["--vocab", "{tmp}"], "cannot be read: Is a directory"),
        (["--vocab", "{tmp}/twice.txt"], "line 2: class 'cat' is already on line 1"),
        (["--vocab", "{tmp}/empty.txt"], "there is no class in it"),
        (["--vocab", "{tmp}/latin1.txt"], "it is not UTF-8 text (byte 1)"),
        (["--background", "{tmp}/twice.txt"], "--background {tmp}/twice.txt: line 2"),
        (["--templates", "{tmp}/twice.txt"], "line 1 has no {} to put the class name into"),
        (["--templates", "unknown"], "--templates unknown cannot be read"),
        (["--input", "{tmp}/nothing"], "--input {tmp}/nothing: it does not exist"),
        (["--input", "{tmp}/hollow"], "is empty: it has no tar shards"),
        (["--format", "tar"], "has no files for --format tar"),
        (["--output", "{tmp}/empty.txt/out"], "cannot be used: Not a directory"),
        (["--output", "{tmp}/in"], "lies in --output {tmp}/in: choose another folder"),
        (["--output", "{tmp}/hollow/.."], "lies in --output"),
        (["--output", "{tmp}/foreign"], "holds files that are no output of this job (such as thesis.txt)"),
        (["--output", "/proc/nowhere"], "--output /proc/nowhere cannot be used"),
        (["--clip", "ViT-Z-99"], "CLIP model 'ViT-Z-99' is unknown"),
        (["--clip", "RN50:openai"], "has no plain vision transformer"),
        (["--clip", "local-dir:{tmp}/in"], "has no file open_clip_config.json"),
        (["--diffusion", "{tmp}/in"], "has no folder vae/"),
        (["--diffusion", "local-dir:{tmp}/nowhere"], "has no folder vae/"),
        (["--compensation", "head", "--head", "4"], "head must be below 4"),
        (["--select-layer", "9"], "select_layer must be between -4 and 3"),
        (["--windows", "average", "--sliding-crop-px", "100"], "do not fall on the encoder's grid"),
        (["--logit-scale", "-1"], "logit_scale must be between"),
        (["--batch-size", "0"], "--batch-size must be at least 1 and at most 1,000,000, not 0"),
        (["--rows-per-file", "9223372036854775808"], "--rows-per-file must be at least 1 and at most 1,000,000"),
        (["--picture-timeout-s", "inf"], "--picture-timeout-s must be above 0 and at most 1,000,000,000, not inf"),
        (["--follow", "0"], "--follow must be between 1 and 86400 seconds, not 0"),
        (["--follow", "5", "--plan"], "--follow labels without end: leave out --try and --plan"),
        (["--input", ""], "--input is missing: give it, or set CLIPER_INPUT"),
        (["--vocab", "{tmp}/utf16.txt"], "it is not UTF-8 text (it has null characters, as UTF-16 has)"),
        (["--text-embeddings", "{tmp}/wide.safetensors"], "has 5 dimensions, and "),
        (["--limit", "-3"], "--limit must be at least 1"),
        (["--gpus-per-actor", "-1"], "--gpus-per-actor must be between 0 and 1 or a whole number, not -1"),
        (["--gpus-per-actor", "1.5"], "--gpus-per-actor must be between 0 and 1 or a whole number, not 1.5"),
        (["--gpus-per-actor", "nan"], "--gpus-per-actor must be between 0 and 1 or a whole number, not nan"),
        (["--text-embeddings", "{tmp}/empty.txt"], "it is not a safetensors file"),
        (["--input", "s3://key:secret@bucket/x"], "--input carries credentials"),
    ],
)
def test_wrong_requests(changes: list[str], message: str, request_flags: list[str], tmp_path: Path) -> None:
    (tmp_path / "twice.txt").write_text("cat\ncat\n")
    (tmp_path / "empty.txt").write_text("# nothing\n")
    (tmp_path / "latin1.txt").write_bytes("gnädig".encode("latin-1")[1:])
    (tmp_path / "utf16.txt").write_bytes("cat\n".encode("utf-16-le"))
    (tmp_path / "wide.safetensors").write_bytes(wide_embeddings())
    (tmp_path / "hollow").mkdir()
    write_folder(tmp_path, {"foreign/thesis.txt": b"years of work"})
    filled = [change.replace("{tmp}", str(tmp_path)) for change in changes]
    sentence = refusal(main, *request_flags, *filled)
    assert message.replace("{tmp}", str(tmp_path)) in sentence
    assert "secret" not in sentence


def test_other_settings_on_the_same_output(request_flags: list[str], tmp_path: Path) -> None:
    sentence = refusal(main, *request_flags, "--address", "127.0.0.1:1")  # claims the output, then finds no cluster
    assert "no Ray cluster answers there" in sentence
    sentence = refusal(main, *request_flags, "--score-threshold", "0.9")
    assert "was begun with another request (changed: settings.score_threshold)" in sentence


def test_background_words_are_common_ones_a_file_or_none(tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_text("cat\n")
    file = tmp_path / "background.txt"
    file.write_text("floor\nceiling\n")
    read = [
        read_vocabulary(str(tmp_path / "vocab.txt"), background, "car", None, preset).background
        for preset, background in (
            ("release", None),
            ("open", None),
            ("open", str(file)),
            ("open", "none"),
            ("release", f"+{file}"),
        )
    ]
    common = packaged_background("voc")
    own = ("floor", "ceiling")
    assert read == [common, packaged_background("world"), own, (), (*common, *own)]


def test_a_missing_vocabulary_flag(request_flags: list[str]) -> None:
    at = request_flags.index("--vocab")
    assert "--vocab is missing" in refusal(main, *request_flags[:at], *request_flags[at + 2 :])


def test_unknown_flags_exit_with_2(request_flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main([*request_flags, "--colour", "red"])
    assert caught.value.code == 2
    assert "--colour" in capsys.readouterr().err


def test_every_flag_that_others_rely_on_is_there(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    flags = """--input --output --vocab --background --format --clip --diffusion --text-embeddings --preset --attention
        --early-embeddings --no-early-embeddings --compensation --head --shorter-side-px --select-layer --logit-scale
        --attention-threshold --score-threshold --background-threshold --normalize-maps --no-normalize-maps
        --sliding-crop-px --templates --batch-size --actors --gpus-per-actor --precision --limit
        --overwrite --address"""
    assert [flag for flag in flags.split() if flag not in text] == []

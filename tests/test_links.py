"""What is copied beside a model: no file outside of its folder, and over no file of another model."""

import json

import pytest

from roast_export.errors import ExportError, LoadError
from roast_export.huggingface.beside import copy_beside, copy_config, copy_pipeline
from roast_export.huggingface.folder import Folder


def test_a_link_out_of_the_folder_is_refused(tmp_path):
    folder, target = tmp_path / "model", tmp_path / "out"
    folder.mkdir()
    target.mkdir()
    (tmp_path / "secret").write_text("secret")
    (folder / "tokenizer.json").symlink_to("../secret")
    with pytest.raises(LoadError, match=r"tokenizer\.json is a link out of"):
        copy_beside(Folder(folder, {}), target)
    assert not list(target.iterdir())


def test_control_links_of_the_hubs_cache_and_within_the_folder_are_copied(tmp_path):
    folder, target = tmp_path / "snapshots" / "a1", tmp_path / "out"
    for made in (folder, target, tmp_path / "blobs"):
        made.mkdir(parents=True)
    (tmp_path / "blobs" / "b2").write_text("{}")
    (folder / "tokenizer.json").symlink_to("../../blobs/b2")
    (folder / "tokenizer_config.json").symlink_to("tokenizer.json")
    copy_beside(Folder(folder, {}), target)
    assert sorted(path.name for path in target.iterdir()) == ["tokenizer.json", "tokenizer_config.json"]


@pytest.mark.parametrize("place", ["modules.json", "1_Pooling", "1_Pooling/config.json"])
def test_a_link_out_of_a_pipeline_is_refused(tmp_path, place):
    folder, target = tmp_path / "model", tmp_path / "out"
    (folder / "1_Pooling").mkdir(parents=True)
    target.mkdir()
    (folder / "modules.json").write_text(json.dumps([{"path": ""}, {"path": "1_Pooling"}]))
    (folder / "1_Pooling" / "config.json").write_text("{}")
    pipeline = Folder(folder, {}, pipeline=folder)
    assert copy_pipeline(pipeline, target) == target
    assert (target / "1_Pooling" / "config.json").is_file()
    outside = tmp_path / "outside"
    (folder / place).rename(outside)
    (folder / place).symlink_to(outside)
    with pytest.raises(LoadError, match="is a link out of"):
        copy_pipeline(pipeline, tmp_path)


@pytest.mark.parametrize("content", ['{"model_type": "gpt2"}', "{}", "no JSON"])
def test_the_config_of_another_model_stays(tmp_path, content):
    stage, output = tmp_path / "stage", tmp_path / "out"
    stage.mkdir()
    output.mkdir()
    folder = Folder(tmp_path, {"model_type": "bert"})
    copy_config(folder, stage, output)
    assert json.loads((stage / "config.json").read_text()) == {"model_type": "bert"}
    (output / "config.json").write_text('{"model_type": "bert", "of": "an earlier export"}')
    copy_config(folder, stage, output)
    (output / "config.json").write_text(content)
    with pytest.raises(ExportError, match=r"config\.json is of another model"):
        copy_config(folder, stage, output)


def test_a_link_that_leads_nowhere_is_not_written_through(tmp_path):
    folder, stage, output = tmp_path / "model", tmp_path / "stage", tmp_path / "out"
    for made in (folder, stage, output):
        made.mkdir()
    (folder / "tokenizer.json").write_text("{}")
    (output / "tokenizer.json").symlink_to("../elsewhere")
    copy_beside(Folder(folder, {}), stage, output)
    assert not list(stage.iterdir())
    assert not (tmp_path / "elsewhere").exists()

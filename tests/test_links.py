"""Files that links of a model's folder lead to outside of it are not copied."""

import pytest

from roast_export.errors import LoadError
from roast_export.huggingface.beside import copy_beside
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

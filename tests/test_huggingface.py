"""Folders of transformers models: compressed, written, loaded, exported, verified, refused."""

from __future__ import annotations

import json
import shutil

import numpy as np
import onnxruntime
import pytest
import torch
import transformers
from click.testing import CliRunner
from safetensors.torch import load_file

from roast_export import InputError, cli, compress, huggingface
from roast_export.errors import LoadError
from roast_export.huggingface.fidelity import Fidelity
from roast_export.huggingface.folder import open_folder
from roast_export.huggingface.sentence import MODES, Pooling
from roast_export.huggingface.tasks import TASKS, task_of
from roast_export.modules import virtual_weights
from tests.huggingface_models import VOCABULARY, bert, dense_folder, sentence_folder

PLAIN = ["--runtime", "onnxruntime portable"]
SMALL = ["--ratio", "4", "--min-params", "512"]


def run(command, *arguments):
    return CliRunner().invoke(command, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    """(dense folder, compressed folder, what roast-compress said) of a sentence-transformers pipeline."""
    path = tmp_path_factory.mktemp("sentences")
    dense = sentence_folder(path / "dense")
    result = run(cli.compress_command, dense, *SMALL, "-o", path / "small")
    assert result.exit_code == 0, result.output
    return dense, path / "small", result.output


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    """A compressed classifier and the folder that its save_pretrained wrote."""
    path = tmp_path_factory.mktemp("classifier") / "small"
    model = compress(bert(), 4, min_params=512)
    model.save_pretrained(path)
    return model, path


def ids(rows=2, tokens=7, seed=1):
    return torch.randint(5, VOCABULARY, (rows, tokens), generator=torch.Generator().manual_seed(seed))


def test_the_one_line_route_of_a_sentence_model(pipeline, tmp_path):
    """Compress, export into a folder, and run it in plain onnxruntime: mean pooling is in the file."""
    _, small, _ = pipeline
    result = run(cli.export_command, small, "-o", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert "PASSED" in result.output
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"model.onnx", "tokenizer.json", "tokenizer_config.json", "config.json"} <= names
    assert "quantization_config" not in json.loads((tmp_path / "out" / "config.json").read_text())
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    batch = tokenizer(["the cat is old", "a dog"], padding=True, return_tensors="np")
    feeds = {name: batch[name].astype(np.int64) for name in ("input_ids", "attention_mask", "token_type_ids")}
    session = onnxruntime.InferenceSession(tmp_path / "out" / "model.onnx")
    assert [i.name for i in session.get_inputs()] == ["input_ids", "attention_mask", "token_type_ids"]
    assert session.get_inputs()[0].shape == ["batch_size", "sequence_length"]
    tokens, sentences = session.run(["token_embeddings", "sentence_embedding"], feeds)
    model = huggingface.from_pretrained(small)
    with torch.no_grad():
        hidden = model(**{name: torch.from_numpy(value) for name, value in feeds.items()}).last_hidden_state
    mask = torch.from_numpy(feeds["attention_mask"]).unsqueeze(-1)
    assert mask.sum() < mask.numel()
    mean = torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1))
    assert np.abs(tokens - hidden.numpy()).max() < 1e-4
    assert np.abs(sentences - mean.numpy()).max() < 1e-5
    # Control: the mean over padding too is another vector.
    assert np.abs(sentences - torch.nn.functional.normalize(hidden.mean(1)).numpy()).max() > 1e-3
    verified = run(cli.verify_command, small, tmp_path / "out" / "model.onnx", *PLAIN)
    assert verified.exit_code == 0, verified.output


def test_compress_says_what_it_cost_and_what_to_do(pipeline):
    _, small, said = pipeline
    assert "mean cosine of" in said
    assert "on 8 sentences" in said
    assert "fine-tune it, or distil it from the dense model" in said
    assert "fine-tune" not in Fidelity("x", 0.995, 8, True).sentence(2, "m")
    assert "lost part of what" in Fidelity("x", 0.9, 8, True).sentence(2, "m")
    assert "lost what" in Fidelity("x", 0.1, 8, True).sentence(2, "m")
    for name in ("modules.json", "1_Pooling/config.json", "tokenizer.json"):
        assert (small / name).is_file()


def test_a_file_of_another_model_is_refused(classifier, tmp_path):
    """Control of roast-verify: the same architecture with other weights does not pass."""
    _, small = classifier
    assert run(cli.export_command, small, "-o", tmp_path / "a.onnx", "--no-verify").exit_code == 0
    assert run(cli.verify_command, small, tmp_path / "a.onnx", *PLAIN).exit_code == 0
    other = bert()
    with torch.no_grad():
        other.classifier.bias += 0.01
    compress(other, 4, min_params=512).save_pretrained(tmp_path / "other")
    assert run(cli.verify_command, tmp_path / "other", tmp_path / "a.onnx", *PLAIN).exit_code == 2


def test_inspect_shows_dense_and_compressed_folders(pipeline):
    dense, small, _ = pipeline
    assert "virtual parameters" in run(cli.inspect_command, small).output
    assert "0 virtual parameters" in run(cli.inspect_command, dense).output


@pytest.mark.parametrize("options", [{}, {"local": True}, {"memory_dtype": torch.float16}], ids=str)
@pytest.mark.parametrize("name", ["BertForMaskedLM", "BertModel"])
def test_a_folder_loads_again_with_equal_bits(name, options, tmp_path):
    model = compress(bert(name), 4, min_params=512, **options)
    model.save_pretrained(tmp_path)
    again = huggingface.from_pretrained(tmp_path, attention="sdpa")
    assert type(again).__name__ == name
    ours, theirs = virtual_weights(model), virtual_weights(again)
    assert list(ours) == list(theirs)
    assert all(torch.equal(ours[key](), theirs[key]()) for key in ours)
    assert len({id(weight) for weight in ours.values()}) == len({id(weight) for weight in theirs.values()})
    assert len({id(p) for p in model.parameters()}) == len({id(p) for p in again.parameters()})
    assert torch.equal(model(ids())[0], again(ids())[0])


def test_a_folder_in_several_files_loads_again(tmp_path):
    model = compress(bert("BertForMaskedLM"), 4, min_params=512)
    model.save_pretrained(tmp_path, max_shard_size="12KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    assert torch.equal(
        huggingface.from_pretrained(tmp_path, attention="sdpa")(ids()).logits, model(ids()).logits
    )


def test_a_base_model_without_its_pooler_has_none(tmp_path):
    """transformers would draw one at random; what else is missing is refused."""
    base = compress(bert("BertForMaskedLM"), 4, min_params=512).bert
    base.save_pretrained(tmp_path)
    again = huggingface.from_pretrained(tmp_path, attention="sdpa")
    assert torch.equal(again(ids()).last_hidden_state, base(ids()).last_hidden_state)
    assert again(ids()).pooler_output is None
    again.save_pretrained(tmp_path / "again")
    assert torch.equal(
        huggingface.from_pretrained(tmp_path / "again", attention="sdpa")(ids())[0], again(ids())[0]
    )


def test_a_bfloat16_model_stays_one(tmp_path):
    model = compress(bert().bfloat16(), 4, min_params=512)
    model.save_pretrained(tmp_path)
    again = huggingface.from_pretrained(tmp_path, attention="sdpa")
    assert again.dtype == model.dtype == torch.bfloat16
    assert torch.equal(model(ids()).logits, again(ids()).logits)


def test_transformers_itself_loads_a_folder_after_register(classifier):
    model, path = classifier
    huggingface.register()
    again = transformers.AutoModelForSequenceClassification.from_pretrained(path)
    assert torch.equal(model(ids()).logits, again(ids()).logits)


def test_a_transformers_that_does_not_know_us_stops(classifier, tmp_path):
    """Without the plugin it must not go on with weights drawn at random."""
    _, path = classifier
    shutil.copytree(path, tmp_path / "m")
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    del config["quantization_config"]
    (tmp_path / "m" / "config.json").write_text(json.dumps(config))
    with pytest.raises(RuntimeError, match="size"):
        transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "m")


def test_weights_hold_each_array_once(classifier):
    model, path = classifier
    state = load_file(path / "model.safetensors")
    arrays = [key for key in state if key.endswith(".memory")]
    assert len(arrays) == 1
    stored = sum(value.nbytes for value in state.values())
    parameters = sum(parameter.nbytes for parameter in {id(p): p for p in model.parameters()}.values())
    assert stored < parameters + 20_000
    fresh = compress(bert(), 4, min_params=512, init="fresh", seed=0)
    fresh.load_state_dict(state)
    assert torch.equal(fresh(ids()).logits, model(ids()).logits)


def test_methods_of_transformers_work_or_are_refused_by_name(classifier):
    model = compress(bert("BertForMaskedLM"), 4, min_params=512)
    before = model(ids()).logits
    model.tie_weights()
    assert torch.equal(model(ids()).logits, before)
    assert model.get_input_embeddings()(ids()).shape == (2, 7, 32)
    assert model.resize_token_embeddings() is model.get_input_embeddings()
    with pytest.raises(InputError, match=r"word_embeddings.weight is virtual.*dense model, then compress"):
        model.resize_token_embeddings(VOCABULARY + 2)
    with pytest.raises(InputError, match="virtual"):
        model.bert.resize_token_embeddings(VOCABULARY + 2)
    kept = compress(bert("BertForMaskedLM"), 4, min_params=512, exclude="*word_embeddings*")
    assert kept.resize_token_embeddings(VOCABULARY + 2).weight.shape == (VOCABULARY + 2, 32)


def test_the_task_is_what_config_json_says(classifier, pipeline):
    folder = open_folder(classifier[1])
    assert task_of(folder) is TASKS["text-classification"]
    assert task_of(folder, "feature-extraction") is TASKS["feature-extraction"]
    assert task_of(open_folder(pipeline[0])) is TASKS["sentence-similarity"]
    with pytest.raises(InputError, match="no layers for it; it can do text-classification"):
        task_of(folder, "fill-mask")
    with pytest.raises(InputError, match="'poetry' is not known; one of text-classification"):
        task_of(folder, "poetry")


def test_a_dense_folder_is_refused_with_the_next_step(pipeline, tmp_path):
    result = run(cli.export_command, pipeline[0], "-o", tmp_path / "x.onnx")
    assert result.exit_code == 1
    assert "roast-compress" in result.output
    assert "--ratio" in result.output
    assert not (tmp_path / "x.onnx").exists()


def broken(path, name, **config):
    folder = dense_folder(bert(), path / name)
    stored = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(stored | config))
    return folder


def test_folders_that_cannot_be_opened_are_refused_by_name(tmp_path, classifier):
    own = broken(tmp_path, "own", architectures=["OwnModel"], auto_map={"AutoModel": "own.OwnModel"})
    (own / "own.py").write_text("raise SystemExit('this code must not run')")
    with pytest.raises(LoadError, match="code of its own, which is never run"):
        huggingface.from_pretrained(own)
    with pytest.raises(LoadError, match="quantised with gptq"):
        huggingface.from_pretrained(broken(tmp_path, "gptq", quantization_config={"quant_method": "gptq"}))
    with pytest.raises(LoadError, match=r"lacks .* of the weights of BertForMaskedLM"):
        huggingface.from_pretrained(broken(tmp_path, "head", architectures=["BertForMaskedLM"]))
    with pytest.raises(LoadError, match="names no architecture"):
        huggingface.from_pretrained(broken(tmp_path, "none", architectures=None))
    adapter = broken(tmp_path, "adapter")
    (adapter / "adapter_config.json").write_text("{}")
    with pytest.raises(LoadError, match="merge_and_unload"):
        huggingface.from_pretrained(adapter)
    with pytest.raises(LoadError, match="is no folder"):
        huggingface.from_pretrained(tmp_path / "nothing")
    damaged = tmp_path / "damaged"
    shutil.copytree(classifier[1], damaged)
    stored = json.loads((damaged / "config.json").read_text())
    stored["quantization_config"]["arrays"][0].append("bert.encoder.layer.0.output.dense.bias")
    (damaged / "config.json").write_text(json.dumps(stored))
    with pytest.raises(LoadError, match="lacks"):
        huggingface.from_pretrained(damaged)


def test_pickled_weights_need_trust(tmp_path):
    model = bert()
    folder = dense_folder(model, tmp_path / "m")
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(LoadError, match="add --trust"):
        huggingface.from_pretrained(folder)
    again = huggingface.from_pretrained(folder, trust=True, attention="sdpa")
    assert torch.equal(again(ids()).logits, model(ids()).logits)


def test_an_output_that_is_there_is_left_alone(pipeline, tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "mine.txt").write_text("mine")
    result = run(cli.compress_command, pipeline[0], *SMALL, "-o", tmp_path / "there")
    assert result.exit_code == 1
    assert [path.name for path in (tmp_path / "there").iterdir()] == ["mine.txt"]
    assert run(cli.compress_command, pipeline[1], *SMALL, "-o", tmp_path / "again").exit_code == 1
    assert not (tmp_path / "again").exists()


@pytest.mark.parametrize("mode", MODES)
def test_pooling_sees_no_padding(mode):
    """Rows of several lengths give what each row gives alone; with a mask of ones, they do not."""
    tokens, mask = torch.randn(3, 6, 4, generator=torch.Generator().manual_seed(0)), torch.zeros(3, 6).long()
    lengths = (6, 4, 1)
    for row, length in enumerate(lengths):
        mask[row, :length] = 1
    pool = Pooling((mode,))
    found = pool(tokens, mask)
    alone = torch.cat([pool(tokens[r : r + 1, :n], mask[r : r + 1, :n]) for r, n in enumerate(lengths)])
    assert torch.allclose(found, alone, atol=1e-6)
    assert mode == "cls" or not torch.allclose(pool(tokens, torch.ones_like(mask)), alone, atol=1e-3)

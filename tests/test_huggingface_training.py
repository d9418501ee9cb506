"""Training of compressed transformers models: checkpoints of Trainer, and adapters of PEFT."""

from __future__ import annotations

import onnxruntime
import pytest
import torch
import transformers

from roast_export import InputError, compress, export, huggingface
from roast_export.huggingface.task_model import TaskModel
from tests.huggingface_models import VOCABULARY, bert


class Sentences(torch.utils.data.Dataset):
    """Eight rows of random tokens in two classes."""

    def __len__(self):
        return 8

    def __getitem__(self, k):
        ids = torch.randint(5, VOCABULARY, (6,), generator=torch.Generator().manual_seed(k))
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": torch.tensor(k % 2)}


def trainer(model, folder):
    arguments = transformers.TrainingArguments(
        output_dir=str(folder),
        max_steps=4,
        save_steps=2,
        per_device_train_batch_size=4,
        learning_rate=1e-2,
        lr_scheduler_type="constant",
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
    )
    return transformers.Trainer(model, arguments, train_dataset=Sentences())


def test_trainer_saves_checkpoints_and_goes_on_from_them(tmp_path):
    pytest.importorskip("accelerate")
    model = compress(bert(), 4, min_params=512)
    ids = Sentences()[3]["input_ids"][None]
    before = model(ids).logits
    trainer(model, tmp_path).train()
    trained = model.eval()(ids).logits
    assert (trained - before).abs().max() > 1e-3
    last = huggingface.from_pretrained(tmp_path / "checkpoint-4", attention="sdpa")
    assert torch.equal(last(ids).logits, trained)
    # Control: the checkpoint of two steps before holds another model, from which the last one is reached.
    middle = huggingface.from_pretrained(tmp_path / "checkpoint-2", attention="sdpa")
    assert not torch.equal(middle(ids).logits, trained)
    resumed = compress(bert(), 4, min_params=512)
    trainer(resumed, tmp_path).train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert torch.equal(resumed.eval()(ids).logits, trained)


def adapted(model):
    """The model with a LoRA adapter whose values are random."""
    peft = pytest.importorskip("peft")
    names = ["query", "word_embeddings", "dense"]
    found = peft.get_peft_model(model, peft.LoraConfig(target_modules=names, r=4))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in found.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=0.3, generator=generator)
    return found.eval()


def test_adapters_are_trained_saved_and_exported_and_never_merged(tmp_path):
    peft = pytest.importorskip("peft")
    model = compress(bert(attn_implementation="eager"), 4, min_params=512)
    batch = {name: Sentences()[3][name][None] for name in ("input_ids", "attention_mask")}
    before = model(**batch).logits
    with_adapter = adapted(model)
    expected = with_adapter(**batch).logits
    assert (expected - before).abs().max() > 1e-2
    gradients = torch.autograd.grad(
        expected.sum(), [p for p in with_adapter.parameters() if p.requires_grad], allow_unused=True
    )
    assert sum(g is not None and bool(g.any()) for g in gradients) > 5
    for merge in (with_adapter.merge_adapter, with_adapter.merge_and_unload):
        for safe in (False, True):
            with pytest.raises(InputError, match="nor an adapter merged into it; merge into the dense model"):
                merge(safe_merge=safe)
    assert torch.equal(with_adapter(**batch).logits, expected)
    with_adapter.save_pretrained(tmp_path / "adapter")
    fresh = compress(bert(attn_implementation="eager"), 4, min_params=512)
    again = peft.PeftModel.from_pretrained(fresh, tmp_path / "adapter").eval()
    assert torch.equal(again(**batch).logits, expected)
    # The file holds base and adapter: compared by the proof, and here by hand.
    report = export(TaskModel(with_adapter, ("logits",)), tmp_path / "m.onnx", example_inputs=batch)
    assert report.passed
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx")
    [found] = session.run(["logits"], {name: value.numpy() for name, value in batch.items()})
    assert (torch.from_numpy(found) - expected).abs().max() < 1e-5


def test_the_data_of_a_virtual_weight_cannot_be_set():
    model = compress(bert(), 4, min_params=512)
    layer = model.bert.encoder.layer[0].output.dense
    weight = layer.weight
    assert torch.equal(weight.data, layer.virtual["weight"]())
    assert type(weight + 1) is torch.Tensor
    with pytest.raises(InputError, match="cannot be set"):
        layer.weight.data += 1
    with pytest.raises(InputError, match="cannot be set"):
        layer.weight.data = torch.zeros_like(weight)
    # Control: a dense weight takes it.
    model.classifier.weight.data += 1

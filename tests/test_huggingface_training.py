"""Trainer of transformers saves checkpoints of a compressed model and goes on from them."""

from __future__ import annotations

import pytest
import torch
import transformers

from roast_export import compress, huggingface
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

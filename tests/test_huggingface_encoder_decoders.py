"""Models of an encoder and a decoder: two files generate in plain onnxruntime what transformers does."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
import torch
import transformers
from click.testing import CliRunner

from roast_export import InputError, cli, compress, huggingface
from roast_export.huggingface.parts import parts_of
from roast_export.huggingface.tasks import TASKS
from tests.huggingface_models import dense_folder, seeded

VOCABULARY, NEW = 99, 10
T5 = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 1, "num_heads": 4}
SPECIAL = {"pad_token_id": 0, "eos_token_id": None, "decoder_start_token_id": 0}
TOWER = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4}


def t5():
    return seeded(
        transformers.T5ForConditionalGeneration,
        transformers.T5Config(vocab_size=VOCABULARY, **T5, **SPECIAL),
    )


def clip():
    return transformers.CLIPModel(
        transformers.CLIPConfig(
            text_config={"vocab_size": 99, **TOWER},
            vision_config={"image_size": 16, "patch_size": 8, **TOWER},
        )
    )


def run(command, *arguments):
    return CliRunner().invoke(command, [str(argument) for argument in arguments])


def generate(out, prompt, mask):
    """NEW greedy tokens after the start token: int64[batch, NEW]."""
    encoder, decoder = (
        onnxruntime.InferenceSession(out / f"{name}_model.onnx") for name in ("encoder", "decoder")
    )
    [states] = encoder.run(["last_hidden_state"], {"input_ids": prompt, "attention_mask": mask})
    tokens = np.zeros((len(prompt), 1), np.int64)
    for _ in range(NEW):
        feeds = {"input_ids": tokens, "encoder_hidden_states": states, "encoder_attention_mask": mask}
        [logits] = decoder.run(["logits"], feeds)
        tokens = np.concatenate([tokens, logits[:, -1:].argmax(-1)], 1)
    return tokens[:, 1:]


def test_two_files_generate_what_transformers_does(tmp_path):
    model = t5()
    with torch.no_grad():
        # With weights as small as a fresh model has, one token follows for ever.
        for parameter in model.parameters():
            parameter *= 12 if parameter.dim() == 2 else 1
    dense = dense_folder(model, tmp_path / "dense")
    said = run(cli.compress_command, dense, "--ratio", 4, "--min-params", 512, "-o", tmp_path / "small")
    assert said.exit_code == 0, said.output
    assert "The output last_hidden_state of the compressed model has a mean cosine of" in said.output
    one = run(cli.export_command, tmp_path / "small", "-o", tmp_path / "one.onnx")
    assert one.exit_code == 1
    assert "encoder_model.onnx, decoder_model.onnx; name a folder with -o" in one.output
    out = tmp_path / "out"
    result = run(cli.export_command, tmp_path / "small", "-o", out, "--report", tmp_path / "r.json")
    assert result.exit_code == 0, result.output
    assert {path.name for path in tmp_path.glob("r*")} == {"r-encoder_model.json", "r-decoder_model.json"}
    prompt = torch.randint(1, VOCABULARY, (2, 7), generator=torch.Generator().manual_seed(2))
    mask = torch.ones_like(prompt)
    prompt[1, 4:], mask[1, 4:] = 0, 0
    small = huggingface.from_pretrained(tmp_path / "small")
    wanted = small.generate(prompt, attention_mask=mask, max_new_tokens=NEW, do_sample=False)[:, 1:].numpy()
    assert wanted.shape == (2, NEW)
    assert len(set(wanted.flatten())) > 3
    assert (generate(out, prompt.numpy(), mask.numpy()) == wanted).all()
    # Control: where padding counts, other tokens come.
    assert (generate(out, prompt.numpy(), np.ones_like(mask.numpy())) != wanted)[1].any()


def test_what_is_not_exported_is_refused_by_name(tmp_path):
    model = compress(t5(), 4, min_params=512)
    with pytest.raises(InputError, match=r"T5ForConditionalGeneration .* without a cache: leave --task out"):
        parts_of(None, model, TASKS["text2text-generation-with-past"])
    dense = dense_folder(clip(), tmp_path / "clip")
    said = run(cli.compress_command, dense, "--ratio", 4, "--min-params", 512, "-o", tmp_path / "small")
    assert said.exit_code == 0, said.output
    assert "was not measured: CLIPModel takes pixel_values beside text" in said.output
    result = run(cli.export_command, tmp_path / "small", "-o", tmp_path / "x.onnx")
    assert result.exit_code == 1
    assert "CLIPModel takes pixel_values beside text" in result.output

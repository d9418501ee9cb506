"""Models of an encoder and a decoder: three files generate in plain onnxruntime what transformers does."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import transformers
from click.testing import CliRunner

from roast_export import InputError, cli, compress, huggingface
from roast_export.huggingface.parts import parts_of
from roast_export.huggingface.tasks import TASKS
from roast_export.modules import virtual_weights
from tests.huggingface_models import dense_folder, seeded

PLAIN = ["--runtime", "onnxruntime portable"]
VOCABULARY, NEW = 99, 10
T5 = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 1, "num_heads": 4}
MARIAN = {"layers": 1, "attention_heads": 4, "ffn_dim": 64}
SPECIAL = {"pad_token_id": 0, "eos_token_id": None, "decoder_start_token_id": 0}
TOWER = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4}


def t5():
    return seeded(
        transformers.T5ForConditionalGeneration,
        transformers.T5Config(vocab_size=VOCABULARY, **T5, **SPECIAL),
    )


def marian():
    sizes = {f"{side}_{what}": n for side in ("encoder", "decoder") for what, n in MARIAN.items()}
    return seeded(
        transformers.MarianMTModel,
        transformers.MarianConfig(
            vocab_size=VOCABULARY,
            d_model=32,
            max_position_embeddings=64,
            **sizes,
            forced_eos_token_id=None,
            **SPECIAL,
        ),
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


def sharp(model):
    """With weights as small as a fresh model has, one token follows for ever."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter *= 12 if parameter.dim() == 2 else 1
    return model


def generate(out, prompt, mask, forget=False):
    """NEW greedy tokens after the start token, one a call after the first: int64[batch, NEW].

    forget: leave out the oldest token of the cache, as a broken program might.
    """
    encoder, first, later = (
        onnxruntime.InferenceSession(out / f"{name}_model.onnx")
        for name in ("encoder", "decoder", "decoder_with_past")
    )
    [states] = encoder.run(["last_hidden_state"], {"input_ids": prompt, "attention_mask": mask})
    ids = np.zeros((len(prompt), 1), np.int64)
    feeds = {"input_ids": ids, "encoder_hidden_states": states, "encoder_attention_mask": mask}
    session, past, tokens = first, {}, []
    for _ in range(NEW):
        found = dict(zip([o.name for o in session.get_outputs()], session.run(None, feeds), strict=True))
        tokens.append(found["logits"][:, -1:].argmax(-1))
        past |= {
            name.replace("present", "past_key_values"): v for name, v in found.items() if name != "logits"
        }
        if forget and len(tokens) == 2:
            past = {name: v[:, :, 1:] if "decoder" in name else v for name, v in past.items()}
        feeds = {"input_ids": tokens[-1], "encoder_attention_mask": mask, **past}
        session = later
    return np.concatenate(tokens, 1)


def prompts():
    """Ids and mask of two texts, of which the second is shorter: int64[2, 7] each."""
    prompt = torch.randint(3, VOCABULARY, (2, 7), generator=torch.Generator().manual_seed(2))
    mask = torch.ones_like(prompt)
    prompt[1, 4:], mask[1, 4:] = 0, 0
    return prompt, mask


def wanted(folder, prompt, mask):
    model = huggingface.from_pretrained(folder)
    return model.generate(
        prompt, attention_mask=mask, max_new_tokens=NEW, do_sample=False, pad_token_id=0, num_beams=1
    )[:, 1:].numpy()


def test_three_files_with_one_array_generate_what_transformers_does(tmp_path):
    dense = dense_folder(sharp(t5()), tmp_path / "dense")
    said = run(cli.compress_command, dense, "--ratio", 4, "--min-params", 512, "-o", tmp_path / "small")
    assert said.exit_code == 0, said.output
    assert "The output last_hidden_state of the compressed model has a mean cosine of" in said.output
    assert "on 4 random inputs" in said.output
    one = run(cli.export_command, tmp_path / "small", "-o", tmp_path / "one.onnx")
    assert one.exit_code == 1
    assert "encoder_model.onnx, decoder_model.onnx, decoder_with_past_model.onnx; name a folder" in one.output
    out = tmp_path / "out"
    result = run(cli.export_command, tmp_path / "small", "-o", out, "--report", tmp_path / "r.json")
    assert result.exit_code == 0, result.output
    parts = ("encoder_model", "decoder_model", "decoder_with_past_model")
    assert {path.name for path in tmp_path.glob("r*")} == {f"r-{part}.json" for part in parts}
    assert {path.name for path in out.iterdir()} == {
        *(f"{part}.onnx" for part in parts),
        "model.onnx_data",
        "config.json",
        "generation_config.json",
    }
    arrays = [onnx.load(out / f"{part}.onnx", load_external_data=False).graph.initializer for part in parts]
    assert all(
        tensor.raw_data == b"" for array in arrays for tensor in array if tensor.name == "roast_memory"
    )
    array = next(iter(virtual_weights(huggingface.from_pretrained(tmp_path / "small")).values())).memory
    assert (out / "model.onnx_data").stat().st_size == array.nbytes
    prompt, mask = prompts()
    expected = wanted(tmp_path / "small", prompt, mask)
    assert expected.shape == (2, NEW)
    assert len(set(expected.flatten())) > 3
    assert (generate(out, prompt.numpy(), mask.numpy()) == expected).all()
    # Controls: where padding counts, and where the cache lacks a token, other tokens come.
    assert (generate(out, prompt.numpy(), np.ones_like(mask.numpy())) != expected)[1].any()
    assert (generate(out, prompt.numpy(), mask.numpy(), forget=True) != expected).any()
    # The array is what the files read: with another one, they are another model's.
    stored = np.fromfile(out / "model.onnx_data", np.float32)
    (-stored).tofile(out / "model.onnx_data")
    again = run(cli.verify_command, tmp_path / "small", out / "encoder_model.onnx", *PLAIN)
    assert again.exit_code == 2


def test_marian_generates_what_transformers_does(tmp_path):
    """Its decoder has positions and a bias of its own; its proof is what it generates."""
    model = compress(sharp(marian()), 4, min_params=512)
    model.save_pretrained(tmp_path / "small")
    out = tmp_path / "out"
    result = run(cli.export_command, tmp_path / "small", "-o", out, "--no-verify")
    assert result.exit_code == 0, result.output
    prompt, mask = prompts()
    expected = wanted(tmp_path / "small", prompt, mask)
    assert len(set(expected.flatten())) > 3
    assert (generate(out, prompt.numpy(), mask.numpy()) == expected).all()
    assert (generate(out, prompt.numpy(), np.ones_like(mask.numpy())) != expected)[1].any()


def test_what_is_not_exported_is_refused_by_name(tmp_path):
    model = compress(t5(), 4, min_params=512)
    with pytest.raises(InputError, match=r"T5ForConditionalGeneration .* for their logits: leave --task out"):
        parts_of(None, model, TASKS["feature-extraction"])
    without = parts_of(None, model, TASKS["text2text-generation"])
    assert [part.name for part in without] == ["encoder_model", "decoder_model"]
    assert list(without[1].module(**without[1].inputs)) == ["logits"]
    dense = dense_folder(clip(), tmp_path / "clip")
    said = run(cli.compress_command, dense, "--ratio", 4, "--min-params", 512, "-o", tmp_path / "small")
    assert said.exit_code == 0, said.output
    assert "was not measured: CLIPModel takes pixel_values beside text" in said.output
    result = run(cli.export_command, tmp_path / "small", "-o", tmp_path / "x.onnx")
    assert result.exit_code == 1
    assert "CLIPModel takes pixel_values beside text" in result.output

"""Decoders with a cache: one file generates, natively and in plain onnxruntime, what transformers does."""

from __future__ import annotations

from functools import cache

import numpy as np
import onnxruntime
import pytest
import torch
import transformers
from click.testing import CliRunner

from roast_export import InputError, cli, compress, huggingface
from roast_export.huggingface.parts import parts_of
from roast_export.huggingface.tasks import TASKS
from roast_export.libraries import ort_library_path
from tests.huggingface_models import dense_folder, seeded

VOCABULARY, NEW = 99, 20
SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": None}
LLAMA = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
MODELS = {
    "llama": lambda: seeded(
        transformers.LlamaForCausalLM, transformers.LlamaConfig(vocab_size=VOCABULARY, **LLAMA, **SPECIAL)
    ),
    "gpt2": lambda: seeded(
        transformers.GPT2LMHeadModel,
        transformers.GPT2Config(
            vocab_size=VOCABULARY, n_embd=32, n_layer=1, n_head=4, n_positions=64, **SPECIAL
        ),
    ),
}


def run(command, *arguments):
    return CliRunner().invoke(command, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """By name (compressed folder, folder of the ONNX file), made by the two commands at their defaults."""

    @cache
    def made(name):
        path = tmp_path_factory.mktemp(name)
        model = MODELS[name]()
        with torch.no_grad():
            # With weights as small as a fresh model has, one token follows for ever.
            for parameter in model.parameters():
                parameter *= 12 if parameter.dim() == 2 else 1
        dense = dense_folder(model, path / "dense")
        result = run(cli.compress_command, dense, "--ratio", 4, "--min-params", 512, "-o", path / "small")
        assert result.exit_code == 0, result.output
        result = run(cli.export_command, path / "small", "-o", path / "out")
        assert result.exit_code == 0, result.output
        assert "one token, no earlier ones" not in result.output
        return path / "small", path / "out"

    return made


def session(path, *, native):
    options = onnxruntime.SessionOptions()
    if native:
        options.register_custom_ops_library(ort_library_path())
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def generate(run, prompt, mask, forget=False):
    """NEW greedy tokens, the prompt in one call and then one token a call: int64[batch, NEW].

    forget: leave out the oldest token of the cache, as a broken program might.
    """
    layers = [i for i in run.get_inputs() if i.name.startswith("past_key_values.")]
    names = [output.name for output in run.get_outputs()]
    rows = len(prompt)
    past = {i.name: np.zeros((rows, i.shape[1], 0, i.shape[3]), np.float32) for i in layers}
    ids, tokens = prompt, []
    positions = np.maximum(mask.cumsum(1) - 1, 0)
    for _ in range(NEW):
        feeds = {"input_ids": ids, "attention_mask": mask, "position_ids": positions, **past}
        found = dict(zip(names, run.run(None, feeds), strict=True))
        ids = found["logits"][:, -1:].argmax(-1)
        tokens.append(ids)
        start = 1 if forget and not past["past_key_values.0.key"].shape[2] else 0
        past = {name: found[name.replace("past_key_values", "present")][:, :, start:] for name in past}
        mask = np.concatenate([mask[:, start:], np.ones_like(ids)], 1)
        positions = positions[:, -1:] + 1
    return np.concatenate(tokens, 1)


@pytest.mark.parametrize("name", MODELS)
def test_one_file_generates_what_transformers_does(exported, name):
    small, out = exported(name)
    model = huggingface.from_pretrained(small)
    prompt = torch.randint(2, VOCABULARY, (2, 6), generator=torch.Generator().manual_seed(3))
    mask = torch.ones_like(prompt)
    prompt[1, :2], mask[1, :2] = 0, 0
    wanted = model.generate(
        prompt, attention_mask=mask, max_new_tokens=NEW, do_sample=False, use_cache=True, pad_token_id=0
    )[:, 6:].numpy()
    assert wanted.shape == (2, NEW)
    assert len(set(wanted[0])) > 5
    assert len(set(wanted[1])) > 5
    files = [path.name for path in out.iterdir() if path.suffix != ".json"]
    assert files == ["model.onnx"]
    for native in (False, True):
        run = session(out / "model.onnx", native=native)
        assert (generate(run, prompt.numpy(), mask.numpy()) == wanted).all()
        # Controls: a cache that lacks a token, and a mask that counts padding, give other tokens.
        assert (generate(run, prompt.numpy(), mask.numpy(), forget=True) != wanted).any()
        assert (generate(run, prompt.numpy(), np.ones_like(mask.numpy())) != wanted)[1].any()


def test_names_are_those_of_optimum(exported):
    _, out = exported("llama")
    run = session(out / "model.onnx", native=False)
    cached = [f"0.{what}" for what in ("key", "value")]
    assert {i.name: i.shape for i in run.get_inputs()} == {
        "input_ids": ["batch_size", "sequence_length"],
        "attention_mask": ["batch_size", "total_sequence_length"],
        "position_ids": ["batch_size", "sequence_length"],
        **{f"past_key_values.{name}": ["batch_size", 2, "past_sequence_length", 8] for name in cached},
    }
    assert [o.name for o in run.get_outputs()] == ["logits", *(f"present.{name}" for name in cached)]


def test_the_proof_runs_a_chain_from_no_earlier_tokens():
    """Past lengths 0, 1 and more are among what every file is compared on."""
    model = compress(MODELS["llama"](), 4, min_params=512)
    model.set_attn_implementation("eager")
    [part] = parts_of(None, model, TASKS["text-generation-with-past"])
    probes = list(part.module.roast_probes())
    lengths = [inputs["past_key_values"][0]["key"].shape[2] for _, inputs in probes]
    assert lengths == [0, 8, 9, 10, 0, 1]
    assert [inputs["input_ids"].shape[1] for _, inputs in probes] == [8, 1, 1, 1, 1, 1]
    # The chain gives what the whole text gives at once.
    whole = torch.cat([inputs["input_ids"] for _, inputs in probes[:4]], 1)
    mask = probes[3][1]["attention_mask"]
    with torch.no_grad():
        at_once = model(whole, attention_mask=mask, position_ids=(mask.cumsum(1) - 1).clamp(min=0)).logits
        step = part.module(**probes[3][1])["logits"]
    assert torch.allclose(at_once[:, -1], step[:, -1], atol=1e-5)


def test_models_that_keep_something_else_are_refused_by_name():
    config = transformers.MambaConfig(vocab_size=99, hidden_size=32, num_hidden_layers=1, state_size=4)
    model = seeded(transformers.MambaForCausalLM, config)
    with pytest.raises(InputError, match=r"MambaForCausalLM does not keep keys .* --task text-generation$"):
        parts_of(None, model, TASKS["text-generation-with-past"])

"""The files that a task is exported as: for each a module, an example and the dynamic dimensions."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn

from roast_export.errors import InputError
from roast_export.huggingface.cached_model import CachedModel, empty_cache
from roast_export.huggingface.encoder_decoder import (
    DecoderModel,
    EncoderModel,
    NextDecoderModel,
    check_keeps,
    following,
)
from roast_export.huggingface.folder import Folder
from roast_export.huggingface.sentence import SentenceModel, modules_after
from roast_export.huggingface.task_model import TaskModel, parameters_of
from roast_export.huggingface.tasks import BATCH, DECODED, ENCODED, PAST, SEQUENCE, TOTAL, Task

ROWS, TOKENS, PADDED, PAST_TOKENS = 2, 8, 3, 5
"""The example: rows, tokens, how many of the second row's are padding, and how many are earlier ones."""

FRAMES = 8
"""Frames of the example of sound."""

SEED = 20261

DECODES = ("text2text-generation", "automatic-speech-recognition", "feature-extraction")
"""Tasks for which a model of an encoder and a decoder needs the tokens that it decodes."""

OTHER_INPUTS = {"pixel_values", "input_features", "input_values"}
"""Inputs beside text of models that take several kinds."""


@dataclass(frozen=True)
class Part:
    """One file of an export."""

    name: str
    module: nn.Module
    inputs: dict[str, Any]
    dynamic: dict[str, dict[int, str]]
    names: dict[str, str] = field(default_factory=dict)
    """What inputs are called in the file, where that is no identifier of Python."""


def parts_of(folder: Folder, model: nn.Module, task: Task) -> list[Part]:
    """What `model`, loaded from `folder`, is exported as for `task`.

    Raises:
        InputError: the model takes inputs that are not known here.
    """
    config: Any = model.config
    if task.name == "text-generation-with-past":
        return [_cached_decoder(model, config)]
    if config.is_encoder_decoder and task.name.startswith(DECODES):
        return _encoder_and_decoder(model, config, task)
    base = _base(model) if task.name in ("feature-extraction", "sentence-similarity") else model
    inputs, dynamic = _inputs(base, config, task)
    if task.name == "sentence-similarity":
        after = modules_after(folder.pipeline) if folder.pipeline is not None else []
        module: nn.Module = SentenceModel(base, after)
    else:
        module = TaskModel(base, task.outputs, use_cache=False)
    return [Part("model", module.eval(), inputs, dynamic)]


def _base(model: Any) -> nn.Module:
    """The model without its head. A pooler goes too: its output is not among those of the task."""
    base = model.base_model
    if isinstance(getattr(base, "pooler", None), nn.Module):
        base.pooler = None
    return base  # type: ignore[no-any-return]


def _inputs(model: nn.Module, config: Any, task: Task) -> tuple[dict[str, Tensor], dict[str, dict[int, str]]]:
    kind = str(model.main_input_name)
    if kind == "input_ids" and (others := OTHER_INPUTS & parameters_of(model)):
        raise InputError(
            f"{type(model).__name__} takes {', '.join(sorted(others))} beside text, for which this command "
            "knows no example; export its parts, or the model, in Python with roast_export.export and "
            "example_inputs of your own"
        )
    if kind == "input_ids":
        causal = task.name == "text-generation"
        return text_inputs(model, config, choices=task.name == "multiple-choice", causal=causal)
    if kind == "pixel_values":
        return _image_inputs(model, config)
    if kind in ("input_features", "input_values") and (found := _sound_inputs(kind, config)) is not None:
        shape, axes = found
        return {kind: torch.randn(ROWS, *shape, generator=_generator())}, {kind: {0: BATCH} | axes}
    raise InputError(
        f"{type(model).__name__} takes {kind}, for which this command knows no example; export the model in "
        "Python with roast_export.export and example_inputs of your own"
    )


def text_inputs(
    model: nn.Module, config: Any, *, choices: bool = False, causal: bool = False
) -> tuple[dict[str, Tensor], dict[str, dict[int, str]]]:
    """Token ids with a mask that counts some of them, and what else the model's forward takes."""
    text = config.get_text_config()
    stated = getattr(text, "pad_token_id", None)
    padding = stated if isinstance(stated, int) and stated >= 0 else 0
    ids = torch.randint(1, text.vocab_size, (ROWS, TOKENS), generator=_generator())
    mask = torch.ones_like(ids)
    padded = slice(0, PADDED) if causal else slice(TOKENS - PADDED, TOKENS)
    ids[1, padded], mask[1, padded] = padding, 0
    if config.is_encoder_decoder and isinstance(end := getattr(text, "eos_token_id", None), int):
        # The classifiers of BART and T5 look at the end of each text.
        ids[0, -1] = ids[1, TOKENS - PADDED - 1] = end
    inputs = {"input_ids": ids, "attention_mask": mask}
    taken = parameters_of(model)
    if "token_type_ids" in taken and (getattr(text, "type_vocab_size", 0) or 0) > 1:
        inputs["token_type_ids"] = torch.cat([torch.zeros_like(ids[:, :4]), torch.ones_like(ids[:, 4:])], 1)
    if "position_ids" in taken and causal:
        inputs["position_ids"] = positions(mask)
    axes = {0: BATCH, 1: SEQUENCE}
    if choices:
        inputs = {name: value.unsqueeze(1).expand(-1, 3, -1).contiguous() for name, value in inputs.items()}
        axes = {0: BATCH, 1: "num_choices", 2: SEQUENCE}
    return inputs, {name: dict(axes) for name in inputs}


def _cached_decoder(model: nn.Module, config: Any) -> Part:
    """Tokens after others. The mask counts both, and the second row is padded on its left."""
    inputs, dynamic = text_inputs(model, config, causal=True)
    module = CachedModel(model).eval()
    module.prompt = inputs
    layers = empty_cache(model, inputs, PAST_TOKENS)
    new = TOKENS - PAST_TOKENS
    inputs = {name: value if name == "attention_mask" else value[:, -new:] for name, value in inputs.items()}
    dynamic["attention_mask"][1] = TOTAL
    axes = {0: BATCH, 2: PAST}
    names = {
        f"past_key_values_{k}_{what}": f"past_key_values.{k}.{what}"
        for k in range(len(layers))
        for what in layers[k]
    }
    return Part(
        "model",
        module,
        {**inputs, "past_key_values": layers},
        {**dynamic, **{name: dict(axes) for name in names}},
        names,
    )


def _encoder_and_decoder(model: nn.Module, config: Any, task: Task) -> list[Part]:
    """What encodes, and what gives logits of the tokens so far; with a cache, another for later tokens."""
    if task.name == "feature-extraction":
        raise InputError(
            f"--task {task.name}: {type(model).__name__} has an encoder and a decoder, which are exported "
            "for their logits: leave --task out, or use roast_export.export in Python with example_inputs "
            "of your own"
        )
    encoder = EncoderModel(model).eval()
    inputs, dynamic = _inputs(model, config, task)
    dynamic = {k: {0: BATCH, 1: ENCODED} if 1 in axes else axes for k, axes in dynamic.items()}
    with torch.no_grad():
        states = encoder(**inputs)["last_hidden_state"]
    tokens = torch.randint(1, config.vocab_size, (ROWS, PAST_TOKENS), generator=_generator())
    given = {"input_ids": tokens, "encoder_hidden_states": states}
    encoded = {0: BATCH, 1: ENCODED} if any(1 in axes for axes in dynamic.values()) else {0: BATCH}
    axes = {"input_ids": {0: BATCH, 1: DECODED}, "encoder_hidden_states": encoded}
    if "attention_mask" in inputs:
        given["encoder_attention_mask"] = inputs["attention_mask"]
        axes["encoder_attention_mask"] = {0: BATCH, 1: ENCODED}
    if task.past:
        check_keeps(model, given, task.name.removesuffix("-with-past"))
    decoder = DecoderModel(model, keeps=task.past).eval()
    parts = [Part("encoder_model", encoder, inputs, dynamic), Part("decoder_model", decoder, given, axes)]
    return [*parts, _next_decoder(parts[1])] if task.past else parts


def _next_decoder(first: Part) -> Part:
    """What goes on from the keys and values that the first decoder gives for its example."""
    with torch.no_grad():
        inputs = following(first.inputs, first.module(**first.inputs))
    width = first.inputs["encoder_hidden_states"].shape[-1]
    module = NextDecoderModel(cast(DecoderModel, first.module).model, width).eval()
    module.first = inputs
    encoded = first.dynamic["encoder_hidden_states"].get(1)
    dynamic = {name: axes for name, axes in first.dynamic.items() if name in inputs}
    names = {}
    for k, layer in enumerate(inputs["past_key_values"]):
        for what in layer:
            name = f"past_key_values_{k}_{what.replace('.', '_')}"
            names[name] = f"past_key_values.{k}.{what}"
            length = PAST if what.startswith("decoder") else encoded
            dynamic[name] = {0: BATCH} | ({2: length} if length else {})
    return Part("decoder_with_past_model", module, inputs, dynamic, names)


def positions(mask: Tensor) -> Tensor:
    """The place of each token among those that count: int64[batch, sequence]."""
    return (mask.cumsum(1) - 1).clamp(min=0)


def _image_inputs(model: nn.Module, config: Any) -> tuple[dict[str, Tensor], dict[str, dict[int, str]]]:
    if not hasattr(config, "image_size"):
        config = getattr(config, "vision_config", config)
    size = getattr(config, "image_size", None) or 64
    height, width = (size, size) if isinstance(size, int) else tuple(size)[-2:]
    channels = getattr(config, "num_channels", 3)
    images = torch.randn(ROWS, channels, height, width, generator=_generator())
    axes = {0: BATCH}
    if not hasattr(config, "image_size"):
        axes |= {2: "height", 3: "width"}
    return {"pixel_values": images}, {"pixel_values": axes}


def _sound_inputs(kind: str, config: Any) -> tuple[tuple[int, ...], dict[int, str]] | None:
    """Shape of one sound and its dynamic dimensions, as far as they follow from config.json."""
    stated = config.to_dict()
    if kind == "input_values" and stated.get("conv_kernel"):
        # Samples for eight frames of what the convolutions make of them.
        length = FRAMES
        for kernel, stride in reversed(list(zip(stated["conv_kernel"], stated["conv_stride"], strict=False))):
            length = (length - 1) * stride + kernel
        return (length,), {1: SEQUENCE}
    if kind == "input_values" and {"num_mel_bins", "max_length"} <= set(stated):
        return (stated["max_length"], stated["num_mel_bins"]), {}
    for width in ("input_feat_per_channel", "feature_projection_input_dim"):
        if kind == "input_features" and width in stated:
            return (4 * FRAMES, stated[width]), {1: SEQUENCE}
    if kind == "input_features" and {"num_mel_bins", "max_source_positions"} <= set(stated):
        # Whisper pads sound to the length that it was trained with: two frames to a position.
        return (stated["num_mel_bins"], 2 * stated["max_source_positions"]), {}
    return None


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(SEED)

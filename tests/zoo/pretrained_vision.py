"""Vision models of transformers, small and from their configurations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from tests.zoo.architecture import ALL_FORMS, CONFIGURED, Arguments, Draw, architecture
from tests.zoo.encoders import WORDS, make, sentences

BATCHES = ((2, 0), (3, 0), (1, 0))
SIDES = ((2, 32), (3, 48), (1, 64))
VIT: dict[str, Any] = {
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "image_size": 32,
    "patch_size": 8,
}


def pixels(side: int = 0) -> Callable[[Draw, int, int], Arguments]:
    """Images of one side, or of the second number of `sizes`."""

    def inputs(draw: Draw, batch: int, length: int) -> Arguments:
        return {"pixel_values": draw.floats(batch, 3, side or length, side or length)}

    return inputs


@architecture("vit", pixels(32), sizes=BATCHES, fixed=CONFIGURED, forms=ALL_FORMS)
def vit() -> nn.Module:
    return make("ViTConfig", "ViTForImageClassification", **VIT)


@architecture("deit", pixels(32), sizes=BATCHES, fixed=CONFIGURED, forms=ALL_FORMS)
def deit() -> nn.Module:
    return make("DeiTConfig", "DeiTForImageClassification", **VIT)


@architecture("beit", pixels(32), sizes=BATCHES, fixed=CONFIGURED)
def beit() -> nn.Module:
    return make("BeitConfig", "BeitModel", **VIT, use_relative_position_bias=True)


@architecture("dinov2", pixels(32), sizes=BATCHES, fixed=CONFIGURED)
def dinov2() -> nn.Module:
    return make("Dinov2Config", "Dinov2Model", **VIT)


# With every dimension dynamic torch.export takes ten minutes.
@architecture(
    "swin",
    pixels(32),
    sizes=BATCHES,
    fixed=CONFIGURED,
    save={"dynamic_shapes": {"pixel_values": {0: "batch"}}},
)
def swin() -> nn.Module:
    return make(
        "SwinConfig",
        "SwinForImageClassification",
        image_size=32,
        patch_size=4,
        embed_dim=24,
        depths=[2, 1],
        num_heads=[2, 4],
        window_size=4,
    )


@architecture("convnext", pixels(), sizes=SIDES, forms=ALL_FORMS)
def convnext() -> nn.Module:
    return make(
        "ConvNextConfig", "ConvNextForImageClassification", hidden_sizes=[24, 48], depths=[1, 1], num_stages=2
    )


@architecture("resnet_of_transformers", pixels(), sizes=SIDES, forms=ALL_FORMS)
def resnet() -> nn.Module:
    return make(
        "ResNetConfig",
        "ResNetForImageClassification",
        embedding_size=16,
        hidden_sizes=[32, 64],
        depths=[1, 1],
        layer_type="basic",
    )


@architecture("regnet", pixels(), sizes=SIDES, forms=ALL_FORMS)
def regnet() -> nn.Module:
    return make(
        "RegNetConfig",
        "RegNetForImageClassification",
        embedding_size=16,
        hidden_sizes=[32, 64],
        depths=[1, 1],
        groups_width=16,
    )


@architecture("mobilenet_v2_of_transformers", pixels(), sizes=SIDES)
def mobilenet_v2() -> nn.Module:
    return make(
        "MobileNetV2Config", "MobileNetV2ForImageClassification", depth_multiplier=0.25, image_size=32
    )


@architecture("mobilenet_v2_of_one_padding", pixels(), sizes=SIDES)
def mobilenet_v2_of_one_padding() -> nn.Module:
    """TensorFlow's padding depends on the size of the image by branches in Python; PyTorch's does not."""
    return make(
        "MobileNetV2Config", "MobileNetV2ForImageClassification", depth_multiplier=0.25, tf_padding=False
    )


@architecture("segformer", pixels(), sizes=SIDES)
def segformer() -> nn.Module:
    return make(
        "SegformerConfig",
        "SegformerForSemanticSegmentation",
        num_encoder_blocks=2,
        depths=[1, 1],
        sr_ratios=[2, 1],
        hidden_sizes=[16, 32],
        patch_sizes=[7, 3],
        strides=[4, 2],
        num_attention_heads=[1, 2],
        mlp_ratios=[2, 2],
        decoder_hidden_size=32,
    )


@architecture("poolformer", pixels(), sizes=SIDES, forms=ALL_FORMS)
def poolformer() -> nn.Module:
    return make(
        "PoolFormerConfig",
        "PoolFormerForImageClassification",
        num_encoder_blocks=2,
        depths=[1, 1],
        hidden_sizes=[24, 48],
        patch_sizes=[7, 3],
        strides=[4, 2],
        padding=[2, 1],
    )


@architecture("detr", pixels(), sizes=((2, 64), (3, 96), (1, 48)))
def detr() -> nn.Module:
    from transformers import ResNetConfig

    backbone = ResNetConfig(
        embedding_size=16, hidden_sizes=[16, 32], depths=[1, 1], layer_type="basic", out_features=["stage2"]
    )
    return make(
        "DetrConfig",
        "DetrForObjectDetection",
        use_timm_backbone=False,
        use_pretrained_backbone=False,
        backbone=None,
        backbone_config=backbone,
        num_queries=6,
        d_model=32,
        encoder_layers=1,
        decoder_layers=1,
        encoder_ffn_dim=48,
        decoder_ffn_dim=48,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
    )


@architecture("yolos", pixels(32), sizes=BATCHES, fixed=CONFIGURED)
def yolos() -> nn.Module:
    options = {**VIT, "image_size": [32, 32], "num_detection_tokens": 5, "use_mid_position_embeddings": False}
    return make("YolosConfig", "YolosForObjectDetection", **options)


TOWER = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 48}


def captioned(draw: Draw, batch: int, length: int) -> Arguments:
    found = sentences(draw, batch, length)
    assert isinstance(found, dict)
    return {**found, "pixel_values": draw.floats(batch, 3, 32, 32)}


@architecture("clip", captioned)
def clip() -> nn.Module:
    text = {**TOWER, "vocab_size": WORDS, "max_position_embeddings": 40, "eos_token_id": 3}
    vision = {**TOWER, "image_size": 32, "patch_size": 8}
    return make("CLIPConfig", "CLIPModel", text_config=text, vision_config=vision, projection_dim=32)


@architecture("siglip_vision", pixels(32), sizes=BATCHES, fixed=CONFIGURED)
def siglip_vision() -> nn.Module:
    return make("SiglipVisionConfig", "SiglipVisionModel", **TOWER, image_size=32, patch_size=8)


@architecture("blip", captioned)
def blip() -> nn.Module:
    text = {**TOWER, "vocab_size": WORDS, "max_position_embeddings": 40, "encoder_hidden_size": 32}
    vision = {**TOWER, "image_size": 32, "patch_size": 8}
    return make(
        "BlipConfig",
        "BlipForImageTextRetrieval",
        text_config=text,
        vision_config=vision,
        image_text_hidden_size=16,
    )


@architecture("depth_estimation", pixels(32), sizes=BATCHES, fixed=CONFIGURED)
def depth_estimation() -> nn.Module:
    return make(
        "DPTConfig",
        "DPTForDepthEstimation",
        **{**VIT, "num_hidden_layers": 4},
        backbone_out_indices=[0, 1, 2, 3],
        neck_hidden_sizes=[8, 16, 24, 32],
        fusion_hidden_size=16,
        is_hybrid=False,
    )

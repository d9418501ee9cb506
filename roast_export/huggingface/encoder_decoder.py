"""Models of an encoder and a decoder: one file encodes, the other gives the logits of the next tokens."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from roast_export.huggingface.task_model import given


class EncoderModel(nn.Module):
    """What the decoder looks at: one vector for each input token, patch or frame."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.encoder = model.get_encoder()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        input_features: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """int64[batch, encoded] or float32[batch, mels, frames] to float32[batch, encoded, dim]."""
        arguments = given(input_ids=input_ids, attention_mask=attention_mask, input_features=input_features)
        found = self.encoder(**arguments, return_dict=True)
        return {"last_hidden_state": found["last_hidden_state"]}


class DecoderModel(nn.Module):
    """Logits of the tokens after `input_ids`, without a cache."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, input_ids: Tensor, encoder_hidden_states: Tensor, encoder_attention_mask: Tensor | None = None
    ) -> dict[str, Tensor]:
        """int64[batch, decoded], float32[batch, encoded, dim] and int64[batch, encoded] to logits.

        Logits are float32[batch, decoded, vocabulary].
        """
        from transformers.modeling_outputs import BaseModelOutput

        arguments = {"decoder_input_ids": input_ids, "use_cache": False}
        arguments |= given(attention_mask=encoder_attention_mask)
        encoded = BaseModelOutput(last_hidden_state=encoder_hidden_states)
        found = self.model(**arguments, encoder_outputs=encoded, return_dict=True)
        return {"logits": found["logits"]}

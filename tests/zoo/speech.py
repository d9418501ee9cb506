"""Networks on sound: written by hand, and those of transformers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.zoo.architecture import ALL_FORMS, Arguments, Draw, architecture
from tests.zoo.encoders import make


def wave(draw: Draw, batch: int, length: int) -> Arguments:
    return (draw.floats(batch, 1, length),)


class ResidualUnit(nn.Module):
    def __init__(self, dilation: int) -> None:
        super().__init__()
        self.dilation = dilation
        self.filter = nn.Conv1d(32, 32, 2, dilation=dilation)
        self.gate = nn.Conv1d(32, 32, 2, dilation=dilation)
        self.residual, self.skip = nn.Conv1d(32, 32, 1), nn.Conv1d(32, 32, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        padded = functional.pad(x, (self.dilation, 0))
        y = torch.tanh(self.filter(padded)) * torch.sigmoid(self.gate(padded))
        return x + self.residual(y), self.skip(y)


@architecture(
    "wavenet", lambda d, b, n: (d.ids(256, b, n),), sizes=((2, 40), (3, 57), (1, 23)), forms=ALL_FORMS
)
class WaveNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(256, 32)
        self.units = nn.ModuleList([ResidualUnit(2**k) for k in range(4)])
        self.out1, self.out2 = nn.Conv1d(32, 32, 1), nn.Conv1d(32, 256, 1)

    def forward(self, samples: Tensor) -> Tensor:
        x = self.embed(samples).transpose(1, 2)
        total = torch.zeros_like(x)
        for unit in self.units:
            x, skip = unit(x)
            total = total + skip
        return self.out2(functional.relu(self.out1(functional.relu(total))))


class GlobalNorm(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gamma, self.beta = (
            nn.Parameter(torch.ones(1, channels, 1)),
            nn.Parameter(torch.zeros(1, channels, 1)),
        )

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean(dim=1, keepdim=True).mean(dim=2, keepdim=True)
        var = (x - mean).pow(2).mean(dim=1, keepdim=True).mean(dim=2, keepdim=True)
        return self.gamma * (x - mean) / torch.pow(var + 1e-8, 0.5) + self.beta


@architecture("conv_tasnet", wave, sizes=((2, 160), (3, 240), (1, 80)), forms=ALL_FORMS)
class ConvTasNet(nn.Module):
    """Two speakers are separated by masks on a learned spectrum."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Conv1d(1, 48, 16, 8, bias=False)
        self.norm, self.bottleneck = GlobalNorm(48), nn.Conv1d(48, 32, 1)
        self.blocks = nn.ModuleList(
            [
                nn.Sequential(
                    nn.Conv1d(32, 48, 1),
                    nn.PReLU(),
                    GlobalNorm(48),
                    nn.Conv1d(48, 48, 3, padding=2**k, dilation=2**k, groups=48),
                    nn.PReLU(),
                    GlobalNorm(48),
                    nn.Conv1d(48, 32, 1),
                )
                for k in range(3)
            ]
        )
        self.masks = nn.Conv1d(32, 96, 1)
        self.decoder = nn.ConvTranspose1d(48, 1, 16, 8, bias=False)

    def forward(self, mixture: Tensor) -> Tensor:
        spectrum = functional.relu(self.encoder(mixture))
        x = self.bottleneck(self.norm(spectrum))
        for block in self.blocks:
            x = x + block(x)
        batch, channels, frames = spectrum.shape
        masks = functional.relu(self.masks(x)).view(batch, 2, channels, frames)
        parts = (masks * spectrum.unsqueeze(1)).view(batch * 2, channels, frames)
        return self.decoder(parts).view(batch, 2, -1)


def phonemes(draw: Draw, batch: int, length: int) -> Arguments:
    return {"text": draw.ids(60, batch, length), "frames": draw.floats(batch, 4, 20)}


@architecture("tacotron", phonemes, sizes=((2, 9), (3, 13), (1, 6)))
class Tacotron(nn.Module):
    """Convolutions, a bidirectional LSTM, and a decoder that attends to them frame by frame."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(60, 48)
        self.convolutions = nn.ModuleList(
            [nn.Sequential(nn.Conv1d(48, 48, 5, padding=2), nn.BatchNorm1d(48)) for _ in range(2)]
        )
        self.lstm = nn.LSTM(48, 24, batch_first=True, bidirectional=True)
        self.prenet = nn.Sequential(nn.Linear(20, 32), nn.ReLU(), nn.Dropout(0.5))
        self.attention_rnn, self.decoder_rnn = nn.LSTMCell(32 + 48, 48), nn.LSTMCell(96, 48)
        self.query, self.memory, self.v = (
            nn.Linear(48, 32, bias=False),
            nn.Linear(48, 32, bias=False),
            nn.Linear(32, 1),
        )
        self.mel, self.stop = nn.Linear(96, 20), nn.Linear(96, 1)

    def encode(self, text: Tensor) -> Tensor:
        x = self.embedding(text).transpose(1, 2)
        for conv in self.convolutions:
            x = functional.relu(conv(x))
        return self.lstm(x.transpose(1, 2))[0]

    def forward(self, text: Tensor, frames: Tensor) -> tuple[Tensor, Tensor]:
        memory = self.encode(text)
        keys, batch = self.memory(memory), text.size(0)
        ah = ac = dh = dc = memory.new_zeros(batch, 48)
        context = memory.new_zeros(batch, 48)
        mels, stops = [], []
        for t in range(frames.size(1)):
            ah, ac = self.attention_rnn(torch.cat((self.prenet(frames[:, t]), context), -1), (ah, ac))
            energy = self.v(torch.tanh(self.query(ah).unsqueeze(1) + keys)).squeeze(-1)
            context = torch.bmm(energy.softmax(1).unsqueeze(1), memory).squeeze(1)
            dh, dc = self.decoder_rnn(torch.cat((ah, context), -1), (dh, dc))
            both = torch.cat((dh, context), 1)
            mels.append(self.mel(both))
            stops.append(self.stop(both))
        return torch.stack(mels, 1), torch.cat(stops, 1)


@architecture("vocoder", lambda d, b, n: (d.floats(b, 20, n),), sizes=((2, 8), (3, 13), (1, 5)))
class Vocoder(nn.Module):
    """HiFi-GAN's generator: transposed convolutions and dilated residual blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.conv_pre = nn.Conv1d(20, 48, 7, padding=3)
        self.ups = nn.ModuleList([nn.ConvTranspose1d(48, 32, 8, 4, 2), nn.ConvTranspose1d(32, 16, 4, 2, 1)])
        self.blocks = nn.ModuleList(
            [nn.ModuleList([nn.Conv1d(c, c, 3, dilation=d, padding=d) for d in (1, 3)]) for c in (32, 16)]
        )
        self.conv_post = nn.Conv1d(16, 1, 7, padding=3)

    def forward(self, mel: Tensor) -> Tensor:
        x = self.conv_pre(mel)
        for up, block in zip(self.ups, self.blocks, strict=True):
            x = up(functional.leaky_relu(x, 0.1))
            for conv in block:
                x = x + conv(functional.leaky_relu(x, 0.1))
        return torch.tanh(self.conv_post(functional.leaky_relu(x)))


@architecture("deep_speech", lambda d, b, n: (d.floats(b, 1, 32, 2 * n),), sizes=((2, 12), (3, 17), (1, 8)))
class DeepSpeech(nn.Module):
    """Convolutions over the spectrogram, GRUs in both directions, letters out."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            nn.Conv2d(1, 16, (11, 5), (2, 2), (5, 2)), nn.BatchNorm2d(16), nn.Hardtanh(0, 20, inplace=True)
        )
        self.rnn = nn.GRU(16 * 16, 48, bidirectional=True, batch_first=True)
        self.norm, self.fc = nn.LayerNorm(48), nn.Linear(48, 29)

    def forward(self, spectrogram: Tensor) -> Tensor:
        x = self.conv(spectrogram)
        sizes = x.size()
        x = x.view(sizes[0], sizes[1] * sizes[2], sizes[3]).transpose(1, 2)
        x, _ = self.rnn(x)
        x = x.view(x.size(0), x.size(1), 2, -1).sum(2)
        return functional.log_softmax(self.fc(self.norm(x)), -1)


@architecture(
    "keyword_spotting",
    lambda d, b, n: (d.floats(b, 1, n, 10),),
    sizes=((2, 49), (3, 65), (1, 32)),
    min_params=512,
    forms=ALL_FORMS,
)
def keyword_spotting() -> nn.Module:
    """DS-CNN, for microcontrollers."""
    layers: list[nn.Module] = [nn.Conv2d(1, 48, (10, 4), 2, (5, 1)), nn.BatchNorm2d(48), nn.ReLU()]
    for _ in range(2):
        layers += [nn.Conv2d(48, 48, 3, padding=1, groups=48), nn.BatchNorm2d(48), nn.ReLU()]
        layers += [nn.Conv2d(48, 48, 1), nn.BatchNorm2d(48), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(48, 12))


class ConvolutionModule(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.pointwise1, self.pointwise2 = nn.Conv1d(dim, 2 * dim, 1), nn.Conv1d(dim, dim, 1)
        self.depthwise, self.batch_norm = nn.Conv1d(dim, dim, 7, padding=3, groups=dim), nn.BatchNorm1d(dim)

    def forward(self, x: Tensor) -> Tensor:
        y = functional.glu(self.pointwise1(self.norm(x).transpose(1, 2)), dim=1)
        return self.pointwise2(functional.silu(self.batch_norm(self.depthwise(y)))).transpose(1, 2)


@architecture(
    "conformer", lambda d, b, n: (d.floats(b, n, 20), d.mask(b, n).sum(1)), sizes=((2, 12), (3, 17), (1, 7))
)
class Conformer(nn.Module):
    """Lengths come in, and a padding mask is made of them."""

    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Linear(20, 48)
        self.ff1 = nn.Sequential(nn.LayerNorm(48), nn.Linear(48, 96), nn.SiLU(), nn.Linear(96, 48))
        self.norm, self.attention = nn.LayerNorm(48), nn.MultiheadAttention(48, 4, batch_first=True)
        self.convolution, self.out = ConvolutionModule(48), nn.Linear(48, 30)

    def forward(self, features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        padding = torch.arange(features.size(1))[None, :] >= lengths[:, None]
        x = self.project(features)
        x = x + 0.5 * self.ff1(x)
        y = self.norm(x)
        x = x + self.attention(y, y, y, key_padding_mask=padding, need_weights=False)[0]
        x = x + self.convolution(x)
        return self.out(x).log_softmax(-1), lengths


@architecture(
    "speaker_embedding",
    lambda d, b, n: (d.floats(b, n, 24),),
    sizes=((2, 20), (3, 31), (1, 16)),
    forms=ALL_FORMS,
)
class SpeakerEmbedding(nn.Module):
    """x-vectors: time-delay layers, then mean and deviation over time."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv1d(24, 48, 5), nn.ReLU(), nn.BatchNorm1d(48), nn.Conv1d(48, 48, 3, dilation=2), nn.ReLU()
        )
        self.out = nn.Linear(96, 64)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layers(x.transpose(1, 2))
        pooled = torch.cat([x.mean(2), x.std(2)], 1)
        return functional.normalize(self.out(pooled), dim=-1)


@architecture("spectrogram_network", lambda d, b, n: (d.floats(b, n),), sizes=((2, 512), (3, 640), (1, 400)))
class SpectrogramNetwork(nn.Module):
    """A short-time Fourier transform inside the model."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("window", torch.hann_window(64))
        self.net = nn.Sequential(nn.Conv1d(33, 48, 3, padding=1), nn.ReLU(), nn.Conv1d(48, 32, 3, padding=1))
        self.out = nn.Linear(32, 10)

    def forward(self, samples: Tensor) -> Tensor:
        spectrum = torch.stft(samples, 64, 32, window=self.window, return_complex=True)
        return self.out(self.net((spectrum.abs() + 1e-6).log()).mean(-1))


WAV2VEC: dict[str, Any] = {
    "hidden_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "conv_dim": [32, 32, 32],
    "conv_kernel": [10, 3, 2],
    "conv_stride": [5, 2, 2],
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
    "vocab_size": 32,
}


def waveform(draw: Draw, batch: int, length: int) -> Arguments:
    return {"input_values": draw.floats(batch, length)}


WAVES = ((2, 800), (3, 1100), (1, 640))


@architecture("wav2vec2", waveform, sizes=WAVES)
def wav2vec2() -> nn.Module:
    return make("Wav2Vec2Config", "Wav2Vec2ForCTC", **WAV2VEC)


@architecture("hubert", waveform, sizes=WAVES)
def hubert() -> nn.Module:
    return make("HubertConfig", "HubertModel", **WAV2VEC, feat_extract_norm="layer")


@architecture("sew", waveform, sizes=WAVES)
def sew() -> nn.Module:
    return make("SEWConfig", "SEWModel", **WAV2VEC, squeeze_factor=2)


@architecture("wavlm", waveform, sizes=WAVES)
def wavlm() -> nn.Module:
    return make("WavLMConfig", "WavLMModel", **WAV2VEC)


def spoken(draw: Draw, batch: int, length: int) -> Arguments:
    return {"input_features": draw.floats(batch, 20, 40), "decoder_input_ids": draw.ids(100, batch, length)}


@architecture("whisper", spoken)
def whisper() -> nn.Module:
    return make(
        "WhisperConfig",
        "WhisperForConditionalGeneration",
        vocab_size=100,
        num_mel_bins=20,
        d_model=48,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=64,
        decoder_ffn_dim=64,
        max_source_positions=20,
        max_target_positions=24,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=3,
        use_cache=False,
    )


@architecture(
    "spectrogram_transformer",
    lambda d, b, n: {"input_values": d.floats(b, 40, 16)},
    sizes=((2, 0), (3, 0), (1, 0)),
    fixed="the configuration names the length of the spectrogram",
)
def spectrogram_transformer() -> nn.Module:
    return make(
        "ASTConfig",
        "ASTForAudioClassification",
        hidden_size=48,
        num_hidden_layers=1,
        num_attention_heads=4,
        intermediate_size=64,
        patch_size=8,
        frequency_stride=4,
        time_stride=4,
        max_length=40,
        num_mel_bins=16,
    )

"""Recurrent networks and others that go along a sequence."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.zoo.architecture import ALL_FORMS, FEATURES, STEPS, architecture


@architecture("lstm_tagger", lambda d, b, n: {"sentence": d.ids(200, b, n)}, forms=ALL_FORMS)
class LstmTagger(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(200, 40)
        self.lstm = nn.LSTM(40, 48, num_layers=2, batch_first=True, bidirectional=True, dropout=0.1)
        self.hidden2tag = nn.Linear(96, 17)

    def forward(self, sentence: Tensor) -> Tensor:
        out, _ = self.lstm(self.word_embeddings(sentence))
        return functional.log_softmax(self.hidden2tag(out), dim=-1)


@architecture(
    "char_rnn",
    lambda d, b, n: (d.ids(60, b, n), d.floats(2, b, 64)),
    sizes=((2, 8), (3, 12), (1, 5)),
    forms=ALL_FORMS,
)
class CharRnn(nn.Module):
    """The state goes in and comes out."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Embedding(60, 64)
        self.rnn = nn.GRU(64, 64, 2, batch_first=True)
        self.decoder = nn.Linear(64, 60)

    def forward(self, input: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:  # noqa: A002 - as people do
        output, hidden = self.rnn(self.encoder(input), hidden)
        return self.decoder(output), hidden


@architecture("elman", lambda d, b, n: (d.floats(n, b, 32),), forms=ALL_FORMS)
class Elman(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.RNN(32, 64, nonlinearity="relu")
        self.out = nn.Linear(64, 5)

    def forward(self, x: Tensor) -> Tensor:
        _, last = self.rnn(x)
        return self.out(last.squeeze(0))


@architecture(
    "lstm_cells", lambda d, b, n: (d.floats(b, 6, 32),), sizes=((2, 0), (3, 0), (1, 0)), fixed=STEPS
)
class LstmCells(nn.Module):
    """A cell in a Python loop of a known length."""

    def __init__(self, steps: int = 6) -> None:
        super().__init__()
        self.steps = steps
        self.cell, self.out = nn.LSTMCell(32, 48), nn.Linear(48, 32)

    def forward(self, x: Tensor) -> Tensor:
        state = x.new_zeros(x.size(0), 48), x.new_zeros(x.size(0), 48)
        found = []
        for t in range(self.steps):
            state = self.cell(x[:, t], state)
            found.append(self.out(state[0]))
        return torch.stack(found, 1)


@architecture(
    "gru_seq2seq",
    lambda d, b, n: {"source": d.ids(120, b, n), "target": d.ids(120, b, 5)},
    sizes=((2, 8), (3, 12), (1, 5)),
    forms=ALL_FORMS,
)
class GruSeq2Seq(nn.Module):
    """Bahdanau's attention; the decoder is a GRU that is called step by step."""

    def __init__(self, steps: int = 5) -> None:
        super().__init__()
        self.steps = steps
        self.source, self.target = nn.Embedding(120, 48), nn.Embedding(120, 48)
        self.encoder = nn.GRU(48, 48, batch_first=True)
        self.decoder = nn.GRU(96, 48, batch_first=True)
        self.query, self.keys, self.score = nn.Linear(48, 48), nn.Linear(48, 48), nn.Linear(48, 1)
        self.out = nn.Linear(48, 120)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        memory, hidden = self.encoder(self.source(source))
        outputs = []
        for t in range(self.steps):
            query = self.query(hidden.permute(1, 0, 2))
            weights = self.score(torch.tanh(query + self.keys(memory))).squeeze(2).softmax(-1)
            context = torch.bmm(weights.unsqueeze(1), memory)
            step = torch.cat((self.target(target[:, t]).unsqueeze(1), context), 2)
            output, hidden = self.decoder(step, hidden)
            outputs.append(self.out(output))
        return torch.cat(outputs, 1)


@architecture("attention_lstm", lambda d, b, n: (d.ids(150, b, n), d.mask(b, n)))
class AttentionLstm(nn.Module):
    """A sentence classifier that attends over an LSTM's outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.lstm = nn.Embedding(150, 48), nn.LSTM(48, 40, batch_first=True)
        self.attention, self.out = nn.Linear(40, 1), nn.Linear(40, 6)

    def forward(self, ids: Tensor, mask: Tensor) -> dict[str, Tensor]:
        hidden, _ = self.lstm(self.table(ids))
        scores = self.attention(torch.tanh(hidden)).squeeze(-1).masked_fill(mask == 0, -1e9)
        weights = torch.softmax(scores, -1)
        return {"logits": self.out((hidden * weights.unsqueeze(-1)).sum(1)), "weights": weights}


@architecture(
    "highway",
    lambda d, b, n: (d.floats(b, 64),),
    sizes=((2, 0), (5, 0), (1, 0)),
    forms=ALL_FORMS,
    fixed=FEATURES,
)
class Highway(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.nonlinear = nn.ModuleList([nn.Linear(64, 64) for _ in range(3)])
        self.linear = nn.ModuleList([nn.Linear(64, 64) for _ in range(3)])
        self.gate = nn.ModuleList([nn.Linear(64, 64) for _ in range(3)])

    def forward(self, x: Tensor) -> Tensor:
        for layer in range(3):
            gate = torch.sigmoid(self.gate[layer](x))
            x = gate * torch.relu(self.nonlinear[layer](x)) + (1 - gate) * self.linear[layer](x)
        return x


class Chomp(nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        return x[:, :, : -self.size].contiguous()


class TemporalBlock(nn.Module):
    def __init__(self, cin: int, cout: int, dilation: int) -> None:
        super().__init__()
        pad = 2 * dilation
        weight_norm = nn.utils.parametrizations.weight_norm
        self.net = nn.Sequential(
            weight_norm(nn.Conv1d(cin, cout, 3, padding=pad, dilation=dilation)),
            Chomp(pad),
            nn.ReLU(),
            nn.Dropout(0.2),
            nn.Conv1d(cout, cout, 3, padding=pad, dilation=dilation),
            Chomp(pad),
            nn.ReLU(),
        )
        self.downsample = nn.Conv1d(cin, cout, 1) if cin != cout else None

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.net(x) + (x if self.downsample is None else self.downsample(x)))


@architecture("tcn", lambda d, b, n: (d.floats(b, 8, n),), sizes=((2, 24), (3, 31), (1, 17)), forms=ALL_FORMS)
class Tcn(nn.Module):
    """Causal convolutions under weight_norm."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.Sequential(
            TemporalBlock(8, 32, 1), TemporalBlock(32, 32, 2), TemporalBlock(32, 32, 4)
        )
        self.out = nn.Linear(32, 40)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.blocks(x)[:, :, -1])


@architecture(
    "nbeats",
    lambda d, b, n: (d.floats(b, 24),),
    sizes=((2, 0), (5, 0), (1, 0)),
    fixed=FEATURES,
    forms=ALL_FORMS,
)
class NBeats(nn.Module):
    """A forecast made of blocks that each explain away a part of the input."""

    def __init__(self) -> None:
        super().__init__()
        self.stacks = nn.ModuleList(
            [nn.Sequential(nn.Linear(24, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU()) for _ in range(2)]
        )
        self.backcast = nn.ModuleList([nn.Linear(64, 24) for _ in range(2)])
        self.forecast = nn.ModuleList([nn.Linear(64, 12) for _ in range(2)])

    def forward(self, x: Tensor) -> Tensor:
        total: Tensor | float = 0.0
        for stack, backcast, forecast in zip(self.stacks, self.backcast, self.forecast, strict=True):
            hidden = stack(x)
            x = x - backcast(hidden)
            total = total + forecast(hidden)
        assert isinstance(total, Tensor)
        return total


@architecture("conv_lstm", lambda d, b, n: (d.floats(b, 4, 3, n, n),), sizes=((2, 16), (3, 24), (1, 12)))
class ConvLstm(nn.Module):
    """Four frames of video through one convolutional cell."""

    def __init__(self) -> None:
        super().__init__()
        self.gates = nn.Conv2d(3 + 16, 64, 3, padding=1)
        self.out = nn.Conv2d(16, 3, 1)

    def forward(self, video: Tensor) -> Tensor:
        batch, steps, _, height, width = video.shape
        h = video.new_zeros(batch, 16, height, width)
        c = torch.zeros_like(h)
        for t in range(steps):
            i, f, o, g = torch.chunk(self.gates(torch.cat([video[:, t], h], 1)), 4, 1)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
        return self.out(h)


@architecture("packed_lstm", lambda d, b, n: (d.ids(90, b, n, first=1), d.mask(b, n).sum(1)))
class PackedLstm(nn.Module):
    """Sequences of several lengths, packed for an LSTM."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.lstm = nn.Embedding(90, 32, padding_idx=0), nn.LSTM(32, 48, batch_first=True)
        self.out = nn.Linear(48, 4)

    def forward(self, ids: Tensor, lengths: Tensor) -> Tensor:
        packed = nn.utils.rnn.pack_padded_sequence(self.table(ids), lengths, True, enforce_sorted=False)
        _, (hidden, _) = self.lstm(packed)
        return self.out(hidden[-1])


@architecture("padded_lstm", lambda d, b, n: (d.ids(90, b, n, first=1), d.mask(b, n).sum(1)))
class PaddedLstm(PackedLstm):
    """What the refusal of packed_lstm advises: the padded batch, and each row's last valid output."""

    def forward(self, ids: Tensor, lengths: Tensor) -> Tensor:
        outputs, _ = self.lstm(self.table(ids))
        last = (lengths - 1).view(-1, 1, 1).expand(-1, 1, outputs.size(2))
        return self.out(torch.gather(outputs, 1, last).squeeze(1))

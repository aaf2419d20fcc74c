"""Mixed precision and gradient accumulation: four micro-batches to a step, under autocast, with a gradient scaler.

normscope run examples/mixed_precision.py
"""

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.functional import cross_entropy

MICRO_BATCHES = 4

torch.manual_seed(0)
data = load_digits()
images = (torch.tensor(data.data, dtype=torch.float32) - 4.9) / 6.0
labels = torch.tensor(data.target)

device = "cuda" if torch.cuda.is_available() else "cpu"
half = torch.float16 if device == "cuda" else torch.bfloat16


class Encoder(nn.Module):
    """Eight rows of eight pixels, read as a sequence by a transformer."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(8, 32)
        layer = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.1, batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(32, 10)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        rows = pixels.view(-1, 8, 8)
        return self.head(self.encoder(self.embed(rows)).mean(1))


model = Encoder().to(device)
optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
scaler = torch.amp.GradScaler(device)

for step in range(40):
    total = 0.0
    for _ in range(MICRO_BATCHES):
        chosen = torch.randint(len(images), (32,))
        x, y = images[chosen].to(device), labels[chosen].to(device)
        with torch.autocast(device, dtype=half):
            loss = cross_entropy(model(x), y) / MICRO_BATCHES
        scaler.scale(loss).backward()
        total += loss.item()
    scaler.unscale_(optimizer)
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad(set_to_none=True)
    if step % 10 == 9:
        print(f"step {step}: loss {total:.3f}")

"""A script with a fault: `zero_grad` is called on an optimizer that does not own the model, so gradients pile up.

normscope run examples/forgotten_zero_grad.py
"""

import torch
from sklearn.datasets import load_digits
from torch import nn

torch.manual_seed(0)
data = load_digits()
images = (torch.tensor(data.data, dtype=torch.float32) - 4.9) / 6.0
labels = torch.tensor(data.target)

encoder = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU())
head = nn.Linear(64, 10)
model = nn.Sequential(encoder, head)
optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
head_only = torch.optim.SGD(head.parameters(), lr=0.02)

for step in range(120):
    chosen = torch.randint(len(images), (64,))
    loss = nn.functional.cross_entropy(model(images[chosen]), labels[chosen])
    head_only.zero_grad()  # the encoder's gradients are never cleared
    loss.backward()
    optimizer.step()
    if step % 30 == 29:
        print(f"step {step}: loss {loss.item():.3f}")

"""A small convolutional network on handwritten digits: the loop that everybody writes.

normscope run examples/plain_loop.py --epochs 3
"""

import argparse

import torch
from sklearn.datasets import load_digits
from torch import nn


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--lr", type=float, default=0.05)
    args = parser.parse_args()

    torch.manual_seed(0)
    data = load_digits()
    images = torch.tensor(data.images, dtype=torch.float32).unsqueeze(1) / 16
    dataset = torch.utils.data.TensorDataset(images, torch.tensor(data.target))
    train, test = torch.utils.data.random_split(dataset, [1500, 297])
    loader = torch.utils.data.DataLoader(train, batch_size=64, shuffle=True)

    model = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(inplace=True),
        nn.Conv2d(16, 32, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(32),
        nn.ReLU(inplace=True),
        nn.Flatten(),
        nn.Linear(32 * 4 * 4, 10),
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=args.lr, momentum=0.9)

    for epoch in range(args.epochs):
        model.train()
        for x, y in loader:
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
        model.eval()
        with torch.no_grad():
            right = sum((model(x[None]).argmax(1) == y).item() for x, y in test)
        print(f"epoch {epoch}: loss {loss.item():.3f}, accuracy {right / len(test):.3f}")


if __name__ == "__main__":
    main()

"""What spoils a model after it is built, the data, or a last layer; and where that was."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from setups import Residual
from torch import Tensor, nn

from normscope.anatomy.recognize import role_of

Data = tuple[Tensor, Tensor]


def weights(model: nn.Module) -> list[nn.Parameter]:
    """Every matrix and kernel."""
    return [one for one in model.parameters() if one.ndim > 1]


def layers(model: nn.Module) -> list[nn.Module]:
    """Linear layers and convolutions."""
    return [one for one in model.modules() if isinstance(one, nn.Linear | nn.Conv2d)]


def norms(model: nn.Module) -> list[nn.Module]:
    """Batch normalizations."""
    return [one for one in model.modules() if isinstance(one, nn.BatchNorm1d | nn.BatchNorm2d)]


# where ---------------------------------------------------------------------------------------------------------------


def paths(model: nn.Module, role: str) -> Iterator[str]:
    """The paths of every layer with weights (``"producer"``), norm or activation."""
    return (path for path, module in model.named_modules() if role_of(module) == role and not inside(path, model))


def inside(path: str, model: nn.Module) -> bool:
    """Whether it is a part of an attention, which does not run as a module."""
    return path.endswith("out_proj")


def everywhere(model: nn.Module) -> list[str]:
    """Every layer with weights."""
    return list(paths(model, "producer"))


def hidden(model: nn.Module) -> list[str]:
    """Every layer with weights but the last."""
    return everywhere(model)[:-1]


def first(model: nn.Module) -> list[str]:
    """The layer that reads the input."""
    return everywhere(model)[:1]


def ending(model: nn.Module) -> list[str]:
    """The last layer with weights and what follows it."""
    return [everywhere(model)[-1], "end"]


def middle(model: nn.Module) -> list[str]:
    """A hidden layer that everything passes: the second of a stack, else the head's first."""
    return [everywhere(model)[1] if isinstance(model, nn.Sequential) else "head.0"]


def batch_norms(model: nn.Module) -> list[str]:
    """Every batch normalization."""
    return [path for path, module in model.named_modules() if module in norms(model)]


def last_norm(model: nn.Module) -> list[str]:
    """The last batch normalization."""
    return batch_norms(model)[-1:]


def attentions(model: nn.Module) -> list[str]:
    """Every attention."""
    return [path for path, one in model.named_modules() if isinstance(one, nn.MultiheadAttention)]


# weights -------------------------------------------------------------------------------------------------------------


def scale(factor: float, start: int = 0, end: int | None = None):
    """Multiplies the weights of some layers."""

    def change(model: nn.Module) -> None:
        with torch.no_grad():
            for one in weights(model)[start:end]:
                one.mul_(factor)

    return change


def scale_at(place: Callable[[nn.Module], list[str]], factor: float):
    """Multiplies the weights at one place."""

    def change(model: nn.Module) -> None:
        with torch.no_grad():
            for path in place(model):
                for one in weights(model.get_submodule(path)):
                    one.mul_(factor)

    return change


def fill(value: float):
    """Sets every weight to one number."""

    def change(model: nn.Module) -> None:
        for one in weights(model):
            nn.init.constant_(one, value)

    return change


def fill_at(place: Callable[[nn.Module], list[str]], weight: float | None, bias: float):
    """Sets weights (unless None) and biases at one place to one number each."""

    def change(model: nn.Module) -> None:
        for path in place(model):
            for one in model.get_submodule(path).parameters():
                if one.ndim < 2 or weight is not None:
                    nn.init.constant_(one, bias if one.ndim < 2 else weight or 0.0)

    return change


def normal(std: float):
    """Draws the weights of hidden layers with one deviation, whatever their size."""

    def change(model: nn.Module) -> None:
        for one in weights(model)[:-1]:
            nn.init.normal_(one, std=std)

    return change


def bias(value: float):
    """Sets the biases of hidden layers."""

    def change(model: nn.Module) -> None:
        for one in layers(model)[:-1]:
            if one.bias is not None:
                nn.init.constant_(one.bias, value)  # type: ignore[arg-type]

    return change


def recurrent(gain: float):
    """Recurrent weights that grow, or shrink, what they are given."""

    def change(model: nn.Module) -> None:
        for name, one in model.named_parameters():
            if "weight_hh" in name:
                nn.init.orthogonal_(one, gain)

    return change


def forgetful(model: nn.Module) -> None:
    """Gates of an LSTM that let nothing in and keep nothing."""
    body: nn.LSTM = model.body  # type: ignore[assignment]
    nn.init.constant_(body.bias_ih_l0[: 2 * body.hidden_size], -12.0)


def aligned(model: nn.Module) -> None:
    """Weights of one sign, all rows nearly alike."""
    for one in weights(model)[:-1]:
        with torch.no_grad():
            fan = one[0].numel()
            one.normal_(1.0 / fan, 0.02 / fan)


def peaked(model: nn.Module) -> None:
    """Attention that looks at one place."""
    for one in model.modules():
        if isinstance(one, nn.MultiheadAttention):
            with torch.no_grad():
                one.in_proj_weight[: 2 * one.embed_dim].mul_(25)


def sink(model: nn.Module) -> None:
    """Biases of the logits that are all below zero."""
    last = [one for one in layers(model) if isinstance(one, nn.Linear)][-1]
    nn.init.constant_(last.bias, -3.0)


def he(model: nn.Module) -> None:
    """Weights at the gain of ReLU."""
    for one in weights(model)[:-1]:
        nn.init.kaiming_normal_(one, nonlinearity="relu")


# what learns ---------------------------------------------------------------------------------------------------------


def freeze_all_but_last(model: nn.Module) -> None:
    """No layer but the last learns."""
    for one in list(model.parameters())[:-2]:
        one.requires_grad_(False)


def learning(model: nn.Module) -> list[nn.Parameter]:
    """The parameters that are to learn."""
    return [one for one in model.parameters() if one.requires_grad]


def of_a_copy(model: nn.Module) -> list[nn.Parameter]:
    """The parameters of another model."""
    return list(copy.deepcopy(model).parameters())


# norms ---------------------------------------------------------------------------------------------------------------


def set_norms(**fields: float):
    """Sets attributes of every batch normalization."""

    def change(model: nn.Module) -> None:
        for one in norms(model):
            for name, value in fields.items():
                setattr(one, name, value)

    return change


def shut(model: nn.Module) -> None:
    """Most channels of the second norm stay at γ = 0."""
    one = norms(model)[min(1, len(norms(model)) - 1)]
    nn.init.zeros_(one.weight)  # type: ignore[arg-type]
    nn.init.zeros_(one.bias)  # type: ignore[arg-type]
    one.requires_grad_(False)


def spoiled(model: nn.Module) -> None:
    """The running variance of the last norm came damaged out of a checkpoint."""
    nn.init.constant_(norms(model)[-1].running_var, float("nan"))  # type: ignore[arg-type]


# structure -----------------------------------------------------------------------------------------------------------


class Cut(nn.Module):
    """Cuts the graph."""

    def forward(self, x: Tensor) -> Tensor:
        return x.detach()


class Broken(nn.Module):
    """Gives NaN for some inputs."""

    def __init__(self, offset: float) -> None:
        super().__init__()
        self.offset = offset

    def forward(self, x: Tensor) -> Tensor:
        return torch.log(x + self.offset)


def insert(place: int, make: Callable[[], nn.Module]):
    """Puts a module into a sequence."""

    def change(model: nn.Module) -> None:
        if isinstance(model, Residual):
            model.blocks.insert(place, make())
        elif isinstance(model, nn.Sequential):
            model.insert(place, make())

    return change


def before_head(make: Callable[[], nn.Module]):
    """Puts a module right before the last layers: behind the third layer of a stack, before the head of the others."""

    def change(model: nn.Module) -> None:
        if isinstance(model, nn.Sequential):
            model.insert(len(model) - 1, make())
        else:
            model.head = nn.Sequential(make(), model.head)  # type: ignore[arg-type]

    return change


def before_body(make: Callable[[], nn.Module]):
    """Puts a module before the first layer."""

    def change(model: nn.Module) -> None:
        if isinstance(model, nn.Sequential):
            model.insert(0, make())
        else:
            name = next(name for name in ("stem", "embed", "body") if hasattr(model, name))
            setattr(model, name, nn.Sequential(make(), getattr(model, name)))

    return change


# data and losses -----------------------------------------------------------------------------------------------------


def regression(images: Tensor, labels: Tensor) -> Data:
    """The amount of ink, far outside [−1, 1]."""
    return images, (images.mean(1) * 40 + 25).unsqueeze(1)


def below_zero(images: Tensor, labels: Tensor) -> Data:
    """The amount of ink, of deviation 1 and below zero."""
    ink = images.mean(1)
    return images, ((ink - ink.mean()) / ink.std() - 4).unsqueeze(1)


def binary(images: Tensor, labels: Tensor) -> Data:
    """Whether the digit is above four."""
    return images, (labels > 4).float().unsqueeze(1)


def of_probabilities(output: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy of two classes, from a probability."""
    return F.binary_cross_entropy(output.clamp(1e-6, 1 - 1e-6), target)


def rooted(output: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy with a penalty whose gradient is infinite where it is zero."""
    return F.cross_entropy(output, target) + (output - output.detach()).pow(2).sum().sqrt()


def one_in(factor: float) -> Callable[[Tensor, Tensor], Data]:
    """One feature much wider than the others."""

    def change(images: Tensor, labels: Tensor) -> Data:
        images = images.clone()
        images[:, 27] *= factor
        return images, labels

    return change


def lifted(images: Tensor, labels: Tensor) -> Data:
    """Of each row of eight pixels one lies three hundred deviations higher."""
    odd = (torch.arange(images[0].numel()) % 8 == 3).reshape(images.shape[1:])
    return images + 300 * odd, labels


def domains(images: Tensor, labels: Tensor) -> Data:
    """The second half of the data is brighter and of higher contrast."""
    half = len(images) // 2
    return torch.cat([images[:half], images[half:] * 5 + 8]), labels


def constant(images: Tensor, labels: Tensor) -> Data:
    """Every image is the first one."""
    return images[:1].expand_as(images).clone(), labels


def undefined(images: Tensor, labels: Tensor) -> Data:
    """Each feature over its deviation, which is zero for some."""
    flat = images.flatten(1)
    return ((flat - flat.mean(0)) / flat.std(0)).reshape(images.shape), labels


def infinite(images: Tensor, labels: Tensor) -> Data:
    """One sample in 300 is infinite."""
    odd = (torch.arange(len(images)) % 300 == 5).reshape(-1, *[1] * (images.ndim - 1))
    return torch.where(odd, float("inf"), images), labels

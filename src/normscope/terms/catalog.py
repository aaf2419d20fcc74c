"""Every normalization, a row each: its description where the one formula covers it, and what a user must know of it.

Adding a norm that the formula covers is adding a row. What a row cannot say is a field that `NormSpec` lacks, or a
small file of its own; then the row has no description and its formula is written out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches

from normscope.terms.datum import Datum
from normscope.terms.errors import UnknownNameError
from normscope.terms.spec import NormSpec


@dataclass(frozen=True, repr=False)
class Entry(Datum):
    """One normalization and the words about it.

    Attributes:
        name: its name in the catalog, in `normscope.nn` where it is a class, and in `normscope explain`.
        spec: its description, or None where the formula does not cover it.
        paper: where it comes from.
        use: when to use it.
        avoid: when not to.
        formula: what it computes, where `spec` does not say; beside a `spec`, what goes beyond it.
        build: how to make it.
    """

    name: str
    spec: NormSpec | None
    paper: str
    use: str
    avoid: str
    formula: str = ""
    build: str = ""


_BATCH = NormSpec(over=frozenset("NS"), train_from="batch", infer_from="running", momentum=0.1)
_LAYER = NormSpec(over=frozenset("CS"), train_from="input", infer_from="input")
_RMS = _LAYER.but(over="C", layout="channels_last", center=False, scale="rms", bias=False, eps=None)

ENTRIES: tuple[Entry, ...] = (
    # statistics over the batch ------------------------------------------------------------------------------------
    Entry(
        "BatchNorm",
        _BATCH,
        "Ioffe & Szegedy 2015, Batch Normalization: Accelerating Deep Network Training by Reducing Internal Covariate "
        "Shift",
        "Convolutional and dense networks with 16 or more samples a device (Wu & He 2018 saw a steep loss below).",
        "Small batches, samples of one batch that resemble each other, recurrent networks, and wherever the output for "
        "a sample must not depend on its neighbours.",
        build="normscope.nn.BatchNorm1d, BatchNorm2d, BatchNorm3d",
    ),
    Entry(
        "SyncBatchNorm",
        _BATCH.but(train_from="synchronized"),
        "Peng et al. 2018, MegDet: A Large Mini-Batch Object Detector",
        "Batches that are small on each device and large together: detection, segmentation, video.",
        "A single device, where it is BatchNorm; slow links between devices: all wait for each other twice a layer.",
        build="normscope.nn.SyncBatchNorm",
    ),
    Entry(
        "FrozenBatchNorm",
        _BATCH.but(train_from="given", infer_from="given", momentum=None),
        "He et al. 2016, Deep Residual Learning for Image Recognition, appendix A",
        "Fine-tuning a trained network with batches too small for its statistics.",
        "Training from the start, and data unlike those of the statistics.",
        build="normscope.nn.FrozenBatchNorm",
    ),
    Entry(
        "GhostBatchNorm",
        _BATCH.but(train_from="ghost", virtual_batch=32),
        "Hoffer, Hubara & Soudry 2017, Train longer, generalize better, algorithm 1",
        "Batches of thousands, to keep the noise of small-batch statistics, which regularizes.",
        "Batches that are small already.",
        build="normscope.nn.GhostBatchNorm",
    ),
    Entry(
        "BatchRenorm",
        _BATCH.but(
            train_from="renormalized",
            momentum=0.01,
            unbiased=False,
            eps=1e-3,
            corrections=((3.0, 5_000, 40_000), (5.0, 5_000, 25_000)),
        ),
        "Ioffe 2017, Batch Renormalization: Towards Reducing Minibatch Dependence in Batch-Normalized Models",
        "Small or dependent batches, where training and inference must agree.",
        "Short trainings: it is BatchNorm for the first 5,000 batches.",
        formula="While training, x̂ becomes `x̂ · r + d` before g and b: r = clip(σ_batch/σ), d = clip((μ_batch − μ)/σ).",
        build="normscope.nn.BatchRenorm",
    ),
    Entry(
        "EstimatedBatchNorm",
        _BATCH.but(train_from="running"),
        "Qiao et al. 2019, Rethinking Normalization and Elimination Singularity in Neural Networks",
        "Batches of one or two, followed by a norm of single samples (BatchChannelNorm).",
        "Alone: the gradient does not see the statistics, and weights may grow without bound.",
        build='normscope.nn.build(normscope.catalog["EstimatedBatchNorm"], channels)',
    ),
    Entry(
        "PopulationBatchNorm",
        _BATCH.but(infer_from="population", momentum=None),
        "Wu & Johnson 2021, Rethinking 'Batch' in BatchNorm, section 3",
        "Statistics for inference from a pass over the data with fixed weights: within- plus between-batch variance.",
        "Training itself: batches from before the weights moved weigh as much as the last.",
        build='normscope.nn.build(normscope.catalog["PopulationBatchNorm"], channels)',
    ),
    Entry(
        "OnlineNorm",
        _BATCH.but(train_from="online", infer_from="online", momentum=None, decay=(0.999, 0.99)),
        "Chiley et al. 2019, Online Normalization for Training Neural Networks",
        "Training one sample at a time, where BatchNorm would be right but for the batch.",
        "Double backward, and samples in sorted order.",
        formula="Then each sample is divided by its root mean square.",
        build="normscope.nn.OnlineNorm",
    ),
    Entry(
        "DecorrelatedBatchNorm",
        _BATCH.but(scale="whiten", eps=1e-3),
        "Huang et al. 2018, Decorrelated Batch Normalization",
        "Well-conditioned activations at the price of an eigen-decomposition: fewer steps to the same loss.",
        "Fewer cells in a batch than channels in a group; GPUs, where eigen-decompositions are slow: use IterNorm.",
        build="normscope.nn.DecorrelatedBatchNorm",
    ),
    Entry(
        "IterNorm",
        _BATCH.but(scale="whiten", iterations=5),
        "Huang et al. 2019, Iterative Normalization: Beyond Standardization towards Efficient Whitening",
        "Whitening by matrix products alone; the number of iterations trades whiteness against noise.",
        "Fewer cells in a batch than channels in a group.",
        build="normscope.nn.IterNorm",
    ),
    # statistics of one sample -------------------------------------------------------------------------------------
    Entry(
        "LayerNorm",
        _LAYER.but(over="C", layout="channels_last"),
        "Ba, Kiros & Hinton 2016, Layer Normalization",
        "Transformers and recurrent networks: the same in training and inference, any batch size, any length.",
        "Convolutional networks whose channels mean different things, where GroupNorm or BatchNorm does better.",
        build="normscope.nn.LayerNorm",
    ),
    Entry(
        "LayerNorm2d",
        _LAYER.but(over="C"),
        "Liu et al. 2022, A ConvNet for the 2020s",
        "LayerNorm of each position in networks that keep (N, C, H, W).",
        "Networks with few channels.",
        build="normscope.nn.LayerNorm2d",
    ),
    Entry(
        "GroupNorm",
        _LAYER.but(groups=32),
        "Wu & He 2018, Group Normalization",
        "Convolutional networks with small batches.",
        "Groups of one cell, whose output is constant; large batches, where BatchNorm is a little better.",
        build="normscope.nn.GroupNorm",
    ),
    Entry(
        "InstanceNorm",
        _LAYER.but(over="S", affine=False, bias=False),
        "Ulyanov, Vedaldi & Lempitsky 2016, Instance Normalization: The Missing Ingredient for Fast Stylization",
        "Style transfer and image synthesis: contrast and style of each channel are taken out.",
        "Tasks in which the strength of a channel matters; inputs of one position.",
        build="normscope.nn.InstanceNorm1d, InstanceNorm2d, InstanceNorm3d, InstanceNorm",
    ),
    Entry(
        "RMSNorm",
        _RMS,
        "Zhang & Sennrich 2019, Root Mean Square Layer Normalization",
        "Transformers: LayerNorm without the mean, with one pass less.",
        "Inputs with a large mean, which stays.",
        build="normscope.nn.RMSNorm",
    ),
    Entry(
        "LlamaRMSNorm",
        _RMS.but(cast="normalized", eps=1e-6),
        "Touvron et al. 2023, LLaMA: Open and Efficient Foundation Language Models; also T5, Qwen, Mistral",
        "Weights of those models: in half precision the cast comes before the weight.",
        "New models, which gain nothing from the early cast.",
        build='normscope.nn.RMSNorm(…, cast="normalized")',
    ),
    Entry(
        "GemmaRMSNorm",
        _RMS.but(weight_offset=1.0, eps=1e-6),
        "Gemma Team 2024, Gemma: Open Models Based on Gemini Research and Technology",
        "Weights of those models: the stored weight starts at zero, so that decay pulls the gain to one.",
        "Weights of any other model, whose gain would be one too large.",
        build="normscope.nn.RMSNorm(…, weight_offset=1.0)",
    ),
    Entry(
        "PositionalNorm",
        _LAYER.but(over="C", affine=False, bias=False),
        "Li et al. 2019, Positional Normalization",
        "Generators: mean and deviation of each position are taken out early and put back late (the moment shortcut).",
        "Classifiers.",
        build="normscope.nn.PositionalNorm",
    ),
    Entry(
        "FilterResponseNorm",
        _LAYER.but(over="S", center=False, scale="rms", eps=1e-6),
        "Singh & Krishnan 2020, Filter Response Normalization Layer",
        "Convolutional networks with any batch size; the thresholded linear unit belongs to it, in place of ReLU.",
        "Inputs of one position without the learned ε.",
        formula="Then `max(y, τ)`, with a learned threshold τ a channel.",
        build="normscope.nn.FilterResponseNorm",
    ),
    # what the formula does not cover --------------------------------------------------------------------------------
    Entry(
        "BatchChannelNorm",
        None,
        "Qiao et al. 2019, Rethinking Normalization and Elimination Singularity in Neural Networks",
        "Batches of one or two in convolutional networks, with weight standardization.",
        "Large batches, where BatchNorm does as well for less.",
        "GroupNorm(EstimatedBatchNorm(x)), the second with one weight and bias a group",
        "normscope.nn.BatchChannelNorm",
    ),
    Entry(
        "SwitchableNorm",
        None,
        "Luo et al. 2019, Differentiable Learning-to-Normalize via Switchable Normalization",
        "Networks for several tasks or batch sizes, where no one norm is best everywhere.",
        "Tight memory: three sets of statistics are kept for the backward pass.",
        "g · (x − Σ w_k μ_k) / √(Σ v_k σ_k² + ε) + b, k = instance, layer, batch; w and v by softmax",
        "normscope.nn.SwitchableNorm",
    ),
    Entry(
        "EvoNormB0",
        None,
        "Liu et al. 2020, Evolving Normalization-Activation Layers",
        "Convolutional networks with large batches: norm and activation in one layer.",
        "Small batches: use EvoNormS0.",
        "g · x / max(√(var_batch + ε), v · x + √(var_sample + ε)) + b",
        "normscope.nn.EvoNormB0",
    ),
    Entry(
        "EvoNormS0",
        None,
        "Liu et al. 2020, Evolving Normalization-Activation Layers",
        "Convolutional networks with small batches: norm and activation in one layer.",
        "A place where an activation follows already.",
        "g · x · sigmoid(v · x) / √(var_group + ε) + b",
        "normscope.nn.EvoNormS0",
    ),
    Entry(
        "LocalResponseNorm",
        None,
        "Krizhevsky, Sutskever & Hinton 2012, ImageNet Classification with Deep Convolutional Neural Networks",
        "Weights of AlexNet and GoogLeNet.",
        "New models.",
        "x / (k + α · mean of x² over neighbouring channels)^β",
        "normscope.nn.LocalResponseNorm",
    ),
    Entry(
        "DynamicTanh",
        None,
        "Zhu et al. 2025, Transformers without Normalization",
        "Transformers, in place of LayerNorm: no statistics, no reduction.",
        "Convolutional networks with BatchNorm, where it does worse.",
        "g · tanh(α · x) + b",
        "normscope.nn.DynamicTanh",
    ),
    Entry(
        "TemporalBatchNorm",
        None,
        "Cooijmans et al. 2017, Recurrent Batch Normalization",
        "Sequences whose early steps differ from the later ones, between or inside recurrent layers.",
        "Lengths far beyond those of the training: later steps borrow the last kept statistics.",
        "BatchNorm of each time step by its own statistics; one weight, started at 0.1, and one bias for all",
        "normscope.nn.TemporalBatchNorm, normscope.nn.LSTM(…, norm='batch')",
    ),
    # the weights -----------------------------------------------------------------------------------------------------
    Entry(
        "weight_norm",
        None,
        "Salimans & Kingma 2016, Weight Normalization",
        "Recurrent networks, reinforcement learning, generators: wherever noise of batch statistics hurts.",
        "Without a start by data (normscope.nn.init.data_dependent): scales are not controlled.",
        "w = g · v / ‖v‖, row by row",
        "normscope.nn.weight_norm(layer)",
    ),
    Entry(
        "centered_weight_norm",
        None,
        "Huang et al. 2017, Centered Weight Normalization in Accelerating Training of Deep Neural Networks",
        "As weight norm, behind inputs that are all positive (after ReLU), whose mean it takes out.",
        "Rows of one weight.",
        "w = g · (v − mean v) / ‖v − mean v‖, row by row",
        "normscope.nn.centered_weight_norm(layer)",
    ),
    Entry(
        "weight_standardization",
        None,
        "Qiao et al. 2019, Micro-Batch Training with Batch-Channel Normalization and Weight Standardization",
        "Convolutions before GroupNorm with small batches; with `gain=True`, networks without norms.",
        "Depthwise convolutions with few weights a row.",
        "w = (v − mean v) / √(var v + ε), row by row",
        "normscope.nn.weight_standardization(layer)",
    ),
    Entry(
        "spectral_norm",
        None,
        "Miyato et al. 2018, Spectral Normalization for Generative Adversarial Networks",
        "Discriminators, and wherever a layer must not stretch its input.",
        "Layers that must amplify.",
        "w = v / σ₁(v), σ₁ by power iteration",
        "normscope.nn.spectral_norm(layer)",
    ),
    Entry(
        "cosine",
        None,
        "Luo et al. 2018, Cosine Normalization: Using Cosine Similarity Instead of Dot Product in Neural Networks",
        "Bounded pre-activations, few-shot classifiers.",
        "Inputs whose length carries the information.",
        "x · w / (‖x‖ ‖w‖), in [−1, 1]",
        "normscope.nn.CosineLinear, CosineConv1d, CosineConv2d, CosineConv3d; cosine(layer) for the weights alone",
    ),
)


class _Catalog(Mapping[str, NormSpec]):
    """The descriptions by name; a name that is none is answered with the nearest ones."""

    def __init__(self, rows: Mapping[str, NormSpec]) -> None:
        self._rows = dict(rows)

    def __getitem__(self, name: str) -> NormSpec:
        if name in self._rows:
            return self._rows[name]
        apart = next((row for row in ENTRIES if row.name == name), None)
        if apart is not None:
            raise UnknownNameError(
                f"The description of {name} was asked of the catalog.",
                found=f"a formula of its own: {apart.formula}",
                because="a NormSpec says what the one formula h = f(g · (x − μ)/σ + b) covers",
                do=f"make it with {apart.build}",
            )
        known = {row.lower(): row for row in self._rows}
        near = get_close_matches(str(name).lower(), known, 3, 0.5)
        guess = f"did you mean {' or '.join(known[one] for one in near)}? " if near else ""
        raise UnknownNameError(
            "A normalization was asked of the catalog by a name that is none.",
            found=f"{name!r}",
            because="names are those of `normscope norms`, without 1d, 2d or 3d",
            do=f"{guess}The catalog has " + ", ".join(self._rows),
        )

    def __iter__(self) -> Iterator[str]:
        return iter(self._rows)

    def __len__(self) -> int:
        return len(self._rows)

    def __repr__(self) -> str:
        return f"catalog of {len(self)}: {', '.join(self)}"


CATALOG: Mapping[str, NormSpec] = _Catalog({row.name: row.spec for row in ENTRIES if row.spec is not None})

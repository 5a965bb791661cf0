"""The settings of a policy: its base, the shape of one made from scratch, and its LoRA."""

from __future__ import annotations

from typing import Annotated

import msgspec

from streams.descriptions import describe


class TinySettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The shape of the policy that is made from scratch; the default shape has 1.3 million parameters."""

    vocabulary_size: Annotated[
        int,
        msgspec.Meta(ge=300, le=65536),
        describe("Number of BPE tokens. The embeddings of input and output are shared."),
    ] = 4096
    hidden_size: Annotated[
        int, msgspec.Meta(ge=16, le=2048), describe("Width of the decoder. It is a multiple of `heads`.")
    ] = 128
    layers: Annotated[int, msgspec.Meta(ge=1, le=48), describe("Number of decoder layers.")] = 4
    heads: Annotated[int, msgspec.Meta(ge=1, le=64), describe("Number of attention heads.")] = 4
    feedforward_size: Annotated[int, msgspec.Meta(ge=16, le=8192), describe("Width inside the SwiGLU.")] = 344
    positions_max: Annotated[
        int, msgspec.Meta(ge=64, le=8192), describe("Largest number of tokens in prompt and answer together.")
    ] = 512
    embedding_std: Annotated[
        float, msgspec.Meta(gt=0, le=1), describe("Standard deviation of the initial embeddings.")
    ] = 0.12
    copying_layers: Annotated[
        int,
        msgspec.Meta(ge=0),
        describe("Number of last layers that are initialized to copy words of the prompt. 0: none."),
    ] = 2
    copying_scale: Annotated[
        float,
        msgspec.Meta(ge=0),
        describe("Scale of the copied values at the start. A larger scale copies more strongly."),
    ] = 2.0
    seed: Annotated[int, msgspec.Meta(ge=0), describe("Seed of the initial weights.")] = 0


class LoraSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Low-rank adapters (arXiv:2106.09685) for a policy too large to train whole."""

    rank: Annotated[
        int,
        msgspec.Meta(ge=0, le=512),
        describe(
            "Rank of the adapters. A larger rank trains more parameters. 0 adds no adapter and trains every weight."
        ),
    ] = 0
    alpha: Annotated[
        int, msgspec.Meta(ge=1), describe("Strength of the adapters, which are scaled by alpha / rank.")
    ] = 32
    targets: Annotated[tuple[str, ...], describe("Names of the linear layers that get an adapter.")] = (
        "q_proj",
        "k_proj",
        "v_proj",
        "o_proj",
    )


class PolicySettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The policy that learns."""

    base: Annotated[
        str,
        describe(
            "Policy at the start: `tiny` (made from scratch), `smollm2`, a folder of a transformers model, or "
            "the name of a model on a hub, which is fetched once.",
            common=True,
        ),
    ] = "tiny"
    tiny: TinySettings = TinySettings()
    lora: LoraSettings = LoraSettings()

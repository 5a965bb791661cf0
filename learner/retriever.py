"""ReSuMe's retriever g: a bi-encoder, and the turn that adapts it to summaries with a contrastive loss.

`TrainableRetriever` is the interface that the turn needs, so a full encoder fits, too. The built-in retriever is
static. A text's vector is the weighted sum of its tokens' embeddings, multiplied by a learned map and scaled to length
1. The embeddings come from a pretrained encoder's input layer and stay fixed. Queries and documents have separate maps,
and every token has a learned weight. A step of 64 pairs takes a few milliseconds on one core, and 3,000 products are
encoded in less than a second.

Shapes: Q queries of a batch, S texts of a batch, E embedding size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Protocol

import msgspec
import numpy as np
import torch
from safetensors.torch import load_file, safe_open
from torch import Tensor, nn

from streams.descriptions import describe
from streams.errors import SearchloopError
from streams.whole_file import file_sha256

BASE_WEIGHTS, BASE_TOKENIZER, BASE_TABLE = "model.safetensors", "tokenizer.json", "embeddings.word_embeddings.weight"


class RetrieverError(SearchloopError, ValueError):
    """A retriever cannot be built, read or adapted."""


class RetrieverSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings for adapting the retriever in one turn, and the number of tokens that it reads."""

    steps: Annotated[
        int, msgspec.Meta(ge=0, le=1_000_000), describe("Optimizer steps per turn. 0 leaves the retriever as it is.")
    ] = 150
    batch_pairs: Annotated[
        int,
        msgspec.Meta(ge=2, le=4096),
        describe("Pairs of query and text in one step. The other texts of the batch are the wrong answers."),
    ] = 256
    learning_rate: Annotated[float, msgspec.Meta(gt=0, le=1), describe("AdamW's learning rate of the maps.")] = 5e-4
    weight_learning_rate: Annotated[
        float, msgspec.Meta(gt=0, le=1), describe("AdamW's learning rate of the token weights.")
    ] = 1e-2
    # The paper's value is 1, with which cosines between −1 and 1 hardly separate texts.
    temperature: Annotated[
        float,
        msgspec.Meta(gt=0, le=10),
        describe("Divisor of the cosines in the loss. A smaller value separates texts more sharply; 1 is the paper."),
    ] = 0.05
    tokens_max: Annotated[
        int, msgspec.Meta(ge=8, le=512), describe("Tokens of a text that are read; the rest is cut.")
    ] = 160


class TrainableRetriever(Protocol):
    """The interface of a bi-encoder that a retriever turn needs."""

    def encode(self, texts: Sequence[str], *, queries: bool) -> Tensor:
        """Return [n, E] unit vectors, differentiable; an empty text also has a vector."""

    def parameter_groups(self, settings: RetrieverSettings) -> list[dict[str, Any]]:
        """Return the trained parameters as an optimizer's parameter groups."""

    def tensors(self) -> dict[str, Tensor]:
        """Return the learned tensors by name. A version stores only these and the base's sha256."""


class StaticRetriever(nn.Module):
    """A static bi-encoder over the token embeddings of the encoder in `base`."""

    def __init__(self, base: Path, *, tokens_max: int) -> None:
        """base: a folder with tokenizer.json and safetensors of a BERT. tokens_max: longer texts are cut.

        Raises RetrieverError if the folder cannot be read.
        """
        super().__init__()
        from tokenizers import Tokenizer

        try:
            self.tokenizer = Tokenizer.from_file(str(base / BASE_TOKENIZER))
            with safe_open(base / BASE_WEIGHTS, framework="pt") as file:
                table = file.get_tensor(BASE_TABLE).float()
            self.base_sha256 = file_sha256(base / BASE_WEIGHTS)
        except Exception as error:  # tokenizers raises bare Exception.
            raise RetrieverError(f"retriever base at {base}: cannot be read ({error}). Install it again") from error
        self.tokenizer.no_padding()
        self.tokenizer.enable_truncation(tokens_max)
        self.table: Tensor
        self.register_buffer("table", table, persistent=False)
        size = table.shape[1]
        self.query_map = nn.Parameter(torch.eye(size))
        self.document_map = nn.Parameter(torch.eye(size))
        self.token_weights = nn.Parameter(torch.zeros(len(table), 1))
        self._ids: dict[str, list[int]] = {}

    def encode(self, texts: Sequence[str], *, queries: bool) -> Tensor:
        """Return [n, E] unit vectors: normalize(Σ_t exp(w_t) e_t · map)."""
        bags = [self._token_ids(text) for text in texts]
        ids = torch.tensor([token for bag in bags for token in bag], dtype=torch.long)
        starts = torch.tensor(np.cumsum([0, *map(len, bags[:-1])]), dtype=torch.long)
        # Gather only the weights of these tokens: the gradient of exp over the whole table would cost more.
        weights = nn.functional.embedding(ids, self.token_weights).squeeze(1).exp()
        summed = nn.functional.embedding_bag(ids, self.table, starts, mode="sum", per_sample_weights=weights)
        return nn.functional.normalize(summed @ (self.query_map if queries else self.document_map), dim=1)

    def parameter_groups(self, settings: RetrieverSettings) -> list[dict[str, Any]]:
        """Return the maps and the token weights, each with its learning rate."""
        return [
            {"params": [self.query_map, self.document_map], "lr": settings.learning_rate},
            {"params": [self.token_weights], "lr": settings.weight_learning_rate},
        ]

    def tensors(self) -> dict[str, Tensor]:
        """Return the maps, [E, E] each, and the token weights, [V, 1]."""
        return {name: parameter.detach().clone() for name, parameter in self.named_parameters()}

    def load_tensors(self, path: Path) -> None:
        """Load the tensors that `tensors` returned. Raises RetrieverError if they belong to another base."""
        try:
            self.load_state_dict(load_file(path))
        except RuntimeError as error:
            raise RetrieverError(f"{path}: expected the weights of a retriever with this base: {error}") from error

    def _token_ids(self, text: str) -> list[int]:
        """Return a text's tokens, including [CLS] and [SEP], so that no text is empty."""
        found = self._ids.get(text)
        if found is None:
            found = self._ids[text] = list(self.tokenizer.encode(text).ids)
        return found


def contrastive_loss(queries: Tensor, texts: Tensor, relevant: Tensor, *, temperature: float) -> Tensor:
    """Return the mean of −log(exp(S(q, s⁺)/τ) / (exp(S(q, s⁺)/τ) + Σ_{s⁻} exp(S(q, s⁻)/τ))) over all pairs (q, s⁺).

    queries [Q, E], texts [S, E]: unit vectors. relevant [Q, S]: bool; other relevant texts of q are no negatives.
    Raises ValueError if a query has no relevant text.

    ReSuMe (doi:10.1145/3774904.3792959), eq. 5. We differ: the paper has no τ (= 1) and does not define the negatives;
    here they are the other texts of the batch.
    """
    if not bool(relevant.any(dim=1).all()):
        raise ValueError("expected a relevant text for every query of the batch")
    scores = queries @ texts.T / temperature  # [Q, S]
    against = scores.masked_fill(relevant, -torch.inf).logsumexp(dim=1, keepdim=True)  # [Q, 1]
    losses = torch.logaddexp(scores, against) - scores  # [Q, S]
    per_query = (losses * relevant).sum(dim=1) / relevant.sum(dim=1)
    return per_query.mean()


def adapt_retriever(
    retriever: TrainableRetriever,
    *,
    queries: Mapping[str, str],
    relevant: Mapping[str, Sequence[str]],
    texts: Mapping[str, str],
    settings: RetrieverSettings,
    seed: int,
) -> list[float]:
    """Adapt the retriever in place to the documents' texts, and return the loss of each step.

    queries: text by query id. relevant: ids of the documents that answer each query. texts: the text for each document
    (a summary beside its title, or the document itself). Each step draws queries without replacement until all were
    drawn, takes one relevant document for each, and uses the other queries' documents as negatives. On one thread, the
    same input gives the same bits. Raises RetrieverError if no query has a relevant text or the loss is not finite.
    """
    known = {query: [each for each in documents if each in texts] for query, documents in relevant.items()}
    asked = sorted(query for query, documents in known.items() if documents and query in queries)
    if not asked:
        raise RetrieverError("expected queries with a relevant document among the texts, got none; check the qrels")
    sets = {query: frozenset(known[query]) for query in asked}
    random = np.random.default_rng([seed, len(asked)])
    optimizer = torch.optim.AdamW(retriever.parameter_groups(settings), weight_decay=0.0)
    losses: list[float] = []
    order: list[int] = []
    for _ in range(settings.steps):
        if len(order) < min(settings.batch_pairs, len(asked)):
            order = [*order, *random.permutation(len(asked)).tolist()]
        taken = list(dict.fromkeys(order[: settings.batch_pairs]))
        order = order[settings.batch_pairs :]
        batch = [asked[place] for place in taken]
        chosen = list(dict.fromkeys(known[query][int(random.integers(len(known[query])))] for query in batch))
        marks = torch.tensor([[document in sets[query] for document in chosen] for query in batch])
        loss = contrastive_loss(
            retriever.encode([queries[query] for query in batch], queries=True),
            retriever.encode([texts[document] for document in chosen], queries=False),
            marks,
            temperature=settings.temperature,
        )
        if not bool(loss.isfinite()):
            raise RetrieverError(
                f"retriever turn: the loss is {loss.item()} after {len(losses)} steps; lower "
                "retriever.learning_rate and retriever.weight_learning_rate"
            )
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        optimizer.step()
        losses.append(loss.item())
    return losses

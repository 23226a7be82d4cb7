"""The settings section `index`: how queries that follow one another are kept, embedded and looked up."""

from __future__ import annotations

from typing import Self

from pydantic import BaseModel, ConfigDict, Field, model_validator


class IndexSettings(BaseModel):
    """Section `index` (G16). The first block is read when an index is built or asked, the second when its encoder is trained."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    successors: int = Field(default=5, ge=0, le=100, description="n of G16: co-occurring queries that enter a prompt")
    neighbours: int = Field(
        default=10, ge=0, le=1000, description="N_s of G16: near queries whose successors fill up a short list"
    )
    min_similarity: float = Field(default=0.2, ge=-1, le=1, description="cosine under which a query is not near")
    max_successors: int = Field(default=50, ge=1, description="successors kept a query, most frequent first")
    min_count: int = Field(default=1, ge=1, description="co-occurrences below this count are left out as noise")
    exact_up_to: int = Field(default=30_000, ge=0, description="queries searched exactly; more go into an HNSW graph")

    dim: int = Field(default=64, ge=8, le=1024, description="length of an embedding")
    buckets: int = Field(default=2**15, ge=256, le=2**24, description="hash buckets for words and character n-grams")
    min_ngram: int = Field(default=3, ge=1, description="shortest character n-gram")
    max_ngram: int = Field(default=5, ge=1, le=12, description="longest character n-gram")
    epochs: int = Field(default=8, ge=0, description="passes over the co-occurring pairs")
    max_steps: int = Field(default=300, ge=0, description="upper bound on training steps, whatever the epochs say")
    batch: int = Field(default=256, ge=2, description="pairs a step; each is a negative for all others")
    learning_rate: float = Field(default=0.01, gt=0, description="Adam's step")
    temperature: float = Field(default=0.07, gt=0, description="of InfoNCE")
    dropout: float = Field(default=0.2, ge=0, lt=1, description="features dropped for the SimCSE view of a query")
    seed: int = Field(default=0, ge=0, description="of the encoder's first weights and its batches")

    @model_validator(mode="after")
    def _check_ngrams(self) -> Self:
        if self.min_ngram > self.max_ngram:
            raise ValueError(f"index.min_ngram = {self.min_ngram} is more than index.max_ngram = {self.max_ngram}")
        return self

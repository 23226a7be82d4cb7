"""The settings section `predictor`: the network's size."""

from __future__ import annotations

from typing import Self

from pydantic import BaseModel, ConfigDict, Field, model_validator


class PredictorSettings(BaseModel):
    """Section `predictor`: the network's size. An artifact carries the size it was trained with."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    dim: int = Field(default=64, ge=8, description="width of the network")
    layers: int = Field(default=2, ge=1, description="transformer layers")
    heads: int = Field(default=4, ge=1, description="attention heads; must divide dim")
    hidden: int = Field(default=128, ge=8, description="width of the feed-forward part")
    dropout: float = Field(default=0.1, ge=0, lt=1, description="activations dropped while it is trained")
    vocabulary: int = Field(default=8000, ge=100, le=32_767, description="word pieces learned from the logs, at most")
    max_tokens: int = Field(default=32, ge=4, le=512, description="tokens read of each text")
    max_items: int = Field(default=64, ge=1, le=1024, description="items of a list")

    @model_validator(mode="after")
    def _check_heads(self) -> Self:
        if self.dim % self.heads:
            raise ValueError(f"predictor.heads = {self.heads} does not divide predictor.dim = {self.dim}")
        return self

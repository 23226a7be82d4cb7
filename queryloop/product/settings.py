"""The simulated product's settings: its users' habits, its client's mistakes, and how many calls it makes at once."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field

WorldKind = Literal["invented", "english"]


class ProductSettings(BaseModel, frozen=True, extra="forbid"):
    """Section `product`; only the demo reads it. Times are event time unless said otherwise."""

    task: str = Field(default="suggest", description="the task that the product's pages ask for")
    world: WorldKind = Field(
        default="invented",
        description="what people ask about: names made of syllables, or cities, dishes, films ... that a pretrained model knows",
    )
    concurrency: int = Field(default=48, ge=1, le=1024, description="visits at a time")
    post_events: int = Field(default=100, ge=1, le=1000, description="events in one POST")
    timeout_s: float = Field(default=30.0, gt=0, description="seconds of real time until a call counts as failed")
    pause_median_s: float = Field(default=60.0, gt=0, description="median time between two queries of a visit")
    click_delay_median_s: float = Field(default=600.0, gt=0, description="median time from a list to a click on it")
    click_delay_spread: float = Field(default=1.0, ge=0, le=2, description="sigma of the log-normal click delay")
    follow_rate: float = Field(default=0.55, ge=0, le=1, description="how often a user types another query after a list")
    chase_rate: float = Field(
        default=0.5, ge=0, le=1, description="how often a clicked recommendation is shown with a list of its own"
    )
    longest_visit: int = Field(default=8, ge=1, description="lists in one visit at most")
    duplicate_rate: float = Field(default=0.02, ge=0, le=1, description="events that are posted twice")
    spoiled_rate: float = Field(default=0.002, ge=0, le=1, description="lists that are followed by an event which cannot be used")

"""The CTR predictor's network: one pass gives the click probability of every item of a list (G5).

A token attends to q_user, the earlier items' blocks and its own block, never a later one. So an item's output equals that of a
pass over the list up to it, and N positions cost one pass instead of N.
"""

from __future__ import annotations

from serving.predictor.settings import PredictorSettings
from serving.predictor.text import OVERLAPS, Column

try:
    from torch import Tensor, nn
except ImportError as error:
    raise ImportError("the click predictor needs torch: pip install 'queryloop[cpu]' (or queryloop[gpu])") from error


class BlockCausalNetwork(nn.Module):
    """Transformer encoder over token + position + segment + domain + overlap embeddings, a two-layer MLP on each [CLS]."""

    def __init__(self, settings: PredictorSettings, tokens: int) -> None:
        super().__init__()
        self.domains = settings.max_items + 2  # q_user, the items, padding
        rows = {
            Column.TOKEN: tokens,
            Column.POSITION: settings.max_tokens + 1,
            Column.SEGMENT: 2,
            Column.DOMAIN: self.domains,
            Column.OVERLAP: OVERLAPS,
        }
        self.embeddings = nn.ModuleList(nn.Embedding(rows[column], settings.dim) for column in Column)
        self.dropout = nn.Dropout(settings.dropout)
        self.layers = nn.ModuleList(_Layer(settings) for _ in range(settings.layers))
        self.norm = nn.LayerNorm(settings.dim)
        self.head = nn.Sequential(nn.Linear(settings.dim, settings.dim), nn.GELU(), nn.Dropout(settings.dropout))
        self.out = nn.Linear(settings.dim, 1)
        for weight in self.embeddings.parameters():
            nn.init.normal_(weight, std=0.05)

    def forward(self, columns: Tensor, heads: Tensor) -> Tensor:
        """Return logits [B, N] at the [CLS] places `heads` [B, N] of `columns` [B, L, 5]; the output at a place of -1 is
        meaningless."""
        domains = columns[:, :, Column.DOMAIN]
        visible = domains[:, None, None, :] <= domains[:, None, :, None]
        states = self.embeddings[0](columns[:, :, 0])
        for column in range(1, len(Column)):
            states = states + self.embeddings[column](columns[:, :, column])
        states = self.dropout(states)
        for layer in self.layers:
            states = layer(states, visible)
        picked = states.gather(1, heads.clamp(min=0)[:, :, None].expand(-1, -1, states.shape[2]))
        logits: Tensor = self.out(self.head(self.norm(picked)))[:, :, 0]
        return logits


class _Layer(nn.Module):
    """Pre-norm: self-attention and feed-forward, each on normalised input and added to it."""

    def __init__(self, settings: PredictorSettings) -> None:
        super().__init__()
        dim = settings.dim
        self.heads = settings.heads
        self.attention_norm, self.forward_norm = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.project_in, self.project_out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.feed_forward = nn.Sequential(nn.Linear(dim, settings.hidden), nn.GELU(), nn.Linear(settings.hidden, dim))
        self.dropout = nn.Dropout(settings.dropout)

    def forward(self, states: Tensor, visible: Tensor) -> Tensor:
        states = states + self.dropout(self._attend(self.attention_norm(states), visible))
        return states + self.dropout(self.feed_forward(self.forward_norm(states)))  # type: ignore[no-any-return]

    def _attend(self, states: Tensor, visible: Tensor) -> Tensor:
        batch, length, dim = states.shape
        split = self.project_in(states).view(batch, length, 3, self.heads, dim // self.heads).permute(2, 0, 3, 1, 4)
        mixed = nn.functional.scaled_dot_product_attention(split[0], split[1], split[2], attn_mask=visible)
        attended: Tensor = self.project_out(mixed.transpose(1, 2).reshape(batch, length, dim))
        return attended

"""Which classes of a teacher's logits are kept: logits → SoftLabels, on the teacher's device."""

from softlabels.selection.top_k import TopK

__all__ = ["TopK"]

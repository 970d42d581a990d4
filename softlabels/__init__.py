"""Label once, distil forever: teacher logits in label sets, joined to any student's inputs."""

from softlabels import errors, losses, teachers
from softlabels.labels import SoftLabels
from softlabels.labelset.derive import derive
from softlabels.labelset.reader import LabelSet
from softlabels.loading.build import loader
from softlabels.loading.loader import Loader
from softlabels.loading.mix import Mix, mix
from softlabels.precompute.forecast import Forecast, plan
from softlabels.precompute.run import precompute
from softlabels.selection import TopK

__version__ = "0.1.0"

__all__ = [
    "Forecast",
    "LabelSet",
    "Loader",
    "Mix",
    "SoftLabels",
    "TopK",
    "derive",
    "errors",
    "loader",
    "losses",
    "mix",
    "plan",
    "precompute",
    "teachers",
]

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
from softlabels.selection import Dense, Sampled, TopK, TopP

__version__ = "0.1.0"

__all__ = [
    "Dense",
    "Forecast",
    "LabelSet",
    "Loader",
    "Mix",
    "Sampled",
    "SoftLabels",
    "TopK",
    "TopP",
    "derive",
    "errors",
    "loader",
    "losses",
    "mix",
    "plan",
    "precompute",
    "teachers",
]

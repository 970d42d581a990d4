"""Label once, distil forever: teacher logits in label sets, joined to any student's inputs."""

from softlabels import errors, losses, teachers
from softlabels.deriving.derive import derive
from softlabels.inputs.preparation import Answers
from softlabels.inputs.transforms import torchvision_views
from softlabels.inputs.views import Views
from softlabels.labels import BinaryLabels, Embeddings, SoftLabels
from softlabels.labelset.reader import LabelSet
from softlabels.loading.build import loader
from softlabels.loading.loader import Loader
from softlabels.loading.mix import Mix, mix
from softlabels.precompute.forecast import Forecast, plan
from softlabels.precompute.run import precompute
from softlabels.selection import Dense, Sampled, TopK, TopP

__version__ = "0.1.0"

__all__ = [
    "Answers",
    "BinaryLabels",
    "Dense",
    "Embeddings",
    "Forecast",
    "LabelSet",
    "Loader",
    "Mix",
    "Sampled",
    "SoftLabels",
    "TopK",
    "TopP",
    "Views",
    "derive",
    "errors",
    "loader",
    "losses",
    "mix",
    "plan",
    "precompute",
    "teachers",
    "torchvision_views",
]

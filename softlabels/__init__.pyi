"""The public names, and where each lives."""

from . import errors, losses, teachers
from .deriving.derive import derive
from .inputs.preparation import Answers
from .inputs.transforms import torchvision_views
from .inputs.views import Views
from .labels import BinaryLabels, Embeddings, SoftLabels
from .labelset.reader import LabelSet
from .loading.build import loader
from .loading.loader import Loader
from .loading.mix import Mix, mix
from .precomputing.forecast import Forecast, plan
from .precomputing.run import precompute
from .selection import Dense, Sampled, TopK, TopP

__version__: str

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

"""Label once, distil forever: teacher logits in label sets, joined to any student's inputs.

Names stand in `__init__.pyi` and are loaded when they are first asked for: a program pays for what
it uses.
"""

import lazy_loader

__version__ = "0.1.0"
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

"""What one does with linnet, as functions: every verb of the command line is one of these."""

from linnet.workbench.evaluate import evaluate
from linnet.workbench.export import export_run, import_run
from linnet.workbench.generate import Pace, Session, generate, stream
from linnet.workbench.inspect import attention
from linnet.workbench.open import Opened, load
from linnet.workbench.options import Options
from linnet.workbench.recipes import options_of_recipe, options_of_run, recipes
from linnet.workbench.runs import runs, show
from linnet.workbench.train import resume, train, train_seeds

__all__ = [
    "Opened",
    "Options",
    "Pace",
    "Session",
    "attention",
    "evaluate",
    "export_run",
    "generate",
    "import_run",
    "load",
    "options_of_recipe",
    "options_of_run",
    "recipes",
    "resume",
    "runs",
    "show",
    "stream",
    "train",
    "train_seeds",
]

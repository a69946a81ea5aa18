"""What one does with linnet, as functions: every verb of the command line is one of these."""

from linnet.workbench.comparing import train_seeds
from linnet.workbench.exchanging import export_run, import_run
from linnet.workbench.generate import Pace, Session, generate, stream
from linnet.workbench.listing import runs, show
from linnet.workbench.making import resume, train
from linnet.workbench.opening import Opened, load
from linnet.workbench.options import Options
from linnet.workbench.tokenizers import tokenizer_check, tokenizer_train
from linnet.workbench.using import attention, evaluate

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
    "resume",
    "runs",
    "show",
    "stream",
    "tokenizer_check",
    "tokenizer_train",
    "train",
    "train_seeds",
]

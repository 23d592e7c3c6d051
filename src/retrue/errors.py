"""Everything that can go wrong, and what to do about it.

RetrueError
├── WrongSetting       an environment variable is missing or wrong: set the variables that the message names
├── BadInput           the caller's request, row or file is wrong: change it as the message says
│   ├── TooLarge       more or longer texts than this deployment takes: send less at a time
│   └── UnknownLabel   a label that the model does not know: use one of those in the message
├── NotFound           no such prediction, job or model: check the id
│   └── NoLake         nothing is kept where there is no lake: name a bucket (BUCKET), and start again
├── BadDataset         a dataset cannot be prepared or read: change the source as the message says
├── BadEncoder         a base encoder cannot be had or read: use one that the message names
├── NoModel            nothing is serving yet: run `retrue retrain`, or `retrue up` on this machine
├── ModelRefused       a model folder is incomplete or altered: promote another, or train again
├── TrainingFailed     the training program ended with an error: read its last lines in the message
├── Interrupted        the training was stopped from outside: start it again, it goes on from its last checkpoint
├── ReleaseRefused     a version did not answer as its model must: the alias was left where it was
├── AliasMoved         a deployment moved the alias meanwhile: publish the model again, with the code of now
├── Busy               another did the same at the same time: look at what it found, or try again
└── StackError         the stack is not there or not ready: run `retrue up`, or name the right one
"""


class RetrueError(Exception):
    """The root of every error that retrue raises on purpose."""


class WrongSetting(RetrueError):
    """An environment variable is missing or wrong."""


class BadInput(RetrueError):
    """The caller's request, row or file is wrong."""


class TooLarge(BadInput):
    """More or longer texts than this deployment takes."""


class UnknownLabel(BadInput):
    """A label that the model does not know."""


class NotFound(RetrueError):
    """No such prediction, job or model."""


class NoLake(NotFound):
    """Nothing is kept where there is no lake."""


class BadDataset(RetrueError):
    """A dataset cannot be prepared or read."""


class BadEncoder(RetrueError):
    """A base encoder cannot be had or read."""


class NoModel(RetrueError):
    """Nothing is serving yet."""


class ModelRefused(RetrueError):
    """A model folder is incomplete or was altered."""


class TrainingFailed(RetrueError):
    """The training program ended with an error."""


class Interrupted(RetrueError):
    """The training was stopped from outside, and can go on where it was."""


class ReleaseRefused(RetrueError):
    """A version did not answer as its model must."""


class AliasMoved(RetrueError):
    """A deployment moved the alias meanwhile."""


class Busy(RetrueError):
    """Another did the same at the same time."""


class StackError(RetrueError):
    """The stack is not there or not ready."""

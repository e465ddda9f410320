"""The training stage: recipe and images in; checkpoint, log and curves out."""

from alexdeploy.train.folder import folder_of_run
from alexdeploy.train.loop import TrainResult, train_network
from alexdeploy.train.progress import Epoch, FinalTest, Step
from alexdeploy.train.run import TrainingDivergedError

__all__ = ["Epoch", "FinalTest", "Step", "TrainResult", "TrainingDivergedError", "folder_of_run", "train_network"]
